// Elementary functions on 16 lanes, written once for every instruction set.
//
// The polynomials are our own minimax fits (Remez-like reweighting in double precision). With fused
// multiply-add they give the same bits on AVX2 and AVX-512.
#pragma once

#ifndef BERTRT_CPU_NAMESPACE
#error "include from a kernels.cpp, after its vec.h"
#endif

namespace bertrt::cpu::BERTRT_CPU_NAMESPACE {
namespace {

// exp(x) for x <= 88 or NaN; below -87.3 the result stays at 1.2e-38, the smallest normal number.
// x = n ln 2 + r with |r| <= ln 2 / 2, and exp(r) by a polynomial of degree 6 (3e-9 relative before
// rounding). Adding 1.5 * 2^23 rounds n to an integer and leaves it in the low bits of the sum.
inline F16 exp_f32(F16 x) {
  const F16 magic = broadcast(12582912.0f);
  x = max(broadcast(-87.33654f), x);  // in this order NaN stays
  const F16 shifted = fma(x, broadcast(1.44269504f), magic);
  const F16 n = shifted - magic;
  F16 r = fma(n, broadcast(-0.693359375f), x);  // ln 2 in two parts: the first has 9 bits
  r = fma(n, broadcast(2.12194440e-4f), r);
  F16 p = broadcast(0.001381461275741458f);
  p = fma(p, r, broadcast(0.008368710055947304f));
  p = fma(p, r, broadcast(0.04166838899254799f));
  p = fma(p, r, broadcast(0.1666652113199234f));
  p = fma(p, r, broadcast(0.4999999403953552f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  return scale_by_power(p, shifted);
}

// 2^(x + kPower) for x <= 0, or NaN, within 3e-6 relative, for softmax weights rounded to 16 bits;
// of 0 exactly 2^kPower, and below -126 what it is there. x = n + r with |r| <= 1/2, and 2^r by a
// polynomial of degree 4. The power costs nothing where n is rounded as in exp_f32().
template <int kPower>
inline F16 exp2_short(F16 x) {
  const F16 magic = broadcast(12582912.0f + kPower);
  x = max(broadcast(-126.0f), x);  // in this order NaN stays
  const F16 shifted = x + magic;
  const F16 r = x - (shifted - magic);
  F16 p = broadcast(0.009581047110259533f);
  p = fma(p, r, broadcast(0.05590597167611122f));
  p = fma(p, r, broadcast(0.24024145305156708f));
  p = fma(p, r, broadcast(0.6931243538856506f));
  p = fma(p, r, broadcast(1.0f));
  return scale_by_power(p, shifted);
}

// erf(z) within 3e-7 absolute: z P(z^2) / Q(z^2), fitted on [-4, 4], where the fit itself is good
// to 1.5e-9. Beyond, erf is 1 to within half an ulp and the fit rises above it (by 1e-7 at 4.3), so
// that clamping both sides gives exactly 1: GELU of a large negative number must vanish.
inline F16 erf_f32(F16 z) {
  z = min(max(z, broadcast(-4.3f)), broadcast(4.3f));
  const F16 s = z * z;
  F16 p = broadcast(-1.3666757503472127e-08f);
  p = fma(p, s, broadcast(4.78053470942541e-06f));
  p = fma(p, s, broadcast(0.0003826920292340219f));
  p = fma(p, s, broadcast(0.0038395272567868233f));
  p = fma(p, s, broadcast(0.054332587867975235f));
  p = fma(p, s, broadcast(0.1847103238105774f));
  p = fma(p, s, broadcast(1.128379225730896f));
  F16 q = broadcast(6.400922575267032e-05f);
  q = fma(q, s, broadcast(0.0013095783069729805f));
  q = fma(q, s, broadcast(0.015453511849045753f));
  q = fma(q, s, broadcast(0.11382628977298737f));
  q = fma(q, s, broadcast(0.49702879786491394f));
  q = fma(q, s, broadcast(1.0f));
  return min(max(z * p / q, broadcast(-1.0f)), broadcast(1.0f));
}

// x Phi(x) = x / 2 (1 + erf(x / sqrt 2)).
inline F16 gelu_erf_f32(F16 x) {
  const F16 half = x * broadcast(0.5f);
  return fma(half, erf_f32(x * broadcast(0.70710678f)), half);
}

// The same within 4.6e-5, for products of values rounded to 8 bits: x (1/2 + x P(x^2)), fitted on
// [-4.4, 4.4]. Beyond, P stays what it is there and the bracket is cut off at 0 and 1, so that GELU
// of a large negative number vanishes.
inline F16 gelu_erf_short(F16 x) {
  const F16 s = min(x * x, broadcast(19.36f));
  F16 p = broadcast(3.572861451139886e-11f);
  p = fma(p, s, broadcast(-3.756841948643341e-09f));
  p = fma(p, s, broadcast(1.7417882247627858e-07f));
  p = fma(p, s, broadcast(-4.726563929580152e-06f));
  p = fma(p, s, broadcast(8.431063906755298e-05f));
  p = fma(p, s, broadcast(-0.001055098487995565f));
  p = fma(p, s, broadcast(0.009643376804888248f));
  p = fma(p, s, broadcast(-0.06607697904109955f));
  p = fma(p, s, broadcast(0.39876189827919006f));
  const F16 half = broadcast(0.5f);
  const F16 h = max(min(x * p, half), broadcast(-0.5f));
  return fma(x, h, x * half);
}

// x / 2 (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3), as x / (1 + exp(-2 u)).
inline F16 gelu_tanh_f32(F16 x) {
  const F16 cubic = fma(x * x, broadcast(0.044715f), broadcast(1.0f)) * x;
  const F16 e = exp_f32(min(cubic * broadcast(-1.5957691216f), broadcast(88.0f)));
  return x / (broadcast(1.0f) + e);
}

// Short rows only (a pooler), so the library's function serves.
inline F16 tanh_f32(F16 x) {
  float lanes[16];
  store(lanes, x);
  for (int i = 0; i < 16; ++i) lanes[i] = __builtin_tanhf(lanes[i]);
  return load(lanes);
}

template <F16 (*function)(F16)>
inline void map_rows(float* x, int64_t stride, int64_t rows, int64_t cols) {
  for (; rows > 0; --rows, x += stride) {
    int64_t i = 0;
    for (; i + 32 <= cols; i += 32) {
      const F16 first = function(load(x + i));
      const F16 second = function(load(x + i + 16));
      store(x + i, first);
      store(x + i + 16, second);
    }
    for (; i + 16 <= cols; i += 16) store(x + i, function(load(x + i)));
    if (i < cols) {
      const int rest = static_cast<int>(cols - i);
      store_first(x + i, function(load_first(x + i, rest)), rest);
    }
  }
}

inline F16 relu_f32(F16 x) { return max(zero(), x); }  // in this order NaN stays

// Rows `stride` values apart.
template <F16 (*gelu_erf)(F16)>
void activate(Activation activation, float* x, int64_t stride, int64_t rows, int64_t cols) {
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kRelu:
      return map_rows<relu_f32>(x, stride, rows, cols);
    case Activation::kGeluErf:
      return map_rows<gelu_erf>(x, stride, rows, cols);
    case Activation::kGeluTanh:
      return map_rows<gelu_tanh_f32>(x, stride, rows, cols);
    case Activation::kTanh:
      return map_rows<tanh_f32>(x, stride, rows, cols);
  }
}

}  // namespace
}  // namespace bertrt::cpu::BERTRT_CPU_NAMESPACE
