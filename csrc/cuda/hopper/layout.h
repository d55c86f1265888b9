// Hopper's maps as plain functions: where elements of tiles stand, what describes a tile to wgmma,
// who holds which sum. Of PTX ISA 8.x, whose sections are named.
#pragma once

#include <cstdint>

#include "cuda/both.h"
#include "cuda/depth.h"

namespace bertrt::cuda::hopper {

// A tile of 16-bit elements has rows of 64, the 128 bytes over which TMA and wgmma swizzle.
constexpr unsigned kRowBytes = 128;
constexpr unsigned kSwizzleBytes = 1024;  // the pattern's period, and tiles' alignment

// Where the 16 bytes `chunk` of a row stand, in bytes from a tile's beginning ("Swizzling Modes":
// 128 bytes, bits 4 to 6 of the address change by bits 7 to 9).
BERTRT_BOTH constexpr unsigned swizzled(unsigned row, unsigned chunk) {
  return row * kRowBytes + ((chunk ^ row % 8) << 4);
}

// The matrix descriptor of wgmma ("Matrix Descriptor Format") for a K-major tile in that swizzle,
// from a shared address on, a multiple of 16 within the row of a tile that begins at a multiple of
// 1,024. Eight rows are 1,024 bytes apart from the next eight; the leading offset is not used.
BERTRT_BOTH constexpr uint64_t descriptor(uint32_t address) {
  return uint64_t{(address & 0x3ffff) >> 4} | uint64_t{1} << 16 |
         uint64_t{kSwizzleBytes >> 4} << 32 | uint64_t{1} << 62;
}

// The row and column of sum `i` of a warpgroup's thread in wgmma.m64nNk16 ("Register Fragments and
// Shared Memory Matrix Layouts", D).
struct Place {
  int row;
  int column;
};
BERTRT_BOTH constexpr Place sum_place(int thread, int i) {
  return {thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8, i / 4 * 8 + thread % 4 * 2 + i % 2};
}

// A block's tile of the result: 128 rows, and 128 columns or twice as many.
constexpr int kTileRows = 128;
constexpr int kNarrow = 128;
constexpr int kWide = 2 * kNarrow;

// Whether a result of so many tiles down is computed in wide tiles. Of a tile's inputs and weights
// a wide one reads three quarters as much for each of its sums. It takes as long as two narrow
// ones: so it is taken where the blocks of all multiprocessors have no more to do in turn. A sum is
// made by the same instructions in both, and its bits are the same.
BERTRT_BOTH constexpr bool wide_tiles(int64_t tiles_down, int64_t outputs, int multiprocessors) {
  const auto turns = [=](int64_t columns) {
    const int64_t tiles = tiles_down * ((outputs + columns - 1) / columns);
    return (tiles + multiprocessors - 1) / multiprocessors;
  };
  return 2 * turns(kWide) <= turns(kNarrow);
}

// Whether two blocks that make wide tiles, one above the other, are a cluster and share the copies
// of their weights: where there are two, and no block has more to do in turn. A block then brings
// 32 KiB for a step in the place of 48. The sums are the same.
BERTRT_BOTH constexpr bool shared_weights(int64_t tiles_down, int64_t tiles_across,
                                          int multiprocessors) {
  const int clusters = multiprocessors / 2;
  if (tiles_down < 2 || clusters == 0) return false;
  const int64_t pairs = (tiles_down + 1) / 2 * tiles_across;
  return (pairs + clusters - 1) / clusters <=
         (tiles_down * tiles_across + multiprocessors - 1) / multiprocessors;
}

// Whether a result of so many tiles, whose depth has several parts, is computed by clusters, in
// which a block walks one part of a tile, and not by blocks that walk all of them: where blocks
// have fewer steps in turn. As many clusters run at once as the multiprocessors are made for, less
// what their groups leave over, which is not known here. Each takes kExchangeSteps more: to lay
// sums out, wait twice and read the others' takes 2 us by reckoning, where a step takes 0.27 (BERT
// base's 48, 13 us). Nothing of it has been measured. The sums are the same in both.
constexpr int kExchangeSteps = 8;
BERTRT_BOTH constexpr bool parts_in_clusters(int64_t tiles, int inputs, int multiprocessors) {
  const int parts = depth_parts(inputs);
  const int clusters = multiprocessors / parts;
  if (clusters == 0) return false;
  const int64_t steps = (int64_t{inputs} + kPartStep - 1) / kPartStep;
  const auto turns = [=](int at_once) { return (tiles + at_once - 1) / at_once; };
  const int64_t of_part = (steps + parts - 1) / parts + kExchangeSteps;
  return turns(clusters) * of_part < turns(multiprocessors) * steps;
}

// Where a step of a ring of stages stands: its stage, and the parity of the phase in which its
// barrier is full ("mbarrier": phases are counted from 0). It is empty in the phase before, which a
// fresh barrier counts as completed.
struct RingPlace {
  int stage;
  unsigned full;
  unsigned empty;
};
BERTRT_BOTH constexpr RingPlace ring_place(int64_t step, int stages) {
  const unsigned round = static_cast<unsigned>(step / stages % 2);
  return {static_cast<int>(step % stages), round, round ^ 1};
}

}  // namespace bertrt::cuda::hopper
