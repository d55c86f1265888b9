#include "plan/plan.h"

#include <initializer_list>
#include <limits>
#include <set>

#include "core/error.h"

namespace bertrt::plan {
namespace {

// Extents, heads and the like stay below it, as in bertrt/plan/fields.py: products of two are far
// from overflow.
constexpr int64_t kLimit = int64_t{1} << 28;

// Keeps a sum of products of 8-bit integers (255 * 127 each) below 2^31. As in
// bertrt/plan/check.py.
constexpr int64_t kMaxInputs = 65536;

template <class Value>
struct Named {
  const char* name;
  Value value;
};

// What a kind of step has: so many inputs, these roles and these fields, and no others. Those that
// end in "?" may be absent. The same table is in bertrt/plan/check.py.
struct Rule {
  const char* name;
  Op value;
  size_t inputs;
  std::vector<std::string> roles, fields;
};

const Rule kRules[] = {
    {"embed_layer_norm",
     Op::kEmbedLayerNorm,
     0,
     {"word", "type?", "position", "gamma", "beta"},
     {"eps"}},
    {"qkv_linear",
     Op::kQkvLinear,
     1,
     {"weight", "scale?", "bias"},
     {"heads", "head_dim", "weight_layout", "bias_layout", "transposed", "precision?"}},
    {"attention",
     Op::kAttention,
     1,
     {"bias?"},
     {"heads", "head_dim", "scale", "mask", "precision?"}},
    {"attention_weights",
     Op::kAttentionWeights,
     1,
     {"bias?"},
     {"heads", "head_dim", "scale", "mask"}},
    {"linear_add_layer_norm",
     Op::kLinearAddLayerNorm,
     2,
     {"weight", "scale?", "bias", "gamma", "beta"},
     {"eps", "transposed", "precision?"}},
    {"linear",
     Op::kLinear,
     1,
     {"weight", "scale?", "bias?"},
     {"activation", "transposed", "precision?"}},
    {"layer_norm", Op::kLayerNorm, 1, {"gamma", "beta"}, {"eps"}},
    {"first_token", Op::kFirstToken, 1, {}, {}},
    {"gather_positions", Op::kGatherPositions, 1, {}, {}},
};

constexpr Named<Activation> kActivations[] = {
    {"none", Activation::kNone},        {"relu", Activation::kRelu},
    {"gelu_erf", Activation::kGeluErf}, {"gelu_tanh", Activation::kGeluTanh},
    {"tanh", Activation::kTanh},
};

constexpr Named<QkvLayout> kLayouts[] = {
    {"separate", QkvLayout::kSeparate},
    {"interleaved", QkvLayout::kInterleaved},
};

constexpr Named<Precision> kPrecisions[] = {
    {"fp32", Precision::kFp32},
    {"bf16", Precision::kBf16},
    {"int8", Precision::kInt8},
    {"fp8", Precision::kFp8},
};

template <class Entry, size_t kCount>
auto parse(const Entry (&table)[kCount], const std::string& name, const char* what) {
  std::string known;
  for (const auto& entry : table) {
    if (name == entry.name) return entry.value;
    known += known.empty() ? "" : ", ";
    known += entry.name;
  }
  throw PlanError("plan: " + std::string(what) + " '" + name + "' is unknown; expected one of " +
                  known);
}

template <class Entry, class Value, size_t kCount>
const char* name_of(const Entry (&table)[kCount], Value value) {
  for (const auto& entry : table) {
    if (entry.value == value) return entry.name;
  }
  return "?";
}

constexpr Named<RowKind> kRows[] = {
    {"tokens", RowKind::kTokens},       {"qkv", RowKind::kQkv},     {"seqs", RowKind::kSeqs},
    {"positions", RowKind::kPositions}, {"pairs", RowKind::kPairs},
};

const char* storage_name(Storage storage) {
  switch (storage) {
    case Storage::kFloat32:
      return "float32";
    case Storage::kBfloat16:
      return "bfloat16";
    case Storage::kInt8:
      return "int8";
    case Storage::kFp8:
      return "float8_e4m3";
  }
  return "?";
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + ")";
}

// Checks one step after the other; knows the values made so far.
class Validator {
 public:
  explicit Validator(const Plan& plan) : plan_(plan) {}

