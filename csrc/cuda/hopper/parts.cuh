// What the blocks of a cluster that walk the parts of a tile's depth do with their sums.
#pragma once

#include "cuda/hopper/primitives.cuh"

namespace bertrt::cuda::hopper {

// Four sums of a tile, those of the parts added in order. They stand at the same place in the
// shared memory of the cluster's blocks, whose ranks are the parts.
__device__ __forceinline__ void add_parts(float (&sums)[4], const float* own) {
  float of_part[kMostParts][4];
#pragma unroll
  for (int part = 0; part < kMostParts; ++part) {
    load_peer(of_part[part], own, static_cast<unsigned>(part));
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    sums[e] = of_part[0][e];
#pragma unroll
    for (int part = 1; part < kMostParts; ++part) sums[e] += of_part[part][e];
  }
}

}  // namespace bertrt::cuda::hopper
