// Matrix products of e4m3 by Hopper's own instructions: tiles of inputs come by TMA, two warpgroups
// multiply them by wgmma, a block, or a cluster of them, makes one tile of the result.
//
// A step is 128 inputs, the 128 bytes over which TMA and wgmma swizzle, and as many as a sum may
// stay in the tensor cores (kStepsOfSums in linear_mma.cuh says why): after each the sums are taken
// out. While one warpgroup adds, the other's products run. A deep layer's sums are those of its
// parts (depth.h), as in linear.cu.
#include "cuda/depth.h"
#include "cuda/hopper/linear.h"
#include "cuda/hopper/parts.cuh"
#include "cuda/linear_mma.cuh"

namespace bertrt::cuda::hopper {
namespace {

constexpr int kWarpgroup = 128;
constexpr int kStepDepth = kRowBytes;

struct Tile {
  static constexpr int kRows = 128;  // 64 of each warpgroup
  static constexpr int kColumns = 128;
  static constexpr int kThreads = 2 * kWarpgroup;
  static constexpr int kStages = 4;
  static constexpr int kSumsStride = kColumns + 8;
  static constexpr int kLeftBytes = kRows * kRowBytes;
  static constexpr int kStageBytes = kLeftBytes + kColumns * kRowBytes;
  static constexpr int kBarriersAt = kStages * kStageBytes;
  static constexpr int kSharedBytes =
      kBarriersAt + 2 * kStages * static_cast<int>(sizeof(Barrier)) + kSwizzleBytes;
  static_assert(kRows * kSumsStride * 4 <= kBarriersAt, "sums go where tiles of inputs were");
};

// What a block of a cluster finishes.
struct Share : Tile {
  static constexpr int kRows = Tile::kRows / kMostParts;
};

__device__ __forceinline__ int steps_of(int inputs) {
  return (inputs + kStepDepth - 1) / kStepDepth;
}
__device__ __forceinline__ int steps_before(int inputs, int part) {
  return steps_of(part_begin(inputs, kMostParts, part, kStepDepth));
}

// Finishes this block's share of a tile's rows from the sums of all parts, which stand where
// `laid_out` is: it puts what they are worth there, where no other block reads.
template <class T>
__device__ __forceinline__ void finish_share(const Product<T, E4m3>& p, Corner corner, int rows,
                                             float* laid_out) {
  constexpr unsigned kAcross = Share::kColumns / 4;
  const int first = static_cast<int>(cluster_rank()) * Share::kRows;
  corner.row += first;
  rows -= first;
  laid_out += first * Share::kSumsStride;
  const unsigned column = threadIdx.x % kAcross * 4;
#pragma unroll 1
  for (unsigned row = threadIdx.x / kAcross; row < Share::kRows; row += Share::kThreads / kAcross) {
    if (static_cast<int>(row) >= rows) break;
    float* own = laid_out + row * Share::kSumsStride + column;
    float four[4];
    add_parts(four, own);
    const float of_row =
        reinterpret_cast<const RowSteps*>(p.x + (corner.row + row) * p.x_stride + p.steps_at)
            ->scale;
#pragma unroll
    for (unsigned e = 0; e < 4; ++e) {
      own[e] = multiply(four[e], multiply(of_row, p.scale[corner.column + column + e]));
    }
  }
  syncthreads();
  finish<Share>(p, corner, rows, laid_out);
}

// Who walks the depth: a block all of it, as one part or as several, or each block of a cluster a
// part.
enum class Walk { kWhole, kParts, kCluster };

template <class T, Walk kWalk>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    linear_wgmma_fp8(Product<T, E4m3> p, const __grid_constant__ TensorMap x,
                     const __grid_constant__ TensorMap weight) {
  unsigned char* shared = shared_memory<unsigned char>();
  shared += (kSwizzleBytes - shared_address(shared) % kSwizzleBytes) % kSwizzleBytes;
  auto* full = reinterpret_cast<Barrier*>(shared + Tile::kBarriersAt);
  Barrier* empty = full + Tile::kStages;
  if (threadIdx.x == 0) {
    for (int s = 0; s < Tile::kStages; ++s) {
      barrier_init(full + s, 1);
      barrier_init(empty + s, Tile::kThreads / kWarp);  // a lane of each warp
    }
    barrier_init_done();
  }
  syncthreads();
  wait_for_kernels_before();

  const auto corner =
      corner_of_tile<Tile>(p, blockIdx.x / (kWalk == Walk::kCluster ? kMostParts : 1));
  const int64_t left_rows = count_of(p.rows) - corner.row;
  const int rows = left_rows < Tile::kRows ? static_cast<int>(left_rows) : Tile::kRows;
  if (rows <= 0) return;
  int begin = 0, end = steps_of(p.inputs);
  if constexpr (kWalk == Walk::kCluster) {
    const int part = static_cast<int>(cluster_rank());
    begin = steps_before(p.inputs, part);
    end = steps_before(p.inputs, part + 1);
  }
  const auto load = [&](int step) {
    if (threadIdx.x != 0 || step >= end) return;
    const RingPlace ring = ring_place(step - begin, Tile::kStages);
    unsigned char* stage = shared + ring.stage * Tile::kStageBytes;
    barrier_wait(empty + ring.stage, ring.empty);
    barrier_expect(full + ring.stage, Tile::kStageBytes);
    tma_load(stage, x, corner.row, step * kStepDepth, full + ring.stage);
    tma_load(stage + Tile::kLeftBytes, weight, corner.column, step * kStepDepth, full + ring.stage);
  };
  for (int step = begin; step < begin + Tile::kStages - 1; ++step) load(step);

  const auto group = threadIdx.x / kWarpgroup;
  float sums[64];
  float whole[64] = {};
  [[maybe_unused]] float before[64];
  [[maybe_unused]] int part = 0, part_end = steps_before(p.inputs, 1);
  for (int step = begin; step < end; ++step) {
    load(step + Tile::kStages - 1);  // where the step before was
    syncwarp();                      // wgmma is of whole warps
    const RingPlace ring = ring_place(step - begin, Tile::kStages);
    const uint32_t stage = shared_address(shared + ring.stage * Tile::kStageBytes);
    const uint32_t left = stage + group * 64 * kRowBytes;
    barrier_wait(full + ring.stage, ring.full);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kStepDepth / 32; ++k) {
      wgmma_m64n128k32(sums, descriptor(left + k * 32),
                       descriptor(stage + Tile::kLeftBytes + k * 32), k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>(sums);
    if (lane_index() == 0) barrier_arrive(empty + ring.stage);
#pragma unroll
    for (int i = 0; i < 64; ++i) whole[i] += sums[i];
    if constexpr (kWalk == Walk::kParts) {
      if (step + 1 < part_end) continue;
      const bool last = step + 1 == end;
#pragma unroll
      for (int i = 0; i < 64; ++i) {
        if (part > 0) whole[i] += before[i];
        before[i] = whole[i];
        if (!last) whole[i] = 0.0f;
      }
      part_end = steps_before(p.inputs, ++part + 1);
    }
  }
  syncthreads();  // the tiles of inputs have been read

  float* laid_out = reinterpret_cast<float*>(shared);
  const unsigned warp_row = threadIdx.x / kWarp * 16;
  if constexpr (kWalk == Walk::kCluster) {
#pragma unroll
    for (int i = 0; i < 64; i += 2) {
      const Place place = sum_place(static_cast<int>(lane_index()), i);
      float* to = laid_out + (warp_row + static_cast<unsigned>(place.row)) * Tile::kSumsStride +
                  static_cast<unsigned>(place.column);
      to[0] = whole[i];
      to[1] = whole[i + 1];
    }
    cluster_barrier();  // the sums of all blocks are there
    finish_share(p, corner, rows, laid_out);
    cluster_barrier();  // nobody reads this block's sums any more
  } else {
    WorthOfRows<E4m3> worth(p, corner, warp_row + lane_index() / 4, rows);
#pragma unroll
    for (int i = 0; i < 64; i += 2) {
      const Place place = sum_place(static_cast<int>(lane_index()), i);
      const auto column = static_cast<unsigned>(place.column);
      worth.columns(column);
      float* to =
          laid_out + (warp_row + static_cast<unsigned>(place.row)) * Tile::kSumsStride + column;
      to[0] = worth(whole[i], i / 2 % 2, 0);
      to[1] = worth(whole[i + 1], i / 2 % 2, 1);
    }
    syncthreads();
    finish<Tile>(p, corner, rows, laid_out);
  }
}

}  // namespace

void linear_fp8(Product<Fp16, E4m3> p, Stream stream, bool clusters) {
  if (!available()) {
    throw DeviceError("Hopper's products need a GPU of compute capability 9.0");
  }
  const TensorMap x = tensor_map(p.x, p.rows.most, p.inputs, p.x_stride, Tile::kRows);
  const TensorMap weight =
      tensor_map(p.weight, p.outputs, p.inputs, p.weight_stride, Tile::kColumns);
  p.tiles_across = (p.outputs + Tile::kColumns - 1) / Tile::kColumns;
  const int64_t tiles = (p.rows.most + Tile::kRows - 1) / Tile::kRows * p.tiles_across;
  const auto run = [&](auto kernel, int cluster) {
    launch_clusters(static_cast<unsigned>(cluster), kernel,
                    dim3(static_cast<unsigned>(tiles * cluster)), Tile::kThreads,
                    Tile::kSharedBytes, stream, p, x, weight);
  };
  if (depth_parts(p.inputs) == 1) {
    run(linear_wgmma_fp8<Fp16, Walk::kWhole>, 1);
  } else if (clusters && parts_in_clusters(tiles, p.inputs, multiprocessors())) {
    run(linear_wgmma_fp8<Fp16, Walk::kCluster>, kMostParts);
  } else {
    run(linear_wgmma_fp8<Fp16, Walk::kParts>, 1);
  }
}

}  // namespace bertrt::cuda::hopper
