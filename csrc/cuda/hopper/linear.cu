// Matrix products of 16-bit elements by Hopper's own instructions: one warpgroup copies tiles of
// inputs by TMA, two multiply them by wgmma, and a block goes from tile to tile of the result.
//
// A sum's order is the depth's, 16 inputs at a time, whatever the number of rows: like those of
// linear.cu, its bits do not depend on the batch. They are not the bits of linear.cu. A deep
// layer's sums are those of the parts of its depth (depth.h), added in order: by a block that walks
// all of them, or by a cluster of blocks that walk one each.
#include "cuda/hopper/linear.h"

#include <algorithm>

#include "cuda/depth.h"
#include "cuda/epilogue.cuh"
#include "cuda/hopper/parts.cuh"
#include "cuda/hopper/present.h"
#include "cuda/tile_order.h"

namespace bertrt::cuda::hopper {
namespace {

constexpr int kWarpgroup = 128;
constexpr int kConsumers = 2;  // warpgroups, one above the other
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kRows = kConsumers * 64;
static_assert(kRows == kTileRows);
constexpr int kStepDepth = kRowBytes / 2;
static_assert(kPartStep % kStepDepth == 0);
constexpr int kStages = 4;
constexpr int kLeftBytes = kRows * kRowBytes;
constexpr int kHalfBytes = kNarrow * kRowBytes;  // of weights, for one wgmma

// Sums go by way of shared memory, a warp's 16 rows and 32 columns at a time; eight floats beyond
// the rows' ends spread them over all banks. Those of a cluster's block stand there all at once,
// beside the stages.
constexpr int kPartColumns = 32;
constexpr int kPartStride = kPartColumns + 8;
constexpr int kPartBytes = 16 * kPartStride * 4;
constexpr int kPartsBytes = kConsumers * 4 * kPartBytes;
constexpr int kSumsStride = kNarrow + 8;
constexpr int kAllSumsBytes = kRows * kSumsStride * 4;

// Tiles of kRows rows of inputs and kColumns of weights on their way through shared memory. The
// kSharers blocks of a cluster may multiply by the same weights: each copies a share of them to
// all, and a stage is empty when all have read it.
template <int kColumns, int kSharers = 1>
class Ring {
 public:
  static constexpr int kHalves = kColumns / kNarrow;
  static constexpr int kStageBytes = kLeftBytes + kColumns * kRowBytes;
  static constexpr int kBytes = kStages * kStageBytes;
  static constexpr int kShareRows = kColumns / kSharers;  // of weights, that a block copies

  // All threads of the block; the barriers stand behind what a kernel has beside the stages.
  __device__ __forceinline__ explicit Ring(int other_bytes) {
    unsigned char* shared = shared_memory<unsigned char>();
    stages_ = shared + (kSwizzleBytes - shared_address(shared) % kSwizzleBytes) % kSwizzleBytes;
    full_ = reinterpret_cast<Barrier*>(stages_ + kBytes + other_bytes);
    empty_ = full_ + kStages;
    if (threadIdx.x == 0) {
      for (int s = 0; s < kStages; ++s) {
        barrier_init(full_ + s, 1);
        barrier_init(empty_ + s, kSharers * kConsumers * 4);  // a lane of each warp
      }
      barrier_init_done();
    }
    if constexpr (kSharers > 1) {
      cluster_barrier();
    } else {
      syncthreads();
    }
  }

  __device__ __forceinline__ float* beside() const {
    return reinterpret_cast<float*>(stages_ + kBytes);
  }

  // Copies what the steps [begin, end) of a tile multiply. One thread calls it.
  __device__ __forceinline__ void copy(const TensorMap& x, const TensorMap& weight,
                                       const TilePlace& at, int begin, int end) {
    for (int step = begin; step < end; ++step, ++turn_) {
      const RingPlace ring = ring_place(turn_, kStages);
      unsigned char* stage = stages_ + ring.stage * kStageBytes;
      barrier_wait(empty_ + ring.stage, ring.empty);
      barrier_expect(full_ + ring.stage, kStageBytes);
      tma_load(stage, x, at.down * kRows, step * kStepDepth, full_ + ring.stage);
      const unsigned share = kSharers > 1 ? cluster_rank() : 0;
      unsigned char* weights = stage + kLeftBytes + share * kShareRows * kRowBytes;
      const int64_t first = at.across * kColumns + share * kShareRows;
      if constexpr (kSharers > 1) {
        tma_load(weights, weight, first, step * kStepDepth, full_ + ring.stage,
                 (1U << kSharers) - 1);
      } else {
        tma_load(weights, weight, first, step * kStepDepth, full_ + ring.stage);
      }
    }
  }