  CheckedPlan run() {
    if (plan_.version != kVersion) {
      throw PlanError("plan: version " + std::to_string(plan_.version) + ", this bertrt runs " +
                      std::to_string(kVersion));
    }
    dimension("hidden", plan_.hidden);
    dimension("vocab_size", plan_.vocab_size);
    dimension("max_length", plan_.max_length);
    if (plan_.type_vocab_size != 0) dimension("type_vocab_size", plan_.type_vocab_size);
    std::set<std::string> names;
    for (const Step& step : plan_.steps) {
      step_ = &step;
      if (!names.insert(step.name).second) fail("an earlier step has this name too");
      checked_.steps.push_back(check());
      const int number = static_cast<int>(made_.size());
      if (!made_.emplace(step.output, number).second) {
        fail("output '" + step.output + "' is made by an earlier step too");
      }
    }
    step_ = nullptr;
    if (plan_.outputs.empty()) throw PlanError("plan: no outputs");
    std::set<std::string> listed;
    for (const auto& [name, value] : plan_.outputs) {
      if (!listed.insert(value).second) {
        throw PlanError("plan: value '" + value + "' is listed as two outputs");
      }
      const auto found = made_.find(value);
      if (found == made_.end()) {
        throw PlanError("plan: output '" + name + "' is value '" + value +
                        "', which no step makes");
      }
      checked_.outputs.push_back(found->second);
    }
    checked_.plan = &plan_;
    return std::move(checked_);
  }

 private:
  [[noreturn]] void fail(const std::string& message) const {
    throw PlanError("plan: step '" + step_->name + "' (" + op_name(step_->op) + "): " + message);
  }

  void dimension(const char* name, int64_t value) const {
    if (value >= 1 && value < kLimit) return;
    const std::string message = std::string(name) + " is " + std::to_string(value) +
                                ", expected 1 to " + std::to_string(kLimit - 1);
    if (step_) fail(message);
    throw PlanError("plan: " + message);
  }

  // What the step has of a kind of thing ("role", "field"), against what its rule says.
  template <class Has>
  void named(const char* kind, const std::vector<std::string>& rule, const Has& has) const {
    std::string expected;
    std::set<std::string> known;
    for (const std::string& entry : rule) {
      const bool optional = entry.back() == '?';
      const std::string name = optional ? entry.substr(0, entry.size() - 1) : entry;
      known.insert(name);
      expected += (expected.empty() ? "" : ", ") + entry;
      if (!optional && !has.count(name)) fail(std::string("no ") + kind + " '" + name + "'");
    }
    for (const auto& entry : has) {
      const std::string& name = name_in(entry);
      if (known.count(name)) continue;
      fail(std::string(kind) + " '" + name + "', which such a step does not have; expected " +
           (expected.empty() ? "none" : expected));
    }
  }
  static const std::string& name_in(const std::string& name) { return name; }
  template <class Value>
  static const std::string& name_in(const std::pair<const std::string, Value>& entry) {
    return entry.first;
  }

  // The shape of an input, whose rows are of one of these kinds.
  ValueShape reads(size_t i, std::initializer_list<RowKind> kinds) const {
    const ValueShape shape = checked_.steps[static_cast<size_t>(made_.at(step_->inputs[i]))].result;
    std::string expected;
    for (const RowKind kind : kinds) {
      if (shape.rows == kind) return shape;
      expected += (expected.empty() ? "" : " or ") + std::string(name_of(kRows, kind));
    }
    fail("input '" + step_->inputs[i] + "' has rows of " + name_of(kRows, shape.rows) +
         ", expected rows of " + expected);
  }

  ValueShape reads_rows(size_t i) const {
    return reads(i, {RowKind::kTokens, RowKind::kSeqs, RowKind::kPositions});
  }

  bool has(const char* role) const { return step_->weights.count(role) != 0; }

