// Plans and packed batches from libFuzzer, which goes by what they reach: `make fuzz-plan`.
//
// An input is a small BERT, a list of edits to its plan, and a batch. The edits know the plan's
// structure, so that most inputs get past its first checks, and nothing of what is allowed: every
// number, name, shape and role may become another. What validate() takes is packed and run twice,
// and each sequence alone: no byte outside of what was allocated for it, and the same bits. Arrays
// are allocated one by one and just as long as their shapes say, since a sanitizer sees no end
// within a block.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include <fuzzer/FuzzedDataProvider.h>

#include "core/error.h"
#include "plan/plan.h"
#include "runtime/engine.h"
#include "runtime/model.h"

namespace bertrt {
namespace {

using plan::Op;
using plan::Step;
using plan::Weight;

// Of an array, elements: more would only cost time.
constexpr int64_t kMaxElements = 1 << 14;

constexpr int64_t kNumbers[] = {
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    11,
    12,
    13,
    15,
    16,
    17,
    23,
    24,
    31,
    32,
    33,
    48,
    63,
    64,
    65,
    -1,
    255,
    256,
    65535,
    65536,
    65537,
    1 << 27,
    (1 << 28) - 1,
    1 << 28,
    INT32_MAX,
    int64_t{1} << 32,
    INT64_MAX,
    INT64_MIN,
};

const double kReals[] = {0.0,   1e-12, 1e-5, 0.125, 0.35,     1.0,         -1.0,
                         1e-45, 3e38,  1e39, 1e300, HUGE_VAL, std::nan("")};

// Extents of the plan that edits begin with.
struct Extents {
  int64_t heads, head_dim, ffn;
};

constexpr Extents kExtents[] = {{2, 4, 12}, {1, 13, 7}, {3, 5, 33}, {1, 32, 16}, {1, 64, 5}};
constexpr int64_t kVocab = 11, kTypes = 2, kLength = 12;

class Case {
 public:
  Case(const uint8_t* bytes, size_t size) : data_(bytes, size) {}

  void run() {
    build();
    const int edits = data_.ConsumeIntegralInRange(0, 8);
    for (int i = 0; i < edits && data_.remaining_bytes() > 0; ++i) edit();
    plan_.load = [](const std::vector<const Weight*>&) {};
    const auto precision = pick({Precision::kFp32, Precision::kBf16, Precision::kInt8});
    try {
      const int threads = data_.ConsumeIntegralInRange(0, 31) == 0 ? 2 : 1;
      const auto model = std::make_shared<const Model>(plan_, precision, threads);
      Engine engine(model, threads, false);
      for (int i = 0; i < 2; ++i) batch(engine);
    } catch (const PlanError&) {
    } catch (const BatchError&) {
    } catch (const std::bad_alloc&) {
    } catch (const std::length_error&) {  // the binding makes an OutOfMemoryError of it
    }
  }

 private:
  template <class Value>
  Value pick(std::initializer_list<Value> values) {
    return values.begin()[data_.ConsumeIntegralInRange<size_t>(0, values.size() - 1)];
  }

  int64_t number() { return data_.PickValueInArray(kNumbers); }
  size_t index(size_t size) { return data_.ConsumeIntegralInRange<size_t>(0, size - 1); }

  // --- the plan ----------------------------------------------------------------------------------

  Weight weight(const std::string& name, std::vector<int64_t> shape,
                Storage storage = Storage::kFloat32) {
    Weight made;
    made.name = name;
    made.storage = storage;
    made.shape = std::move(shape);
    back(made);
    return made;
  }

