// Matrix products on tensor cores, whatever their elements: the kernel, its tiles and its launch.
#pragma once

#include <limits>
#include <type_traits>

#include "cuda/epilogue.cuh"
#include "cuda/linear.cuh"
#include "cuda/linear_tiles.h"

namespace bertrt::cuda {

// Of a tile's row of 16-bit elements, or twice as many of 8 bits.
constexpr int kMmaRowBytes = 64;

// What a block may have of shared memory on sm_86 and sm_89, the least of all.
constexpr int kMostSharedBytes = 99 * 1024;

// Of a deep layer: of any whose depth has several.
constexpr int kDeepParts = depth_parts(std::numeric_limits<int>::max());

// How a tile takes a depth of several parts (depth.h): its warps sum one after the other, or there
// are as many groups of them, of which each sums one.
enum class Parts { kOne, kInTurn, kAtOnce };

// A block's tile of kWarpsDown x kWarpsAcross warps, with kWarpRows x kWarpColumns each; kBlocks of
// them share a multiprocessor, and its registers.
template <int kWarpsDown_, int kWarpsAcross_, int kWarpRows_, int kWarpColumns_, int kBlocks_,
          int kStages_, Parts kParts_ = Parts::kOne>
struct MmaTile {
  static constexpr int kWarpsAcross = kWarpsAcross_;
  static constexpr int kWarpRows = kWarpRows_;
  static constexpr int kWarpColumns = kWarpColumns_;
  static constexpr int kRows = kWarpsDown_ * kWarpRows;
  static constexpr int kColumns = kWarpsAcross * kWarpColumns;
  static constexpr Parts kParts = kParts_;
  static constexpr int kGroups = kParts == Parts::kAtOnce ? kDeepParts : 1;
  static constexpr int kGroupThreads = kWarpsDown_ * kWarpsAcross * kWarp;
  static constexpr int kThreads = kGroups * kGroupThreads;
  static constexpr int kBlocks = kBlocks_;
  static constexpr int kStages = kStages_;
  // Four lanes write eight neighbours, eight rows at once: eight floats beyond the rows' ends
  // spread them over all banks.
  static constexpr int kSumsStride = kColumns + 8;
  // Rows whose sums are laid out at once: half, where there is no place for all.
  static constexpr int kRowsAtOnce =
      kRows * kSumsStride * 4 + kRowsThereBytes <= kMostSharedBytes ? kRows : kRows / 2;
  static constexpr int kLaidOutBytes = kRowsAtOnce * kSumsStride * 4;
  // Behind those, the sums of the groups but the first.
  static constexpr int kSharedBytes =
      shared_bytes(kGroups * kStages * (kRows + kColumns) * kMmaRowBytes,
                   kLaidOutBytes + (kGroups - 1) * kRows * kColumns * 4);
  static_assert(kSharedBytes <= kMostSharedBytes);
  static_assert(kRowsAtOnce % kWarpRows == 0);
};

// What sums of a tile's rows `row` and `row` + 8 are worth: the operations and the order of the
// CPU's, so that equal integers make equal numbers.
template <class In>
struct WorthOfRows {
  template <class T>
  __device__ __forceinline__ WorthOfRows(const Product<T, In>&, const Corner&, unsigned, int) {}
  __device__ __forceinline__ void columns(unsigned) {}
  __device__ __forceinline__ float operator()(float sum, int, int) const { return sum; }
};
template <>
struct WorthOfRows<uint8_t> {
  template <class T>
  __device__ __forceinline__ WorthOfRows(const Product<T, uint8_t>& p, const Corner& corner,
                                         unsigned row, int rows)
      : scales_(p.scale + corner.column), sums_(p.sum + corner.column) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int wanted = static_cast<int>(row) + 8 * i;
      const int there = wanted < rows ? wanted : rows - 1;  // nobody reads what comes of others
      rows_[i] =
          *reinterpret_cast<const RowSteps*>(p.x + (corner.row + there) * p.x_stride + p.steps_at);
    }
  }
  // The next two columns of the tile, from `column` on.
  __device__ __forceinline__ void columns(unsigned column) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      scale_[i] = scales_[column + i];
      sum_[i] = sums_[column + i];
    }
  }
  __device__ __forceinline__ float operator()(int32_t sum, int row, int column) const {
    const float scale = multiply(rows_[row].scale, scale_[column]);
    return multiply(static_cast<float>(sum - rows_[row].zero * sum_[column]), scale);
  }

 private:
  const float* scales_;
  const int32_t* sums_;
  RowSteps rows_[2];
  float scale_[2];
  int32_t sum_[2];
};

