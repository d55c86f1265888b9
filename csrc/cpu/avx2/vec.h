// The 16-lane float vector on AVX2 with FMA: two ymm registers.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace bertrt::cpu::avx2 {

struct F16 {
  __m256 lo, hi;
};

// A row tile of 6 by 16 columns keeps 12 accumulators in the 16 registers, two for the weights of
// one step and one for the broadcast activation.
inline constexpr int kGemmRows = 6;
// Widening takes more registers for the weights: 8 accumulators fit.
inline constexpr int kWideningRows = 4;
inline constexpr int kGemmVectors = 1;
// The same in 10 of the 16 registers: with 12, GCC 12 spills integers.
inline constexpr int kPeakChains = 5;

// All ones in lanes first, first + 1, ... that are below n.
static inline __m256i lanes_below(int n, int first) {
  const __m256i lane =
      _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first));
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
}

static inline F16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline F16 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline F16 load_first(const float* p, int n) {
  return {_mm256_maskload_ps(p, lanes_below(n, 0)), _mm256_maskload_ps(p + 8, lanes_below(n, 8))};
}
static inline void store(float* p, F16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
static inline void store_first(float* p, F16 a, int n) {
  _mm256_maskstore_ps(p, lanes_below(n, 0), a.lo);
  _mm256_maskstore_ps(p + 8, lanes_below(n, 8), a.hi);
}
// Lanes 0 to n - 1 of a, the others of b.
static inline F16 select_first(int n, F16 a, F16 b) {
  return {_mm256_blendv_ps(b.lo, a.lo, _mm256_castsi256_ps(lanes_below(n, 0))),
          _mm256_blendv_ps(b.hi, a.hi, _mm256_castsi256_ps(lanes_below(n, 8)))};
}

static inline F16 operator+(F16 a, F16 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
static inline F16 operator-(F16 a, F16 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
static inline F16 operator*(F16 a, F16 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
static inline F16 operator/(F16 a, F16 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
static inline F16 fma(F16 a, F16 b, F16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
// sum + *x * w, fused.
static inline F16 add_product(F16 sum, const float* x, F16 w) { return fma(broadcast(*x), w, sum); }
// A step of a chain for measuring, which waits for the one before it.
static inline F16 chain(F16 sum, F16 a, F16 b) { return fma(sum, a, b); }
// Of NaN and a number these two give b.
static inline F16 max(F16 a, F16 b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
static inline F16 min(F16 a, F16 b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}

static inline __m256 scale_by_power(__m256 a, __m256 t) {
  const __m256i n = _mm256_slli_epi32(_mm256_castps_si256(t), 23);
  const __m256i power = _mm256_add_epi32(n, _mm256_castps_si256(_mm256_set1_ps(1.0f)));
  return _mm256_mul_ps(a, _mm256_castsi256_ps(power));
}
// a * 2^n, where the low bits of t's representation hold n, from -126 to 127.
static inline F16 scale_by_power(F16 a, F16 t) {
  return {scale_by_power(a.lo, t.lo), scale_by_power(a.hi, t.hi)};
}

// The sums and maxima of all lanes fold halves (8, 4, 2, 1): the same order on every path.
static inline float reduce_add(F16 a) {
  const __m256 s8 = _mm256_add_ps(a.lo, a.hi);
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}
static inline float reduce_max(F16 a) {
  const __m256 m8 = _mm256_max_ps(a.lo, a.hi);
  const __m128 m4 = _mm_max_ps(_mm256_castps256_ps128(m8), _mm256_extractf128_ps(m8, 1));
  const __m128 m2 = _mm_max_ps(m4, _mm_movehl_ps(m4, m4));
  return _mm_cvtss_f32(_mm_max_ss(m2, _mm_shuffle_ps(m2, m2, 1)));
}

// Sixteen 32-bit integers.
struct I16 {
  __m256i lo, hi;
};

static inline I16 zero_int() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static inline I16 operator+(I16 a, I16 b) {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
static inline I16 broadcast_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
// For accumulators, in assembly: GCC 12 moves those of integers from register to register and
// spills them where the same intrinsic stands.
static inline I16 add_in_place(I16 sum, I16 a) {
  asm("vpaddd %1, %0, %0" : "+x"(sum.lo) : "x"(a.lo));
  asm("vpaddd %1, %0, %0" : "+x"(sum.hi) : "x"(a.hi));
  return sum;
}
static inline I16 operator-(I16 a, I16 b) {
  return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)};
}
static inline I16 max(I16 a, I16 b) {
  return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)};
}
static inline I16 min(I16 a, I16 b) {
  return {_mm256_min_epi32(a.lo, b.lo), _mm256_min_epi32(a.hi, b.hi)};
}
// The bits of |a|, and back; and the float of the largest of such lanes.
static inline I16 magnitude_bits(F16 a) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  return {_mm256_and_si256(_mm256_castps_si256(a.lo), magnitude),
          _mm256_and_si256(_mm256_castps_si256(a.hi), magnitude)};
}
static inline F16 from_bits(I16 a) {
  return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)};
}
static inline float reduce_max_bits(I16 a) {
  const __m256i m8 = _mm256_max_epi32(a.lo, a.hi);
  const __m128i m4 = _mm_max_epi32(_mm256_castsi256_si128(m8), _mm256_extracti128_si256(m8, 1));
  const __m128i m2 = _mm_max_epi32(m4, _mm_unpackhi_epi64(m4, m4));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(m2, _mm_shuffle_epi32(m2, 1))));
}
static inline F16 to_float(I16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
// The nearest integers, ties to even, of values below 2^22; of others something.
static inline I16 to_nearest_int(F16 a) {
  return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)};
}
static inline void store(int32_t* p, I16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), a.hi);
}
// The low halves, of integers that fit.
static inline void store_s16(int16_t* p, I16 a) {
  const __m256i halves = _mm256_packs_epi32(a.lo, a.hi);  // within each 128 bits
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(halves, 0xd8));
}

