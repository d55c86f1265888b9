// int8 products on the dot products of Armv8.2: four products a lane and instruction. The other
// kernels are those of neon/; isa.cpp puts the table together.
//
// Only intrinsics and our own headers are included here: an inline function of the standard library
// compiled with this folder's flags could be the copy that the linker keeps for everyone.
#include "cpu/kernel_table.h"
#include "cpu/neon/vec.h"

namespace bertrt::cpu::neon_dotprod {
using namespace neon;
}

#define BERTRT_CPU_NAMESPACE neon_dotprod
#include "cpu/generic/peak.inl.h"
#include "cpu/neon/int8.h"

namespace bertrt::cpu::neon_dotprod {
namespace {

struct Fours {
  int8x16_t q[4];
};

struct Int8Fours {
  using Input = int32_t;  // four signed 8-bit integers
  using Sum = I16;
  using Weights = Fours;
  static constexpr int kRows = kGemmRows;
  static constexpr int kGroup = 4;
  static constexpr bool kExact = true;
  static constexpr int64_t kVector = 16 * 4;
  static Sum none() { return zero_int(); }
  static Weights load_weights(const char* p) {
    const int8_t* fours = reinterpret_cast<const int8_t*>(p);
    return {{vld1q_s8(fours), vld1q_s8(fours + 16), vld1q_s8(fours + 32), vld1q_s8(fours + 48)}};
  }
  static Sum step(Sum sum, const Input* x, Weights w) {
    const int8x16_t lane = vreinterpretq_s8_f32(load_lane(x));
    return per_quarter_int([&](int i) { return vdotq_laneq_s32(sum.q[i], w.q[i], lane, 0); });
  }
  static F16 value(Sum sum, const GemmTile& tile, int row, int column) {
    return int8_value(sum, tile, row, column);
  }
  static F16 gelu_erf(F16 x) { return gelu_erf_short(x); }
};

struct MultiplyAddFours {
  using Sum = I16;
  static constexpr int64_t kOperations = 8 * 16;
  int8x16_t fours;
  explicit MultiplyAddFours(float x) : fours(vreinterpretq_s8_f32(vdupq_n_f32(x))) {}
  static Sum first(F16 x) { return to_nearest_int(x); }
  Sum step(Sum sum) const {
    return per_quarter_int([&](int i) { return vdotq_s32(sum.q[i], fours, fours); });
  }
  static void keep(Sum sum, float* out) { store(out, to_float(sum) + load(out)); }
};

}  // namespace

extern const GemmKernel kGemmS8;
const GemmKernel kGemmS8 = {"gemm_s8.neon_dotprod", Int8Fours::kRows, kPanel, Int8Fours::kGroup,
                            convert_s8_steps,       sizeof(int8_t),   false,  Gemm<Int8Fours>::run,
                            peak<MultiplyAddFours>};

}  // namespace bertrt::cpu::neon_dotprod
