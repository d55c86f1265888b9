// Matrix products: fp16, bf16 and 8-bit integers on tensor cores, fp32 by fused multiply-adds
// (never in TF32, which rounds to 10 bits).
//
// A block computes one tile of the result over the whole depth, kDepth inputs at a time, while
// later ones are on their way to shared memory. A sum's order is the depth's whatever the tile, so
// that tiles can be chosen by shape.
#include <type_traits>

#include "cuda/epilogue.cuh"
#include "cuda/hopper/linear.h"
#include "cuda/linear.cuh"
#include "cuda/linear_tiles.h"

namespace bertrt::cuda {
namespace {

// Of a tile's row of 16-bit elements, or twice as many of 8 bits.
constexpr int kMmaRowBytes = 64;

// A block's tile of kWarpsDown x kWarpsAcross warps, with kWarpRows x kWarpColumns each.
template <int kWarpsDown_, int kWarpsAcross_, int kWarpRows_, int kWarpColumns_>
struct MmaTile {
  static constexpr int kWarpsAcross = kWarpsAcross_;
  static constexpr int kWarpRows = kWarpRows_;
  static constexpr int kWarpColumns = kWarpColumns_;
  static constexpr int kRows = kWarpsDown_ * kWarpRows;
  static constexpr int kColumns = kWarpsAcross * kWarpColumns;
  static constexpr int kThreads = kWarpsDown_ * kWarpsAcross * kWarp;
  static constexpr int kBlocks = 2;  // that share a multiprocessor, and its registers
  static constexpr int kStages = 4;
  // Four lanes write eight neighbours, eight rows at once: eight floats beyond the rows' ends
  // spread them over all banks.
  static constexpr int kSumsStride = kColumns + 8;
  static constexpr int kSharedBytes =
      shared_bytes(kStages * (kRows + kColumns) * kMmaRowBytes, kRows * kSumsStride * 4);
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

template <class T, class In, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks) linear_mma(Product<T, In> p) {
  using Sum = std::conditional_t<sizeof(In) == 1, int32_t, float>;
  constexpr int kChunks = kMmaRowBytes / 16;
  static_assert(kDepth<In> * sizeof(In) == kMmaRowBytes);
  constexpr int kDown = Tile::kWarpRows / 16;
  constexpr int kAcross = Tile::kWarpColumns / 8;
  const auto corner = corner_of_block<Tile::kRows, Tile::kColumns>(p);
  const unsigned warp = threadIdx.x / kWarp;
  const unsigned lane = lane_index();
  const unsigned warp_row = warp / Tile::kWarpsAcross * Tile::kWarpRows;
  const unsigned warp_column = warp % Tile::kWarpsAcross * Tile::kWarpColumns;
  unsigned char* shared = shared_memory<unsigned char>();

  Sum sums[kDown][kAcross][4] = {};
  auto* rows_there = reinterpret_cast<int*>(shared + Tile::kSharedBytes - kRowsThereBytes);
  const bool any = walk_depth<Tile::kRows, Tile::kColumns, Tile::kThreads, Tile::kStages>(
      p, corner, shared, rows_there, [&](const unsigned char* x, const unsigned char* weight) {
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
      });
  if (!any) return;
  syncthreads();  // the tiles of inputs have been read

  float* laid_out = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < kDown; ++i) {
    const unsigned row = warp_row + 16 * i + lane / 4;
    WorthOfRows<In> worth(p, corner, row, *rows_there);
#pragma unroll
    for (int j = 0; j < kAcross; ++j) {
      const unsigned column = warp_column + 8 * j + lane % 4 * 2;
      float* place = laid_out + row * Tile::kSumsStride + column;
      worth.columns(column);
      place[0] = worth(sums[i][j][0], 0, 0);
      place[1] = worth(sums[i][j][1], 0, 1);
      place[8 * Tile::kSumsStride] = worth(sums[i][j][2], 1, 0);
      place[8 * Tile::kSumsStride + 1] = worth(sums[i][j][3], 1, 1);
    }
  }
  syncthreads();
  finish<Tile>(p, corner, *rows_there, laid_out);
}

// A block's tile of kThreadsDown x kThreadsAcross threads, with kDown x kAcross values each. A
// thread's rows are kThreadsDown apart, and its columns likewise: neighbouring threads read
// neighbouring rows of the tiles, and write neighbouring values.
template <int kThreadsDown_, int kThreadsAcross_, int kDown_, int kAcross_>
struct FmaTile {
  static constexpr unsigned kThreadsDown = kThreadsDown_;
  static constexpr unsigned kThreadsAcross = kThreadsAcross_;
  static constexpr int kDown = kDown_;
  static constexpr int kAcross = kAcross_;
  static constexpr int kRows = kThreadsDown * kDown;
  static constexpr int kColumns = kThreadsAcross * kAcross;
  static constexpr int kThreads = kThreadsDown * kThreadsAcross;
  static constexpr int kBlocks = 2;
  static constexpr int kStages = 3;
  // As many floats beyond the rows' ends as a row of threads writes.
  static constexpr int kSumsStride = kColumns + kThreadsAcross;
  static constexpr int kSharedBytes =
      shared_bytes(kStages * (kRows + kColumns) * kDepth<float> * 4, kRows * kSumsStride * 4);
};

// A sum is that of kDepth products each: shorter sums round less.
template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks) linear_fma(Product<float> p) {
  constexpr int kChunks = kDepth<float> / 4;
  constexpr int kDown = Tile::kDown;
  constexpr int kAcross = Tile::kAcross;
  const auto corner = corner_of_block<Tile::kRows, Tile::kColumns>(p);
  const unsigned down = threadIdx.x / Tile::kThreadsAcross;
  const unsigned across = threadIdx.x % Tile::kThreadsAcross;
  unsigned char* shared = shared_memory<unsigned char>();

  float sums[kDown][kAcross] = {};
  auto* rows_there = reinterpret_cast<int*>(shared + Tile::kSharedBytes - kRowsThereBytes);
  const bool any = walk_depth<Tile::kRows, Tile::kColumns, Tile::kThreads, Tile::kStages>(
      p, corner, shared, rows_there, [&](const unsigned char* x, const unsigned char* weight) {
        const auto four = [&](const unsigned char* tile, unsigned row, unsigned chunk) {
          return load_vector(
              reinterpret_cast<const float*>(tile + chunk_offset<kChunks>(row, chunk)));
        };
        float part[kDown][kAcross] = {};
#pragma unroll 1
        for (unsigned chunk = 0; chunk < kChunks; ++chunk) {
          Vector<float> b[kAcross];
#pragma unroll
          for (int j = 0; j < kAcross; ++j) {
            b[j] = four(weight, across + Tile::kThreadsAcross * j, chunk);
          }
#pragma unroll
          for (int i = 0; i < kDown; ++i) {
            const Vector<float> a = four(x, down + Tile::kThreadsDown * i, chunk);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
#pragma unroll
              for (int j = 0; j < kAcross; ++j) {
                part[i][j] = fmaf(a.values[e], b[j].values[e], part[i][j]);
              }
            }
          }
        }
#pragma unroll
        for (int i = 0; i < kDown; ++i) {
#pragma unroll
          for (int j = 0; j < kAcross; ++j) sums[i][j] += part[i][j];
        }
      });

  if (!any) return;
  syncthreads();  // the tiles of inputs have been read

  float* laid_out = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < kDown; ++i) {
#pragma unroll
    for (int j = 0; j < kAcross; ++j) {
      laid_out[(down + Tile::kThreadsDown * i) * Tile::kSumsStride + across +
               Tile::kThreadsAcross * j] = sums[i][j];
    }
  }
  syncthreads();
  finish<Tile>(p, corner, *rows_there, laid_out);
}