  // Memory of a weight, exactly as its shape says; false: it would be too much.
  bool back(Weight& weight) {
    int64_t count = 1;
    for (const int64_t extent : weight.shape) {
      if (extent < 0 || (extent > 0 && count > kMaxElements / extent)) return false;
      count *= extent;
    }
    const size_t width = weight.storage == Storage::kFloat32    ? 4
                         : weight.storage == Storage::kBfloat16 ? 2
                                                                : 1;
    const size_t bytes = static_cast<size_t>(count) * width;
    std::unique_ptr<char[]> memory(new char[bytes]);
    uint32_t state = static_cast<uint32_t>(count) * 2654435761u + 12345u;
    for (int64_t i = 0; i < count; ++i) {
      state = state * 1664525u + 1013904223u;
      const float value = static_cast<float>(static_cast<int32_t>(state >> 8) % 1000) / 2000.0f;
      uint32_t bits;
      std::memcpy(&bits, &value, 4);
      char* place = memory.get() + static_cast<size_t>(i) * width;
      const auto high = static_cast<uint16_t>(bits >> 16);
      if (width == 4) std::memcpy(place, &bits, 4);
      if (width == 2) std::memcpy(place, &high, 2);
      if (width == 1) *place = static_cast<char>(state >> 24);
    }
    weight.data = weight.identity = memory.get();
    memory_.push_back(std::move(memory));
    return true;
  }

  Step& step(Op op, const std::string& name, std::vector<std::string> inputs,
             std::vector<std::string> fields) {
    Step made;
    made.op = op;
    made.name = made.output = name;
    made.inputs = std::move(inputs);
    made.fields = {fields.begin(), fields.end()};
    plan_.steps.push_back(std::move(made));
    return plan_.steps.back();
  }

  void norm(Step& step, int64_t width) {
    step.eps = 1e-12;
    step.weights["gamma"] = {weight(step.name + ".gamma", {width})};
    step.weights["beta"] = {weight(step.name + ".beta", {width})};
  }

  void linear(Step& step, int64_t outputs, int64_t inputs) {
    step.weights["weight"] = {weight(step.name + ".weight", {outputs, inputs})};
    step.weights["bias"] = {weight(step.name + ".bias", {outputs})};
  }

  void build() {
    const Extents& extents = data_.PickValueInArray(kExtents);
    const int64_t heads = extents.heads, dim = extents.head_dim, hidden = heads * dim;
    plan_.version = plan::kVersion;
    plan_.hidden = hidden;
    plan_.vocab_size = kVocab;
    plan_.type_vocab_size = kTypes;
    plan_.max_length = kLength;
    Step& embed = step(Op::kEmbedLayerNorm, "embed", {}, {"eps"});
    embed.weights["word"] = {weight("word", {kVocab, hidden})};
    embed.weights["type"] = {weight("type", {kTypes, hidden})};
    embed.weights["position"] = {weight("position", {kLength, hidden})};
    norm(embed, hidden);
    std::string x = "embed";
    const int layers = data_.ConsumeIntegralInRange(0, 2);
    for (int layer = 0; layer < layers; ++layer) {
      const std::string at = std::to_string(layer) + ".";
      Step& qkv = step(Op::kQkvLinear, at + "qkv", {x},
                       {"heads", "head_dim", "weight_layout", "bias_layout", "transposed"});
      qkv.heads = heads, qkv.head_dim = dim;
      for (const char* part : {"q", "k", "v"}) {
        qkv.weights["weight"].push_back(weight(at + part + ".weight", {hidden, hidden}));
        qkv.weights["bias"].push_back(weight(at + part + ".bias", {hidden}));
      }
      Step& attention = step(Op::kAttention, at + "attention", {at + "qkv"},
                             {"heads", "head_dim", "scale", "mask"});
      attention.heads = heads, attention.head_dim = dim, attention.scale = 0.35;
      attention.mask = "valid_length";
      Step& out =
          step(Op::kLinearAddLayerNorm, at + "out", {at + "attention", x}, {"eps", "transposed"});
      linear(out, hidden, hidden);
      norm(out, hidden);
      Step& ffn = step(Op::kLinear, at + "ffn", {at + "out"}, {"activation", "transposed"});
      ffn.activation = Activation::kGeluErf;
      linear(ffn, extents.ffn, hidden);
      Step& last = step(Op::kLinearAddLayerNorm, at + "last", {at + "ffn", at + "out"},
                        {"eps", "transposed"});
      linear(last, hidden, extents.ffn);
      norm(last, hidden);
      x = at + "last";
    }
    step(Op::kFirstToken, "first", {x}, {});
    Step& pooler = step(Op::kLinear, "pooler", {"first"}, {"activation", "transposed"});
    pooler.activation = Activation::kTanh;
    linear(pooler, hidden, hidden);
    step(Op::kGatherPositions, "gather", {x}, {});
    Step& decoder = step(Op::kLinear, "decoder", {"gather"}, {"activation", "transposed"});
    linear(decoder, kVocab, hidden);
    plan_.outputs = {{"sequence", x}, {"pooled", "pooler"}, {"decoded", "decoder"}};
  }

