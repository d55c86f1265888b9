#include "plan/plan.h"

#include <cmath>
#include <set>

#include "core/error.h"

namespace bertrt::plan {
namespace {

// Keeps every product of two dimensions far from overflow.
constexpr int64_t kMaxDimension = int64_t{1} << 28;

// Keeps a sum of products of 8-bit integers (255 * 127 each) below 2^31.
constexpr int64_t kMaxInputs = 65536;

template <class Value>
struct Named {
  const char* name;
  Value value;
};

constexpr Named<Op> kOps[] = {
    {"embed_layer_norm", Op::kEmbedLayerNorm},
    {"qkv_linear", Op::kQkvLinear},
    {"attention", Op::kAttention},
    {"attention_weights", Op::kAttentionWeights},
    {"linear_add_layer_norm", Op::kLinearAddLayerNorm},
    {"linear", Op::kLinear},
    {"layer_norm", Op::kLayerNorm},
    {"first_token", Op::kFirstToken},
    {"gather_positions", Op::kGatherPositions},
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
};

template <class Value, size_t kCount>
Value parse(const Named<Value> (&table)[kCount], const std::string& name, const char* what) {
  std::string known;
  for (const auto& entry : table) {
    if (name == entry.name) return entry.value;
    known += known.empty() ? "" : ", ";
    known += entry.name;
  }
  throw PlanError("plan: " + std::string(what) + " '" + name + "' is unknown; expected one of " +
                  known);
}

template <class Value, size_t kCount>
const char* name_of(const Named<Value> (&table)[kCount], Value value) {
  for (const auto& entry : table) {
    if (entry.value == value) return entry.name;
  }
  return "?";
}

const char* storage_name(Storage storage) {
  switch (storage) {
    case Storage::kFloat32:
      return "float32";
    case Storage::kBfloat16:
      return "bfloat16";
    case Storage::kInt8:
      return "int8";
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

  std::map<std::string, ValueShape> run() {
    if (plan_.version != kVersion) {
      throw PlanError("plan: version " + std::to_string(plan_.version) + ", this bertrt runs " +
                      std::to_string(kVersion));
    }
    dimension("hidden", plan_.hidden);
    dimension("vocab_size", plan_.vocab_size);
    dimension("max_length", plan_.max_length);
    if (plan_.type_vocab_size != 0) dimension("type_vocab_size", plan_.type_vocab_size);
    for (const Step& step : plan_.steps) {
      step_ = &step;
      const ValueShape shape = check();
      if (!values_.emplace(step.output, shape).second) {
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
      if (!values_.count(value)) {
        throw PlanError("plan: output '" + name + "' is value '" + value +
                        "', which no step makes");
      }
    }
    return std::move(values_);
  }

 private:
  [[noreturn]] void fail(const std::string& message) const {
    throw PlanError("plan: step '" + step_->name + "' (" + op_name(step_->op) + "): " + message);
  }

  void dimension(const char* name, int64_t value) const {
    if (value >= 1 && value <= kMaxDimension) return;
    const std::string message = std::string(name) + " is " + std::to_string(value) +
                                ", expected 1 to " + std::to_string(kMaxDimension);
    if (step_) fail(message);
    throw PlanError("plan: " + message);
  }

  void inputs(size_t count) const {
    if (step_->inputs.size() != count) {
      fail(std::to_string(step_->inputs.size()) + " inputs, expected " + std::to_string(count));
    }
  }

  ValueShape input(size_t i) const {
    const auto found = values_.find(step_->inputs[i]);
    if (found == values_.end()) {
      fail("input '" + step_->inputs[i] + "' is not made by an earlier step");
    }
    return found->second;
  }

  ValueShape token_input(size_t i) const {
    const ValueShape shape = input(i);
    if (shape.rows != RowKind::kTokens) {
      fail("input '" + step_->inputs[i] + "' has no row per token");
    }
    return shape;
  }

  bool has(const char* role) const { return step_->weights.count(role) != 0; }

  // The weights of a role, each with the given shape.
  void weights(const char* role, size_t count, const std::vector<int64_t>& shape,
               Storage storage = Storage::kFloat32) const {
    const auto found = step_->weights.find(role);
    if (found == step_->weights.end() || found->second.size() != count) {
      fail("role '" + std::string(role) + "' has " +
           std::to_string(found == step_->weights.end() ? 0 : found->second.size()) +
           " weights, expected " + std::to_string(count));
    }
    for (const Weight& weight : found->second) {
      if (!weight.identity) fail("weight '" + weight.name + "' has no data");
      if (weight.storage != storage) {
        fail("weight '" + weight.name + "' (" + role + ") is " + storage_name(weight.storage) +
             ", expected " + storage_name(storage));
      }
      if (weight.shape != shape) {
        fail("weight '" + weight.name + "' (" + role + ") has shape " + shape_text(weight.shape) +
             ", expected " + shape_text(shape));
      }
    }
  }

  void layer_norm(int64_t hidden) const {
    weights("gamma", 1, {hidden});
    weights("beta", 1, {hidden});
    if (!std::isfinite(step_->eps) || step_->eps < 0) fail("eps is not a finite number >= 0");
  }

  void matrix(size_t count, int64_t outputs, int64_t inputs) const {
    dimension("outputs", outputs);
    if (inputs > kMaxInputs) {
      fail("a product over " + std::to_string(inputs) + " inputs, at most " +
           std::to_string(kMaxInputs) + " can be summed");
    }
    const Storage storage = stored();
    weights("weight", count,
            step_->transposed ? std::vector<int64_t>{inputs, outputs}
                              : std::vector<int64_t>{outputs, inputs},
            storage);
    if (has("scale") != (storage == Storage::kInt8)) {
      fail("int8 weights and a role 'scale' need each other");
    }
    if (has("scale")) weights("scale", count, {outputs});
  }

  // What the step's matrices are stored as: float32, or as its products are computed.
  Storage stored() const {
    const auto found = step_->weights.find("weight");
    if (found == step_->weights.end() || found->second.empty()) return Storage::kFloat32;
    const Storage storage = found->second.front().storage;
    const bool fits = storage == Storage::kFloat32 ||
                      (storage == Storage::kBfloat16 && step_->precision == Precision::kBf16) ||
                      (storage == Storage::kInt8 && step_->precision == Precision::kInt8);
    if (!fits) fail(std::string("precision does not fit weights in ") + storage_name(storage));
    return storage;
  }

  // The shape of a role that is one matrix.
  const std::vector<int64_t>& matrix_shape(const char* role) const {
    const auto found = step_->weights.find(role);
    if (found == step_->weights.end() || found->second.size() != 1 ||
        found->second[0].shape.size() != 2) {
      fail("role '" + std::string(role) + "' must be one matrix");
    }
    return found->second[0].shape;
  }

  // The output width of a linear step, from its weight's shape.
  int64_t outputs_of_linear(int64_t inputs) const {
    const int64_t outputs = matrix_shape("weight")[step_->transposed ? 1 : 0];
    matrix(1, outputs, inputs);
    if (has("bias")) weights("bias", 1, {outputs});
    return outputs;
  }

  int64_t heads() const {
    dimension("heads", step_->heads);
    dimension("head_dim", step_->head_dim);
    const int64_t hidden = step_->heads * step_->head_dim;
    dimension("heads * head_dim", hidden);
    return hidden;
  }

  ValueShape check() const {
    switch (step_->op) {
      case Op::kEmbedLayerNorm: {
        inputs(0);
        // The tables may be narrower than the layers, or wider: a linear step brings them there.
        const int64_t width = matrix_shape("word")[1];
        dimension("width", width);
        weights("word", 1, {plan_.vocab_size, width});
        weights("position", 1, {plan_.max_length, width});
        if (has("type") != (plan_.type_vocab_size > 0)) {
          fail("role 'type' and type_vocab_size disagree");
        }
        if (has("type")) weights("type", 1, {plan_.type_vocab_size, width});
        layer_norm(width);
        return {RowKind::kTokens, width};
      }
      case Op::kQkvLinear: {
        inputs(1);
        const ValueShape x = token_input(0);
        const int64_t projected = heads();
        const bool separate = step_->weight_layout == QkvLayout::kSeparate;
        matrix(separate ? 3 : 1, separate ? projected : 3 * projected, x.cols);
        if (step_->bias_layout == QkvLayout::kSeparate) {
          weights("bias", 3, {projected});
        } else {
          weights("bias", 1, {3 * projected});
        }
        return {RowKind::kTokens, 3 * projected};
      }
      case Op::kAttention:
      case Op::kAttentionWeights: {
        inputs(1);
        const int64_t projected = heads();
        if (token_input(0).cols != 3 * projected) {
          fail("input has " + std::to_string(input(0).cols) + " columns, expected " +
               std::to_string(3 * projected));
        }
        if (!std::isfinite(step_->scale) || step_->scale <= 0) {
          fail("scale is not a finite number > 0");
        }
        if (has("bias")) weights("bias", 1, {step_->heads, 2 * plan_.max_length - 1});
        if (step_->op == Op::kAttentionWeights) return {RowKind::kPairs, step_->heads};
        return {RowKind::kTokens, projected};
      }
      case Op::kLinearAddLayerNorm: {
        inputs(2);
        const ValueShape x = input(0);
        const ValueShape residual = input(1);
        const int64_t outputs = outputs_of_linear(x.cols);
        if (residual.rows != x.rows || residual.cols != outputs) {
          fail("residual '" + step_->inputs[1] + "' does not have the shape of the product");
        }
        layer_norm(outputs);
        return {x.rows, outputs};
      }
      case Op::kLinear: {
        inputs(1);
        const ValueShape x = input(0);
        return {x.rows, outputs_of_linear(x.cols)};
      }
      case Op::kLayerNorm: {
        inputs(1);
        const ValueShape x = input(0);
        layer_norm(x.cols);
        return x;
      }
      case Op::kFirstToken:
        inputs(1);
        return {RowKind::kSeqs, token_input(0).cols};
      case Op::kGatherPositions:
        inputs(1);
        return {RowKind::kPositions, token_input(0).cols};
    }
    fail("unknown operation");
  }

  const Plan& plan_;
  const Step* step_ = nullptr;
  std::map<std::string, ValueShape> values_;
};

}  // namespace

std::map<std::string, ValueShape> validate(const Plan& plan) { return Validator(plan).run(); }

Op parse_op(const std::string& name) { return parse(kOps, name, "operation"); }
const char* op_name(Op op) { return name_of(kOps, op); }
Activation parse_activation(const std::string& name) {
  return parse(kActivations, name, "activation");
}
QkvLayout parse_layout(const std::string& name) { return parse(kLayouts, name, "layout"); }
Precision parse_precision(const std::string& name) { return parse(kPrecisions, name, "precision"); }

}  // namespace bertrt::plan