// 128 x 128: 64 sums a thread, six reads of fragments for 16 products of tensor cores, and 68 KiB
// of shared memory, so that two blocks share a multiprocessor.
using LargeMma = MmaTile<2, 4, 64, 32>;
using MediumMma = MmaTile<2, 2, 32, 32>;
using SmallMma = MmaTile<2, 2, 16, 16>;

// 128 x 64: 12 reads of 16 bytes for 128 multiply-adds; with the sums of kDepth products beside
// those of all, a thread has 64 of them.
using LargeFma = FmaTile<16, 16, 8, 4>;
using MediumFma = FmaTile<16, 16, 4, 4>;
using SmallFma = FmaTile<8, 8, 4, 4>;

template <class Tile, class T, class In>
void run(void (*kernel)(Product<T, In>), Product<T, In> p, Stream stream) {
  const int64_t down = (p.rows.most + Tile::kRows - 1) / Tile::kRows;
  p.tiles_across = (p.outputs + Tile::kColumns - 1) / Tile::kColumns;
  launch(kernel, dim3(static_cast<unsigned>(down * p.tiles_across)), Tile::kThreads,
         Tile::kSharedBytes, stream, p);
}

template <class T, class In>
void run(Tiles tiles, const Product<T, In>& p, Stream stream) {
  switch (tiles) {
    case Tiles::kSmall:
      return run<SmallMma>(linear_mma<T, In, SmallMma>, p, stream);
    case Tiles::kMedium:
      return run<MediumMma>(linear_mma<T, In, MediumMma>, p, stream);
    case Tiles::kLarge:
      return run<LargeMma>(linear_mma<T, In, LargeMma>, p, stream);
    case Tiles::kHopper:
      if constexpr (std::is_same_v<T, In>) {
        return hopper::linear(p, stream);
      } else {
        throw DeviceError("8-bit integers have no product for Hopper alone");
      }
  }
}