  // Sums from zero on of so many steps, by the warpgroups that compute.
  //
  // Sums of a wide tile are two halves, each of the instruction that a narrow tile's are: one of
  // 256 columns would read inputs once where these read them twice, but shared memory brings what
  // either reads in less time than it multiplies; and that its sums have the same bits is nowhere
  // promised.
  template <class T>
  __device__ __forceinline__ void multiply(float (&sums)[kHalves][64], int group, int steps) {
    const auto release = [&](int64_t of_turn) {
      Barrier* const empty = empty_ + ring_place(of_turn, kStages).stage;
      if constexpr (kSharers > 1) {
        if (lane_index() < kSharers) barrier_arrive(empty, lane_index());
      } else {
        if (lane_index() == 0) barrier_arrive(empty);
      }
    };
    for (int step = 0; step < steps; ++step, ++turn_) {
      const RingPlace ring = ring_place(turn_, kStages);
      const uint32_t stage = shared_address(stages_ + ring.stage * kStageBytes);
      const uint32_t left = stage + static_cast<uint32_t>(group) * 64 * kRowBytes;
      barrier_wait(full_ + ring.stage, ring.full);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kStepDepth / 16; ++k) {
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          wgmma_m64n128k16<T>(sums[half], descriptor(left + k * 32),
                              descriptor(stage + kLeftBytes + half * kHalfBytes + k * 32),
                              step + k > 0);
        }
      }
      wgmma_commit();
      if (step > 0) {
        wgmma_wait<1>(sums);
        release(turn_ - 1);
      }
    }
    wgmma_wait<0>(sums);
    release(turn_ - 1);
  }

 private:
  unsigned char* stages_;
  Barrier* full_;
  Barrier* empty_;
  int64_t turn_ = 0;  // steps since the kernel began
};

// Stages, what is beside them, barriers, and what stages need to begin at a multiple of 1,024.
template <int kColumns>
constexpr int shared_bytes(int beside) {
  return Ring<kColumns>::kBytes + beside + 2 * kStages * static_cast<int>(sizeof(Barrier)) +
         kSwizzleBytes;
}
static_assert(shared_bytes<kWide>(kPartsBytes) <= 227 * 1024);
static_assert(shared_bytes<kNarrow>(kAllSumsBytes) <= 227 * 1024);

__device__ __forceinline__ int steps_of(int inputs) {
  return (inputs + kStepDepth - 1) / kStepDepth;
}
// Those before a part.
template <int kParts>
__device__ __forceinline__ int steps_before(int inputs, int part) {
  return steps_of(part_begin(inputs, kParts, part));
}

// Eight values of the result from their sums: the bias, and all else behind it.
template <class T>
__device__ __forceinline__ void finish_sums(const Product<T>& p, int64_t row, int column, int left,
                                            float (&values)[8]) {
  if (p.bias) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < left) values[i] += p.bias[column + i];
    }
  }
  finish_values(p, row, column, left, values);
}

// Writes a part of the result from the warp's sums in shared memory, 16 bytes a thread at a time.
template <class T>
__device__ __forceinline__ void finish_part(const Product<T>& p, int64_t first_row, int64_t rows,
                                            int first_column, const float* sums) {
  constexpr unsigned kCount = 8;
  const unsigned lane = lane_index();
  const unsigned part_column = lane % (kPartColumns / kCount) * kCount;
  const int column = first_column + static_cast<int>(part_column);
  const int left = p.outputs - column;
#pragma unroll 1
  for (unsigned part_row = lane / (kPartColumns / kCount); part_row < 16;
       part_row += kWarp / (kPartColumns / kCount)) {
    const int64_t row = first_row + part_row;
    if (row >= rows || left <= 0) break;
    float values[kCount];
#pragma unroll
    for (unsigned i = 0; i < kCount; i += 4) {
      const Vector<float> four = load_vector(sums + part_row * kPartStride + part_column + i);
#pragma unroll
      for (unsigned e = 0; e < 4; ++e) values[i + e] = four.values[e];
    }
    finish_sums(p, row, column, left, values);
  }
}

