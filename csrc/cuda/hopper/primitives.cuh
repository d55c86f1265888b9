// What Hopper's kernels use beyond cuda/device.cuh, each primitive in one place: inline PTX for
// sm_90a, the emulator under a host compiler. Code for older architectures traps: it is not run.
#pragma once

#include "cuda/device.cuh"
#include "cuda/hopper/layout.h"

#ifdef BERTRT_CUDA_EMULATOR
#include "emulator/hopper.h"
#else

#include <cuda.h>

namespace bertrt::cuda::hopper {

using TensorMap = CUtensorMap;
using Barrier = uint64_t;

// Whether the calling thread's device runs this code.
inline bool available() {
  int device = 0, major = 0, minor = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
         major == 9 && minor == 0;
}

// Rows as TMA reads them, box_rows x 128 bytes at a time; what is beyond becomes zeros.
// The function comes from the driver through the runtime, so that nothing links with libcuda.
template <class T>
TensorMap tensor_map(const T* data, int64_t rows, int64_t cols, int64_t stride, int box_rows) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status;
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault,
                                       &status) != cudaSuccess ||
      status != cudaDriverEntryPointSuccess) {
    (void)cudaGetLastError();
    throw DeviceError(
        "the NVIDIA driver has no cuTensorMapEncodeTiled, which Hopper's products "
        "need: it is older than CUDA 12.0");
  }
  const auto encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(stride) * sizeof(T)};
  const cuuint32_t box[2] = {kRowBytes / sizeof(T), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  TensorMap map;
  const CUresult error =
      encode(&map,
             std::is_same_v<T, E4m3>   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
             : std::is_same_v<T, Fp16> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                       : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
             2, const_cast<T*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (error != CUDA_SUCCESS) {
    throw DeviceError("rows cannot be described to TMA: " + std::to_string(rows) + " x " +
                      std::to_string(cols) + ", stride " + std::to_string(stride) + " (CUresult " +
                      std::to_string(error) + ")");
  }
  return map;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define BERTRT_SM90(...) asm volatile(__VA_ARGS__)
#else
#define BERTRT_SM90(...) __trap()
#endif

__device__ __forceinline__ void barrier_init(Barrier* barrier, int arrivals) {
  BERTRT_SM90("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)),
              "r"(arrivals) : "memory");
}
// By the thread that has initialised barriers, before the block's barrier: TMA sees them.
__device__ __forceinline__ void barrier_init_done() {
  BERTRT_SM90("fence.mbarrier_init.release.cluster;\n" :: : "memory");
}
__device__ __forceinline__ void barrier_arrive(Barrier* barrier) {
  BERTRT_SM90(
      "mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier)) : "memory");
}
// At the barrier of the cluster's block of that rank, which stands there where this one does here.
// It says that something has been read, and hands nothing on that was written: released for the
// cluster it would wait, in each step, for all that the warp has written to memory.
__device__ __forceinline__ void barrier_arrive(Barrier* barrier, unsigned rank) {
  BERTRT_SM90(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}\n" ::"r"(shared_address(barrier)),
      "r"(rank) : "memory");
}
// An arrival, and so many bytes to come by TMA in this phase.
__device__ __forceinline__ void barrier_expect(Barrier* barrier, int bytes) {
  BERTRT_SM90(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)),
      "r"(bytes) : "memory");
}

// Waits until the phase of that parity is over. A phase takes microseconds; after some seconds the
// kernel ends with an error, which the host gets as a DeviceError, instead of never.
__device__ __forceinline__ void barrier_wait(Barrier* barrier, unsigned parity,
                                             Site = Site::current()) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#pragma unroll 1
  for (unsigned tries = 0; tries < 1u << 24; ++tries) {
    uint32_t over;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(over)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    if (over) return;
  }
#endif
  __trap();
}

// Starts the copy of a box of the map from (row, column) on to a tile at a multiple of 1,024 bytes.
// Its bytes, zeros included, count for the barrier's phase. One thread calls it.
__device__ __forceinline__ void tma_load(void* tile, const TensorMap& map, int64_t row, int column,
                                         Barrier* barrier) {
  BERTRT_SM90(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];\n" ::"r"(shared_address(tile)),
      "l"(&map), "r"(shared_address(barrier)), "r"(column), "r"(static_cast<int>(row)) : "memory");
}