  // --- its edits ---------------------------------------------------------------------------------

  std::string value() { return plan_.steps[index(plan_.steps.size())].output; }

  void edit() {
    if (plan_.steps.empty()) return;
    Step& step = plan_.steps[index(plan_.steps.size())];
    switch (data_.ConsumeIntegralInRange(0, 21)) {
      case 0:
        step.op = static_cast<Op>(data_.ConsumeIntegralInRange(0, 8));
        break;
      case 1:
        if (!step.inputs.empty()) step.inputs[index(step.inputs.size())] = value();
        break;
      case 2:
        if (data_.ConsumeBool())
          step.inputs.push_back(value());
        else if (!step.inputs.empty())
          step.inputs.pop_back();
        break;
      case 3:
        step.output = data_.ConsumeBool() ? value() : "other";
        break;
      case 4:
        step.name = plan_.steps[index(plan_.steps.size())].name;
        break;
      case 5:
        (data_.ConsumeBool() ? step.heads : step.head_dim) = number();
        break;
      case 6:
        (data_.ConsumeBool() ? step.eps : step.scale) = data_.PickValueInArray(kReals);
        break;
      case 7:
        step.transposed = !step.transposed;
        break;
      case 8:
        step.weight_layout = plan::QkvLayout::kInterleaved;
        break;
      case 9:
        step.bias_layout = plan::QkvLayout::kInterleaved;
        break;
      case 10:
        step.activation = static_cast<Activation>(data_.ConsumeIntegralInRange(0, 4));
        break;
      case 11:
        step.precision = pick({Precision::kFp32, Precision::kBf16, Precision::kInt8});
        step.fields.insert("precision");
        break;
      case 12: {
        const auto name = pick({"eps", "heads", "head_dim", "scale", "mask", "transposed",
                                "activation", "precision", "weight_layout", "bias_layout", "x"});
        if (!step.fields.erase(name)) step.fields.insert(name);
        break;
      }
      case 13: {
        const Step copy = step;
        plan_.steps.insert(plan_.steps.begin() + static_cast<int64_t>(index(plan_.steps.size())),
                           copy);
        break;
      }
      case 14:
        plan_.steps.erase(plan_.steps.begin() + static_cast<int64_t>(index(plan_.steps.size())));
        break;
      case 15:
        std::swap(step, plan_.steps[index(plan_.steps.size())]);
        break;
      case 16:
        *pick({&plan_.hidden, &plan_.vocab_size, &plan_.type_vocab_size, &plan_.max_length,
               &plan_.version}) = number();
        break;
      case 17:
        if (data_.ConsumeBool() && !plan_.outputs.empty())
          plan_.outputs.pop_back();
        else
          plan_.outputs.emplace_back("more", value());
        break;
      case 18:
        step.mask = pick({"none", "valid_length", ""});
        break;
      case 19:  // a step of its own, that its name and its result tell from others
        step.name = step.output = "own" + std::to_string(plan_.steps.size());
        break;
      default:
        edit_weights(step);
    }
  }

