// The 16-lane float vector on 64-bit Arm: four registers of four floats.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace bertrt::cpu::neon {

struct F16 {
  float32x4_t q[4];
};

// A row tile of 6 by 16 columns keeps 24 accumulators in the 32 registers, which leaves four for
// the weights of one step and some for the rows' values, which multiply as lanes.
inline constexpr int kGemmRows = 6;
// Widening bf16 takes eight registers for the weights: 20 accumulators fit.
inline constexpr int kWideningRows = 5;
inline constexpr int kGemmVectors = 1;
// A multiply-add takes 4 cycles, and up to four may begin in a cycle: 24 chains keep them busy.
inline constexpr int kPeakChains = 6;

template <class Op>
static inline F16 per_quarter(Op op) {
  return {{op(0), op(1), op(2), op(3)}};
}

// Calls for a quarter all of whose four lanes are below n, or some, or none: body(quarter, lanes).
template <class Body>
static inline void for_each_quarter_of(int n, Body body) {
  for (int i = 0; i < 4; ++i) {
    const int lanes = n - 4 * i;
    body(i, lanes < 0 ? 0 : lanes > 4 ? 4 : lanes);
  }
}

static inline F16 broadcast(float x) {
  return per_quarter([=](int) { return vdupq_n_f32(x); });
}
static inline F16 zero() { return broadcast(0.0f); }
static inline F16 load(const float* p) {
  return per_quarter([=](int i) { return vld1q_f32(p + 4 * i); });
}
static inline void store(float* p, F16 a) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.q[i]);
}
static inline F16 load_first(const float* p, int n) {
  F16 r = zero();
  for_each_quarter_of(n, [&](int i, int lanes) {
    if (lanes == 4) {
      r.q[i] = vld1q_f32(p + 4 * i);
    } else {
      if (lanes > 0) r.q[i] = vld1q_lane_f32(p + 4 * i, r.q[i], 0);
      if (lanes > 1) r.q[i] = vld1q_lane_f32(p + 4 * i + 1, r.q[i], 1);
      if (lanes > 2) r.q[i] = vld1q_lane_f32(p + 4 * i + 2, r.q[i], 2);
    }
  });
  return r;
}
static inline void store_first(float* p, F16 a, int n) {
  for_each_quarter_of(n, [&](int i, int lanes) {
    if (lanes == 4) {
      vst1q_f32(p + 4 * i, a.q[i]);
    } else {
      if (lanes > 0) vst1q_lane_f32(p + 4 * i, a.q[i], 0);
      if (lanes > 1) vst1q_lane_f32(p + 4 * i + 1, a.q[i], 1);
      if (lanes > 2) vst1q_lane_f32(p + 4 * i + 2, a.q[i], 2);
    }
  });
}
// Lanes 0 to n - 1 of a, the others of b.
static inline F16 select_first(int n, F16 a, F16 b) {
  const int32x4_t lane = vcombine_s32(vcreate_s32(0x100000000), vcreate_s32(0x300000002));
  return per_quarter(
      [&](int i) { return vbslq_f32(vcltq_s32(lane, vdupq_n_s32(n - 4 * i)), a.q[i], b.q[i]); });
}

static inline F16 operator+(F16 a, F16 b) {
  return per_quarter([&](int i) { return vaddq_f32(a.q[i], b.q[i]); });
}
static inline F16 operator-(F16 a, F16 b) {
  return per_quarter([&](int i) { return vsubq_f32(a.q[i], b.q[i]); });
}
static inline F16 operator*(F16 a, F16 b) {
  return per_quarter([&](int i) { return vmulq_f32(a.q[i], b.q[i]); });
}
static inline F16 operator/(F16 a, F16 b) {
  return per_quarter([&](int i) { return vdivq_f32(a.q[i], b.q[i]); });
}
static inline F16 fma(F16 a, F16 b, F16 c) {
  return per_quarter([&](int i) { return vfmaq_f32(c.q[i], a.q[i], b.q[i]); });
}
// 32 bits in lane 0, from which they multiply without being spread over a register first. In
// assembly: GCC 12 spreads what the intrinsics load, which takes a multiplier's place.
static inline float32x4_t load_lane(const void* p) {
  float32x4_t lane;
  asm("ldr %s0, %1" : "=w"(lane) : "m"(*static_cast<const float*>(p)));
  return lane;
}
// sum + *x * w, fused.
static inline F16 add_product(F16 sum, const float* x, F16 w) {
  const float32x4_t lane = load_lane(x);
  return per_quarter([&](int i) { return vfmaq_laneq_f32(sum.q[i], w.q[i], lane, 0); });
}
// A step of a chain for measuring, which waits for the one before it.
static inline F16 chain(F16 sum, F16 a, F16 b) { return fma(a, b, sum); }
// Of NaN and a number these two give NaN; 0 is above -0.
static inline F16 max(F16 a, F16 b) {
  return per_quarter([&](int i) { return vmaxq_f32(a.q[i], b.q[i]); });
}
static inline F16 min(F16 a, F16 b) {
  return per_quarter([&](int i) { return vminq_f32(a.q[i], b.q[i]); });
}

