// Matrix products: fp16, bf16 and 8-bit integers on tensor cores, fp32 by fused multiply-adds
// (never in TF32, which rounds to 10 bits). Those of e4m3 are in linear_fp8.cu.
//
// A block computes one tile of the result over the whole depth, kDepth inputs at a time, while
// later ones are on their way to shared memory. A sum's order is the depth's whatever the tile, so
// that tiles can be chosen by shape.
#include <type_traits>

#include "cuda/hopper/linear.h"
#include "cuda/linear_mma.cuh"
#include "cuda/linear_tiles.h"

namespace bertrt::cuda {
namespace {

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

// 128 x 64: 12 reads of 16 bytes for 128 multiply-adds; with the sums of kDepth products beside
// those of all, a thread has 64 of them.
using LargeFma = FmaTile<16, 16, 8, 4>;
using MediumFma = FmaTile<16, 16, 4, 4>;
using SmallFma = FmaTile<8, 8, 4, 4>;

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
    case Tiles::kHopperBlocks:
      if constexpr (std::is_same_v<T, In>) {
        return hopper::linear(p, stream, tiles == Tiles::kHopper);
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
    case Tiles::kHopperBlocks:
      throw DeviceError("Hopper's products have fp16 and bf16 only, not fp32");
  }
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

Tiles tiles_of(const Linear& linear, Element element, int64_t rows) {
  return linear.hopper ? Tiles::kHopper : choose_tiles(element, rows, linear.outputs);
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
  if (linear.quantised.bits == EightBits::kFp8) {
    return linear_fp8(tiles, linear, x, residual, rows, out, stream);
  }
  auto p = quantised_product<uint8_t>(linear, x, residual, rows, out);
  p.sum = linear.quantised.sum;
  run(tiles, p, stream);
}

void linear(const Linear& linear, QuantisedRows x, ConstDeviceRows residual, RowCount rows,
            DeviceRows out, Stream stream) {
  linear_in_tiles(tiles_of(linear, out.element, rows.most), linear, x, residual, rows, out, stream);
}

void linear(const Linear& linear, ConstDeviceRows x, ConstDeviceRows residual, RowCount rows,
            DeviceRows out, Stream stream) {
  linear_in_tiles(tiles_of(linear, out.element, rows.most), linear, x, residual, rows, out, stream);
}

const char* quantised_linear_kernel(EightBits bits, bool hopper) {
  if (bits == EightBits::kInt8) return "linear_s8.mma";
  return hopper ? "linear_e4m3.wgmma" : "linear_e4m3.mma";
}

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