  void edit_weights(Step& step) {
    const std::string role =
        pick({"weight", "bias", "scale", "gamma", "beta", "word", "type", "position", "x"});
    std::vector<Weight>* found = step.weights.count(role) ? &step.weights[role] : nullptr;
    switch (data_.ConsumeIntegralInRange(0, 8)) {
      case 0:
        step.weights.erase(role);
        return;
      case 1: {
        std::vector<int64_t> shape;
        for (int i = data_.ConsumeIntegralInRange(0, 2); i > 0; --i) shape.push_back(number());
        Weight made;
        made.name = "new";
        made.shape = std::move(shape);
        if (back(made)) step.weights[role].push_back(made);
        return;
      }
      case 2:  // another step's, as layers that share theirs
        for (const Step& other : plan_.steps) {
          const auto theirs = other.weights.find(role);
          if (theirs == other.weights.end() || data_.ConsumeBool()) continue;
          step.weights[role] = std::vector<Weight>(theirs->second);
          return;
        }
        return;
      case 3: {  // what attention adds by distance
        Weight made;
        made.name = "distances";
        made.shape = {step.heads, 2 * std::clamp<int64_t>(plan_.max_length, 0, 4096) - 1};
        if (back(made)) step.weights["bias"] = {made};
        return;
      }
      default:
        break;
    }
    if (!found || found->empty()) return;
    Weight& own = (*found)[index(found->size())];
    Weight changed = own;
    switch (data_.ConsumeIntegralInRange(0, 4)) {
      case 0:
        if (!changed.shape.empty()) changed.shape[index(changed.shape.size())] = number();
        break;
      case 1:
        std::reverse(changed.shape.begin(), changed.shape.end());
        break;
      case 2:
        changed.storage = pick({Storage::kFloat32, Storage::kBfloat16, Storage::kInt8});
        break;
      case 3:  // int8 as it should be
        if (role == "scale") return;
        for (Weight& each : *found) {
          Weight narrow = each, scale = each;
          narrow.storage = Storage::kInt8;
          if (scale.shape.empty() || !back(narrow)) return;
          scale.shape = {scale.shape[step.transposed ? scale.shape.size() - 1 : 0]};
          if (!back(scale)) return;
          each = narrow;
          step.weights["scale"].push_back(scale);
        }
        step.precision = Precision::kInt8;
        step.fields.insert("precision");
        return;
      case 4:
        if (data_.ConsumeBool())
          found->push_back(own);
        else
          found->pop_back();
        return;
    }
    if (back(changed)) own = changed;
  }

  // --- the batch ---------------------------------------------------------------------------------

  // Just as long as it says, for the sanitizer to see its ends.
  std::vector<int32_t> ints(size_t count, int32_t below) {
    std::vector<int32_t> values(count);
    for (int32_t& each : values) {
      const auto byte = data_.ConsumeIntegral<uint8_t>();
      each = byte < 250 ? byte % std::max(1, below)
                        : pick({-1, below, INT32_MAX, INT32_MIN, below + 1});
    }
    return values;
  }

