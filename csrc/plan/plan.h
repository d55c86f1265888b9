// The fused plan: what the engine executes, step by step.
//
// bertrt/plan/plan.py writes it and docs/plan.md describes every field. It arrives here as plain
// structs; validate() checks all that the engine and the kernels rely on, so that no plan, however
// broken, makes them touch memory that is not theirs.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/types.h"

namespace bertrt::plan {

inline constexpr int64_t kVersion = 1;

enum class Op {
  kEmbedLayerNorm,
  kQkvLinear,
  kAttention,
  kAttentionWeights,
  kLinearAddLayerNorm,
  kLinear,
  kLayerNorm,
  kFirstToken,
  kGatherPositions,
};

// How query, key and value stand in an array of 3 * hidden rows: as three arrays, or as one whose
// rows go by head, then by query, key, value, then by head_dim (GluonNLP's own graph pass).
enum class QkvLayout { kSeparate, kInterleaved };

// Dense, row-major. The memory belongs to the caller, or to `owner`.
struct Weight {
  std::string name;
  const void* identity = nullptr;      // the same for weights that are the same array
  mutable const void* data = nullptr;  // null: not loaded yet
  Storage storage = Storage::kFloat32;
  std::vector<int64_t> shape;
  // What keeps the memory from going, if the caller does not; let go of when it is not read again.
  mutable std::shared_ptr<const void> owner = nullptr;

  const float* floats() const { return static_cast<const float*>(data); }
};

struct Step {
  Op op{};
  std::string name;
  std::vector<std::string> inputs;
  std::string output;
  std::map<std::string, std::vector<Weight>> weights;  // by role
  double eps = 0.0;
  int64_t heads = 0;
  int64_t head_dim = 0;
  double scale = 0.0;
  bool transposed = false;
  QkvLayout weight_layout = QkvLayout::kSeparate;
  QkvLayout bias_layout = QkvLayout::kSeparate;
  Activation activation = Activation::kNone;
  std::optional<Precision> precision;  // none: the engine's, or of a head fp32
};

struct Plan {
  int64_t version = 0;
  int64_t hidden = 0;
  int64_t vocab_size = 0;
  int64_t type_vocab_size = 0;  // 0: no token types
  int64_t max_length = 0;
  std::vector<Step> steps;
  std::vector<std::pair<std::string, std::string>> outputs;  // name, value
  // Brings weights into memory that are not loaded.
  std::function<void(const std::vector<const Weight*>&)> load;
};

// What the rows of a value are counted by; kPairs: a sequence's tokens, each with each.
enum class RowKind { kTokens, kSeqs, kPositions, kPairs };

struct ValueShape {
  RowKind rows{};
  int64_t cols = 0;
};

// Returns the shape of every value. Throws PlanError naming the step and the field.
std::map<std::string, ValueShape> validate(const Plan& plan);

// Names as the plan file spells them; unknown ones throw PlanError.
Op parse_op(const std::string& name);
const char* op_name(Op op);
Activation parse_activation(const std::string& name);
QkvLayout parse_layout(const std::string& name);
Precision parse_precision(const std::string& name);

}  // namespace bertrt::plan