  // The arrays of a role, each of the given shape.
  std::vector<const Weight*> arrays(const char* role, size_t count,
                                    const std::vector<int64_t>& shape,
                                    Storage storage = Storage::kFloat32) const {
    const std::vector<Weight>& found = step_->weights.at(role);
    if (found.size() != count) {
      fail("role '" + std::string(role) + "' has " + std::to_string(found.size()) +
           " weights, expected " + std::to_string(count));
    }
    std::vector<const Weight*> result;
    for (const Weight& weight : found) {
      if (!weight.identity) fail("weight '" + weight.name + "' has no data");
      if (weight.storage != storage) {
        fail("weight '" + weight.name + "' (" + role + ") is " + storage_name(weight.storage) +
             ", expected " + storage_name(storage));
      }
      if (weight.shape != shape) {
        fail("weight '" + weight.name + "' (" + role + ") has shape " + shape_text(weight.shape) +
             ", expected " + shape_text(shape));
      }
      result.push_back(&weight);
    }
    return result;
  }

  const Weight* array(const char* role, const std::vector<int64_t>& shape) const {
    return arrays(role, 1, shape).front();
  }

  void layer_norm(CheckedStep& out, int64_t hidden) const {
    out.gamma = array("gamma", {hidden});
    out.beta = array("beta", {hidden});
    if (!(step_->eps >= 0 && step_->eps < 1)) {
      fail("eps is not a finite number >= 0 and < 1");
    }
  }

  // A matrix in so many blocks of so many outputs each.
  void matrix(CheckedStep& out, size_t blocks, int64_t outputs, int64_t inputs) const {
    dimension("outputs", outputs);
    if (inputs > kMaxInputs) {
      fail("a product over " + std::to_string(inputs) + " inputs, at most " +
           std::to_string(kMaxInputs) + " can be summed");
    }
    const Storage storage = stored();
    out.matrix = arrays("weight", blocks,
                        step_->transposed ? std::vector<int64_t>{inputs, outputs}
                                          : std::vector<int64_t>{outputs, inputs},
                        storage);
    if (has("scale") != (storage == Storage::kInt8 || storage == Storage::kFp8)) {
      fail("weights in 8 bits and a role 'scale' need each other");
    }
    if (has("scale")) out.scale = arrays("scale", blocks, {outputs});
    out.matrix_inputs = inputs;
    out.matrix_outputs = static_cast<int64_t>(blocks) * outputs;
    out.block_outputs = outputs;
  }

  // What the step's matrices are stored as: float32, or as its products are computed.
  Storage stored() const {
    const std::vector<Weight>& found = step_->weights.at("weight");
    if (found.empty()) return Storage::kFloat32;
    const Storage storage = found.front().storage;
    const bool fits = storage == Storage::kFloat32 ||
                      (storage == Storage::kBfloat16 && step_->precision == Precision::kBf16) ||
                      (storage == Storage::kInt8 && step_->precision == Precision::kInt8) ||
                      (storage == Storage::kFp8 && step_->precision == Precision::kFp8);
    if (!fits) fail(std::string("precision does not fit weights in ") + storage_name(storage));
    return storage;
  }

  // The shape of a role that is one matrix.
  const std::vector<int64_t>& matrix_shape(const char* role) const {
    const std::vector<Weight>& found = step_->weights.at(role);
    if (found.size() != 1 || found[0].shape.size() != 2) {
      fail("role '" + std::string(role) + "' must be one matrix");
    }
    return found[0].shape;
  }

  // The matrix of a linear step, whose weight says how many outputs it has; gives their number.
  int64_t linear(CheckedStep& out, int64_t inputs) const {
    const int64_t outputs = matrix_shape("weight")[step_->transposed ? 1 : 0];
    matrix(out, 1, outputs, inputs);
    if (has("bias")) out.bias = arrays("bias", 1, {outputs});
    return outputs;
  }

  int64_t heads() const {
    dimension("heads", step_->heads);
    dimension("head_dim", step_->head_dim);
    const int64_t hidden = step_->heads * step_->head_dim;
    dimension("heads * head_dim", hidden);
    return hidden;
  }

  CheckedStep check() const {
    const Rule* rule = nullptr;
    for (const Rule& each : kRules) {
      if (each.value == step_->op) rule = &each;
    }
    if (!rule) fail("unknown operation");
    named("role", rule->roles, step_->weights);
    named("field", rule->fields, step_->fields);
    if (step_->inputs.size() != rule->inputs) {
      fail(std::to_string(step_->inputs.size()) + " inputs, expected " +
           std::to_string(rule->inputs));
    }
    CheckedStep out;
    out.step = step_;
    for (const std::string& input : step_->inputs) {
      const auto found = made_.find(input);
      if (found == made_.end()) fail("input '" + input + "' is not made by an earlier step");
      out.inputs.push_back(found->second);
    }
    out.result = bind(out);
    return out;
  }

