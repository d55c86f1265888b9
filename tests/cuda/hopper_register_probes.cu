// A tile that threads copy, its products with an operand in registers, and every rule of these
// primitives broken once.
#include <map>

#include "cuda/hopper/attention_layout.h"
#include "cuda/hopper/register_operand.cuh"
#include "cuda/tile.cuh"
#include "probes.h"

namespace bertrt::cuda::probes {
namespace {

enum class Wrong {
  kNothing,
  kNoFence,
  kFenceBeforeCopies,
  kNoWaitOfTheLast,
  kNoWaitForCopies,
  kOperandChanges,
  kSumsChange,
  kReuseWithoutRelease,
  kReuseWithoutWaitForRelease,
  kRowsOfAnotherHead,
  kHalfAValue,
  kOtherOrder,
};

const std::map<std::string, Wrong> kProbes = {
    {"nothing", Wrong::kNothing},
    {"no fence for wgmma", Wrong::kNoFence},
    {"fence before the copies", Wrong::kFenceBeforeCopies},
    {"no wait of the last writer", Wrong::kNoWaitOfTheLast},
    {"copies not waited for", Wrong::kNoWaitForCopies},
    {"operand changes", Wrong::kOperandChanges},
    {"sums change", Wrong::kSumsChange},
    {"reuse without release", Wrong::kReuseWithoutRelease},
    {"reuse without wait for release", Wrong::kReuseWithoutWaitForRelease},
    {"rows of another head", Wrong::kRowsOfAnotherHead},
    {"half a value", Wrong::kHalfAValue},
    {"other order of products", Wrong::kOtherOrder},
};

constexpr int kThreads = 128;
constexpr unsigned kRowBytes = 128;
constexpr unsigned kTileBytes = 64 * kRowBytes;

// Of a tile of 64 x 64, out is the first row of a * tile^T over 16 of depth, and of a * its first
// 16 rows, a being the tile's first 16 columns.
__global__ void register_products(Wrong wrong, const uint16_t* tile, float* out) {
  auto* shared = shared_memory<unsigned char>();
  auto* full = reinterpret_cast<hopper::Barrier*>(shared + kTileBytes);
  hopper::Barrier* empty = full + 1;
  const unsigned t = threadIdx.x;
  if (t == 0) {
    hopper::barrier_init(full, kThreads);
    hopper::barrier_init(empty, 4);
    hopper::barrier_init_done();
  }
  syncthreads();
  const auto copy = [&] {
    for (unsigned i = t; i < kTileBytes / 16; i += kThreads) {
      cp_async16(shared + hopper::head_swizzled(kRowBytes, i / 8, i % 8), tile + i * 8);
    }
    cp_async_commit();
    if (wrong == Wrong::kFenceBeforeCopies) hopper::fence_for_wgmma();
    if (wrong != Wrong::kNoWaitForCopies) cp_async_wait<0>();
    if (wrong != Wrong::kNoFence && wrong != Wrong::kFenceBeforeCopies) hopper::fence_for_wgmma();
    hopper::barrier_arrive(full);
  };
  copy();
  uint32_t a[4];
  for (int i = 0; i < 4; ++i) {
    const hopper::Place at = hopper::left_place(static_cast<int>(t), i, 0);
    const uint16_t* two = tile + at.row * 64 + at.column;
    a[i] = two[0] | static_cast<uint32_t>(two[1]) << 16;
  }
  // On the emulator the last thread leaves a barrier first, and the one before it last.
  if (wrong != Wrong::kNoWaitOfTheLast || t != kThreads - 2) hopper::barrier_wait(full, 0);

  const uint32_t at = shared_address(shared);
  const unsigned row_bytes = wrong == Wrong::kRowsOfAnotherHead ? 96 : kRowBytes;
  const uint64_t keys = hopper::head_descriptor(row_bytes, at);
  const uint64_t values =
      hopper::head_descriptor(kRowBytes, at + (wrong == Wrong::kHalfAValue ? 64 : 0));
  float scores[32], sums[32];
  hopper::wgmma_fence();
  if (wrong == Wrong::kOtherOrder && t == 77) {
    hopper::wgmma_of_registers<Fp16, true>(sums, a, values, false);
  } else {
    hopper::wgmma_of_registers<Fp16, false>(scores, a, keys, false);
  }
  hopper::wgmma_of_registers<Fp16, true>(sums, a, values, false);
  hopper::wgmma_commit();
  if (wrong == Wrong::kOperandChanges) a[3] ^= 1;
  if (wrong == Wrong::kSumsChange) sums[31] = 1.0f;
  hopper::wgmma_wait<0>(scores);
  if (lane_index() == 0 && wrong != Wrong::kReuseWithoutRelease) hopper::barrier_arrive(empty);
  if (wrong != Wrong::kReuseWithoutRelease && wrong != Wrong::kReuseWithoutWaitForRelease) {
    hopper::barrier_wait(empty, 0);
  }
  copy();
  hopper::barrier_wait(full, 1);
  for (int i = 0; i < 32; ++i) {
    const hopper::Place place = hopper::sum_place(static_cast<int>(t), i);
    if (place.row != 0) continue;
    out[place.column] = scores[i];
    out[64 + place.column] = sums[i];
  }
}

}  // namespace

void run_hopper_registers(const std::string& name, const uint16_t* tile, float* out) {
  launch(register_products, dim3(1), kThreads, kTileBytes + 2 * sizeof(hopper::Barrier),
         Stream(nullptr), kProbes.at(name), tile, out);
}

std::vector<std::string> hopper_register_names() {
  std::vector<std::string> names;
  for (const auto& probe : kProbes) names.push_back(probe.first);
  return names;
}

}  // namespace bertrt::cuda::probes