// a * 2^n, where the low bits of t's representation hold n, from -126 to 127.
static inline F16 scale_by_power(F16 a, F16 t) {
  const int32x4_t one = vreinterpretq_s32_f32(vdupq_n_f32(1.0f));
  return per_quarter([&](int i) {
    const int32x4_t power = vaddq_s32(vshlq_n_s32(vreinterpretq_s32_f32(t.q[i]), 23), one);
    return vmulq_f32(a.q[i], vreinterpretq_f32_s32(power));
  });
}

// The sums and maxima of all lanes fold halves (8, 4, 2, 1): the same order on every path.
static inline float reduce_add(F16 a) {
  const float32x4_t s4 = vaddq_f32(vaddq_f32(a.q[0], a.q[2]), vaddq_f32(a.q[1], a.q[3]));
  const float32x2_t s2 = vadd_f32(vget_low_f32(s4), vget_high_f32(s4));
  return vget_lane_f32(s2, 0) + vget_lane_f32(s2, 1);
}
static inline float reduce_max(F16 a) {
  return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.q[0], a.q[2]), vmaxq_f32(a.q[1], a.q[3])));
}

// Sixteen 32-bit integers.
struct I16 {
  int32x4_t q[4];
};

template <class Op>
static inline I16 per_quarter_int(Op op) {
  return {{op(0), op(1), op(2), op(3)}};
}
static inline I16 broadcast_int(int32_t x) {
  return per_quarter_int([=](int) { return vdupq_n_s32(x); });
}
static inline I16 zero_int() { return broadcast_int(0); }
static inline I16 load(const int32_t* p) {
  return per_quarter_int([=](int i) { return vld1q_s32(p + 4 * i); });
}
static inline I16 operator+(I16 a, I16 b) {
  return per_quarter_int([&](int i) { return vaddq_s32(a.q[i], b.q[i]); });
}
static inline I16 operator-(I16 a, I16 b) {
  return per_quarter_int([&](int i) { return vsubq_s32(a.q[i], b.q[i]); });
}
static inline I16 operator*(I16 a, I16 b) {
  return per_quarter_int([&](int i) { return vmulq_s32(a.q[i], b.q[i]); });
}
static inline I16 max(I16 a, I16 b) {
  return per_quarter_int([&](int i) { return vmaxq_s32(a.q[i], b.q[i]); });
}
static inline I16 min(I16 a, I16 b) {
  return per_quarter_int([&](int i) { return vminq_s32(a.q[i], b.q[i]); });
}
// The bits of |a|, and back; and the float of the largest of such lanes.
static inline I16 magnitude_bits(F16 a) {
  return per_quarter_int(
      [&](int i) { return vandq_s32(vreinterpretq_s32_f32(a.q[i]), vdupq_n_s32(0x7fffffff)); });
}
static inline F16 from_bits(I16 a) {
  return per_quarter([&](int i) { return vreinterpretq_f32_s32(a.q[i]); });
}
static inline float reduce_max_bits(I16 a) {
  const int32_t largest =
      vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.q[0], a.q[2]), vmaxq_s32(a.q[1], a.q[3])));
  float value;
  __builtin_memcpy(&value, &largest, sizeof(value));
  return value;
}
static inline F16 to_float(I16 a) {
  return per_quarter([&](int i) { return vcvtq_f32_s32(a.q[i]); });
}
// The nearest integers, ties to even, of values below 2^22; of others something.
static inline I16 to_nearest_int(F16 a) {
  return per_quarter_int([&](int i) { return vcvtnq_s32_f32(a.q[i]); });
}
static inline void store(int32_t* p, I16 a) {
  for (int i = 0; i < 4; ++i) vst1q_s32(p + 4 * i, a.q[i]);
}
// The low halves.
static inline void store_s16(int16_t* p, I16 a) {
  vst1q_s16(p, vcombine_s16(vmovn_s32(a.q[0]), vmovn_s32(a.q[1])));
  vst1q_s16(p + 8, vcombine_s16(vmovn_s32(a.q[2]), vmovn_s32(a.q[3])));
}
// The low halves of a and b side by side: lane i holds a's and, above it, b's.
static inline I16 pair_s16(I16 a, I16 b) {
  return per_quarter_int([&](int i) { return vsliq_n_s32(a.q[i], b.q[i], 16); });
}