template <>
struct WorthOfRows<E4m3> {
  template <class T>
  __device__ __forceinline__ WorthOfRows(const Product<T, E4m3>& p, const Corner& corner,
                                         unsigned row, int rows)
      : scales_(p.scale + corner.column) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int wanted = static_cast<int>(row) + 8 * i;
      const int there = wanted < rows ? wanted : rows - 1;
      rows_[i] =
          reinterpret_cast<const RowSteps*>(p.x + (corner.row + there) * p.x_stride + p.steps_at)
              ->scale;
    }
  }
  __device__ __forceinline__ void columns(unsigned column) {
#pragma unroll
    for (int i = 0; i < 2; ++i) scale_[i] = scales_[column + i];
  }
  __device__ __forceinline__ float operator()(float sum, int row, int column) const {
    return multiply(sum, multiply(rows_[row], scale_[column]));
  }

 private:
  const float* scales_;
  float rows_[2];
  float scale_[2];
};

// Steps of kDepth inputs after which sums of e4m3 are taken out. Tensor cores align the products
// of such a sum to the largest and cut off what is below: Hopper's keep about 14 bits
// (arXiv:2412.19437, 3.3.2), so that a long sum would lose its small terms, all of one sign. Sums
// of 128 inputs each are added in fp32, in the depth's order.
constexpr int kStepsOfSums = 2;