  // Finds the arrays of each role that the step has; gives its result.
  ValueShape bind(CheckedStep& out) const {
    switch (step_->op) {
      case Op::kEmbedLayerNorm: {
        for (const CheckedStep& earlier : checked_.steps) {
          if (earlier.step->op == Op::kEmbedLayerNorm) fail("a second embedding");
        }
        // The tables may be narrower than the layers, or wider: a linear step brings them there.
        const int64_t width = matrix_shape("word")[1];
        dimension("width", width);
        out.word = array("word", {plan_.vocab_size, width});
        out.position = array("position", {plan_.max_length, width});
        if (has("type") != (plan_.type_vocab_size > 0)) {
          fail("role 'type' and type_vocab_size disagree");
        }
        if (has("type")) out.type = array("type", {plan_.type_vocab_size, width});
        layer_norm(out, width);
        return {RowKind::kTokens, width};
      }
      case Op::kQkvLinear: {
        const ValueShape x = reads(0, {RowKind::kTokens});
        out.queries = heads();
        const bool separate = step_->weight_layout == QkvLayout::kSeparate;
        matrix(out, separate ? 3 : 1, separate ? out.queries : 3 * out.queries, x.cols);
        if (step_->bias_layout == QkvLayout::kSeparate) {
          out.bias = arrays("bias", 3, {out.queries});
        } else {
          out.bias = arrays("bias", 1, {3 * out.queries});
        }
        return {RowKind::kQkv, 3 * out.queries};
      }
      case Op::kAttention:
      case Op::kAttentionWeights: {
        const ValueShape qkv = reads(0, {RowKind::kQkv});
        const int64_t projected = heads();
        if (qkv.cols != 3 * projected) {
          fail("input has " + std::to_string(qkv.cols) + " columns, expected " +
               std::to_string(3 * projected));
        }
        if (!(step_->scale > 0 && step_->scale <= std::numeric_limits<float>::max())) {
          fail("scale is not a finite number > 0 in float32");
        }
        if (step_->mask != "none" && step_->mask != "valid_length") {
          fail("mask is '" + step_->mask + "', expected none or valid_length");
        }
        if (has("bias")) out.distances = array("bias", {step_->heads, 2 * plan_.max_length - 1});
        if (step_->op == Op::kAttentionWeights) return {RowKind::kPairs, step_->heads};
        return {RowKind::kTokens, projected};
      }
      case Op::kLinearAddLayerNorm: {
        const ValueShape x = reads_rows(0);
        const ValueShape residual = reads(1, {x.rows});
        const int64_t outputs = linear(out, x.cols);
        if (residual.cols != outputs) {
          fail("residual '" + step_->inputs[1] + "' has " + std::to_string(residual.cols) +
               " columns, the product " + std::to_string(outputs));
        }
        layer_norm(out, outputs);
        return {x.rows, outputs};
      }
      case Op::kLinear: {
        const ValueShape x = reads_rows(0);
        return {x.rows, linear(out, x.cols)};
      }
      case Op::kLayerNorm: {
        const ValueShape x = reads_rows(0);
        layer_norm(out, x.cols);
        return x;
      }
      case Op::kFirstToken:
        return {RowKind::kSeqs, reads(0, {RowKind::kTokens}).cols};
      case Op::kGatherPositions:
        return {RowKind::kPositions, reads(0, {RowKind::kTokens}).cols};
    }
    fail("unknown operation");
  }

  const Plan& plan_;
  const Step* step_ = nullptr;
  std::map<std::string, int> made_;  // by the name of its result
  CheckedPlan checked_;
};

}  // namespace

CheckedPlan validate(const Plan& plan) { return Validator(plan).run(); }

Op parse_op(const std::string& name) { return parse(kRules, name, "operation"); }
const char* op_name(Op op) { return name_of(kRules, op); }
Activation parse_activation(const std::string& name) {
  return parse(kActivations, name, "activation");
}
QkvLayout parse_layout(const std::string& name) { return parse(kLayouts, name, "layout"); }
Precision parse_precision(const std::string& name) { return parse(kPrecisions, name, "precision"); }

}  // namespace bertrt::plan
