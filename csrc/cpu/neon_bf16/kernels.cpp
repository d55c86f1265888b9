// bfloat16 products on the instructions of BF16: 16 products an instruction in matrix products, 8
// in attention. The other kernels are those of neon/ and neon_i8mm/; isa.cpp puts the table
// together.
//
// Both instructions add the products of inputs 0 and 1, rounded to odd, to the sum, rounded to odd,
// then those of 2 and 3 (Arm ARM, BFDotAdd, with FPCR.EBF 0, which FloatMode sees to).
//
// Only intrinsics and our own headers are included here: an inline function of the standard library
// compiled with this folder's flags could be the copy that the linker keeps for everyone.
#include "cpu/kernel_table.h"
#include "cpu/neon/vec.h"

namespace bertrt::cpu::neon_bf16 {
using namespace neon;
namespace {

struct Pairs {
  bfloat16x8_t q[4];
};
inline Pairs load_pairs(const char* p) {
  const bfloat16_t* pairs = reinterpret_cast<const bfloat16_t*>(p);
  return {
      {vld1q_bf16(pairs), vld1q_bf16(pairs + 8), vld1q_bf16(pairs + 16), vld1q_bf16(pairs + 24)}};
}
inline F16 add_pairs(F16 sum, const int32_t* x, Pairs w) {
  const bfloat16x8_t lane = vreinterpretq_bf16_f32(load_lane(x));
  return per_quarter([&](int i) { return vbfdotq_laneq_f32(sum.q[i], w.q[i], lane, 0); });
}
// Eight values of each half.
inline bfloat16x8_t narrow(F16 a, int half) {
  return vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(a.q[2 * half]), a.q[2 * half + 1]);
}
inline void store_bf16(uint16_t* p, F16 a) {
  vst1q_u16(p, vreinterpretq_u16_bf16(narrow(a, 0)));
  vst1q_u16(p + 8, vreinterpretq_u16_bf16(narrow(a, 1)));
}
inline void store_bf16_pairs(int32_t* p, F16 first, F16 second) {
  for (int half = 0; half < 2; ++half) {
    const uint16x8_t a = vreinterpretq_u16_bf16(narrow(first, half));
    const uint16x8_t b = vreinterpretq_u16_bf16(narrow(second, half));
    vst1q_s32(p + 8 * half, vreinterpretq_s32_u16(vzip1q_u16(a, b)));
    vst1q_s32(p + 8 * half + 4, vreinterpretq_s32_u16(vzip2q_u16(a, b)));
  }
}

}  // namespace
}  // namespace bertrt::cpu::neon_bf16

#define BERTRT_CPU_NAMESPACE neon_bf16
#include "cpu/generic/bf16.inl.h"
#include "cpu/neon/squares.inl.h"

namespace bertrt::cpu::neon_bf16 {
namespace {

struct BFloat16Squares {
  using Input = uint64_t;  // four bfloat16
  using Sum = F16;
  using Square = float32x4_t;
  static constexpr int kRows = kGemmRows;
  static constexpr int kGroup = 4;
  static constexpr bool kExact = false;
  static constexpr int64_t kBlock = kDepthBlockBf16 / 4;
  static Square no_square() { return vdupq_n_f32(0.0f); }
  static Square add(Square sum, uint8x16_t rows, uint8x16_t weights) {
    return vbfmmlaq_f32(sum, vreinterpretq_bf16_u8(rows), vreinterpretq_bf16_u8(weights));
  }
  static float32x4_t row_of(Square a, Square b, int row) {
    const float64x2_t left = vreinterpretq_f64_f32(a);
    const float64x2_t right = vreinterpretq_f64_f32(b);
    return vreinterpretq_f32_f64(row == 0 ? vzip1q_f64(left, right) : vzip2q_f64(left, right));
  }
  static F16 value(Sum sum, const GemmTile&, int, int) { return sum; }
  static F16 gelu_erf(F16 x) { return gelu_erf_short(x); }
};

template <int kRows, bool kFetch>
struct Rows<BFloat16Squares, kRows, kFetch> : RowsOfSquares<BFloat16Squares, kRows, kFetch> {};

struct MultiplyAddSquares {
  using Sum = F16;
  static constexpr int64_t kOperations = 4 * 32;
  bfloat16x8_t square;
  explicit MultiplyAddSquares(float x) : square(vreinterpretq_bf16_f32(vdupq_n_f32(x))) {}
  static Sum first(F16 x) { return x; }
  Sum step(Sum sum) const {
    return per_quarter([&](int i) { return vbfmmlaq_f32(sum.q[i], square, square); });
  }
  static void keep(Sum sum, float* out) { store(out, sum + load(out)); }
};

}  // namespace

extern const AttentionKernel kAttentionBf16;
const AttentionKernel kAttentionBf16 = {"attention_bf16.neon_bf16", BFloat16Pairs::kRows,
                                        attention_scratch<AttentionBf16>, attention<AttentionBf16>};

extern const GemmKernel kGemmBf16;
const GemmKernel kGemmBf16 = {"gemm_bf16.neon_bf16",
                              BFloat16Squares::kRows,
                              kPanel,
                              BFloat16Squares::kGroup,
                              convert,
                              sizeof(uint16_t),
                              true,
                              Gemm<BFloat16Squares>::run,
                              peak<MultiplyAddSquares>,
                              2};

}  // namespace bertrt::cpu::neon_bf16
