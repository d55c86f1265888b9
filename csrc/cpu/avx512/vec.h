// The 16-lane float vector on AVX-512: one zmm register.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace bertrt::cpu::avx512 {

struct F16 {
  __m512 v;
};

// A row tile of 14 by 2 vectors keeps 28 accumulators in the 32 registers, which leaves two for the
// weights of one step; the activations come in as broadcast memory operands.
inline constexpr int kGemmRows = 14;
// Widening bf16 takes four registers for the weights and two for the row: 24 accumulators fit.
inline constexpr int kWideningRows = 12;
inline constexpr int kGemmVectors = 2;
// A multiply-add takes up to 6 cycles, and two may begin in a cycle: 12 chains keep the units busy.
inline constexpr int kPeakChains = 14;

static inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

static inline F16 zero() { return {_mm512_setzero_ps()}; }
static inline F16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
static inline F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline F16 load_first(const float* p, int n) {
  return {_mm512_maskz_loadu_ps(first_lanes(n), p)};
}
static inline void store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }
static inline void store_first(float* p, F16 a, int n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), a.v);
}
// Lanes 0 to n - 1 of a, the others of b.
static inline F16 select_first(int n, F16 a, F16 b) {
  return {_mm512_mask_blend_ps(first_lanes(n), b.v, a.v)};
}

static inline F16 operator+(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline F16 operator-(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline F16 operator*(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline F16 operator/(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// Of NaN and a number these two give b.
static inline F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline F16 min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }

// a * 2^n, where the low bits of t's representation hold n, from -126 to 127.
static inline F16 scale_by_power(F16 a, F16 t) {
  const __m512i n = _mm512_slli_epi32(_mm512_castps_si512(t.v), 23);
  const __m512i power = _mm512_add_epi32(n, _mm512_castps_si512(_mm512_set1_ps(1.0f)));
  return {_mm512_mul_ps(a.v, _mm512_castsi512_ps(power))};
}
// sum + *x * w, fused.
static inline F16 add_product(F16 sum, const float* x, F16 w) { return fma(broadcast(*x), w, sum); }
// A step of a chain for measuring, which waits for the one before it.
static inline F16 chain(F16 sum, F16 a, F16 b) { return fma(sum, a, b); }

// The sums and maxima of all lanes fold halves (8, 4, 2, 1): the same order on every path.
static inline float reduce_add(F16 a) {
  const __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}
static inline float reduce_max(F16 a) {
  const __m256 m8 = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 m4 = _mm_max_ps(_mm256_castps256_ps128(m8), _mm256_extractf128_ps(m8, 1));
  const __m128 m2 = _mm_max_ps(m4, _mm_movehl_ps(m4, m4));
  return _mm_cvtss_f32(_mm_max_ss(m2, _mm_shuffle_ps(m2, m2, 1)));
}

// Sixteen 32-bit integers.
struct I16 {
  __m512i v;
};

static inline I16 zero_int() { return {_mm512_setzero_si512()}; }
static inline I16 operator+(I16 a, I16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
static inline I16 broadcast_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
// For accumulators, in assembly: GCC 12 moves those of integers from register to register and
// spills them where the same intrinsic stands, a third of the speed.
static inline I16 add_in_place(I16 sum, I16 a) {
  asm("vpaddd %1, %0, %0" : "+v"(sum.v) : "v"(a.v));
  return sum;
}
static inline I16 operator-(I16 a, I16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
static inline I16 max(I16 a, I16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
static inline I16 min(I16 a, I16 b) { return {_mm512_min_epi32(a.v, b.v)}; }
// The bits of |a|, and back; and the float of the largest of such lanes.
static inline I16 magnitude_bits(F16 a) {
  return {_mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(0x7fffffff))};
}
static inline F16 from_bits(I16 a) { return {_mm512_castsi512_ps(a.v)}; }
static inline float reduce_max_bits(I16 a) {
  const __m256i m8 =
      _mm256_max_epi32(_mm512_castsi512_si256(a.v), _mm512_extracti64x4_epi64(a.v, 1));
  const __m128i m4 = _mm_max_epi32(_mm256_castsi256_si128(m8), _mm256_extracti128_si256(m8, 1));
  const __m128i m2 = _mm_max_epi32(m4, _mm_unpackhi_epi64(m4, m4));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(m2, _mm_shuffle_epi32(m2, 1))));
}
static inline F16 to_float(I16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
// The nearest integers, ties to even, of values below 2^22; of others something.
static inline I16 to_nearest_int(F16 a) { return {_mm512_cvtps_epi32(a.v)}; }
static inline void store(int32_t* p, I16 a) { _mm512_storeu_si512(p, a.v); }
// The low halves.
static inline void store_s16(int16_t* p, I16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}
// The low halves of a and b side by side: lane i holds a's and, above it, b's.
static inline I16 pair_s16(I16 a, I16 b) {
  return {_mm512_mask_blend_epi16(0xaaaaaaaa, a.v, _mm512_slli_epi32(b.v, 16))};
}

// Sixteen rows of sixteen 32-bit values become columns.
static inline void transpose(F16 (&rows)[16]) {
  __m512 a[16], b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const auto low = [&](int j) { return _mm512_castps_pd(a[i + j]); };
    b[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low(0), low(2)));
    b[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low(0), low(2)));
    b[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(low(1), low(3)));
    b[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(low(1), low(3)));
  }
  // b[4 g + c] holds in its quarter q column 4 q + c of rows 4 g to 4 g + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512 even_low = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x88);
    const __m512 odd_low = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xdd);
    const __m512 even_high = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x88);
    const __m512 odd_high = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xdd);
    rows[c].v = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    rows[4 + c].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    rows[8 + c].v = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    rows[12 + c].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}

// The nearest bfloat16, ties to even; NaN stays NaN.
static inline F16 round_to_bf16(F16 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512 rounded =
      _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
  return {_mm512_mask_mov_ps(rounded, _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), a.v)};
}

// Sixteen pairs of bfloat16, apart: the first of each, and the second.
struct PairsF16 {
  F16 first, second;
};
static inline PairsF16 load_bf16_pairs(const uint16_t* p) {
  const __m512i pairs = _mm512_loadu_si512(p);
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  return {{_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16))},
          {_mm512_castsi512_ps(_mm512_and_si512(pairs, high))}};
}

// Sixteen pairs of 8-bit integers, widened to 16 bits.
struct PairsI16 {
  __m512i v;
};
// Pairs made of 32-bit integers without an operation.
static inline PairsI16 as_pairs(I16 a) { return {a.v}; }
static inline PairsI16 load_s8_pairs(const int8_t* p) {
  return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
static inline PairsI16 load_s16_pairs(const int16_t* p) { return {_mm512_loadu_si512(p)}; }
// first * x's low half + second * x's high half, for a pair x of 16-bit integers; and that added to
// a sum. The product of two halves is below 2^30: nothing saturates.
static inline I16 dot_pairs(PairsI16 w, int32_t x) {
  return {_mm512_madd_epi16(w.v, _mm512_set1_epi32(x))};
}
static inline I16 dot_pairs(I16 sum, PairsI16 w, const int32_t* x) {
  return add_in_place(sum, dot_pairs(w, *x));
}
// As above. The addition is an instruction of its own, which is left out: the multiplier is what
// limits, and how much of the adding fits beside it differs from loop to loop.
static inline I16 chain(I16 sum, int32_t pair) { return dot_pairs(as_pairs(sum), pair); }

}  // namespace bertrt::cpu::avx512
