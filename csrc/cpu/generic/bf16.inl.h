// Rows and attention on products of bfloat16 in pairs, for any instruction that has them; a
// kernels.cpp has these primitives in its namespace before it includes this:
//
//   Pairs load_pairs(const char*)                      16 columns of weights, two inputs each
//   F16 add_pairs(F16, const int32_t*, Pairs)          adds two products to each of 16 sums
//   void store_bf16(uint16_t*, F16)                    rounds to bfloat16
//   void store_bf16_pairs(int32_t*, F16, F16)          the same, two vectors woven
#pragma once

#include "cpu/generic/attention.inl.h"
#include "cpu/generic/peak.inl.h"

namespace bertrt::cpu::BERTRT_CPU_NAMESPACE {
namespace {

struct BFloat16Pairs {
  using Input = int32_t;  // two bfloat16
  using Sum = F16;
  using Weights = Pairs;
  static constexpr int kRows = kGemmRows;
  static constexpr int kGroup = 2;
  static constexpr bool kExact = false;
  static constexpr int64_t kBlock = kDepthBlockBf16 / 2;
  static constexpr int64_t kVector = 16 * 2 * sizeof(uint16_t);
  static Sum none() { return zero(); }
  static Weights load_weights(const char* p) { return load_pairs(p); }
  static Sum step(Sum sum, const Input* x, Weights w) { return add_pairs(sum, x, w); }
  static F16 value(Sum sum, const GemmTile&, int, int) { return sum; }
  static F16 gelu_erf(F16 x) { return gelu_erf_short(x); }
};

inline void convert(const float* x, int64_t depth, void* out, RowSteps*) {
  uint16_t* row = static_cast<uint16_t*>(out);
  for_each_vector(x, depth, [&](int64_t i, F16 v) { store_bf16(row + i, v); });
}

struct AttentionBf16 {
  using Product = BFloat16Pairs;

  static constexpr float kExpUnits = kLog2E;
  static constexpr float kLargestWeight = 1.0f;
  static F16 exp(F16 x) { return exp2_short<0>(x); }
  static float row_limit(int64_t) { return 1.0f; }
  static float row(const float* x, int64_t count, float, void* out) {
    convert(x, count, out, nullptr);
    return 1.0f;
  }
  static void values(const float* x, int cols, int64_t stride, int64_t tokens, void* out,
                     int64_t step, float*) {
    int32_t* units = static_cast<int32_t*>(out);
    for (int64_t t = 0; t < tokens; t += 2) {
      const F16 first = load_first(x + t * stride, cols);
      const F16 second = t + 1 < tokens ? load_first(x + (t + 1) * stride, cols) : zero();
      store_bf16_pairs(units + t / 2 * step, first, second);
    }
  }
  static F16 weights(F16 e, void* row, int64_t i) {
    store_bf16(static_cast<uint16_t*>(row) + i, e);
    return e;
  }
  static F16 score(F16 sum, float, const float*) { return sum; }
  static F16 context(F16 sum, const float*) { return sum; }
};

}  // namespace
}  // namespace bertrt::cpu::BERTRT_CPU_NAMESPACE