// kParts: how many the depth has. kSharers: the blocks of a cluster, which make tiles one above the
// other at the same time; what is below the last one is made, too, and not written.
template <class T, int kColumns, int kParts, int kSharers>
__global__ void __launch_bounds__(kThreads, 1)
    linear_wgmma(Product<T> p, const __grid_constant__ TensorMap x,
                 const __grid_constant__ TensorMap weight) {
  Ring<kColumns, kSharers> ring(kPartsBytes);
  wait_for_kernels_before();

  const int64_t rows = count_of(p.rows);
  const int64_t down = (rows + kSharers * kRows - 1) / (kSharers * kRows);
  const int64_t tiles = down * p.tiles_across;  // or, of a cluster, so many at once
  const int64_t first_tile = blockIdx.x / kSharers;
  const int64_t tiles_apart = gridDim.x / kSharers;
  const auto place_of = [&](int64_t tile) {
    TilePlace at = tile_place(tile, down, p.tiles_across);
    if constexpr (kSharers > 1) at.down = at.down * kSharers + cluster_rank();
    return at;
  };
  const int steps = steps_of(p.inputs);
  const int group = static_cast<int>(threadIdx.x) / kWarpgroup;
  if (group == kConsumers) {
    give_registers<40>();
    if (threadIdx.x % kWarpgroup == 0) {
      for (int64_t tile = first_tile; tile < tiles; tile += tiles_apart) {
        ring.copy(x, weight, place_of(tile), 0, steps);
      }
    }
    if constexpr (kSharers > 1) cluster_barrier();  // as below
    return;
  }

  take_registers<232>();
  const int warp = static_cast<int>(threadIdx.x) / kWarp;  // of those that compute
  float* part_of_sums = ring.beside() + warp * kPartBytes / 4;
  for (int64_t tile = first_tile; tile < tiles; tile += tiles_apart) {
    const TilePlace at = place_of(tile);
    float sums[kColumns / kNarrow][64];
    if constexpr (kParts == 1) {
      ring.template multiply<T>(sums, group, steps);
    } else {
      static_assert(kColumns == kNarrow, "a wide tile's sums leave no registers for those before");
      float before[64];
#pragma unroll 1
      for (int part = 0; part < kParts; ++part) {
        ring.template multiply<T>(
            sums, group,
            steps_before<kParts>(p.inputs, part + 1) - steps_before<kParts>(p.inputs, part));
#pragma unroll
        for (int i = 0; i < 64; ++i) {
          if (part > 0) sums[0][i] += before[i];
          before[i] = sums[0][i];
        }
      }
    }
    const int64_t first_row = at.down * kRows + warp * 16;
#pragma unroll 1
    for (int columns = 0; columns < kColumns; columns += kPartColumns) {
#pragma unroll
      for (int i = 0; i < kColumns / 2; i += 2) {
        const Place place = sum_place(static_cast<int>(lane_index()), i);
        if (i / (kPartColumns / 2) == columns / kPartColumns) {
          float* to = part_of_sums + place.row * kPartStride + place.column % kPartColumns;
          to[0] = sums[i / 64][i % 64];
          to[1] = sums[i / 64][i % 64 + 1];
        }
      }
      syncwarp();
      finish_part(p, first_row, rows, static_cast<int>(at.across) * kColumns + columns,
                  part_of_sums);
      syncwarp();
    }
  }
  if constexpr (kSharers > 1) cluster_barrier();  // nothing comes from the others any more
}

