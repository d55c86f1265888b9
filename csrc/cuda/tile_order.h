// Which of a result's tiles comes when.
#pragma once

#include <cstdint>

#include "cuda/both.h"

namespace bertrt::cuda {

// The tiles of a result, in bands of kBand tiles down: those that run at the same time read few
// rows and few columns of weights, which the L2 cache then holds.
constexpr unsigned kBand = 8;
struct TilePlace {
  int64_t down;
  int64_t across;
};
// In 32 bits inside, which divide in half the time: no result has as many tiles.
BERTRT_BOTH constexpr TilePlace tile_place(int64_t tile, int64_t tiles_down, int64_t tiles_across) {
  const auto turn = static_cast<unsigned>(tile);
  const auto of_band = kBand * static_cast<unsigned>(tiles_across);
  const unsigned first = turn / of_band * kBand;
  const unsigned left = static_cast<unsigned>(tiles_down) - first;
  const unsigned height = left < kBand ? left : kBand;
  const unsigned within = turn % of_band;
  return {first + within % height, within / height};
}

}  // namespace bertrt::cuda
