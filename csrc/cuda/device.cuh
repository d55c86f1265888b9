// What kernels use of the GPU beyond plain CUDA C++, each primitive in one place: inline PTX under
// nvcc, the emulator under a host compiler (BERTRT_CUDA_EMULATOR).
//
// Everything that is collective over a warp is called by all its 32 lanes together, from one place
// in the source; helpers hand the `Site` of their caller on, so that the emulator can tell.
// Shared memory is dynamic only: `launch` is told its size, `shared_memory` is where it begins.
#pragma once

#include <cstdint>

#include "cuda/element.h"
#include "cuda/kernels.h"

#ifdef BERTRT_CUDA_EMULATOR
#include "emulator/device.h"
#else

#include <cuda_runtime.h>

#include <string>

#include "core/error.h"

namespace bertrt::cuda {

// Where a collective was called from: of use to the emulator only.
struct Site {
  static constexpr __host__ __device__ Site current() { return {}; }
};

// Runs kernel(args...) in `grid` blocks of `threads` threads (a multiple of 32) with so many bytes
// of shared memory each. Blocks run in clusters of so many neighbours along x, 8 at most, of which
// the grid has whole ones; more than 1 on compute capability 9.0 and later alone. Raises
// DeviceError if it cannot be started.
template <class... Params, class... Args>
void launch_clusters(unsigned cluster, void (*kernel)(Params...), dim3 grid, int threads,
                     size_t shared_bytes, Stream stream, Args... args) {
  constexpr size_t kWithoutAsking = 48 << 10;
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kWithoutAsking) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
  }
  if (error == cudaSuccess) {
    cudaLaunchAttribute attributes[2];
    unsigned count = 0;
    if (stream.overlaps) {
      cudaLaunchAttribute& overlap = attributes[count++];
      overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      overlap.val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
      cudaLaunchAttribute& together = attributes[count++];
      together.id = cudaLaunchAttributeClusterDimension;
      together.val.clusterDim = {cluster, 1, 1};
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = count;
    error = cudaLaunchKernelEx(&config, kernel, args...);
  }
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    throw DeviceError(std::string("a kernel cannot run: ") + cudaGetErrorString(error));
  }
}

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, int threads, size_t shared_bytes, Stream stream,
            Args... args) {
  launch_clusters(1, kernel, grid, threads, shared_bytes, stream, args...);
}

// Those of the calling thread's device.
inline int multiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    throw DeviceError("a device's number of multiprocessors is not known");
  }
  return count;
}

// Whether this code, as it runs, has what wait_for_kernels_before() is made of: PTX of an older
// architecture, compiled for a newer one by the driver, has not.
__device__ __forceinline__ bool compiled_to_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return true;
#else
  return false;
#endif
}

// Waits until the kernels before this one in its stream have ended and what they wrote is there;
// then the next one may start, and wait. Each thread of each kernel calls it, also one that then
// has nothing to do: who ends means that all before has ended. Until then it reads nothing but
// weights and its arguments, and writes to shared memory alone.
__device__ __forceinline__ void wait_for_kernels_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

// The block's shared memory, at a multiple of 16 bytes.
template <class T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
}

__device__ __forceinline__ void syncthreads(Site = Site::current()) { __syncthreads(); }
__device__ __forceinline__ void syncwarp(Site = Site::current()) { __syncwarp(); }

// T: 4 bytes.
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask, Site = Site::current()) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Starts a copy of 16 bytes from global to shared memory, past the L1 cache; of what is not there,
// zeros come. Both addresses are multiples of 16, and 16 bytes stand at the second in any case: the
// instruction may be told to read some of them only, but compute-sanitizer's initcheck looks at
// all.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool there = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)),
               "l"(global), "r"(there ? 16 : 0)
               : "memory");
}
// Ends a group of this thread's copies.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
// Waits until at most the last kGroups groups of this thread are still under way. The other
// threads' copies are theirs to wait for: a barrier follows.
template <int kGroups>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kGroups) : "memory");
}

