// A tile, its product by one warpgroup, and every rule of Hopper's primitives broken once.
#include <map>

#include "cuda/hopper/primitives.cuh"
#include "cuda/tile.cuh"
#include "probes.h"

namespace bertrt::cuda::probes {
namespace {

enum class Wrong {
  kNothing,
  kFewerBytes,
  kMoreBytes,
  kNoInit,
  kInitAgain,
  kNoWaitForTile,
  kNoWaitOfOne,
  kTileMisplaced,
  kStepMisplaced,
  kOtherSwizzle,
  kOtherStride,
  kNoFence,
  kNoCommit,
  kNoWaitForProduct,
  kOtherProducts,
  kReuseWithoutRelease,
  kReuseWithoutWaitForRelease,
  kReleaseBeforeProduct,
  kTooManyArrivals,
  kTwoCopies,
  kNeverArrives,
};

const std::map<std::string, Wrong> kProbes = {
    {"nothing", Wrong::kNothing},
    {"fewer bytes", Wrong::kFewerBytes},
    {"more bytes", Wrong::kMoreBytes},
    {"no init", Wrong::kNoInit},
    {"init again", Wrong::kInitAgain},
    {"no wait for the tile", Wrong::kNoWaitForTile},
    {"no wait of one thread", Wrong::kNoWaitOfOne},
    {"tile misplaced", Wrong::kTileMisplaced},
    {"step misplaced", Wrong::kStepMisplaced},
    {"other swizzle", Wrong::kOtherSwizzle},
    {"other stride", Wrong::kOtherStride},
    {"no fence", Wrong::kNoFence},
    {"no commit", Wrong::kNoCommit},
    {"no wait for the product", Wrong::kNoWaitForProduct},
    {"other products", Wrong::kOtherProducts},
    {"reuse without release", Wrong::kReuseWithoutRelease},
    {"reuse without wait for release", Wrong::kReuseWithoutWaitForRelease},
    {"release before the product", Wrong::kReleaseBeforeProduct},
    {"too many arrivals", Wrong::kTooManyArrivals},
    {"two copies", Wrong::kTwoCopies},
    {"never arrives", Wrong::kNeverArrives},
};

constexpr int kTileBytes = 128 * 128;  // both operands, of which the left one has 64 rows
constexpr int kThreads = 128;

// out = the first row of tile * tile^T over 16 of depth, from a map of 128 x 64 elements.
__global__ void tile_product(Wrong wrong, const __grid_constant__ hopper::TensorMap map,
                             float* out) {
  auto* shared = shared_memory<unsigned char>();
  auto* full = reinterpret_cast<hopper::Barrier*>(shared + kTileBytes + 1024);
  hopper::Barrier* empty = full + 1;
  unsigned char* tile = shared + (wrong == Wrong::kTileMisplaced ? 128 : 0);
  const unsigned t = threadIdx.x;
  if (t == 0) {
    if (wrong != Wrong::kNoInit) hopper::barrier_init(full, 1);
    if (wrong == Wrong::kInitAgain) hopper::barrier_init(full, 1);
    hopper::barrier_init(empty, 4);
    hopper::barrier_init_done();
  }
  syncthreads();
  const auto load = [&] {
    const int other = wrong == Wrong::kFewerBytes ? -16 : wrong == Wrong::kMoreBytes ? 16 : 0;
    if (wrong != Wrong::kNeverArrives) hopper::barrier_expect(full, kTileBytes + other);
    if (wrong == Wrong::kTooManyArrivals) hopper::barrier_arrive(full);
    hopper::tma_load(tile, map, 0, 0, full);
    if (wrong == Wrong::kTwoCopies) hopper::tma_load(tile, map, 0, 0, full);
  };
  if (t == 0) load();
  if (wrong != Wrong::kNoWaitForTile && !(wrong == Wrong::kNoWaitOfOne && t == 77)) {
    hopper::barrier_wait(full, 0);
  }
  if (wrong == Wrong::kNoWaitForTile) syncthreads();
  const auto release = [&] {
    if (lane_index() == 0 && wrong != Wrong::kReuseWithoutRelease) hopper::barrier_arrive(empty);
  };
  const uint32_t at = shared_address(tile) + (wrong == Wrong::kStepMisplaced ? 16 : 0);
  uint64_t a = hopper::descriptor(at);
  if (wrong == Wrong::kOtherSwizzle) a ^= uint64_t{2} << 62;
  if (wrong == Wrong::kOtherStride) a ^= uint64_t{1} << 32;
  float sums[64];
  if (wrong != Wrong::kNoFence) hopper::wgmma_fence();
  hopper::wgmma_m64n128k16<Fp16>(sums, a, hopper::descriptor(at),
                                 wrong == Wrong::kOtherProducts && t == 9);
  if (wrong != Wrong::kNoCommit) hopper::wgmma_commit();
  if (wrong == Wrong::kReleaseBeforeProduct) release();
  if (wrong != Wrong::kNoWaitForProduct) hopper::wgmma_wait<0>(sums);
  if (wrong != Wrong::kReleaseBeforeProduct) release();
  if (t == 0) {
    if (wrong != Wrong::kReuseWithoutRelease && wrong != Wrong::kReuseWithoutWaitForRelease) {
      hopper::barrier_wait(empty, 0);
    }
    load();
  }
  hopper::barrier_wait(full, 1);
  for (int i = 0; i < 64; ++i) {
    const hopper::Place place = hopper::sum_place(static_cast<int>(t), i);
    if (place.row == 0) out[place.column] = sums[i];
  }
}

}  // namespace

void run_hopper(const std::string& name, const uint16_t* tile, float* out) {
  const auto map = hopper::tensor_map(reinterpret_cast<const Fp16*>(tile), 128, 64, 64, 128);
  launch(tile_product, dim3(1), kThreads, kTileBytes + 1024 + 2 * sizeof(hopper::Barrier),
         Stream(nullptr), kProbes.at(name), map, out);
}

std::vector<std::string> hopper_names() {
  std::vector<std::string> names;
  for (const auto& probe : kProbes) names.push_back(probe.first);
  return names;
}

}  // namespace bertrt::cuda::probes