// The same to all blocks of the cluster that have a bit in `blocks`: to the same place in the
// shared memory of each, where its bytes count for the barrier that stands where this one does.
__device__ __forceinline__ void tma_load(void* tile, const TensorMap& map, int64_t row, int column,
                                         Barrier* barrier, unsigned blocks) {
  BERTRT_SM90(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;\n" ::"r"(shared_address(tile)),
      "l"(&map), "r"(shared_address(barrier)), "r"(column), "r"(static_cast<int>(row)),
      "h"(static_cast<uint16_t>(blocks)) : "memory");
}

// The block's place among those of its cluster, which are neighbours along x.
__device__ __forceinline__ unsigned cluster_rank() {
  uint32_t rank = 0;
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
#else
  __trap();
#endif
  return rank;
}

// By all threads of all blocks of the cluster: what each wrote before, all can read behind it. The
// device waits for none that has ended, but a block's shared memory ends with it.
__device__ __forceinline__ void cluster_barrier(Site = Site::current()) {
  syncwarp();  // a warp arrives as one
  BERTRT_SM90(
      "barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n" ::
          : "memory");
}

// 16 bytes of the shared memory of the cluster's block of that rank, which stand there where `own`
// does here, at a multiple of 16.
__device__ __forceinline__ void load_peer(float (&to)[4], const float* own, unsigned rank) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile(
      "{\n.reg .b32 peer;\n"
      "mapa.shared::cluster.u32 peer, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [peer];\n}\n"
      : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3])
      : "r"(shared_address(own)), "r"(rank)
      : "memory");
#else
  __trap();
#endif
}

// A warpgroup's registers are ready for wgmma; the products since then make a group; at most the
// last kGroups are still under way. Their sums are nobody's until then.
__device__ __forceinline__ void wgmma_fence() {
  BERTRT_SM90("wgmma.fence.sync.aligned;\n" :: : "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  BERTRT_SM90("wgmma.commit_group.sync.aligned;\n" :: : "memory");
}
template <int kGroups, int kSums>
__device__ __forceinline__ void wgmma_wait(float (&sums)[kSums]) {
  BERTRT_SM90("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kGroups) : "memory");
  // Nothing is done with the sums ahead of the wait.
#pragma unroll
  for (int i = 0; i < kSums; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}
// Likewise of sums in several parts.
template <int kGroups, int kParts, int kSums>
__device__ __forceinline__ void wgmma_wait(float (&sums)[kParts][kSums]) {
  BERTRT_SM90("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kGroups) : "memory");
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) asm volatile("" : "+f"(sums[part][i])::"memory");
  }
}

// Registers for a thread of a warpgroup: fewer for one that copies, more for those that compute.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  BERTRT_SM90("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  BERTRT_SM90("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

// sums[64 x 128] += a[64 x 16] * b[128 x 16]^T of the tiles that the descriptors name; from zero on
// the first time. All 128 threads of a warpgroup.
#define BERTRT_8(s, i)                                                                        \
  "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3]), "+f"(s[i + 4]), "+f"(s[i + 5]), \
      "+f"(s[i + 6]), "+f"(s[i + 7])
#define BERTRT_WGMMA(depth, element, transposed)                                           \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                             \
  "wgmma.mma_async.sync.aligned.m64n128" depth ".f32." element "." element                 \
  " "                                                                                      \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
  "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "  \
  "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "  \
  "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, p, 1, 1" transposed ";\n}\n"
#define BERTRT_ISSUE(depth, element, transposed)                                                \
  asm volatile(BERTRT_WGMMA(depth, element, transposed)                                         \
               : BERTRT_8(sums, 0), BERTRT_8(sums, 8), BERTRT_8(sums, 16), BERTRT_8(sums, 24),  \
                 BERTRT_8(sums, 32), BERTRT_8(sums, 40), BERTRT_8(sums, 48), BERTRT_8(sums, 56) \
               : "l"(a), "l"(b), "r"(static_cast<int>(add)))
template <class T>
__device__ __forceinline__ void wgmma_m64n128k16(float (&sums)[64], uint64_t a, uint64_t b,
                                                 bool add) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (std::is_same_v<T, Fp16>) {
    BERTRT_ISSUE("k16", "f16", ", 0, 0");
  } else {
    BERTRT_ISSUE("k16", "bf16", ", 0, 0");
  }
#else
  __trap();
#endif
}
// The same of e4m3, over 32 of the depth: the bytes of the same descriptors.
__device__ __forceinline__ void wgmma_m64n128k32(float (&sums)[64], uint64_t a, uint64_t b,
                                                 bool add) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  BERTRT_ISSUE("k32", "e4m3", "");
#else
  __trap();
#endif
}
#undef BERTRT_ISSUE
#undef BERTRT_WGMMA
#undef BERTRT_8
#undef BERTRT_SM90

}  // namespace bertrt::cuda::hopper

#endif