// Four 8 x 8 matrices of 16-bit elements from shared memory. Lane l names row l % 8 of matrix
// l / 8, 16 bytes at a multiple of 16; out[m] gets of matrix m the elements 2 * (l % 4) and the one
// behind it of row l / 4. Transposed: of column l / 4.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&out)[4], const void* row,
                                            Site = Site::current()) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&out)[4], const void* row,
                                                  Site = Site::current()) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// sums[16 x 8] += a[16 x 16] * b[16 x 8] on tensor cores, in the fragments of mma.m16n8k16.
// T: Fp16 or Bf16.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&sums)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2], Site = Site::current());
template <>
__device__ __forceinline__ void mma_m16n8k16<Fp16>(float (&sums)[4], const uint32_t (&a)[4],
                                                   const uint32_t (&b)[2], Site) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma_m16n8k16<Bf16>(float (&sums)[4], const uint32_t (&a)[4],
                                                   const uint32_t (&b)[2], Site) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// sums[16 x 8] += a[16 x 32] * b[32 x 8], a of unsigned and b of signed 8-bit integers, in the
// fragments of mma.m16n8k32: those of mma.m16n8k16 with two bytes in the place of an element.
__device__ __forceinline__ void mma_m16n8k32(int32_t (&sums)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2], Site = Site::current()) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same of e4m3 with sums in fp32, on sm_89 and later. Fewer bits of a sum may be kept than fp32
// has: see kStepsOfSums.
__device__ __forceinline__ void mma_m16n8k32(float (&sums)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2], Site = Site::current()) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// A product that is rounded by itself: the compiler makes no fused multiply-add of it.
__device__ __forceinline__ float multiply(float a, float b) { return __fmul_rn(a, b); }

// The nearest integer, ties to even; of what is no number 0.
__device__ __forceinline__ int32_t to_nearest_int(float x) { return __float2int_rn(x); }

// Two values rounded to nearest even, `low` in the lower half.
template <class T>
__device__ __forceinline__ uint32_t pack2(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack2<Fp16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
template <>
__device__ __forceinline__ uint32_t pack2<Bf16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

__device__ __forceinline__ float to_float(Fp16 value) {
  float wide;
  asm("cvt.f32.f16 %0, %1;\n" : "=f"(wide) : "h"(value.bits));
  return wide;
}

// 2^x with an error of about 2^-22, results below the normal numbers becoming zero.
__device__ __forceinline__ float fast_exp2(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(power) : "f"(x));
  return power;
}

__device__ __forceinline__ void require_alignment(const void*, int) {}

}  // namespace bertrt::cuda

#endif

namespace bertrt::cuda {

constexpr int kWarp = 32;

// How many rows there really are; behind wait_for_kernels_before().
__device__ __forceinline__ int64_t count_of(const RowCount& rows) {
  return rows.count ? *rows.count : rows.most;
}

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(Bf16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

// The nearest T, ties to even; out of range, infinity.
template <class T>
__device__ __forceinline__ T from_float(float value) {
  return {static_cast<uint16_t>(pack2<T>(value, 0.0f))};
}
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}

// 16 bytes of elements, read and written at once; their address is a multiple of 16.
template <class T>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];
};

template <class T>
__device__ __forceinline__ Vector<T> load_vector(const T* p) {
  require_alignment(p, 16);
  return *reinterpret_cast<const Vector<T>*>(p);
}
template <class T>
__device__ __forceinline__ void store_vector(T* p, const Vector<T>& vector) {
  require_alignment(p, 16);
  *reinterpret_cast<Vector<T>*>(p) = vector;
}

// Over the lanes of a warp, in the order 16, 8, 4, 2, 1 of a butterfly: every lane gets the same
// bits.
__device__ __forceinline__ float warp_sum(float value, Site site = Site::current()) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask, site);
  return value;
}
__device__ __forceinline__ float warp_max(float value, Site site = Site::current()) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    value = fmaxf(value, shuffle_xor(value, mask, site));
  }
  return value;
}

}  // namespace bertrt::cuda
