// Two blocks of a cluster that share the copies of a tile, and each rule of that broken once.
#include <map>

#include "cuda/hopper/primitives.cuh"
#include "cuda/tile.cuh"
#include "probes.h"

namespace bertrt::cuda::probes {
namespace {

enum class Wrong {
  kNothing,
  kNoBarrierBehindInit,
  kOwnBytesOnly,
  kToOneTooMany,
  kReleaseToOneself,
  kWaitForOneself,
  kReleaseToOneTooMany,
  kNoBarrierAtEnd,
};

const std::map<std::string, Wrong> kProbes = {
    {"nothing", Wrong::kNothing},
    {"no barrier behind init", Wrong::kNoBarrierBehindInit},
    {"own bytes only", Wrong::kOwnBytesOnly},
    {"to one too many", Wrong::kToOneTooMany},
    {"release to oneself", Wrong::kReleaseToOneself},
    {"wait for oneself", Wrong::kWaitForOneself},
    {"release to one too many", Wrong::kReleaseToOneTooMany},
    {"no barrier at the end", Wrong::kNoBarrierAtEnd},
};

constexpr int kTileBytes = 128 * 128;
constexpr int kHalfBytes = kTileBytes / 2;  // of 64 rows, that a block copies to both
constexpr int kThreads = 128;

// out = the first row of tile * tile^T over 16 of depth, half of it by each block.
__global__ void shared_tile(Wrong wrong, const __grid_constant__ hopper::TensorMap map,
                            float* out) {
  auto* tile = shared_memory<unsigned char>();
  auto* full = reinterpret_cast<hopper::Barrier*>(tile + kTileBytes);
  hopper::Barrier* empty = full + 1;
  const unsigned t = threadIdx.x, rank = hopper::cluster_rank();
  const bool alone = wrong == Wrong::kReleaseToOneself || wrong == Wrong::kWaitForOneself;
  if (t == 0) {
    hopper::barrier_init(full, 1);
    hopper::barrier_init(empty, wrong == Wrong::kWaitForOneself ? 4 : 8);
    hopper::barrier_init_done();
  }
  if (wrong == Wrong::kNoBarrierBehindInit) {
    syncthreads();
  } else {
    hopper::cluster_barrier();
  }
  const auto load = [&] {
    hopper::barrier_expect(full, wrong == Wrong::kOwnBytesOnly ? kHalfBytes : kTileBytes);
    hopper::tma_load(tile + rank * kHalfBytes, map, rank * 64, 0, full,
                     wrong == Wrong::kToOneTooMany ? 7 : 3);
  };
  if (t == 0) load();
  hopper::barrier_wait(full, 0);
  const uint32_t at = shared_address(tile);
  float sums[64];
  hopper::wgmma_fence();
  hopper::wgmma_m64n128k16<Fp16>(sums, hopper::descriptor(at), hopper::descriptor(at), false);
  hopper::wgmma_commit();
  hopper::wgmma_wait<0>(sums);
  if (alone) {
    if (lane_index() == 0) hopper::barrier_arrive(empty);
  } else if (lane_index() < 2) {
    hopper::barrier_arrive(empty, lane_index() + (wrong == Wrong::kReleaseToOneTooMany));
  }
  if (t == 0) {
    hopper::barrier_wait(empty, 0);
    load();
  }
  hopper::barrier_wait(full, 1);
  for (int i = 0; i < 64; ++i) {
    const hopper::Place place = hopper::sum_place(static_cast<int>(t), i);
    if (place.row == 0 && place.column / 64 == static_cast<int>(rank)) out[place.column] = sums[i];
  }
  if (wrong != Wrong::kNoBarrierAtEnd) hopper::cluster_barrier();
}

}  // namespace

void run_multicast(const std::string& name, const uint16_t* tile, float* out) {
  const auto map = hopper::tensor_map(reinterpret_cast<const Fp16*>(tile), 128, 64, 64, 64);
  launch_clusters(2, shared_tile, dim3(2), kThreads, kTileBytes + 2 * sizeof(hopper::Barrier),
                  Stream(nullptr), kProbes.at(name), map, out);
}

std::vector<std::string> multicast_names() {
  std::vector<std::string> names;
  for (const auto& probe : kProbes) names.push_back(probe.first);
  return names;
}

}  // namespace bertrt::cuda::probes