static inline __m256i pair_s16(__m256i a, __m256i b) {
  return _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xaa);
}
// The low halves of a and b side by side: lane i holds a's and, above it, b's.
static inline I16 pair_s16(I16 a, I16 b) { return {pair_s16(a.lo, b.lo), pair_s16(a.hi, b.hi)}; }

// Eight rows of eight 32-bit values become columns.
static inline void transpose(__m256 (&rows)[8]) {
  __m256 a[8], b[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    a[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    rows[c] = _mm256_permute2f128_ps(b[c], b[4 + c], 0x20);
    rows[4 + c] = _mm256_permute2f128_ps(b[c], b[4 + c], 0x31);
  }
}
// Sixteen rows of sixteen 32-bit values become columns.
static inline void transpose(F16 (&rows)[16]) {
  __m256 corner[4][8];  // top left, top right, bottom left, bottom right
  for (int i = 0; i < 8; ++i) {
    corner[0][i] = rows[i].lo;
    corner[1][i] = rows[i].hi;
    corner[2][i] = rows[8 + i].lo;
    corner[3][i] = rows[8 + i].hi;
  }
  for (auto& block : corner) transpose(block);
  for (int i = 0; i < 8; ++i) {
    rows[i] = {corner[0][i], corner[2][i]};
    rows[8 + i] = {corner[1][i], corner[3][i]};
  }
}

static inline __m256 round_to_bf16(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256 rounded =
      _mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
  return _mm256_blendv_ps(rounded, a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}
// The nearest bfloat16, ties to even; NaN stays NaN.
static inline F16 round_to_bf16(F16 a) { return {round_to_bf16(a.lo), round_to_bf16(a.hi)}; }

// Sixteen pairs of bfloat16, apart: the first of each, and the second.
struct PairsF16 {
  F16 first, second;
};
static inline PairsF16 load_bf16_pairs(const uint16_t* p) {
  const __m256i lo = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i hi = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16));
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  return {{_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)),
           _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))},
          {_mm256_castsi256_ps(_mm256_and_si256(lo, high)),
           _mm256_castsi256_ps(_mm256_and_si256(hi, high))}};
}

// Sixteen pairs of 8-bit integers, widened to 16 bits.
struct PairsI16 {
  __m256i lo, hi;
};
// Pairs made of 32-bit integers without an operation.
static inline PairsI16 as_pairs(I16 a) { return {a.lo, a.hi}; }
static inline PairsI16 load_s8_pairs(const int8_t* p) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm256_cvtepi8_epi16(_mm256_castsi256_si128(pairs)),
          _mm256_cvtepi8_epi16(_mm256_extracti128_si256(pairs, 1))};
}
static inline PairsI16 load_s16_pairs(const int16_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16))};
}
// first * x's low half + second * x's high half, for a pair x of 16-bit integers; and that added to
// a sum. The product of two halves is below 2^30: nothing saturates.
static inline I16 dot_pairs(PairsI16 w, int32_t x) {
  const __m256i pair = _mm256_set1_epi32(x);
  return {_mm256_madd_epi16(w.lo, pair), _mm256_madd_epi16(w.hi, pair)};
}
static inline I16 dot_pairs(I16 sum, PairsI16 w, const int32_t* x) {
  return add_in_place(sum, dot_pairs(w, *x));
}
// As above. The addition is an instruction of its own, which is left out: the multiplier is what
// limits, and how much of the adding fits beside it differs from loop to loop.
static inline I16 chain(I16 sum, int32_t pair) { return dot_pairs(as_pairs(sum), pair); }

}  // namespace bertrt::cpu::avx2
