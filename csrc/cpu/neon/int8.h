// int8 rows and sums as the dot products of Arm take them: signed by signed.
//
// A row's steps from 0 to 255 are kept less 128, and so is its zero point. That point adds so many
// times the sum of a column's weights to each of its sums, and that is taken off again: what is
// left is the sum that every other path has, to the bit.
#pragma once

#include "cpu/generic/gemm.inl.h"

namespace bertrt::cpu::BERTRT_CPU_NAMESPACE {
namespace {

inline void convert_s8_steps(const float* x, int64_t depth, void* out, RowSteps* steps) {
  int8_t* row = static_cast<int8_t*>(out);
  const uint8x16_t middle = vdupq_n_u8(128);
  *steps = quantise(x, depth, [&](int64_t i, I16 q, I16) {
    const int16x8_t low = vcombine_s16(vmovn_s32(q.q[0]), vmovn_s32(q.q[1]));
    const int16x8_t high = vcombine_s16(vmovn_s32(q.q[2]), vmovn_s32(q.q[3]));
    const uint8x16_t all = vreinterpretq_u8_s8(vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    vst1q_s8(row + i, vreinterpretq_s8_u8(veorq_u8(all, middle)));
  });
  steps->zero -= 128;
}

inline F16 int8_value(I16 sum, const GemmTile& tile, int row, int column) {
  const I16 excess = load(tile.column_sum + column) * broadcast_int(tile.steps(row).zero);
  return dequantise(sum - excess, tile, row, column);
}

}  // namespace
}  // namespace bertrt::cpu::BERTRT_CPU_NAMESPACE
