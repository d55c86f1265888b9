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

LinearWeights::LinearWeights(const plan::CheckedStep& checked) {
  const plan::Step& step = *checked.step;
  const bool qkv = step.op == plan::Op::kQkvLinear;
  if (qkv) columns_ = interleaved_columns(step.heads, step.head_dim);
  const bool by_head = qkv && step.weight_layout == plan::QkvLayout::kInterleaved;
  for (size_t i = 0; i < checked.matrix.size(); ++i) {
    const plan::Weight& weight = *checked.matrix[i];
    blocks.push_back(
        {weight.data, weight.storage, checked.scale.empty() ? nullptr : checked.scale[i]->floats(),
         checked.block_outputs, checked.matrix_inputs, step.transposed,
         by_head ? columns_.data() : nullptr, static_cast<int64_t>(i) * checked.block_outputs});
  }
  for (const plan::Weight* array : checked.bias) {
    bias.insert(bias.end(), array->floats(), array->floats() + array->shape[0]);
  }
  if (!bias.empty() && qkv && step.bias_layout == plan::QkvLayout::kInterleaved) {
    const std::vector<float> source = bias;
    for (size_t i = 0; i < columns_.size(); ++i) {
      bias[static_cast<size_t>(columns_[i])] = source[i];
    }
  }
}

MatrixIdentity matrix_identity(const plan::CheckedStep& checked) {
  const plan::Step& step = *checked.step;
  std::vector<uintptr_t> arrays;
  for (const auto* role : {&checked.matrix, &checked.scale}) {
    for (const plan::Weight* weight : *role) {
      arrays.push_back(reinterpret_cast<uintptr_t>(weight->identity));
      arrays.push_back(static_cast<uintptr_t>(weight->storage));
      arrays.insert(arrays.end(), weight->shape.begin(), weight->shape.end());
    }
  }
  // The step's heads say in what order columns go; there are none but those of a qkv_linear.
  return {step.transposed, step.weight_layout, step.heads, step.head_dim, std::move(arrays)};
}

std::vector<float> vector_of(const plan::Weight& weight) {
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