template <class T, class In, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks) linear_mma(Product<T, In> p) {
  using Sum = std::conditional_t<std::is_same_v<In, uint8_t>, int32_t, float>;
  constexpr int kChunks = kMmaRowBytes / 16;
  static_assert(kDepth<In> * sizeof(In) == kMmaRowBytes);
  constexpr int kDown = Tile::kWarpRows / 16;
  constexpr int kAcross = Tile::kWarpColumns / 8;
  const auto corner = corner_of_tile<Tile>(p, blockIdx.x);
  const unsigned group = Tile::kGroups == 1 ? 0 : threadIdx.x / Tile::kGroupThreads;
  const unsigned warp = threadIdx.x % Tile::kGroupThreads / kWarp;
  const unsigned lane = lane_index();
  const unsigned warp_row = warp / Tile::kWarpsAcross * Tile::kWarpRows;
  const unsigned warp_column = warp % Tile::kWarpsAcross * Tile::kWarpColumns;
  unsigned char* shared = shared_memory<unsigned char>();

  Sum sums[kDown][kAcross][4] = {};
  constexpr bool kShortSums = std::is_same_v<In, E4m3>;
  constexpr bool kTakesOut = kShortSums || Tile::kParts != Parts::kOne;
  static_assert(!kShortSums || Tile::kParts == Parts::kOne);
  [[maybe_unused]] Sum whole[kDown][kAcross][4] = {};  // of short sums or parts, those taken out
  [[maybe_unused]] int step = 0;
  [[maybe_unused]] int part = 0;
  [[maybe_unused]] int part_end = 0;  // of the part before, in steps
  [[maybe_unused]] const auto take_out = [&] {
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
#pragma unroll
      for (int j = 0; j < kAcross; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          whole[i][j][e] += sums[i][j][e];
          sums[i][j][e] = 0;
        }
      }
    }
  };
  auto* rows_there = reinterpret_cast<int*>(shared + Tile::kSharedBytes - kRowsThereBytes);
  const bool any = walk_depth<Tile>(
      p, corner, shared, rows_there, [&](const unsigned char* x, const unsigned char* weight) {
        if constexpr (Tile::kParts == Parts::kInTurn) {
          if (step++ == part_end) {
            if (part > 0) take_out();
            part_end = part_begin(p.inputs, kDeepParts, ++part) / kDepth<In>;
          }
        }
#pragma unroll
        for (unsigned chunk = 0; chunk < kChunks; chunk += 2) {
          uint32_t a[kDown][4];
          uint32_t b[kAcross / 2][4];
#pragma unroll
          for (int i = 0; i < kDown; ++i) {
            ldmatrix_x4(a[i], left_row<kChunks>(x, warp_row + 16 * i, chunk));
          }
#pragma unroll
          for (int j = 0; j < kAcross / 2; ++j) {
            ldmatrix_x4(b[j], right_row<kChunks>(weight, warp_column + 16 * j, chunk));
          }
#pragma unroll
          for (int i = 0; i < kDown; ++i) {
#pragma unroll
            for (int j = 0; j < kAcross / 2; ++j) {
              mma_pair<In>(sums[i][2 * j], sums[i][2 * j + 1], a[i], b[j]);
            }
          }
        }
        if constexpr (kShortSums) {
          if (++step % kStepsOfSums == 0) take_out();
        }
      });
  if (!any) return;
  syncthreads();  // the tiles of inputs have been read
  if constexpr (Tile::kGroups > 1) {
    // Of the first group each thread adds to its own sums those of the same thread of the others.
    Sum* others = reinterpret_cast<Sum*>(shared + Tile::kLaidOutBytes);
    const auto each = [&](unsigned of_group, const auto& move) {
      Sum* place = others + (of_group - 1) * Tile::kRows * Tile::kColumns +
                   threadIdx.x % Tile::kGroupThreads;
#pragma unroll
      for (int n = 0; n < kDown * kAcross * 4; ++n) {
        move(place[n * Tile::kGroupThreads], sums[n / 4 / kAcross][n / 4 % kAcross][n % 4]);
      }
    };
    if (group > 0) each(group, [](Sum& place, const Sum& sum) { place = sum; });
    syncthreads();
    if (group == 0) {
#pragma unroll 1
      for (unsigned other = 1; other < Tile::kGroups; ++other) {
        take_out();
        each(other, [](const Sum& place, Sum& sum) { sum = place; });
      }
    }
  }
  if constexpr (kTakesOut) take_out();
  const auto& done = kTakesOut ? whole : sums;

  float* laid_out = reinterpret_cast<float*>(shared);
#pragma unroll 1
  for (int first = 0; first < Tile::kRows; first += Tile::kRowsAtOnce) {
    if (first > 0) syncthreads();  // the rows before have been read
    const bool of_these = Tile::kRowsAtOnce == Tile::kRows ||
                          static_cast<int>(warp_row) / Tile::kRowsAtOnce == (first > 0);
    if (group == 0 && of_these) {
#pragma unroll
      for (int i = 0; i < kDown; ++i) {
        const unsigned row = warp_row + 16 * i + lane / 4;
        WorthOfRows<In> worth(p, corner, row, *rows_there);
#pragma unroll
        for (int j = 0; j < kAcross; ++j) {
          const unsigned column = warp_column + 8 * j + lane % 4 * 2;
          float* place = laid_out + (row - first) * Tile::kSumsStride + column;
          worth.columns(column);
          place[0] = worth(done[i][j][0], 0, 0);
          place[1] = worth(done[i][j][1], 0, 1);
          place[8 * Tile::kSumsStride] = worth(done[i][j][2], 1, 0);
          place[8 * Tile::kSumsStride + 1] = worth(done[i][j][3], 1, 1);
        }
      }
    }
    syncthreads();
    finish<Tile, Tile::kRowsAtOnce>(p, {corner.row + first, corner.column}, *rows_there - first,
                                    laid_out);
  }
}

