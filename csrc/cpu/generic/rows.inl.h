// Kernels over one row of hidden values: LayerNorm, and the embedding sum with its LayerNorm.
#pragma once

#include "cpu/generic/math.inl.h"

namespace bertrt::cpu::BERTRT_CPU_NAMESPACE {
namespace {

// Two passes, as Gluon does it: the mean, then the mean of the squared deviations.
void layer_norm_f32(const LayerNorm& norm, const float* x, float* out) {
  const int64_t n = norm.hidden;
  const int64_t whole = n / 16 * 16;
  const int rest = static_cast<int>(n - whole);

  F16 sum = zero();
  for (int64_t i = 0; i < whole; i += 16) sum = sum + load(x + i);
  if (rest) sum = sum + load_first(x + whole, rest);
  const float mean_value = reduce_add(sum) / static_cast<float>(n);
  const F16 mean = broadcast(mean_value);

  F16 squares = zero();
  for (int64_t i = 0; i < whole; i += 16) {
    const F16 d = load(x + i) - mean;
    squares = fma(d, d, squares);
  }
  if (rest) {
    const F16 d = select_first(rest, load_first(x + whole, rest) - mean, zero());
    squares = fma(d, d, squares);
  }
  const float variance = reduce_add(squares) / static_cast<float>(n);
  const F16 scale = broadcast(1.0f / __builtin_sqrtf(variance + norm.eps));

  for (int64_t i = 0; i < whole; i += 16) {
    const F16 normalised = (load(x + i) - mean) * scale;
    store(out + i, fma(normalised, load(norm.gamma + i), load(norm.beta + i)));
  }
  if (rest) {
    const F16 normalised = (load_first(x + whole, rest) - mean) * scale;
    const F16 y =
        fma(normalised, load_first(norm.gamma + whole, rest), load_first(norm.beta + whole, rest));
    store_first(out + whole, y, rest);
  }
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
  layer_norm_f32(e.norm, out, out);
}

}  // namespace
}  // namespace bertrt::cpu::BERTRT_CPU_NAMESPACE
