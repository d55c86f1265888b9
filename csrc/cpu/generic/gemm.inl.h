// The matrix product of one row tile with one packed panel.
//
// Every element of the result is summed over the depth in the same order whatever the height of the
// tile: so a row has the same bits in any batch, and with fused multiply-add the same bits on AVX2
// and AVX-512.
#pragma once

#include "cpu/generic/math.inl.h"

namespace bertrt::cpu::BERTRT_CPU_NAMESPACE {
namespace {

inline constexpr int kPanel = 16 * kGemmVectors;

template <int kRows>
struct Accumulators {
  F16 sum[kRows][kGemmVectors];
};

// Sums are taken over this many products at a time and then added up, since a long chain of
// roundings loses more: over 24 layers, blocks of 256 were a third less exact. Adding the
// accumulators to memory this often costs no time that can be measured on Zen 4.
inline constexpr int64_t kDepthBlock = 96;

// a[kRows][depth] * panel[depth][kPanel]. Activations are read in place: three rows share a
// pointer, since an address may add once or twice the stride, and so 14 rows need five pointers.
template <int kRows>
inline __attribute__((always_inline)) void multiply(const float* a, int64_t a_stride,
                                                    const float* panel, int64_t depth,
                                                    Accumulators<kRows>& result) {
  constexpr int kPointers = (kRows + 2) / 3;
  const float* p[kPointers];
#pragma GCC unroll 16
  for (int j = 0; j < kPointers; ++j) p[j] = a + 3 * j * a_stride;
  for (int64_t begin = 0; begin < depth; begin += kDepthBlock) {
    const int64_t end = begin + kDepthBlock < depth ? begin + kDepthBlock : depth;
    F16 sum[kRows][kGemmVectors];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kGemmVectors; ++j) sum[i][j] = zero();
    }
    for (int64_t k = begin; k < end; ++k) {
      F16 b[kGemmVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kGemmVectors; ++j) b[j] = load(panel + 16 * j);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const F16 x = broadcast(p[i / 3][(i % 3) * a_stride]);
#pragma GCC unroll 4
        for (int j = 0; j < kGemmVectors; ++j) sum[i][j] = fma(x, b[j], sum[i][j]);
      }
      panel += kPanel;
#pragma GCC unroll 16
      for (int j = 0; j < kPointers; ++j) ++p[j];
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kGemmVectors; ++j) {
        result.sum[i][j] = begin == 0 ? sum[i][j] : result.sum[i][j] + sum[i][j];
      }
    }
  }
}

template <int kRows>
void gemm_rows(const GemmTile& t) {
  Accumulators<kRows> acc;
  multiply<kRows>(t.a, t.a_stride, t.panel, t.depth, acc);
#pragma GCC unroll 4
  for (int j = 0; j < kGemmVectors; ++j) {
    const int cols = t.cols - 16 * j;
    if (cols <= 0) break;
    const bool whole = cols >= 16;
    F16 bias = zero();
    if (t.bias) bias = whole ? load(t.bias + 16 * j) : load_first(t.bias + 16 * j, cols);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      F16 value = acc.sum[i][j] + bias;
      if (t.residual) {
        const float* r = t.residual + i * t.residual_stride + 16 * j;
        value = value + (whole ? load(r) : load_first(r, cols));
      }
      float* out = t.out + i * t.out_stride + 16 * j;
      if (whole) {
        store(out, value);
      } else {
        store_first(out, value, cols);
      }
    }
  }
  // The tile is still in the first-level cache.
  if (t.activation != Activation::kNone) {
    for (int i = 0; i < kRows; ++i) activation_f32(t.activation, t.out + i * t.out_stride, t.cols);
  }
}

// Calls f<rows>(argument) for a number of rows known at run time.
template <template <int> class Body, int kRows, class Argument>
inline void with_rows(int rows, Argument& argument) {
  if constexpr (kRows == 1) {
    Body<1>::run(argument);
  } else if (rows == kRows) {
    Body<kRows>::run(argument);
  } else {
    with_rows<Body, kRows - 1>(rows, argument);
  }
}

template <int kRows>
struct GemmBody {
  static void run(const GemmTile& tile) { gemm_rows<kRows>(tile); }
};

void gemm_f32(const GemmTile& tile) { with_rows<GemmBody, kGemmRows>(tile.rows, tile); }

}  // namespace
}  // namespace bertrt::cpu::BERTRT_CPU_NAMESPACE