// A tile of R x C reads R + C rows of inputs for its sums, and a warp of shared memory likewise: so
// large ones are better, as far as registers and the number of multiprocessors go (`choose` in
// linear.cu). Each has 28 KiB of its inputs or more on their way at any time.
//
// 128 x 256: 128 sums a thread, eight reads of fragments for 32 products, 96 KiB.
using WideMma = MmaTile<2, 4, 64, 64, 1, 4>;
// 128 x 128: 64 sums a thread, six reads of fragments for 16 products of tensor cores, and 68 KiB
// of shared memory, so that two blocks share a multiprocessor.
using LargeMma = MmaTile<2, 4, 64, 32, 2, 4>;
using MediumMma = MmaTile<2, 2, 32, 32, 2, 6>;
using SmallMma = MmaTile<2, 2, 16, 16, 2, 8>;
// Of e4m3 64 x 128 in the place of 128 x 128: the sums that are taken out are as many again, and
// sm_90a needs 180 registers for 32 of each, with the operands in fp16.
using LargeE4m3 = MmaTile<2, 4, 32, 32, 1, 4>;
// For deep layers. 128 x 128 with twice the sums, so that one block has a multiprocessor; 128 x 64
// would leave room for two, but reads fragments half as often again for a product, and inputs
// likewise.
using DeepLargeMma = MmaTile<2, 4, 64, 32, 1, 6, Parts::kInTurn>;
using DeepMediumMma = MmaTile<2, 2, 32, 32, 1, 3, Parts::kAtOnce>;
using DeepSmallMma = MmaTile<2, 2, 16, 16, 2, 4, Parts::kAtOnce>;

template <class Tile, class T, class In>
void run(void (*kernel)(Product<T, In>), Product<T, In> p, Stream stream) {
  const int64_t down = (p.rows.most + Tile::kRows - 1) / Tile::kRows;
  p.tiles_across = (p.outputs + Tile::kColumns - 1) / Tile::kColumns;
  launch(kernel, dim3(static_cast<unsigned>(down * p.tiles_across)), Tile::kThreads,
         Tile::kSharedBytes, stream, p);
}

// What a product has that does not depend on what is multiplied.
template <class T, class In>
Product<T, In> product_of(const Linear& linear, ConstDeviceRows residual, RowCount rows,
                          DeviceRows out) {
  const auto at_16_bytes = [](const ConstDeviceRows& r) {
    return reinterpret_cast<uintptr_t>(r.data) % 16 == 0 && r.stride * sizeof(T) % 16 == 0;
  };
  Product<T, In> p;
  p.bias = linear.bias;
  p.activation = linear.activation;
  p.residual = static_cast<const T*>(residual.data);
  p.residual_stride = residual.stride;
  p.out = static_cast<T*>(out.data);
  p.out_stride = out.stride;
  p.rows = rows;
  p.inputs = static_cast<int>(linear.inputs);
  p.outputs = static_cast<int>(linear.outputs);
  p.vectors = at_16_bytes(out) && at_16_bytes(residual);
  return p;
}

// The same of rows and weights in 8 bits.
template <class In>
Product<Fp16, In> quantised_product(const Linear& linear, QuantisedRows x, ConstDeviceRows residual,
                                    RowCount rows, DeviceRows out) {
  auto p = product_of<Fp16, In>(linear, residual, rows, out);
  p.x = static_cast<const In*>(x.data);
  p.x_stride = x.stride;
  p.weight = reinterpret_cast<const In*>(linear.quantised.data);
  p.weight_stride = linear.quantised.stride;
  p.steps_at = x.stride - kStepsBytes;
  p.scale = linear.quantised.scale;
  return p;
}

}  // namespace bertrt::cuda
