// Kernels over one row of hidden values: LayerNorm, and the embedding sum with its LayerNorm.
#pragma once

#include "cpu/generic/math.inl.h"

namespace bertrt::cpu::BERTRT_CPU_NAMESPACE {
namespace {

// Four sums over vectors in turn, so that an addition need not wait for the one before.
struct Sums {
  F16 sum[4] = {zero(), zero(), zero(), zero()};
  float total() const { return reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3])); }
};

// Calls body(first, lanes, which) for every vector of n values, `which` going round the four sums.
template <class Body>
inline void for_each_of_four(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    body(i, 16, 0);
    body(i + 16, 16, 1);
    body(i + 32, 16, 2);
    body(i + 48, 16, 3);
  }
  for (; i + 16 <= n; i += 16) body(i, 16, 0);
  if (i < n) body(i, static_cast<int>(n - i), 1);
}

inline F16 load_lanes(const float* p, int lanes) {
  return lanes == 16 ? load(p) : load_first(p, lanes);
}
inline void store_lanes(float* p, F16 v, int lanes) {
  if (lanes == 16) {
    store(p, v);
  } else {
    store_first(p, v, lanes);
  }
}

// LayerNorm in double precision, where squares of deviations would be denormal, and so zeros.
__attribute__((noinline)) void layer_norm_small(const LayerNorm& norm, const float* x, float* out) {
  const auto n = static_cast<double>(norm.hidden);
  double mean = 0.0;
  for (int64_t i = 0; i < norm.hidden; ++i) mean += x[i];
  mean /= n;
  double squares = 0.0;
  for (int64_t i = 0; i < norm.hidden; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const double scale = 1.0 / __builtin_sqrt(squares / n + norm.eps);
  for (int64_t i = 0; i < norm.hidden; ++i) {
    out[i] = static_cast<float>((x[i] - mean) * scale * norm.gamma[i] + norm.beta[i]);
  }
}

// Two passes, as Gluon does it: the mean, then the mean of the squared deviations.
void layer_norm_f32(const LayerNorm& norm, const float* x, const float* residual, float* out) {
  const int64_t n = norm.hidden;
  Sums sums;
  if (residual) {
    for_each_of_four(n, [&](int64_t i, int lanes, int which) {
      const F16 v = load_lanes(x + i, lanes) + load_lanes(residual + i, lanes);
      store_lanes(out + i, v, lanes);
      sums.sum[which] = sums.sum[which] + v;
    });
    x = out;
  } else {
    for_each_of_four(n, [&](int64_t i, int lanes, int which) {
      sums.sum[which] = sums.sum[which] + load_lanes(x + i, lanes);
    });
  }
  const F16 mean = broadcast(sums.total() / static_cast<float>(n));

  Sums squares;
  for_each_of_four(n, [&](int64_t i, int lanes, int which) {
    F16 d = load_lanes(x + i, lanes) - mean;
    if (lanes < 16) d = select_first(lanes, d, zero());
    squares.sum[which] = fma(d, d, squares.sum[which]);
  });
  const float variance = squares.total() / static_cast<float>(n);
  const float spread = variance + static_cast<float>(norm.eps);
  // A square below 1.2e-38 shows in no mean above this, and no usual epsilon is below.
  if (spread < 1e-30f) return layer_norm_small(norm, x, out);
  const F16 scale = broadcast(1.0f / __builtin_sqrtf(spread));

  for_each_of_four(n, [&](int64_t i, int lanes, int) {
    const F16 normalised = (load_lanes(x + i, lanes) - mean) * scale;
    const F16 gamma = load_lanes(norm.gamma + i, lanes);
    store_lanes(out + i, fma(normalised, gamma, load_lanes(norm.beta + i, lanes)), lanes);
  });
}

// LayerNorm(word + type + position), summed in Gluon's order.
void embed_f32(const Embedding& e, int32_t word, int32_t type, int32_t position, float* out) {
  const int64_t n = e.norm.hidden;
  const float* w = e.word + word * n;
  const float* t = e.type ? e.type + type * n : nullptr;
  const float* p = e.position + position * n;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    F16 sum = load(w + i);
    if (t) sum = sum + load(t + i);
    store(out + i, sum + load(p + i));
  }
  for (; i < n; ++i) {
    float sum = w[i];
    if (t) sum += t[i];
    out[i] = sum + p[i];
  }
  layer_norm_f32(e.norm, out, nullptr, out);
}

}  // namespace
}  // namespace bertrt::cpu::BERTRT_CPU_NAMESPACE
