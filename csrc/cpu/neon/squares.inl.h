// Products on the matrix instructions of Arm, which multiply two rows by two columns over 8 bytes
// of their depth: a square of four sums to a register.
//
// A panel has a group of 8 bytes of one column, then that of the next: 16 bytes are two of them.
// Rows lie as they are, and two are put together when they are read, which takes one instruction of
// the multiplier's for eight multiplications. (Kept together, converting them would have to know of
// tiles.) Six rows by 16 columns have 24 squares.
#pragma once

#include "cpu/generic/gemm.inl.h"

namespace bertrt::cpu::BERTRT_CPU_NAMESPACE {
namespace {

// A format of squares says what others do but for weights and steps, and instead
//   Square                    the sums of two rows and two columns
//   no_square()               four zeros
//   add(Square, uint8x16_t rows, uint8x16_t weights)
//   row_of(Square, Square, i) row i of two squares side by side
// and Rows of it are these.
template <class Format, int kRows, bool kFetch>
struct RowsOfSquares {
  static constexpr int kPointers = (kRows + 2) / 3;
  static constexpr int kPairs = (kRows + 1) / 2;
  static constexpr int kSquares = 8;  // across a panel
  const uint64_t* p[kPointers];
  int64_t stride;
  const char* panel;
  const char* fetch;
  int64_t fetch_step;
  int64_t fetch_apart;  // of no use: a panel is one vector wide

  // The products with half a panel's columns.
  template <int kFirst>
  inline __attribute__((always_inline)) void add_products(
      typename Format::Square (&sum)[kPairs][kSquares], const uint8x16_t (&rows)[kPairs]) const {
#pragma GCC unroll 8
    for (int j = kFirst; j < kFirst + kSquares / 2; ++j) {
      const uint8x16_t w = vld1q_u8(reinterpret_cast<const uint8_t*>(panel) + 16 * j);
#pragma GCC unroll 16
      for (int i = 0; i < kPairs; ++i) sum[i][j] = Format::add(sum[i][j], rows[i], w);
    }
  }

  inline __attribute__((always_inline)) void multiply(int64_t depth,
                                                      Accumulators<Format, kRows>& result) {
    typename Format::Square sum[kPairs][kSquares];
    const uint64_t* row[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kPairs; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < kSquares; ++j) sum[i][j] = Format::no_square();
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) row[i] = p[0] + i * stride;
    for (int64_t k = 0; k < depth; ++k) {
      uint8x16_t rows[kPairs];
#pragma GCC unroll 16
      for (int i = 0; i < kPairs; ++i) {
        // A row without one below it stands above zeros.
        uint64x2_t both = vcombine_u64(vld1_u64(row[2 * i]++), vcreate_u64(0));
        if (2 * i + 1 < kRows) both = vld1q_lane_u64(row[2 * i + 1]++, both, 1);
        rows[i] = vreinterpretq_u8_u64(both);
      }
      if constexpr (kFetch) {
        // A step has two cache lines of the panel.
        __builtin_prefetch(fetch, 0, 2);
        __builtin_prefetch(fetch + 64, 0, 2);
        fetch += fetch_step;
      }
      add_products<0>(sum, rows);
      // The other half of the weights after these products: GCC 12 loads all eight registers at
      // once, and spills sums.
#pragma GCC unroll 16
      for (int i = 0; i < kPairs; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < kSquares / 2; ++j) {
          typename Format::Square done = sum[i][j];
          asm("" : "+r"(panel), "+w"(done));
          sum[i][j] = done;
        }
      }
      add_products<kSquares / 2>(sum, rows);
      panel += 16 * kSquares;
    }
    p[0] += depth;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        result.sum[i][0].q[j] = Format::row_of(sum[i / 2][2 * j], sum[i / 2][2 * j + 1], i % 2);
      }
    }
  }
};

}  // namespace
}  // namespace bertrt::cpu::BERTRT_CPU_NAMESPACE
