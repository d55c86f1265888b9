// The oracle: every fused operation in plain loops, with sums in double precision.
//
// Written to be read. The kernels are tested against it, and it is the first thing to look at when
// asking what an operation means.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace bertrt::reference {

float activate(Activation activation, float x);

// out[rows][outputs] = activation(x[rows][inputs] * weight[outputs][inputs]^T + bias);
// bias may be null.
void linear(const float* x, const float* weight, const float* bias, Activation activation,
            int64_t rows, int64_t inputs, int64_t outputs, float* out);

// out = gamma * (y - mean) / sqrt(variance + eps) + beta with y = x + residual, per row; residual
// may be null.
void layer_norm(const float* x, const float* residual, const float* gamma, const float* beta,
                double eps, int64_t rows, int64_t hidden, float* out);

// qkv: tokens x 3 * heads * head_dim as [query | key | value], each by head. One sequence.
// bias: what scaled scores have added, a row of 2 * reach - 1 values a head, by the distance from
// query to key, which begins at 1 - reach; or null.
void attention(const float* qkv, int64_t tokens, int64_t heads, int64_t head_dim, double scale,
               const float* bias, int64_t reach, float* out);

}  // namespace bertrt::reference
