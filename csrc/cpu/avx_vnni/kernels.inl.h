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
namespace {

// With five or more GCC 12 spills sums of attention.
constexpr int kPairRows = kWideningRows;

// In assembly, as add_in_place() of avx2/vec.h. Without the prefix assemblers take the encoding of
// AVX-512.
#ifdef __AVXVNNI__
#define BERTRT_ENCODING "%{vex%} "
#else
#define BERTRT_ENCODING ""
#endif

inline __m256i add_fours(__m256i sum, __m256i inputs, __m256i weights) {
  asm(BERTRT_ENCODING "vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(inputs), "x"(weights));
  return sum;
}
inline __m256i add_pairs(__m256i sum, __m256i inputs, __m256i weights) {
  asm(BERTRT_ENCODING "vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(inputs), "x"(weights));
  return sum;
}

struct Fours {
  __m256i lo, hi;
};
inline Fours load_fours(const char* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline Fours repeat_fours(float x) {
  const __m256i fours = _mm256_castps_si256(_mm256_set1_ps(x));
  return {fours, fours};
}
inline I16 add_fours(I16 sum, const int32_t* x, Fours w) {
  const __m256i inputs = _mm256_set1_epi32(*x);
  return {add_fours(sum.lo, inputs, w.lo), add_fours(sum.hi, inputs, w.hi)};
}
inline I16 add_same(I16 sum, Fours fours) {
  return {add_fours(sum.lo, fours.lo, fours.lo), add_fours(sum.hi, fours.lo, fours.lo)};
}
inline I16 add_pairs(I16 sum, const int32_t* x, PairsI16 w) {
  const __m256i inputs = _mm256_set1_epi32(*x);
  return {add_pairs(sum.lo, inputs, w.lo), add_pairs(sum.hi, inputs, w.hi)};
}
inline I16 multiply_int(const int32_t* p, int32_t by) {
  const Fours values = load_fours(reinterpret_cast<const char*>(p));
  const __m256i factor = _mm256_set1_epi32(by);
  return {_mm256_mullo_epi32(values.lo, factor), _mm256_mullo_epi32(values.hi, factor)};
}
inline void store_u8(uint8_t* p, I16 q) {
  alignas(32) int16_t halves[16];
  store_s16(halves, q);
  const __m128i* half = reinterpret_cast<const __m128i*>(halves);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(half[0], half[1]));
}

}  // namespace
}  // namespace bertrt::cpu::BERTRT_CPU_NAMESPACE

#include "cpu/generic/vnni.inl.h"
