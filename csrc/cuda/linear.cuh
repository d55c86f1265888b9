// What the kernels of matrix products share: the way of their inputs to shared memory.
#pragma once

#include "cuda/depth.h"
#include "cuda/kernels.h"
#include "cuda/tile.cuh"
#include "cuda/tile_order.h"

namespace bertrt::cuda {

// Inputs that a block takes at a time.
template <class In>
constexpr int kDepth = sizeof(In) == 1 ? 64 : 32;

// What the sums of a product are worth, where it is one of 8-bit numbers.
template <class In>
struct Worth {};
template <>
struct Worth<uint8_t> {
  int64_t steps_at;  // bytes from a row of x to its RowSteps
  // Of the outputs, and of a tile's more behind them.
  const float* scale;
  const int32_t* sum;
};
template <>
struct Worth<E4m3> {
  int64_t steps_at;
  const float* scale;
};

// T: of the result and of what is added to it. In: of x and of the weights, where those are signed.
template <class T, class In = T>
struct Product : Worth<In> {
  const In* x;
  int64_t x_stride;
  const In* weight;
  int64_t weight_stride;
  const float* bias;
  Activation activation;
  const T* residual;
  int64_t residual_stride;
  T* out;
  int64_t out_stride;
  RowCount rows = 0;
  int inputs;
  int outputs;
  int tiles_across;  // of a row of the result
  bool vectors;      // whether rows of out and residual are at multiples of 16 bytes
};

// Where a tile begins.
struct Corner {
  int64_t row;
  int column;
};

template <class Tile, class T, class In>
__device__ __forceinline__ Corner corner_of_tile(const Product<T, In>& p, unsigned tile) {
  const int64_t down = (p.rows.most + Tile::kRows - 1) / Tile::kRows;
  const TilePlace at = tile_place(tile, down, p.tiles_across);
  return {at.down * Tile::kRows, static_cast<int>(at.across) * Tile::kColumns};
}

// This thread's copies of kRows rows to a tile, kDepth<T> inputs at a time, by kThreads threads of
// the block that begin at a multiple of as many: where they begin is worked out once. Rows beyond
// the valid ones repeat the last of them, and nobody reads what comes of it.
template <int kRows, int kThreads, class T>
class RowCopies {
 public:
  static constexpr int kPerChunk = 16 / sizeof(T);
  static constexpr int kChunks = kDepth<T> / kPerChunk;
  static constexpr int kTileBytes = kRows * kChunks * 16;

  __device__ __forceinline__ RowCopies(const T* rows, int64_t stride, int64_t valid_rows)
      : rows_(rows) {
    const unsigned row = threadIdx.x % kThreads / kChunks;
    const unsigned chunk = threadIdx.x % kChunks;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int64_t wanted = row + i * kRowsApart;
      from_[i] = static_cast<unsigned>((wanted < valid_rows ? wanted : valid_rows - 1) * stride) +
                 chunk * kPerChunk;
    }
    to_ = chunk_offset<kChunks>(row, chunk);
  }

  // Starts them for the inputs from k on, of which `left` are there: the others become zeros. Where
  // fewer than a chunk are, it reads those alone: behind a row's end nobody has written.
  __device__ __forceinline__ void start(unsigned char* tile, int k, int left) const {
    const int count = left - static_cast<int>(threadIdx.x % kChunks * kPerChunk);
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      unsigned char* to = tile + to_ + i * kRowsApart * kChunks * 16;
      const T* from = rows_ + k + from_[i];
      if (count >= kPerChunk) {
        cp_async16(to, from);
      } else {
#pragma unroll 1
        for (int e = 0; e < kPerChunk; ++e) {
          reinterpret_cast<T*>(to)[e] = e < count ? from[e] : T{};
        }
      }
    }
  }

 private:
  static constexpr int kCopies = kRows * kChunks / kThreads;
  static constexpr int kRowsApart = kThreads / kChunks;
  static_assert(kRows * kChunks % kThreads == 0 && kThreads % kChunks == 0);
  static_assert(kRowsApart % 8 == 0, "chunk_offset repeats every eight rows");
  static_assert(spreads_over_banks<kChunks>());

  const T* rows_;
  unsigned from_[kCopies];  // elements behind rows_: 32 bits count those of a tile
  unsigned to_;
};

// Walks over the depth: calls compute(x tile, weight tile) for each kDepth<In> inputs in order,
// with kStages - 1 tiles on their way meanwhile. Each of the tile's kGroups groups of threads walks
// its own part of the depth, in stages of its own. Between the last call and other use of shared
// memory, a barrier is needed. Returns whether any of the tile's rows is there, or nothing was
// computed; how many are goes to `rows_there`, in shared memory: a register less in the loop, for
// which the large tile has none.
template <class Tile, class T, class In, class Compute>
__device__ __forceinline__ bool walk_depth(const Product<T, In>& p, const Corner& corner,
                                           unsigned char* shared, int* rows_there,
                                           Compute compute) {
  constexpr int kRows = Tile::kRows;
  constexpr int kStages = Tile::kStages;
  constexpr int kThreads = Tile::kThreads / Tile::kGroups;
  using XCopies = RowCopies<kRows, kThreads, In>;
  using WeightCopies = RowCopies<Tile::kColumns, kThreads, In>;
  constexpr int kStageBytes = XCopies::kTileBytes + WeightCopies::kTileBytes;
  int begin = 0, end = p.inputs, longest = p.inputs;
  if constexpr (Tile::kGroups > 1) {
    const int group = static_cast<int>(threadIdx.x) / kThreads;
    begin = part_begin(p.inputs, Tile::kGroups, group);
    end = part_begin(p.inputs, Tile::kGroups, group + 1);
    longest = (p.inputs + kPartStep * Tile::kGroups - 1) / (kPartStep * Tile::kGroups) * kPartStep;
    shared += group * kStages * kStageBytes;
  }
  const WeightCopies weight(p.weight + corner.column * p.weight_stride, p.weight_stride,
                            p.outputs - corner.column);
  const auto load_weight = [&](int step) {
    const int k = begin + step * kDepth<In>;
    if (k < end) {
      weight.start(shared + step % kStages * kStageBytes + XCopies::kTileBytes, k, end - k);
    }
  };
  // Weights come while the kernel before this one ends; they belong to the first group.
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) load_weight(step);
  wait_for_kernels_before();
  const int64_t left = count_of(p.rows) - corner.row;
  const int rows = left < kRows ? static_cast<int>(left) : kRows;
  if (rows <= 0) {
    cp_async_commit();
    cp_async_wait<0>();
    return false;
  }
  if (threadIdx.x == 0) *rows_there = rows;
  const XCopies x(p.x + corner.row * p.x_stride, p.x_stride, rows);
  const auto load_x = [&](int step) {
    const int k = begin + step * kDepth<In>;
    if (k < end) x.start(shared + step % kStages * kStageBytes, k, end - k);
    cp_async_commit();  // an empty group keeps the count of those under way
  };
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) load_x(step);
  // Barriers are the block's: each group goes the steps of the longest part.
  const int steps = (longest + kDepth<In> - 1) / kDepth<In>;
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<kStages - 2>();
    syncthreads();  // everybody's copies are here, and everybody has read the stage before
    load_weight(step + kStages - 1);
    load_x(step + kStages - 1);
    const unsigned char* stage = shared + step % kStages * kStageBytes;
    if (Tile::kGroups == 1 || begin + step * kDepth<In> < end) {
      compute(stage, stage + XCopies::kTileBytes);
    }
  }
  return true;
}

}  // namespace bertrt::cuda
