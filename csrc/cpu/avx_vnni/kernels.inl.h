// int8 products with the dot products of VNNI on 256-bit registers. The other kernels are those of
// avx2/; isa.cpp puts the table together.
//
// Flags of the compiler decide how the instructions are encoded: as AVX-VNNI has them, or as
// AVX512-VNNI with VL does.
//
// Only intrinsics and our own headers are included here: an inline function of the standard library
// compiled with this folder's flags could be the copy that the linker keeps for everyone.
#pragma once

#include "cpu/avx2/vec.h"
#include "cpu/kernel_table.h"

namespace bertrt::cpu::BERTRT_CPU_NAMESPACE {
using namespace avx2;
}

#include "cpu/generic/attention.inl.h"
#include "cpu/generic/peak.inl.h"

#define BERTRT_STRINGIFY(name) #name
#define BERTRT_NAME(name) BERTRT_STRINGIFY(name)

namespace bertrt::cpu::BERTRT_CPU_NAMESPACE {
namespace {

// In assembly, as add_in_place() of avx2/vec.h. Without the prefix assemblers take the encoding of
// AVX-512.
#ifdef __AVXVNNI__
#define BERTRT_ENCODING "%{vex%} "
#else
#define BERTRT_ENCODING ""
#endif

// Adds to each 32-bit sum four products of unsigned inputs with signed weights, in 8 bits.
inline __m256i add_fours(__m256i sum, __m256i inputs, __m256i weights) {
  asm(BERTRT_ENCODING "vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(inputs), "x"(weights));
  return sum;
}
// Adds to each 32-bit sum two products of 16-bit integers.
inline __m256i add_pairs(__m256i sum, __m256i inputs, __m256i weights) {
  asm(BERTRT_ENCODING "vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(inputs), "x"(weights));
  return sum;
}

// Four products a lane: 16 columns of weights, a group of inputs each.
struct Fours {
  __m256i lo, hi;
};

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
  static Weights load_weights(const char* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
  }
  static Sum step(Sum sum, const Input* x, Weights w) {
    const __m256i inputs = _mm256_set1_epi32(*x);
    return {add_fours(sum.lo, inputs, w.lo), add_fours(sum.hi, inputs, w.hi)};
  }
  static F16 value(Sum sum, const GemmTile& tile, int row, int column) {
    const Fours sums = load_weights(reinterpret_cast<const char*>(tile.column_sum + column));
    const __m256i zero = _mm256_set1_epi32(tile.row_steps[row].zero);
    const I16 excess{_mm256_mullo_epi32(sums.lo, zero), _mm256_mullo_epi32(sums.hi, zero)};
    return dequantise(sum - excess, tile, row, column);
  }
};

// With the rows of Int16, too: with five or more GCC 12 spills sums of attention.
struct Int16Vnni : Int16 {
  static Sum step(Sum sum, const Input* x, Weights w) {
    const __m256i inputs = _mm256_set1_epi32(*x);
    return {add_pairs(sum.lo, inputs, w.lo), add_pairs(sum.hi, inputs, w.hi)};
  }
};

void convert_u8(const float* x, int64_t depth, void* out, RowSteps* steps) {
  uint8_t* row = static_cast<uint8_t*>(out);
  *steps = quantise(x, depth, [&](int64_t i, I16 q, I16) {
    alignas(32) int16_t halves[16];
    store_s16(halves, q);
    const __m128i* half = reinterpret_cast<const __m128i*>(halves);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(row + i), _mm_packus_epi16(half[0], half[1]));
  });
}

struct MultiplyAddFours {
  using Sum = I16;
  static constexpr int64_t kOperations = 8 * 16;
  __m256i fours;
  explicit MultiplyAddFours(float x) : fours(_mm256_castps_si256(_mm256_set1_ps(x))) {}
  static Sum first(F16 x) { return to_nearest_int(x); }
  Sum step(Sum sum) const {
    return {add_fours(sum.lo, fours, fours), add_fours(sum.hi, fours, fours)};
  }
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
