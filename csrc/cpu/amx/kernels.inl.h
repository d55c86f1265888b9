// bf16 and int8 products on the tiles of AMX: an instruction multiplies 16 rows by 16 columns over
// 32 or 64 inputs. The other kernels are those below it; isa.cpp puts the table together.
//
// Before this file a kernels.cpp has the tile instructions in its namespace, see tiles.h.
//
// The eight tiles hold sums of 2 x 2 blocks of 16 x 16, two blocks of rows and two of weights: four
// products take four loads, and no other split of eight tiles takes fewer a product. By Intel's
// optimization manual a product can begin every 16 cycles and takes 52, and a load can begin every
// 8: four sums in turn keep the multiplier busy. A step reads 4 KiB in 64 cycles, which the
// second-level cache just gives where rows and panel are too long for the first.
//
// A single block of rows is used from one row on: its two sums take a step of 2 KiB of weights in
// 52 cycles, and memory gives a core fewer bytes than these 39 a cycle. AVX-512 would take 16 to 32
// cycles for each row of it: from four rows on at the latest it is slower, and below both wait for
// the weights. And in bf16 its sums have other bits, so that a row's result would depend on how
// many there are. So nothing chooses between the two.
//
// Weights and rows lie as the AVX-512 kernels read them: 16 groups of 16 columns are one tile,
// which is every other cache line of a panel of two. Panels are filled up with zeros, so that only
// the last rows make smaller tiles. A configuration of the tiles takes about 200 cycles to load, a
// product of 32 rows, a panel and 768 inputs 1,536 in bf16 and 768 in int8: a thread loads one
// before the rows of a panel, and another if the last of them want it, and gives the registers back
// after them, since for a thread that kept them the system would save 8 KiB at each switch.
#pragma once

#include "cpu/avx512/vec.h"
#include "cpu/kernel_table.h"

namespace bertrt::cpu {
namespace avx512_vnni {
extern const GemmKernel kGemmS8;
}
namespace avx512_bf16 {
extern const GemmKernel kGemmBf16;
}
namespace BERTRT_CPU_NAMESPACE {
using namespace avx512;
}
}  // namespace bertrt::cpu

#include "cpu/generic/gemm.inl.h"

#define BERTRT_STRINGIFY(name) #name
#define BERTRT_NAME(name) BERTRT_STRINGIFY(name)

