// int8 products on the matrix instruction of I8MM: 32 products an instruction. The other kernels
// are those of neon/; isa.cpp puts the table together.
//
// Only intrinsics and our own headers are included here: an inline function of the standard library
// compiled with this folder's flags could be the copy that the linker keeps for everyone.
#include "cpu/kernel_table.h"
#include "cpu/neon/vec.h"

namespace bertrt::cpu::neon_i8mm {
using namespace neon;
}

#define BERTRT_CPU_NAMESPACE neon_i8mm
#include "cpu/generic/peak.inl.h"
#include "cpu/neon/int8.h"
#include "cpu/neon/squares.inl.h"

namespace bertrt::cpu::neon_i8mm {
namespace {

struct Int8Squares {
  using Input = uint64_t;  // eight signed 8-bit integers
  using Sum = I16;
  using Square = int32x4_t;
  static constexpr int kRows = kGemmRows;
  static constexpr int kGroup = 8;
  static constexpr bool kExact = true;
  static Square no_square() { return vdupq_n_s32(0); }
  static Square add(Square sum, uint8x16_t rows, uint8x16_t weights) {
    return vmmlaq_s32(sum, vreinterpretq_s8_u8(rows), vreinterpretq_s8_u8(weights));
  }
  static int32x4_t row_of(Square a, Square b, int row) {
    const int64x2_t left = vreinterpretq_s64_s32(a);
    const int64x2_t right = vreinterpretq_s64_s32(b);
    return vreinterpretq_s32_s64(row == 0 ? vzip1q_s64(left, right) : vzip2q_s64(left, right));
  }
  static F16 value(Sum sum, const GemmTile& tile, int row, int column) {
    return int8_value(sum, tile, row, column);
  }
  static F16 gelu_erf(F16 x) { return gelu_erf_short(x); }
};

template <int kRows, bool kFetch>
struct Rows<Int8Squares, kRows, kFetch> : RowsOfSquares<Int8Squares, kRows, kFetch> {};

struct MultiplyAddSquares {
  using Sum = I16;
  static constexpr int64_t kOperations = 4 * 64;
  int8x16_t square;
  explicit MultiplyAddSquares(float x) : square(vreinterpretq_s8_f32(vdupq_n_f32(x))) {}
  static Sum first(F16 x) { return to_nearest_int(x); }
  Sum step(Sum sum) const {
    return per_quarter_int([&](int i) { return vmmlaq_s32(sum.q[i], square, square); });
  }
  static void keep(Sum sum, float* out) { store(out, to_float(sum) + load(out)); }
};

}  // namespace

extern const GemmKernel kGemmS8;
const GemmKernel kGemmS8 = {"gemm_s8.neon_i8mm",
                            Int8Squares::kRows,
                            kPanel,
                            Int8Squares::kGroup,
                            convert_s8_steps,
                            sizeof(int8_t),
                            false,
                            Gemm<Int8Squares>::run,
                            peak<MultiplyAddSquares>,
                            2};

}  // namespace bertrt::cpu::neon_i8mm