// Four rows of four 32-bit values become columns.
static inline void transpose(float32x4_t& a, float32x4_t& b, float32x4_t& c, float32x4_t& d) {
  const float64x2_t even_ab = vreinterpretq_f64_f32(vtrn1q_f32(a, b));
  const float64x2_t odd_ab = vreinterpretq_f64_f32(vtrn2q_f32(a, b));
  const float64x2_t even_cd = vreinterpretq_f64_f32(vtrn1q_f32(c, d));
  const float64x2_t odd_cd = vreinterpretq_f64_f32(vtrn2q_f32(c, d));
  a = vreinterpretq_f32_f64(vtrn1q_f64(even_ab, even_cd));
  b = vreinterpretq_f32_f64(vtrn1q_f64(odd_ab, odd_cd));
  c = vreinterpretq_f32_f64(vtrn2q_f64(even_ab, even_cd));
  d = vreinterpretq_f32_f64(vtrn2q_f64(odd_ab, odd_cd));
}
// Sixteen rows of sixteen 32-bit values become columns.
static inline void transpose(F16 (&rows)[16]) {
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      transpose(rows[4 * i].q[j], rows[4 * i + 1].q[j], rows[4 * i + 2].q[j], rows[4 * i + 3].q[j]);
    }
  }
  for (int i = 0; i < 4; ++i) {
    for (int j = i + 1; j < 4; ++j) {
      for (int k = 0; k < 4; ++k) {
        const float32x4_t above = rows[4 * i + k].q[j];
        rows[4 * i + k].q[j] = rows[4 * j + k].q[i];
        rows[4 * j + k].q[i] = above;
      }
    }
  }
}

// The nearest bfloat16, ties to even; NaN stays NaN.
static inline F16 round_to_bf16(F16 a) {
  return per_quarter([&](int i) {
    const uint32x4_t bits = vreinterpretq_u32_f32(a.q[i]);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t rounded = vandq_u32(up, vdupq_n_u32(0xffff0000));
    return vbslq_f32(vceqq_f32(a.q[i], a.q[i]), vreinterpretq_f32_u32(rounded), a.q[i]);
  });
}

// Sixteen pairs of bfloat16, apart: the first of each, and the second.
struct PairsF16 {
  F16 first, second;
};
static inline PairsF16 load_bf16_pairs(const uint16_t* p) {
  uint32x4_t pairs[4];
  for (int i = 0; i < 4; ++i) pairs[i] = vreinterpretq_u32_u16(vld1q_u16(p + 8 * i));
  return {per_quarter([&](int i) { return vreinterpretq_f32_u32(vshlq_n_u32(pairs[i], 16)); }),
          per_quarter([&](int i) {
            return vreinterpretq_f32_u32(vandq_u32(pairs[i], vdupq_n_u32(0xffff0000)));
          })};
}

// Sixteen pairs of integers, apart and in 16 bits.
struct PairsI16 {
  int16x8_t first[2], second[2];
};
static inline PairsI16 load_s8_pairs(const int8_t* p) {
  const int8x16x2_t pairs = vld2q_s8(p);
  return {{vmovl_s8(vget_low_s8(pairs.val[0])), vmovl_high_s8(pairs.val[0])},
          {vmovl_s8(vget_low_s8(pairs.val[1])), vmovl_high_s8(pairs.val[1])}};
}
static inline PairsI16 load_s16_pairs(const int16_t* p) {
  const int16x8x2_t low = vld2q_s16(p);
  const int16x8x2_t high = vld2q_s16(p + 16);
  return {{low.val[0], high.val[0]}, {low.val[1], high.val[1]}};
}
// sum + first * x's low half + second * x's high half, for a pair x of 16-bit integers in lane 0.
// The product of two halves is below 2^30: nothing saturates.
static inline I16 dot_pairs(I16 sum, PairsI16 w, int16x4_t x) {
  return per_quarter_int([&](int i) {
    const int16x8_t first = w.first[i / 2];
    const int16x8_t second = w.second[i / 2];
    if (i % 2 == 0) {
      const int32x4_t low = vmlal_lane_s16(sum.q[i], vget_low_s16(first), x, 0);
      return vmlal_lane_s16(low, vget_low_s16(second), x, 1);
    }
    const int32x4_t high = vmlal_high_lane_s16(sum.q[i], first, x, 0);
    return vmlal_high_lane_s16(high, second, x, 1);
  });
}
static inline I16 dot_pairs(I16 sum, PairsI16 w, const int32_t* x) {
  return dot_pairs(sum, w, vreinterpret_s16_f32(vget_low_f32(load_lane(x))));
}
static inline I16 chain(I16 sum, int32_t pair) {
  const int16x8_t pairs = vreinterpretq_s16_s32(vdupq_n_s32(pair));
  return dot_pairs(sum, {{pairs, pairs}, {pairs, pairs}}, vget_low_s16(pairs));
}

}  // namespace bertrt::cpu::neon
