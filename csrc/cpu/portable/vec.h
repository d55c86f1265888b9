// The 16-lane float vector for any CPU: four vectors of four floats in the compilers' own notation,
// which become SSE2 on x86-64 and NEON on 64-bit Arm without a flag.
#pragma once

#include <cstdint>

namespace bertrt::cpu::portable {

typedef float F4 __attribute__((vector_size(16)));
typedef int I4 __attribute__((vector_size(16)));

struct F16 {
  F4 q[4];
};

// SSE2 has 16 registers of four floats: 2 by 16 columns keep 8 accumulators and leave room for the
// weights of one step, the broadcast activation and a product (three rows spill, and run half as
// fast).
inline constexpr int kGemmRows = 2;
inline constexpr int kWideningRows = 2;
inline constexpr int kGemmVectors = 1;
// The same in 12 of SSE2's 16 registers.
inline constexpr int kPeakChains = 3;

template <class Op>
static inline F16 per_quarter(Op op) {
  return {{op(0), op(1), op(2), op(3)}};
}

static inline F4 quarter(float x) { return F4{x, x, x, x}; }
static inline F16 broadcast(float x) {
  return per_quarter([=](int) { return quarter(x); });
}
static inline F16 zero() { return broadcast(0.0f); }
static inline F16 load(const float* p) {
  F16 r;
  __builtin_memcpy(r.q, p, sizeof(r.q));
  return r;
}
static inline void store(float* p, F16 a) { __builtin_memcpy(p, a.q, sizeof(a.q)); }
static inline F16 load_first(const float* p, int n) {
  float lanes[16] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
static inline void store_first(float* p, F16 a, int n) {
  float lanes[16];
  store(lanes, a);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}
// Lanes 0 to n - 1 of a, the others of b.
static inline F16 select_first(int n, F16 a, F16 b) {
  float lanes[16];
  store(lanes, b);
  store_first(lanes, a, n);
  return load(lanes);
}

static inline F16 operator+(F16 a, F16 b) {
  return per_quarter([&](int i) { return a.q[i] + b.q[i]; });
}
static inline F16 operator-(F16 a, F16 b) {
  return per_quarter([&](int i) { return a.q[i] - b.q[i]; });
}
static inline F16 operator*(F16 a, F16 b) {
  return per_quarter([&](int i) { return a.q[i] * b.q[i]; });
}
static inline F16 operator/(F16 a, F16 b) {
  return per_quarter([&](int i) { return a.q[i] / b.q[i]; });
}
// Not fused: SSE2 has no fused multiply-add, and the library's is a hundred times slower.
static inline F16 fma(F16 a, F16 b, F16 c) {
  return per_quarter([&](int i) { return a.q[i] * b.q[i] + c.q[i]; });
}
// sum + *x * w.
static inline F16 add_product(F16 sum, const float* x, F16 w) { return fma(broadcast(*x), w, sum); }
// A step of a chain for measuring, which waits for the one before it.
static inline F16 chain(F16 sum, F16 a, F16 b) { return fma(sum, a, b); }
// Of NaN and a number these two give b.
static inline F16 max(F16 a, F16 b) {
  return per_quarter([&](int i) { return a.q[i] > b.q[i] ? a.q[i] : b.q[i]; });
}
static inline F16 min(F16 a, F16 b) {
  return per_quarter([&](int i) { return a.q[i] < b.q[i] ? a.q[i] : b.q[i]; });
}

// a * 2^n, where the low bits of t's representation hold n, from -126 to 127.
static inline F16 scale_by_power(F16 a, F16 t) {
  const I4 one = (I4)quarter(1.0f);
  return per_quarter([&](int i) { return a.q[i] * (F4)(((I4)t.q[i] << 23) + one); });
}

// The sums and maxima of all lanes fold halves (8, 4, 2, 1): the same order on every path.
static inline float reduce_add(F16 a) {
  const F4 s4 = (a.q[0] + a.q[2]) + (a.q[1] + a.q[3]);
  return (s4[0] + s4[2]) + (s4[1] + s4[3]);
}
static inline float reduce_max(F16 a) {
  const F16 m = max(a, F16{{a.q[2], a.q[3], a.q[0], a.q[1]}});
  const F4 m4 = m.q[0] > m.q[1] ? m.q[0] : m.q[1];
  const float even = m4[0] > m4[2] ? m4[0] : m4[2];
  const float odd = m4[1] > m4[3] ? m4[1] : m4[3];
  return even > odd ? even : odd;
}

// Sixteen 32-bit integers.
struct I16 {
  I4 q[4];
};

template <class Op>
static inline I16 per_quarter_int(Op op) {
  return {{op(0), op(1), op(2), op(3)}};
}
static inline I16 zero_int() {
  return per_quarter_int([](int) { return I4{}; });
}
static inline I16 operator+(I16 a, I16 b) {
  return per_quarter_int([&](int i) { return a.q[i] + b.q[i]; });
}
static inline I16 broadcast_int(int32_t x) {
  return per_quarter_int([=](int) { return I4{x, x, x, x}; });
}
static inline I16 operator-(I16 a, I16 b) {
  return per_quarter_int([&](int i) { return a.q[i] - b.q[i]; });
}
static inline I16 max(I16 a, I16 b) {
  return per_quarter_int([&](int i) { return a.q[i] > b.q[i] ? a.q[i] : b.q[i]; });
}
static inline I16 min(I16 a, I16 b) {
  return per_quarter_int([&](int i) { return a.q[i] < b.q[i] ? a.q[i] : b.q[i]; });
}
// The bits of |a|, and back; and the float of the largest of such lanes.
static inline I16 magnitude_bits(F16 a) {
  return per_quarter_int([&](int i) { return (I4)a.q[i] & 0x7fffffff; });
}
static inline F16 from_bits(I16 a) {
  return per_quarter([&](int i) { return (F4)a.q[i]; });
}
static inline float reduce_max_bits(I16 a) {
  int32_t largest = a.q[0][0];
  for (int i = 1; i < 16; ++i) largest = a.q[i / 4][i % 4] > largest ? a.q[i / 4][i % 4] : largest;
  float value;
  __builtin_memcpy(&value, &largest, sizeof(value));
  return value;
}
static inline F16 to_float(I16 a) {
  return per_quarter([&](int i) { return __builtin_convertvector(a.q[i], F4); });
}
// The nearest integers, ties to even, of values below 2^22; of others something. Adding 1.5 * 2^23
// leaves them in the low bits of the sum.
static inline I16 to_nearest_int(F16 a) {
  const F4 magic = quarter(12582912.0f);
  return per_quarter_int([&](int i) { return (I4)(a.q[i] + magic) - (I4)magic; });
}
static inline void store(int32_t* p, I16 a) { __builtin_memcpy(p, a.q, sizeof(a.q)); }
// The low halves.
static inline void store_s16(int16_t* p, I16 a) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int16_t>(a.q[i / 4][i % 4]);
}
// The low halves of a and b side by side: lane i holds a's and, above it, b's.
static inline I16 pair_s16(I16 a, I16 b) {
  return per_quarter_int([&](int i) { return (a.q[i] & 0xffff) | (b.q[i] << 16); });
}

// Sixteen rows of sixteen 32-bit values become columns.
static inline void transpose(F16 (&rows)[16]) {
  float from[16][16], to[16][16];
  for (int i = 0; i < 16; ++i) store(from[i], rows[i]);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) __builtin_memcpy(&to[j][i], &from[i][j], sizeof(float));
  }
  for (int i = 0; i < 16; ++i) rows[i] = load(to[i]);
}

