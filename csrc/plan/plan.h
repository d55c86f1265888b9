// The fused plan: what the engine executes, step by step.
//
// bertrt/plan/plan.py writes it and docs/plan.md describes every field. It arrives here as plain
// structs; validate() checks all that the engine and the kernels rely on, so that no plan, however
// broken, makes them touch memory that is not theirs. They go by what validate() returns: every
// array is found by its role there, and every width worked out there, and nowhere a second time.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
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
  std::set<std::string> fields;  // the names of those that are stated, of the ones below or not
  double eps = 0.0;
  int64_t heads = 0;
  int64_t head_dim = 0;
  double scale = 0.0;
  std::string mask;  // which keys a batch's `attended` says: nothing is computed by this
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

// What the rows of a value are counted by; kQkv: tokens too, with query, key and value side by
// side, which attention alone reads; kPairs: a sequence's tokens, each with each.
enum class RowKind { kTokens, kQkv, kSeqs, kPositions, kPairs };

struct ValueShape {
  RowKind rows{};
  int64_t cols = 0;
};

// A step that is right: what it reads and makes, by number, and its arrays, by role. Null, empty or
// 0: it has no such thing.
struct CheckedStep {
  const Step* step = nullptr;
  std::vector<int> inputs;  // the steps whose results it reads
  ValueShape result;

  // A product's matrix: one array, or three blocks of outputs, one below the other; of all of them
  // together (outputs, inputs), unless transposed.
  std::vector<const Weight*> matrix, scale, bias;
  int64_t matrix_inputs = 0, matrix_outputs = 0, block_outputs = 0;
  int64_t queries = 0;  // columns of a qkv_linear's result; as many are keys, as many values

  const Weight* word = nullptr;
  const Weight* type = nullptr;
  const Weight* position = nullptr;
  const Weight* gamma = nullptr;
  const Weight* beta = nullptr;
  // What attention adds to scores: (heads, 2 max_length - 1), distance 0 in the middle column.
  const Weight* distances = nullptr;
};

struct CheckedPlan {
  const Plan* plan = nullptr;  // has to outlive this
  std::vector<CheckedStep> steps;
  std::vector<int> outputs;  // the steps that make the plan's outputs
};

// Throws PlanError naming the step, and the role, field or array.
CheckedPlan validate(const Plan& plan);

// Names as the plan file spells them; unknown ones throw PlanError.
Op parse_op(const std::string& name);
const char* op_name(Op op);
Activation parse_activation(const std::string& name);
QkvLayout parse_layout(const std::string& name);
Precision parse_precision(const std::string& name);

}  // namespace bertrt::plan