  void batch(Engine& engine) {
    const auto seqs = data_.ConsumeIntegralInRange<size_t>(1, 4);
    std::vector<int32_t> ends{0};
    for (size_t s = 0; s < seqs; ++s) {
      const auto byte = data_.ConsumeIntegral<uint8_t>();
      const int32_t length = byte < 250 ? byte % 14 : pick({-1, 40, -100});
      ends.push_back(ends.back() + length);
    }
    if (ends.back() < 0) return;  // the binding refuses what has another number of ids
    if (data_.ConsumeIntegralInRange(0, 63) == 0) ends[0] = 1;
    const auto tokens = static_cast<size_t>(ends.back());
    const std::vector<int32_t> ids = ints(tokens, kVocab), types = ints(tokens, kTypes);
    const auto per_seq = data_.ConsumeIntegralInRange<size_t>(0, 3);
    const std::vector<int32_t> masked = ints(seqs * per_seq, 3), attended = ints(seqs, 14);
    PackedBatch packed;
    packed.token_ids = ids.data();
    packed.token_types = types.data();
    packed.cu_seqlens = ends.data();
    packed.seqs = static_cast<int64_t>(seqs);
    if (data_.ConsumeIntegralInRange(0, 7) != 0) {
      packed.masked_positions = masked.data();
      packed.masked_per_seq = static_cast<int64_t>(per_seq);
    }
    if (data_.ConsumeIntegralInRange(0, 3) == 0) packed.attended = attended.data();
    std::vector<std::string> wanted;
    for (const auto& [name, made] : engine.graph().outputs) {
      const bool taken = std::find(wanted.begin(), wanted.end(), name) != wanted.end();
      if (!taken && data_.ConsumeIntegralInRange(0, 3) != 0) wanted.push_back(name);
    }
    try {
      const auto first = results(engine, packed, wanted), second = results(engine, packed, wanted);
      compare("the second time", first, second, engine, wanted, packed, -1);
      for (int64_t s = 0; s < packed.seqs; ++s) {
        const int32_t alone_ends[] = {
            0, ends[static_cast<size_t>(s) + 1] - ends[static_cast<size_t>(s)]};
        PackedBatch alone = packed.sequences(s, s + 1);
        alone.cu_seqlens = alone_ends;
        compare("alone", first, results(engine, alone, wanted), engine, wanted, packed, s);
      }
    } catch (const BatchError&) {
    }
  }

  static std::vector<std::vector<float>> results(Engine& engine, const PackedBatch& batch,
                                                 const std::vector<std::string>& wanted) {
    const Graph& graph = engine.graph();
    graph.check(batch, wanted);
    std::vector<std::vector<float>> made;
    std::vector<Output> outputs;
    for (const std::string& name : wanted) {
      const int value = graph.output_value(name);
      // Neither what is not written nor what is left of before may look like a result.
      made.emplace_back(graph.rows(value, batch) * graph.values[static_cast<size_t>(value)].cols,
                        static_cast<float>(made.size()) - 1e30f);
      outputs.push_back({name, nullptr});
    }
    for (size_t i = 0; i < made.size(); ++i) outputs[i].data = made[i].data();
    engine.run(batch, outputs, [] {});
    return made;
  }

  // The rows of one sequence, or with -1 of all.
  static void compare(const char* when, const std::vector<std::vector<float>>& whole,
                      const std::vector<std::vector<float>>& other, const Engine& engine,
                      const std::vector<std::string>& wanted, const PackedBatch& batch,
                      int64_t seq) {
    const Graph& graph = engine.graph();
    for (size_t i = 0; i < wanted.size(); ++i) {
      const int value = graph.output_value(wanted[i]);
      size_t begin = 0;
      if (seq > 0) {
        const PackedBatch before = batch.sequences(0, seq);
        begin = static_cast<size_t>(graph.rows(value, before) *
                                    graph.values[static_cast<size_t>(value)].cols);
      }
      const size_t size = other[i].size();
      const bool fits = begin + size <= whole[i].size() && (seq >= 0 || size == whole[i].size());
      if (fits && (size == 0 || std::memcmp(whole[i].data() + begin, other[i].data(),
                                            size * sizeof(float)) == 0)) {
        continue;
      }
      std::fprintf(stderr, "output %s has other bits %s, of sequence %ld\n", wanted[i].c_str(),
                   when, static_cast<long>(seq));
      std::abort();
    }
  }

  FuzzedDataProvider data_;
  plan::Plan plan_;
  std::deque<std::unique_ptr<char[]>> memory_;
};

}  // namespace
}  // namespace bertrt

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  bertrt::Case(data, size).run();
  return 0;
}
