// int8 products and 16-bit attention on the dot products of VNNI, for any width of register; the
// last line of a kernels.cpp, which has these primitives in its namespace:
//
// clang-format off
//   Fours load_fours(const char*)                  16 columns of weights, a group of four inputs each
//   I16 add_fours(I16, const int32_t*, Fours)      adds four products of unsigned inputs with weights
//   I16 add_pairs(I16, const int32_t*, PairsI16)   adds two products of 16-bit integers
//   I16 multiply_int(const int32_t*, int32_t)      16 integers times one
//   I16 add_same(I16, Fours)                       add_fours() of a register with itself
//   Fours repeat_fours(float), void store_u8(uint8_t*, I16), kPairRows
// clang-format on
#pragma once

#include "cpu/generic/attention.inl.h"
#include "cpu/generic/peak.inl.h"

#define BERTRT_STRINGIFY(name) #name
#define BERTRT_NAME(name) BERTRT_STRINGIFY(name)

namespace bertrt::cpu::BERTRT_CPU_NAMESPACE {
namespace {

// VPDPBUSD multiplies unsigned by signed: rows are kept with their zero point, which adds so many
// times the sum of a column's weights to each of its sums, and that is taken off again.
struct Int8Vnni {
  using Input = int32_t;  // four unsigned 8-bit integers
  using Sum = I16;
  using Weights = Fours;
  static constexpr int kRows = kGemmRows;
  static constexpr int kGroup = 4;
  static constexpr bool kExact = true;
  static constexpr int64_t kVector = 16 * 4;
  static Sum none() { return zero_int(); }
  static Weights load_weights(const char* p) { return load_fours(p); }
  static Sum step(Sum sum, const Input* x, Weights w) { return add_fours(sum, x, w); }
  static F16 value(Sum sum, const GemmTile& tile, int row, int column) {
    const I16 excess = multiply_int(tile.column_sum + column, tile.steps(row).zero);
    return dequantise(sum - excess, tile, row, column);
  }
  static F16 gelu_erf(F16 x) { return gelu_erf_short(x); }
};

struct Int16Vnni : Int16 {
  static constexpr int kRows = kPairRows;
  static Sum step(Sum sum, const Input* x, Weights w) { return add_pairs(sum, x, w); }
};

void convert_u8(const float* x, int64_t depth, void* out, RowSteps* steps) {
  uint8_t* row = static_cast<uint8_t*>(out);
  *steps = quantise(x, depth, [&](int64_t i, I16 q, I16) { store_u8(row + i, q); });
}

struct MultiplyAddFours {
  using Sum = I16;
  static constexpr int64_t kOperations = 8 * 16;
  Fours fours;
  explicit MultiplyAddFours(float x) : fours(repeat_fours(x)) {}
  static Sum first(F16 x) { return to_nearest_int(x); }
  Sum step(Sum sum) const { return add_same(sum, fours); }
  static void keep(Sum sum, float* out) { store(out, to_float(sum) + load(out)); }
};

}  // namespace

extern const AttentionKernel kAttentionS16;
const AttentionKernel kAttentionS16 = {"attention_s16." BERTRT_NAME(BERTRT_CPU_NAMESPACE),
                                       Int16Vnni::kRows, attention_scratch<AttentionS16<Int16Vnni>>,
                                       attention<AttentionS16<Int16Vnni>>};

extern const GemmKernel kGemmS8;
const GemmKernel kGemmS8 = {"gemm_s8." BERTRT_NAME(BERTRT_CPU_NAMESPACE),
                            Int8Vnni::kRows,
                            kPanel,
                            Int8Vnni::kGroup,
                            convert_u8,
                            sizeof(uint8_t),
                            false,
                            Gemm<Int8Vnni>::run,
                            peak<MultiplyAddFours>};

}  // namespace bertrt::cpu::BERTRT_CPU_NAMESPACE