// The nearest bfloat16, ties to even; NaN stays NaN.
static inline F16 round_to_bf16(F16 a) {
  return per_quarter([&](int i) {
    const I4 bits = (I4)a.q[i];
    const I4 up = bits + (((bits >> 16) & 1) + 0x7fff);
    const F4 rounded = (F4)(up & static_cast<int>(0xffff0000));
    return a.q[i] == a.q[i] ? rounded : a.q[i];
  });
}

// Sixteen pairs of bfloat16, apart: the first of each, and the second.
struct PairsF16 {
  F16 first, second;
};
static inline PairsF16 load_bf16_pairs(const uint16_t* p) {
  I16 pairs;
  __builtin_memcpy(pairs.q, p, sizeof(pairs.q));
  return {per_quarter([&](int i) { return (F4)(pairs.q[i] << 16); }),
          per_quarter([&](int i) { return (F4)(pairs.q[i] & static_cast<int>(0xffff0000)); })};
}

// Sixteen pairs of 8-bit integers, apart and widened to 32 bits.
struct PairsI16 {
  I16 first, second;
};
// Pairs made of 32-bit integers without an operation.
static inline PairsI16 as_pairs(I16 a) { return {a, a}; }
static inline PairsI16 load_s8_pairs(const int8_t* p) {
  typedef short S8 __attribute__((vector_size(16)));
  return {per_quarter_int([&](int i) {
            S8 pairs;
            for (int j = 0; j < 8; ++j) pairs[j] = p[8 * i + j];
            return ((I4)pairs << 16) >> 16;
          }),
          per_quarter_int([&](int i) {
            S8 pairs;
            for (int j = 0; j < 8; ++j) pairs[j] = p[8 * i + j];
            return (I4)pairs >> 16;
          })};
}
static inline PairsI16 load_s16_pairs(const int16_t* p) {
  I16 pairs;
  __builtin_memcpy(pairs.q, p, sizeof(pairs.q));
  return {per_quarter_int([&](int i) { return (pairs.q[i] << 16) >> 16; }),
          per_quarter_int([&](int i) { return pairs.q[i] >> 16; })};
}
// first * x's low half + second * x's high half, for a pair x of 16-bit integers; and that added to
// a sum. The product of two halves is below 2^30: nothing saturates.
static inline I16 dot_pairs(PairsI16 w, int32_t x) {
  const int low = static_cast<int16_t>(x);
  const int high = x >> 16;
  return per_quarter_int([&](int i) { return w.first.q[i] * low + w.second.q[i] * high; });
}
static inline I16 dot_pairs(I16 sum, PairsI16 w, const int32_t* x) {
  return sum + dot_pairs(w, *x);
}
// As above. The addition is an instruction of its own, which is left out: the multiplier is what
// limits, and how much of the adding fits beside it differs from loop to loop.
static inline I16 chain(I16 sum, int32_t pair) { return dot_pairs(as_pairs(sum), pair); }

}  // namespace bertrt::cpu::portable
