#include "runtime/weights.h"

#include <algorithm>

namespace bertrt {
namespace {

// Columns of [query | key | value] in the order of rows that go by head first.
std::vector<int64_t> interleaved_columns(int64_t heads, int64_t head_dim) {
  std::vector<int64_t> columns;
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t part = 0; part < 3; ++part) {
      for (int64_t d = 0; d < head_dim; ++d) {
        columns.push_back((part * heads + head) * head_dim + d);
      }
    }
  }
  return columns;
}

}  // namespace

LinearWeights::LinearWeights(const plan::Step& step) {
  const std::vector<plan::Weight>& matrices = step.weights.at("weight");
  const auto scales = step.weights.find("scale");
  for (const plan::Weight& weight : matrices) {
    const int64_t rows = weight.shape[step.transposed ? 1 : 0];
    inputs = weight.shape[step.transposed ? 0 : 1];
    const float* scale =
        scales == step.weights.end() ? nullptr : scales->second[blocks.size()].floats();
    blocks.push_back(
        {weight.data, weight.storage, scale, rows, inputs, step.transposed, nullptr, outputs});
    outputs += rows;
  }
  const bool qkv = step.op == plan::Op::kQkvLinear;
  if (qkv) columns_ = interleaved_columns(step.heads, step.head_dim);
  if (qkv && step.weight_layout == plan::QkvLayout::kInterleaved) {
    blocks.front().columns = columns_.data();
  }
  const auto found = step.weights.find("bias");
  if (found == step.weights.end()) return;
  for (const plan::Weight& b : found->second) {
    bias.insert(bias.end(), b.floats(), b.floats() + b.shape[0]);
  }
  if (qkv && step.bias_layout == plan::QkvLayout::kInterleaved) {
    const std::vector<float> source = bias;
    for (size_t i = 0; i < columns_.size(); ++i) {
      bias[static_cast<size_t>(columns_[i])] = source[i];
    }
  }
}

std::pair<int64_t, int64_t> matrix_extents(const plan::Step& step) {
  int64_t inputs = 0, outputs = 0;
  for (const plan::Weight& weight : step.weights.at("weight")) {
    inputs = weight.shape[step.transposed ? 0 : 1];
    outputs += weight.shape[step.transposed ? 1 : 0];
  }
  return {inputs, outputs};
}

MatrixIdentity matrix_identity(const plan::Step& step) {
  MatrixIdentity identity{static_cast<uintptr_t>(step.transposed)};
  if (step.op == plan::Op::kQkvLinear) {  // which says in what order columns go
    identity.push_back(static_cast<uintptr_t>(step.weight_layout));
    identity.push_back(static_cast<uintptr_t>(step.heads));
    identity.push_back(static_cast<uintptr_t>(step.head_dim));
  }
  for (const char* role : {"weight", "scale"}) {
    const auto found = step.weights.find(role);
    if (found == step.weights.end()) continue;
    for (const plan::Weight& weight : found->second) {
      identity.push_back(reinterpret_cast<uintptr_t>(weight.identity));
      identity.push_back(static_cast<uintptr_t>(weight.storage));
      identity.insert(identity.end(), weight.shape.begin(), weight.shape.end());
    }
  }
  return identity;
}

const float* distance_bias_of(const plan::Step& step, int64_t max_length) {
  const auto found = step.weights.find("bias");
  return found == step.weights.end() ? nullptr : found->second.front().floats() + max_length - 1;
}

std::vector<float> vector_of(const plan::Step& step, const char* role) {
  const plan::Weight& weight = step.weights.at(role).front();
  return {weight.floats(), weight.floats() + weight.shape[0]};
}

void load_weights(const plan::Plan& plan, const plan::Step& step, bool packed) {
  std::vector<const plan::Weight*> missing;
  for (const auto& [role, weights] : step.weights) {
    if (packed && (role == "weight" || role == "scale")) continue;
    for (const plan::Weight& weight : weights) {
      if (!weight.data) missing.push_back(&weight);
    }
  }
  if (!missing.empty()) plan.load(missing);
}

void release_weights(const plan::Step& step) {
  for (const auto& [role, weights] : step.weights) {
    for (const plan::Weight& weight : weights) weight.owner.reset();
  }
}

}  // namespace bertrt