namespace bertrt::cpu::BERTRT_CPU_NAMESPACE {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;  // of a row
constexpr int kMostRows = 2 * kTileRows;
// Bytes between the groups of a panel of two tiles, and between the rows of a block of sums.
constexpr int64_t kPanelStride = 2 * kTileBytes;

// What LDTILECFG reads (Intel SDM volume 2): how many rows of how many bytes each tile has.
struct TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

// Tiles 0 and 1 have the sums of the first block of rows, 2 and 3 of the second; 4 and 5 have rows
// of these blocks, 6 and 7 weights.
void configure(int rows) {
  const auto first = static_cast<uint8_t>(rows < kTileRows ? rows : kTileRows);
  const auto second = static_cast<uint8_t>(rows - first);
  const uint8_t tiles[8] = {first, first, second, second, first, second, kTileRows, kTileRows};
  alignas(64) TileConfig config = {};
  config.palette = 1;
  for (int i = 0; i < 8; ++i) {
    config.rows[i] = tiles[i];
    config.bytes[i] = tiles[i] > 0 ? kTileBytes : 0;
  }
  load_config(&config);
}

void release() { release_tiles(); }

struct BFloat16Tiles {
  static constexpr const char* kName = "gemm_bf16." BERTRT_NAME(BERTRT_CPU_NAMESPACE);
  static constexpr int kGroup = 2;
  static constexpr bool kByValue = true;
  // Rows as AVX512-BF16 reads them, filled up with zeros to a tile's width: what stood there before
  // may be NaN, which times the panel's zeros would be NaN.
  static void convert(const float* x, int64_t depth, void* out, RowSteps* steps) {
    avx512_bf16::kGemmBf16.convert(x, depth, out, steps);
    uint16_t* row = static_cast<uint16_t*>(out);
    const int64_t end = round_up(depth, kTileBytes / sizeof(uint16_t));
    for (int64_t i = round_up(depth, 16); i < end; ++i) row[i] = 0;
  }
  template <int kSums, int kRows, int kWeights>
  static void add_products() {
    add_bf16_products<kSums, kRows, kWeights>();
  }
  static F16 value(const void* sums, const GemmTile&, int, int) {
    return load(static_cast<const float*>(sums));
  }
};

struct Int8Tiles {
  static constexpr const char* kName = "gemm_s8." BERTRT_NAME(BERTRT_CPU_NAMESPACE);
  static constexpr int kGroup = 4;
  static constexpr bool kByValue = false;
  // Rows as AVX512-VNNI reads them. What lies beyond the depth is multiplied by zeros.
  static void convert(const float* x, int64_t depth, void* out, RowSteps* steps) {
    avx512_vnni::kGemmS8.convert(x, depth, out, steps);
  }
  template <int kSums, int kRows, int kWeights>
  static void add_products() {
    add_int8_products<kSums, kRows, kWeights>();
  }
  // Less what the zero point added: see Int8Vnni.
  static F16 value(const void* sums, const GemmTile& tile, int row, int column) {
    const __m512i excess = _mm512_mullo_epi32(_mm512_loadu_si512(tile.column_sum + column),
                                              _mm512_set1_epi32(tile.steps(row).zero));
    const I16 sum = {_mm512_sub_epi32(_mm512_loadu_si512(sums), excess)};
    return dequantise(sum, tile, row, column);
  }
};

// The sums of kBlocks blocks of 16 rows with a panel of two times 16 columns, kPanelStride bytes a
// row.
template <class Format, int kBlocks>
inline void multiply(const GemmTile& t, char* sums) {
  const char* rows = static_cast<const char*>(t.a);
  const char* panel = static_cast<const char*>(t.panel);
  const char* next = static_cast<const char*>(t.next.from);
  const int64_t fetched = (t.next.bytes + 2 * t.depth - 1) / (2 * t.depth);  // at a time
  const int64_t stride = t.a_stride;
  const int64_t depth = t.depth;
  zero_tile<0>();
  zero_tile<1>();
  if constexpr (kBlocks == 2) {
    zero_tile<2>();
    zero_tile<3>();
  }
  for (int64_t k = 0; k < depth; k += kTileRows) {
    load_tile<4>(rows, stride);
    load_tile<6>(panel, kPanelStride);
    Format::template add_products<0, 4, 6>();
    load_tile<7>(panel + kTileBytes, kPanelStride);
    Format::template add_products<1, 4, 7>();
    if constexpr (kBlocks == 2) {
      load_tile<5>(rows + kTileRows * stride, stride);
      Format::template add_products<2, 5, 6>();
      Format::template add_products<3, 5, 7>();
    }
#pragma GCC unroll 32
    for (int i = 0; i < 2 * kTileRows; ++i) {
      __builtin_prefetch(next, 0, 2);
      next += fetched;
    }
    rows += kTileBytes;
    panel += kTileRows * kPanelStride;
  }
  store_tile<0>(sums, kPanelStride);
  store_tile<1>(sums + kTileBytes, kPanelStride);
  if constexpr (kBlocks == 2) {
    store_tile<2>(sums + kTileRows * kPanelStride, kPanelStride);
    store_tile<3>(sums + kTileRows * kPanelStride + kTileBytes, kPanelStride);
  }
}

template <class Format>
void run(const GemmTile& t) {
  // The product takes longer than these lines need to arrive.
  for (int i = 0; i < t.rows; ++i) {
    __builtin_prefetch(t.out + i * t.out_stride, 1);
    __builtin_prefetch(t.out + i * t.out_stride + 16, 1);
  }
  alignas(64) char sums[kMostRows * kPanelStride];
  if (t.rows > kTileRows) {
    multiply<Format, 2>(t, sums);
  } else {
    multiply<Format, 1>(t, sums);
  }
  for (int i = 0; i < t.rows; ++i) {
    for (int j = 0; j < t.cols; j += 16) {
      float* out = t.out + i * t.out_stride + j;
      const F16 sum = Format::value(sums + i * kPanelStride + j * 4, t, i, j);
      const int cols = t.cols - j;
      if (cols >= 16) {
        store(out, t.bias ? sum + load(t.bias + j) : sum);
      } else {
        store_first(out, t.bias ? sum + load_first(t.bias + j, cols) : sum, cols);
      }
    }
  }
  // The tile is still in the first-level cache.
  activate<gelu_erf_short>(t.activation, t.out, t.out_stride, t.rows, t.cols);
}

// Products of tiles alone, see peak.inl.h; six sums are more than four, and two tiles are left.
template <class Format>
int64_t peak(int64_t rounds, float x, float* out) {
  alignas(64) float values[kTileRows * 16];
  for (int i = 0; i < kTileRows; ++i) store(values + 16 * i, broadcast(x));
  configure(kMostRows);
  load_tile<6>(values, kTileBytes);
  load_tile<7>(values, kTileBytes);
  for (int64_t round = 0; round < rounds; ++round) {
    Format::template add_products<0, 6, 7>();
    Format::template add_products<1, 6, 7>();
    Format::template add_products<2, 6, 7>();
    Format::template add_products<3, 6, 7>();
    Format::template add_products<4, 6, 7>();
    Format::template add_products<5, 6, 7>();
  }
  store_tile<0>(values, kTileBytes);
  release();
  store(out, load(out) + load(values));
  return rounds * 6 * 2 * kTileRows * 16 * 16 * Format::kGroup;
}

template <class Format>
constexpr GemmKernel kKernel = {
    Format::kName,      kMostRows,        kPanel,      Format::kGroup, Format::convert,
    4 / Format::kGroup, Format::kByValue, run<Format>, peak<Format>,   kTileRows,
    kTileRows,          configure,        release};

}  // namespace

extern const GemmKernel kGemmBf16;
const GemmKernel kGemmBf16 = kKernel<BFloat16Tiles>;

extern const GemmKernel kGemmS8;
const GemmKernel kGemmS8 = kKernel<Int8Tiles>;

}  // namespace bertrt::cpu::BERTRT_CPU_NAMESPACE
