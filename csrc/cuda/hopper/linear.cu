// Matrix products of 16-bit elements by Hopper's own instructions: one warpgroup copies tiles of
// inputs by TMA, two multiply them by wgmma, and a block goes from tile to tile of the result.
//
// A sum's order is the depth's, 16 inputs at a time, whatever the number of rows: like those of
// linear.cu, its bits do not depend on the batch. They are not the bits of linear.cu.
#include "cuda/hopper/linear.h"

#include <algorithm>

#include "cuda/epilogue.cuh"
#include "cuda/hopper/present.h"
#include "cuda/hopper/primitives.cuh"
#include "cuda/tile_order.h"

namespace bertrt::cuda::hopper {
namespace {

constexpr int kWarpgroup = 128;
constexpr int kConsumers = 2;  // warpgroups, one above the other
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kRows = kConsumers * 64;
static_assert(kRows == kTileRows);
constexpr int kStepDepth = kRowBytes / 2;
constexpr int kStages = 4;
constexpr int kLeftBytes = kRows * kRowBytes;
constexpr int kHalfBytes = kNarrow * kRowBytes;  // of weights, for one wgmma

// Sums go by way of shared memory, a warp's 16 rows and 32 columns at a time; eight floats beyond
// the rows' ends spread them over all banks.
constexpr int kPartColumns = 32;
constexpr int kPartStride = kPartColumns + 8;
constexpr int kPartBytes = 16 * kPartStride * 4;

// Stages, parts of sums, barriers, and what stages need to begin at a multiple of 1,024.
template <int kColumns>
struct Shared {
  static constexpr int kStageBytes = kLeftBytes + kColumns * kRowBytes;
  static constexpr int kPartsAt = kStages * kStageBytes;
  static constexpr int kBarriersAt = kPartsAt + kConsumers * 4 * kPartBytes;
  static constexpr int kBytes =
      kBarriersAt + 2 * kStages * static_cast<int>(sizeof(Barrier)) + kSwizzleBytes;
};
static_assert(Shared<kWide>::kBytes <= 227 * 1024);

// Writes a part of the result from the warp's sums in shared memory: 16 bytes a thread at a time,
// bias, activation and residual before the only rounding.
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
    if (p.bias) {
#pragma unroll
      for (int i = 0; i < static_cast<int>(kCount); ++i) {
        if (i < left) values[i] += p.bias[column + i];
      }
    }
    activate(p.activation, values);
    T* out = p.out + row * p.out_stride + column;
    const T* residual = p.residual ? p.residual + row * p.residual_stride + column : nullptr;
    if (p.vectors && left >= static_cast<int>(kCount)) {
      if (residual) {
        const Vector<T> more = load_vector(residual);
#pragma unroll
        for (unsigned i = 0; i < kCount; ++i) values[i] += to_float(more.values[i]);
      }
      write(out, values);
    } else {
#pragma unroll
      for (int i = 0; i < static_cast<int>(kCount); ++i) {
        if (i >= left) break;
        if (residual) values[i] += to_float(residual[i]);
        out[i] = from_float<T>(values[i]);
      }
    }
  }
}