template <>
void run(Tiles tiles, const Product<float>& p, Stream stream) {
  switch (tiles) {
    case Tiles::kSmall:
      return run<SmallFma>(linear_fma<SmallFma>, p, stream);
    case Tiles::kMedium:
      return run<MediumFma>(linear_fma<MediumFma>, p, stream);
    case Tiles::kLarge:
      return run<LargeFma>(linear_fma<LargeFma>, p, stream);
    case Tiles::kHopper:
      throw DeviceError("Hopper's products have fp16 and bf16 only, not fp32");
  }
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

template <class T>
void run_linear(Tiles tiles, const Linear& linear, ConstDeviceRows x, ConstDeviceRows residual,
                RowCount rows, DeviceRows out, Stream stream) {
  auto p = product_of<T, T>(linear, residual, rows, out);
  p.x = static_cast<const T*>(x.data);
  p.x_stride = x.stride;
  p.weight = static_cast<const T*>(linear.weight.data);
  p.weight_stride = linear.weight.stride;
  run(tiles, p, stream);
}

// Larger tiles read less for each product; but where they leave multiprocessors (108 on A100, 132
// on H100) without any, smaller ones are done sooner.
constexpr int64_t kEnoughTiles = 108;

template <class Large, class Medium>
Tiles choose(int64_t rows, int64_t outputs) {
  const auto enough = [&](int64_t tile_rows, int64_t tile_columns) {
    const int64_t down = (rows + tile_rows - 1) / tile_rows;
    return down * ((outputs + tile_columns - 1) / tile_columns) >= kEnoughTiles;
  };
  if (enough(Large::kRows, Large::kColumns)) return Tiles::kLarge;
  return enough(Medium::kRows, Medium::kColumns) ? Tiles::kMedium : Tiles::kSmall;
}

}  // namespace

Tiles choose_tiles(Element element, int64_t rows, int64_t outputs) {
  return element == Element::kFp32 ? choose<LargeFma, MediumFma>(rows, outputs)
                                   : choose<LargeMma, MediumMma>(rows, outputs);
}

void linear_in_tiles(Tiles tiles, const Linear& linear, ConstDeviceRows x, ConstDeviceRows residual,
                     RowCount rows, DeviceRows out, Stream stream) {
  if (rows.most == 0) return;
  switch (out.element) {
    case Element::kFp32:
      return run_linear<float>(tiles, linear, x, residual, rows, out, stream);
    case Element::kFp16:
      return run_linear<Fp16>(tiles, linear, x, residual, rows, out, stream);
    case Element::kBf16:
      return run_linear<Bf16>(tiles, linear, x, residual, rows, out, stream);
  }
}

void linear_in_tiles(Tiles tiles, const Linear& linear, QuantisedRows x, ConstDeviceRows residual,
                     RowCount rows, DeviceRows out, Stream stream) {
  if (rows.most == 0) return;
  auto p = product_of<Fp16, uint8_t>(linear, residual, rows, out);
  p.x = static_cast<const uint8_t*>(x.data);
  p.x_stride = x.stride;
  p.weight = reinterpret_cast<const uint8_t*>(linear.quantised.data);
  p.weight_stride = linear.quantised.stride;
  p.steps_at = x.stride - kStepsBytes;
  p.scale = linear.quantised.scale;
  p.sum = linear.quantised.sum;
  run(tiles, p, stream);
}

void linear(const Linear& linear, QuantisedRows x, ConstDeviceRows residual, RowCount rows,
            DeviceRows out, Stream stream) {
  linear_in_tiles(choose_tiles(out.element, rows.most, linear.outputs), linear, x, residual, rows,
                  out, stream);
}

void linear(const Linear& linear, ConstDeviceRows x, ConstDeviceRows residual, RowCount rows,
            DeviceRows out, Stream stream) {
  const Tiles tiles =
      linear.hopper ? Tiles::kHopper : choose_tiles(out.element, rows.most, linear.outputs);
  linear_in_tiles(tiles, linear, x, residual, rows, out, stream);
}

const char* quantised_linear_kernel() { return "linear_s8.mma"; }

const char* linear_kernel(Element element, bool hopper) {
  switch (element) {
    case Element::kFp32:
      return "linear_fp32.fma";
    case Element::kFp16:
      return hopper ? "linear_fp16.wgmma" : "linear_fp16.mma";
    case Element::kBf16:
      return hopper ? "linear_bf16.wgmma" : "linear_bf16.mma";
  }
  return "";
}

}  // namespace bertrt::cuda
