// Blocks of a cluster that read each other's shared memory, and each rule of that broken once.
#include <map>

#include "cuda/hopper/primitives.cuh"
#include "probes.h"

namespace bertrt::cuda::probes {
namespace {

enum class Wrong {
  kNothing,
  kNoBarrier,
  kBarrierOfBlock,
  kBarrierOfSome,
  kBarrierOfOneBlock,
  kNoBarrierAtEnd,
  kReaderIsLate,
  kOverwritten,
  kUnwritten,
  kNoSuchRank,
  kUnaligned,
  kPastTheEnd,
  kNotShared,
};

const std::map<std::string, Wrong> kProbes = {
    {"nothing", Wrong::kNothing},
    {"no barrier", Wrong::kNoBarrier},
    {"a block's barrier", Wrong::kBarrierOfBlock},
    {"a barrier of some", Wrong::kBarrierOfSome},
    {"a barrier of one block", Wrong::kBarrierOfOneBlock},
    {"no barrier at the end", Wrong::kNoBarrierAtEnd},
    {"a reader is late", Wrong::kReaderIsLate},
    {"overwritten", Wrong::kOverwritten},
    {"unwritten", Wrong::kUnwritten},
    {"no such rank", Wrong::kNoSuchRank},
    {"unaligned", Wrong::kUnaligned},
    {"past the end", Wrong::kPastTheEnd},
    {"not shared", Wrong::kNotShared},
};

constexpr int kThreads = 64;
constexpr int kCluster = 4;

// out: a block's 64 floats are those that the next block of the cluster has of x.
__global__ void exchange(Wrong wrong, const float* x, float* out) {
  auto* shared = shared_memory<float>();
  const unsigned t = threadIdx.x, rank = hopper::cluster_rank();
  const unsigned at = blockIdx.x * kThreads + t;
  if (wrong == Wrong::kBarrierOfSome && rank == 2 && t == 33) return;
  if (wrong == Wrong::kBarrierOfOneBlock && rank != 1) return;
  if (wrong != Wrong::kUnwritten || t != 5) shared[t] = x[at];
  if (wrong == Wrong::kBarrierOfBlock) {
    syncthreads();
  } else if (wrong != Wrong::kNoBarrier) {
    hopper::cluster_barrier();
  }
  if (wrong == Wrong::kReaderIsLate) {
    if (rank != 3) return;
    for (int i = 0; i < 2; ++i) syncthreads();
  }
  const unsigned peer = wrong == Wrong::kNoSuchRank ? rank + 1 : (rank + 1) % kCluster;
  const unsigned shift = wrong == Wrong::kUnaligned    ? 1
                         : wrong == Wrong::kPastTheEnd ? kThreads
                                                       : 0;
  float four[4];
  hopper::load_peer(four, wrong == Wrong::kNotShared ? x : shared + t / 4 * 4 + shift, peer);
  out[at] = four[t % 4];
  if (wrong == Wrong::kOverwritten) shared[t] = 0.0f;
  if (wrong != Wrong::kNoBarrierAtEnd && wrong != Wrong::kReaderIsLate) {
    hopper::cluster_barrier();
  }
}

}  // namespace

void run_cluster(const std::string& name, const float* x, float* out) {
  launch_clusters(kCluster, exchange, dim3(2 * kCluster), kThreads, kThreads * sizeof(float),
                  Stream(nullptr), kProbes.at(name), x, out);
}

std::vector<std::string> cluster_names() {
  std::vector<std::string> names;
  for (const auto& probe : kProbes) names.push_back(probe.first);
  return names;
}

}  // namespace bertrt::cuda::probes
