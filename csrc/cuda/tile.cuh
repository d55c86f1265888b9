// Tiles of rows in shared memory, and the fragments of tensor cores read from them.
#pragma once

#include "cuda/device.cuh"

namespace bertrt::cuda {

// Where the 16 bytes `chunk` of a tile's row stand, in bytes from the tile's beginning.
//
// Eight rows are read at a time, the same chunk of each (ldmatrix, or eight lanes reading 16 bytes
// each), and shared memory's banks hand out eight different ones of 128 / 16 places at a
// time. Rows of kChunks chunks begin at 8 / kSpread different places; which rows begin at the same
// one is told apart by swapping chunks within groups of kSpread.
template <int kChunks>
__host__ __device__ constexpr unsigned chunk_offset(unsigned row, unsigned chunk) {
  constexpr int kPowerOfTwo = kChunks & -kChunks;
  constexpr unsigned kSpread = kPowerOfTwo < 8 ? kPowerOfTwo : 8;
  return (row * kChunks + (chunk ^ (row / (8 / kSpread) % kSpread))) * 16;
}

// Whether any eight rows from a multiple of eight on have any chunk at eight different places.
template <int kChunks>
__host__ __device__ constexpr bool spreads_over_banks() {
  for (unsigned chunk = 0; chunk < kChunks; ++chunk) {
    unsigned places = 0;
    for (unsigned row = 0; row < 8; ++row) {
      places |= 1u << chunk_offset<kChunks>(row, chunk) / 16 % 8;
    }
    if (places != 0xff) return false;
  }
  return true;
}

// Starts copies of kRows rows of whole chunks from `rows` to a tile; what is beyond valid_rows, one
// at least, becomes zeros. All kThreads threads of the block call it. Within a tile 32 bits count
// the elements: 64-bit offsets, which the compiler keeps from one tile to the next, are twice the
// registers.
template <int kRows, int kChunks, int kThreads, class T>
__device__ __forceinline__ void load_tile(unsigned char* tile, const T* rows, int64_t stride,
                                          int valid_rows) {
  static_assert(spreads_over_banks<kChunks>());
  constexpr int kPerChunk = 16 / sizeof(T);
#pragma unroll
  for (unsigned first = 0; first < kRows * kChunks; first += kThreads) {
    const unsigned i = first + threadIdx.x;
    if (kRows * kChunks % kThreads != 0 && i >= kRows * kChunks) break;
    const unsigned row = i / kChunks;
    const unsigned chunk = i % kChunks;
    const bool there = static_cast<int>(row) < valid_rows;
    const T* from = rows + (there ? row * static_cast<unsigned>(stride) : 0) + chunk * kPerChunk;
    cp_async16(tile + chunk_offset<kChunks>(row, chunk), from, there);
  }
}

__device__ __forceinline__ unsigned lane_index() { return threadIdx.x % kWarp; }

// The fragment of the left operand, 16 rows from `row` and 16 elements from `chunk` on; or, read
// transposed, two fragments of the right operand: 16 elements of depth, a row each, and 16 columns.
template <int kChunks>
__device__ __forceinline__ const void* left_row(const unsigned char* tile, unsigned row,
                                                unsigned chunk) {
  const unsigned lane = lane_index();
  return tile + chunk_offset<kChunks>(row + lane % 16, chunk + lane / 16);
}

// Two fragments of the right operand, 16 columns that stand in the tile as rows from `row` on, and
// 16 elements of depth from `chunk` on.
template <int kChunks>
__device__ __forceinline__ const void* right_row(const unsigned char* tile, unsigned row,
                                                 unsigned chunk) {
  const unsigned lane = lane_index();
  return tile + chunk_offset<kChunks>(row + lane / 16 * 8 + lane % 8, chunk + lane / 8 % 2);
}

// first, second += a * (the two fragments of the right operand). Of e4m3, 32 elements of depth.
template <class T>
__device__ __forceinline__ void mma_pair(float (&first)[4], float (&second)[4],
                                         const uint32_t (&a)[4], const uint32_t (&b)[4],
                                         Site site = Site::current()) {
  if constexpr (sizeof(T) == 1) {
    mma_m16n8k32(first, a, {b[0], b[1]}, site);
    mma_m16n8k32(second, a, {b[2], b[3]}, site);
  } else {
    mma_m16n8k16<T>(first, a, {b[0], b[1]}, site);
    mma_m16n8k16<T>(second, a, {b[2], b[3]}, site);
  }
}

// The same of 8-bit integers, and 32 elements of depth.
template <class>
__device__ __forceinline__ void mma_pair(int32_t (&first)[4], int32_t (&second)[4],
                                         const uint32_t (&a)[4], const uint32_t (&b)[4],
                                         Site site = Site::current()) {
  mma_m16n8k32(first, a, {b[0], b[1]}, site);
  mma_m16n8k32(second, a, {b[2], b[3]}, site);
}

}  // namespace bertrt::cuda