// A tile by a cluster of as many blocks as the depth has parts. Each lays the sums of its part out
// in its shared memory and finishes its share of the tile's rows, from the sums of all.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    linear_wgmma_cluster(Product<T> p, const __grid_constant__ TensorMap x,
                         const __grid_constant__ TensorMap weight) {
  Ring<kNarrow> ring(kAllSumsBytes);
  wait_for_kernels_before();

  const int64_t rows = count_of(p.rows);
  const int64_t down = (rows + kRows - 1) / kRows;
  const int64_t tile = blockIdx.x / kMostParts;
  if (tile >= down * p.tiles_across) return;  // all of the cluster
  const TilePlace at = tile_place(tile, down, p.tiles_across);
  const int part = static_cast<int>(cluster_rank());
  const int begin = steps_before<kMostParts>(p.inputs, part);
  const int end = steps_before<kMostParts>(p.inputs, part + 1);
  const int group = static_cast<int>(threadIdx.x) / kWarpgroup;
  float* laid_out = ring.beside();
  if (group == kConsumers) {
    if (threadIdx.x % kWarpgroup == 0) ring.copy(x, weight, at, begin, end);
  } else {
    float sums[1][64];
    ring.template multiply<T>(sums, group, end - begin);
    float* of_warp = laid_out + static_cast<int>(threadIdx.x) / kWarp * 16 * kSumsStride;
#pragma unroll
    for (int i = 0; i < 64; i += 2) {
      const Place place = sum_place(static_cast<int>(lane_index()), i);
      float* to = of_warp + place.row * kSumsStride + place.column;
      to[0] = sums[0][i];
      to[1] = sums[0][i + 1];
    }
  }
  cluster_barrier();  // the sums of all blocks are there

  constexpr int kCount = 8;
  constexpr int kAcross = kNarrow / kCount;
  constexpr int kShare = kRows / kMostParts;
  const int tile_column = static_cast<int>(threadIdx.x) % kAcross * kCount;
  const int column = static_cast<int>(at.across) * kNarrow + tile_column;
  const int left = p.outputs - column;
#pragma unroll 1
  for (int of_share = static_cast<int>(threadIdx.x) / kAcross; of_share < kShare;
       of_share += kThreads / kAcross) {
    const int tile_row = part * kShare + of_share;
    const int64_t row = at.down * kRows + tile_row;
    if (row >= rows || left <= 0) break;
    float values[kCount];
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      float four[4];
      add_parts(four, laid_out + tile_row * kSumsStride + tile_column + i);
#pragma unroll
      for (int e = 0; e < 4; ++e) values[i + e] = four[e];
    }
    finish_sums(p, row, column, left, values);
  }
  cluster_barrier();  // nobody reads this block's sums any more
}

// `grid`: blocks, in clusters of so many; beside: bytes of shared memory beside the stages;
// copied: rows of weights that a block copies at a time.
template <int kColumns, class T>
void run(void (*kernel)(Product<T>, TensorMap, TensorMap), unsigned cluster, Product<T> p,
         int64_t grid, int beside, Stream stream, int copied = kColumns) {
  const TensorMap x = tensor_map(p.x, p.rows.most, p.inputs, p.x_stride, kRows);
  const TensorMap weight = tensor_map(p.weight, p.outputs, p.inputs, p.weight_stride, copied);
  p.tiles_across = (p.outputs + kColumns - 1) / kColumns;
  launch_clusters(cluster, kernel, dim3(static_cast<unsigned>(grid)), kThreads,
                  static_cast<size_t>(shared_bytes<kColumns>(beside)), stream, p, x, weight);
}

}  // namespace

bool present() { return available(); }

template <class T>
void linear(Product<T> p, Stream stream, bool clusters) {
  if (!available()) {
    throw DeviceError("Hopper's products need a GPU of compute capability 9.0");
  }
  const int64_t down = (p.rows.most + kRows - 1) / kRows;
  const int64_t narrow = down * ((p.outputs + kNarrow - 1) / kNarrow);
  const int64_t wide_across = (p.outputs + kWide - 1) / kWide;
  const int blocks = multiprocessors();
  const auto at_once = [=](int64_t tiles) { return std::min<int64_t>(tiles, blocks); };
  if (depth_parts(p.inputs) > 1) {
    if (clusters && parts_in_clusters(narrow, p.inputs, blocks)) {
      run<kNarrow>(linear_wgmma_cluster<T>, kMostParts, p, narrow * kMostParts, kAllSumsBytes,
                   stream);
    } else {
      run<kNarrow>(linear_wgmma<T, kNarrow, kMostParts, 1>, 1, p, at_once(narrow), kPartsBytes,
                   stream);
    }
  } else if (!wide_tiles(down, p.outputs, blocks)) {
    run<kNarrow>(linear_wgmma<T, kNarrow, 1, 1>, 1, p, at_once(narrow), kPartsBytes, stream);
  } else if (clusters && shared_weights(down, wide_across, blocks)) {
    const int64_t pairs = std::min<int64_t>((down + 1) / 2 * wide_across, blocks / 2);
    run<kWide>(linear_wgmma<T, kWide, 1, 2>, 2, p, 2 * pairs, kPartsBytes, stream, kWide / 2);
  } else {
    run<kWide>(linear_wgmma<T, kWide, 1, 1>, 1, p, at_once(down * wide_across), kPartsBytes,
               stream);
  }
}

template void linear(Product<Fp16> p, Stream stream, bool clusters);
template void linear(Product<Bf16> p, Stream stream, bool clusters);

}  // namespace bertrt::cuda::hopper