// Sums of a wide tile are two halves, each of the instruction that a narrow tile's are: one of 256
// columns would read inputs once where these read them twice, but shared memory brings what either
// reads in less time than it multiplies; and that its sums have the same bits is nowhere promised.
template <class T, int kColumns>
__global__ void __launch_bounds__(kThreads, 1)
    linear_wgmma(Product<T> p, const __grid_constant__ TensorMap x,
                 const __grid_constant__ TensorMap weight) {
  constexpr int kHalves = kColumns / kNarrow;
  constexpr int kStageBytes = Shared<kColumns>::kStageBytes;
  unsigned char* shared = shared_memory<unsigned char>();
  shared += (kSwizzleBytes - shared_address(shared) % kSwizzleBytes) % kSwizzleBytes;
  auto* full = reinterpret_cast<Barrier*>(shared + Shared<kColumns>::kBarriersAt);
  Barrier* empty = full + kStages;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(full + s, 1);
      barrier_init(empty + s, kConsumers * 4);  // a lane of each warp
    }
    barrier_init_done();
  }
  syncthreads();
  wait_for_kernels_before();

  const int64_t rows = count_of(p.rows);
  const int64_t down = (rows + kRows - 1) / kRows;
  const int64_t tiles = down * p.tiles_across;
  const int steps = (p.inputs + kStepDepth - 1) / kStepDepth;
  const int group = static_cast<int>(threadIdx.x) / kWarpgroup;
  int64_t turn = 0;  // steps since the kernel began
  if (group == kConsumers) {
    give_registers<40>();
    if (threadIdx.x % kWarpgroup != 0) return;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const TilePlace at = tile_place(tile, down, p.tiles_across);
      for (int step = 0; step < steps; ++step, ++turn) {
        const RingPlace ring = ring_place(turn, kStages);
        unsigned char* stage = shared + ring.stage * kStageBytes;
        barrier_wait(empty + ring.stage, ring.empty);
        barrier_expect(full + ring.stage, kStageBytes);
        tma_load(stage, x, at.down * kRows, step * kStepDepth, full + ring.stage);
        tma_load(stage + kLeftBytes, weight, at.across * kColumns, step * kStepDepth,
                 full + ring.stage);
      }
    }
    return;
  }

  take_registers<232>();
  const int warp = static_cast<int>(threadIdx.x) / kWarp;  // of those that compute
  float* part = reinterpret_cast<float*>(shared + Shared<kColumns>::kPartsAt + warp * kPartBytes);
  const auto release = [&](int64_t of_turn) {
    if (lane_index() == 0) barrier_arrive(empty + ring_place(of_turn, kStages).stage);
  };
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const TilePlace at = tile_place(tile, down, p.tiles_across);
    float sums[kHalves][64];
    for (int step = 0; step < steps; ++step, ++turn) {
      const RingPlace ring = ring_place(turn, kStages);
      const uint32_t stage = shared_address(shared + ring.stage * kStageBytes);
      const uint32_t left = stage + static_cast<uint32_t>(group) * 64 * kRowBytes;
      barrier_wait(full + ring.stage, ring.full);
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
        release(turn - 1);
      }
    }
    wgmma_wait<0>(sums);
    release(turn - 1);
    const int64_t first_row = at.down * kRows + warp * 16;
#pragma unroll 1
    for (int columns = 0; columns < kColumns; columns += kPartColumns) {
#pragma unroll
      for (int i = 0; i < kColumns / 2; i += 2) {
        const Place place = sum_place(static_cast<int>(lane_index()), i);
        if (i / (kPartColumns / 2) == columns / kPartColumns) {
          float* to = part + place.row * kPartStride + place.column % kPartColumns;
          to[0] = sums[i / 64][i % 64];
          to[1] = sums[i / 64][i % 64 + 1];
        }
      }
      syncwarp();
      finish_part(p, first_row, rows, static_cast<int>(at.across) * kColumns + columns, part);
      syncwarp();
    }
  }
}

template <int kColumns, class T>
void run(Product<T> p, int64_t down, int blocks, Stream stream) {
  const TensorMap x = tensor_map(p.x, p.rows.most, p.inputs, p.x_stride, kRows);
  const TensorMap weight = tensor_map(p.weight, p.outputs, p.inputs, p.weight_stride, kColumns);
  p.tiles_across = (p.outputs + kColumns - 1) / kColumns;
  launch(linear_wgmma<T, kColumns>,
         dim3(static_cast<unsigned>(std::min<int64_t>(down * p.tiles_across, blocks))), kThreads,
         Shared<kColumns>::kBytes, stream, p, x, weight);
}

}  // namespace

bool present() { return available(); }

template <class T>
void linear(Product<T> p, Stream stream) {
  if (!available()) {
    throw DeviceError("Hopper's products need a GPU of compute capability 9.0");
  }
  const int64_t down = (p.rows.most + kRows - 1) / kRows;
  const int blocks = multiprocessors();
  if (wide_tiles(down, p.outputs, blocks)) return run<kWide>(p, down, blocks, stream);
  run<kNarrow>(p, down, blocks, stream);
}

template void linear(Product<Fp16> p, Stream stream);
template void linear(Product<Bf16> p, Stream stream);

}  // namespace bertrt::cuda::hopper
