// The tile instructions of amx/tiles.h in plain code, after Intel's SDM (volume 2, LDTILECFG to
// TILEZERO): so that the kernels over them are tested where there is no AMX. What would be a fault
// ends the program here, too.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace bertrt::cpu::amx_emulated {
namespace {

struct Tile {
  int rows;
  int bytes;  // of a row
  alignas(64) uint8_t data[16][64];
};

struct TileState {
  bool configured;
  Tile tiles[8];
};

thread_local TileState state;

inline void require(bool condition) {
  if (!condition) __builtin_trap();
}

inline Tile& configured(int number) {
  require(state.configured && state.tiles[number].rows > 0 && state.tiles[number].bytes > 0);
  return state.tiles[number];
}

inline void clear(Tile& tile) { __builtin_memset(tile.data, 0, sizeof(tile.data)); }

inline void load_config(const void* config) {
  const auto* byte = static_cast<const uint8_t*>(config);
  require(byte[0] == 1);  // the only palette; byte 1: the row that a load that faulted resumes at
  for (int i = 1; i < 16; ++i) require(byte[i] == 0);
  for (int i = 0; i < 16; ++i) {
    const int bytes = byte[16 + 2 * i] | byte[17 + 2 * i] << 8;
    const int rows = byte[48 + i];
    require(bytes <= 64 && rows <= 16 && (bytes == 0) == (rows == 0));
    require(i < 8 || rows == 0);
    if (i < 8) {
      state.tiles[i].rows = rows;
      state.tiles[i].bytes = bytes;
      clear(state.tiles[i]);
    }
  }
  state.configured = true;
}

inline void release_tiles() { state.configured = false; }

template <int kTile>
inline void zero_tile() {
  clear(configured(kTile));
}

// Rows and bytes beyond the tile's become zero.
template <int kTile>
inline void load_tile(const void* rows, int64_t stride) {
  Tile& tile = configured(kTile);
  clear(tile);
  for (int i = 0; i < tile.rows; ++i) {
    __builtin_memcpy(tile.data[i], static_cast<const char*>(rows) + i * stride,
                     static_cast<size_t>(tile.bytes));
  }
}

template <int kTile>
inline void store_tile(void* rows, int64_t stride) {
  const Tile& tile = configured(kTile);
  for (int i = 0; i < tile.rows; ++i) {
    __builtin_memcpy(static_cast<char*>(rows) + i * stride, tile.data[i],
                     static_cast<size_t>(tile.bytes));
  }
}

// Sums of m rows and n columns, rows of m by k, weights of k by n; all in units of 4 bytes.
inline void require_shapes(const Tile& sums, const Tile& rows, const Tile& weights) {
  require(&sums != &rows && &sums != &weights && &rows != &weights);
  require(sums.rows == rows.rows && sums.bytes == weights.bytes);
  require(rows.bytes == 4 * weights.rows && sums.bytes % 4 == 0);
}

template <class T>
inline T value_at(const Tile& tile, int row, int column) {
  T value;
  __builtin_memcpy(&value, &tile.data[row][column * sizeof(T)], sizeof(T));
  return value;
}
template <class T>
inline void set(Tile& tile, int row, int column, T value) {
  __builtin_memcpy(&tile.data[row][column * sizeof(T)], &value, sizeof(T));
}

// TDPBF16PS: the even inputs are summed with fused multiply-adds, so are the odd ones, and both
// sums are added, then that to what was there. Rounds to nearest even, denormals are zeros: as in
// FloatMode, which its caller has set.
template <int kSums, int kRows, int kWeights>
inline void add_bf16_products() {
  Tile& sums = configured(kSums);
  const Tile& rows = configured(kRows);
  const Tile& weights = configured(kWeights);
  require_shapes(sums, rows, weights);
  const auto to_float = [](uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof(value));
    return value;
  };
  for (int m = 0; m < sums.rows; ++m) {
    float even[16] = {};
    float odd[16] = {};
    for (int k = 0; k < rows.bytes / 4; ++k) {
      const auto pair = value_at<uint32_t>(rows, m, k);
      for (int n = 0; n < sums.bytes / 4; ++n) {
        const auto weight = value_at<uint32_t>(weights, k, n);
        even[n] = __builtin_fmaf(to_float(pair << 16), to_float(weight << 16), even[n]);
        odd[n] = __builtin_fmaf(to_float(pair & 0xffff0000), to_float(weight & 0xffff0000), odd[n]);
      }
    }
    for (int n = 0; n < sums.bytes / 4; ++n) {
      set(sums, m, n, value_at<float>(sums, m, n) + (even[n] + odd[n]));
    }
  }
}

// TDPBUSD: exact in 32 bits, which wrap around.
template <int kSums, int kRows, int kWeights>
inline void add_int8_products() {
  Tile& sums = configured(kSums);
  const Tile& rows = configured(kRows);
  const Tile& weights = configured(kWeights);
  require_shapes(sums, rows, weights);
  for (int m = 0; m < sums.rows; ++m) {
    for (int k = 0; k < rows.bytes / 4; ++k) {
      for (int n = 0; n < sums.bytes / 4; ++n) {
        int32_t sum = 0;
        for (int i = 0; i < 4; ++i) {
          sum += rows.data[m][4 * k + i] * static_cast<int8_t>(weights.data[k][4 * n + i]);
        }
        set(sums, m, n, value_at<uint32_t>(sums, m, n) + static_cast<uint32_t>(sum));
      }
    }
  }
}

}  // namespace
}  // namespace bertrt::cpu::amx_emulated
