// Matrix products: fp16, bf16 and 8-bit integers on tensor cores, fp32 by fused multiply-adds
// (never in TF32, which rounds to 10 bits). Those of e4m3 are in linear_fp8.cu.
//
// A block computes one tile of the result over the whole depth, kDepth inputs at a time, while
// later ones are on their way to shared memory. A sum's order is the depth's whatever the tile, so
// that tiles can be chosen by shape. Of a deep layer's products in fp16 and bf16 it is that of
// depth.h: each part is summed from zero, and parts are added in their order.
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
  static constexpr int kGroups = 1;
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
  const auto corner = corner_of_tile<Tile>(p, blockIdx.x);
  const unsigned down = threadIdx.x / Tile::kThreadsAcross;
  const unsigned across = threadIdx.x % Tile::kThreadsAcross;
  unsigned char* shared = shared_memory<unsigned char>();

  float sums[kDown][kAcross] = {};
  auto* rows_there = reinterpret_cast<int*>(shared + Tile::kSharedBytes - kRowsThereBytes);
  const bool any = walk_depth<Tile>(
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

// Tiles that a product may have: one for each of Tiles but kHopper. void: there is none.
template <class Small_, class Medium_, class Large_, class Wide_ = void>
struct TileSet {
  using Small = Small_;
  using Medium = Medium_;
  using Large = Large_;
  using Wide = Wide_;
};
using MmaTiles = TileSet<SmallMma, MediumMma, LargeMma, WideMma>;
using DeepTiles = TileSet<DeepSmallMma, DeepMediumMma, DeepLargeMma>;
// Sums of integers are exact in any order: a deep layer has parts where they are quicker.
using DeepInt8Tiles = TileSet<DeepSmallMma, MediumMma, LargeMma, WideMma>;
using E4m3Tiles = TileSet<SmallMma, MediumMma, LargeE4m3>;

template <class Set, class T, class In>
void run_in(Tiles tiles, const Product<T, In>& p, Stream stream) {
  switch (tiles) {
    case Tiles::kSmall:
      return run<typename Set::Small>(linear_mma<T, In, typename Set::Small>, p, stream);
    case Tiles::kMedium:
      return run<typename Set::Medium>(linear_mma<T, In, typename Set::Medium>, p, stream);
    case Tiles::kLarge:
      return run<typename Set::Large>(linear_mma<T, In, typename Set::Large>, p, stream);
    case Tiles::kWide:
      if constexpr (std::is_void_v<typename Set::Wide>) {
        throw DeviceError("a layer of " + std::to_string(p.inputs) +
                          " inputs has no tiles of 128 x 256: it is summed in parts");
      } else {
        return run<typename Set::Wide>(linear_mma<T, In, typename Set::Wide>, p, stream);
      }
    case Tiles::kHopper:
    case Tiles::kHopperBlocks:
      if constexpr (std::is_same_v<T, In>) {
        return hopper::linear(p, stream, tiles == Tiles::kHopper);
      } else {
        throw DeviceError("8-bit integers have no product for Hopper alone");
      }
  }
}

template <class T, class In>
void run(Tiles tiles, const Product<T, In>& p, Stream stream) {
  using Deep = std::conditional_t<std::is_same_v<In, uint8_t>, DeepInt8Tiles, DeepTiles>;
  if (depth_parts(p.inputs) > 1) return run_in<Deep>(tiles, p, stream);
  run_in<MmaTiles>(tiles, p, stream);
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
    case Tiles::kWide:
      throw DeviceError("fp32 has no tiles of 128 x 256");
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

template <class Tile>
int64_t count_tiles(int64_t rows, int64_t outputs) {
  return (rows + Tile::kRows - 1) / Tile::kRows * ((outputs + Tile::kColumns - 1) / Tile::kColumns);
}

// Rows of inputs, of x and of weights, that one of so many multiprocessors reads for its share of a
// result in such tiles.
template <class Tile>
int64_t rows_read(int64_t rows, int64_t outputs, int multiprocessors) {
  const int64_t tiles = count_tiles<Tile>(rows, outputs);
  return (tiles + multiprocessors - 1) / multiprocessors * (Tile::kRows + Tile::kColumns);
}

// Which tiles on tensor cores have a multiprocessor read least, of equal ones the smaller.
//
// Reckoned from what one H200 did, and not measured. In tiles of 128 x 128 it reached 270 TFLOP/s:
// a multiprocessor then reads 18 bytes a cycle, and all of them 4.2 TB/s of the L2 cache, which
// gives little more, while tensor cores would do twice as much. 128 rows in 384 tiles of 32 x 32
// and 24 steps took 11 us, launch included: 18 bytes a cycle again. So time goes as what is read.
// It did not where 96 blocks walked 96 steps, in 31 us: the 12 KiB that a lone block had on its way
// were 8 bytes a cycle, so that 18 take 28 KiB. Each tile has as many now (linear_mma.cuh).
template <class Set>
Tiles choose(int64_t rows, int64_t outputs, int multiprocessors) {
  Tiles best = Tiles::kSmall;
  int64_t least = rows_read<typename Set::Small>(rows, outputs, multiprocessors);
  const auto offer = [&](Tiles tiles, int64_t read) {
    if (read >= least) return;
    best = tiles;
    least = read;
  };
  offer(Tiles::kMedium, rows_read<typename Set::Medium>(rows, outputs, multiprocessors));
  offer(Tiles::kLarge, rows_read<typename Set::Large>(rows, outputs, multiprocessors));
  if constexpr (!std::is_void_v<typename Set::Wide>) {
    offer(Tiles::kWide, rows_read<typename Set::Wide>(rows, outputs, multiprocessors));
  }
  return best;
}

// Which of multiply-adds, that are short of arithmetic: the largest that leave no multiprocessor
// without any.
Tiles choose_fma(int64_t rows, int64_t outputs, int multiprocessors) {
  if (count_tiles<LargeFma>(rows, outputs) >= multiprocessors) return Tiles::kLarge;
  return count_tiles<MediumFma>(rows, outputs) >= multiprocessors ? Tiles::kMedium : Tiles::kSmall;
}

Tiles tiles_of(const Linear& linear, Element element, int64_t rows) {
  return linear.hopper ? Tiles::kHopper : choose_tiles(linear, element, rows, multiprocessors());
}

}  // namespace

Tiles choose_tiles(const Linear& linear, Element element, int64_t rows, int multiprocessors) {
  const int64_t outputs = linear.outputs;
  if (element == Element::kFp32) return choose_fma(rows, outputs, multiprocessors);
  if (linear.quantised && linear.quantised.bits == EightBits::kFp8) {
    return choose<E4m3Tiles>(rows, outputs, multiprocessors);
  }
  if (depth_parts(static_cast<int>(linear.inputs)) == 1) {
    return choose<MmaTiles>(rows, outputs, multiprocessors);
  }
  return linear.quantised ? choose<DeepInt8Tiles>(rows, outputs, multiprocessors)
                          : choose<DeepTiles>(rows, outputs, multiprocessors);
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
