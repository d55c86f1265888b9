// The weights of a plan as devices take them.
#pragma once

#include <cstdint>
#include <tuple>
#include <vector>

#include "core/ops.h"
#include "plan/plan.h"

namespace bertrt {

// The matrix of a linear step: where its columns lie in the model's files, and its bias. Queries,
// keys and values, however they lie there, become [query | key | value], each by head.
struct LinearWeights {
  explicit LinearWeights(const plan::CheckedStep& step);
  LinearWeights(const LinearWeights&) = delete;  // blocks point into it
  LinearWeights& operator=(const LinearWeights&) = delete;

  std::vector<WeightBlock> blocks;
  std::vector<float> bias;  // empty: none

 private:
  std::vector<int64_t> columns_;
};

// What tells the matrix of a linear step from others: steps that name the same arrays, as layers
// that share their weights do, have the same.
using MatrixIdentity = std::tuple<bool, plan::QkvLayout, int64_t, int64_t, std::vector<uintptr_t>>;
MatrixIdentity matrix_identity(const plan::CheckedStep& step);

std::vector<float> vector_of(const plan::Weight& weight);

// Brings what a step reads into memory, where it is not there already; a matrix that is `packed`
// is not read.
void load_weights(const plan::Plan& plan, const plan::Step& step, bool packed);

// Lets go of what a step has read: without this a model would be resident twice while it is loaded.
void release_weights(const plan::Step& step);

}  // namespace bertrt
