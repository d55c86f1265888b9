// Products whose left operand is in registers, and memory that threads write for them: beside
// primitives.cuh, for attention.
#pragma once

#include "cuda/hopper/primitives.cuh"

#ifndef BERTRT_CUDA_EMULATOR

namespace bertrt::cuda::hopper {

// What this thread has written to shared memory, and its copies that have landed there, come before
// what wgmma reads behind the next barrier ("Async proxy").
__device__ __forceinline__ void fence_for_wgmma() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
#else
  __trap();
#endif
}

// Has values computed here and not behind a wait that follows: to the compiler they have nothing to
// do with it, and without this it lets them wait too.
template <int kCount>
__device__ __forceinline__ void compute_here(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i]));
}

// sums[64 x kColumns] += a[64 x 16] * b, b of the tile that the descriptor names: its rows are
// columns of b (K-major), or, if kTransposed, its 16 rows are those of b (MN-major). From zero on
// unless `add`. All 128 threads of a warpgroup. The operand's registers too are nobody's until the
// product has been waited for.
#define BERTRT_8(s, i)                                                                        \
  "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3]), "+f"(s[i + 4]), "+f"(s[i + 5]), \
      "+f"(s[i + 6]), "+f"(s[i + 7])
#define BERTRT_A(a) "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
#define BERTRT_16_NAMES "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define BERTRT_32_NAMES \
  BERTRT_16_NAMES       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define BERTRT_N64(element)                                                                  \
  asm volatile(                                                                              \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"                                           \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." element "." element " {" BERTRT_32_NAMES \
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"                                     \
      : BERTRT_8(sums, 0), BERTRT_8(sums, 8), BERTRT_8(sums, 16), BERTRT_8(sums, 24)         \
      : BERTRT_A(a), "l"(b), "r"(static_cast<int>(add)), "n"(kTransposed ? 1 : 0))
#define BERTRT_N32(element)                                                                  \
  asm volatile(                                                                              \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"                                           \
      "wgmma.mma_async.sync.aligned.m64n32k16.f32." element "." element " {" BERTRT_16_NAMES \
      "}, {%16, %17, %18, %19}, %20, p, 1, 1, %22;\n}\n"                                     \
      : BERTRT_8(sums, 0), BERTRT_8(sums, 8)                                                 \
      : BERTRT_A(a), "l"(b), "r"(static_cast<int>(add)), "n"(kTransposed ? 1 : 0))
template <class T, bool kTransposed, int kSums>
__device__ __forceinline__ void wgmma_of_registers(float (&sums)[kSums], const uint32_t (&a)[4],
                                                   uint64_t b, bool add) {
  static_assert(kSums == 32 || kSums == 16, "64 or 32 columns");
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (kSums == 32 && std::is_same_v<T, Fp16>) {
    BERTRT_N64("f16");
  } else if constexpr (kSums == 32) {
    BERTRT_N64("bf16");
  } else if constexpr (std::is_same_v<T, Fp16>) {
    BERTRT_N32("f16");
  } else {
    BERTRT_N32("bf16");
  }
#else
  __trap();
#endif
}
#undef BERTRT_N32
#undef BERTRT_N64
#undef BERTRT_32_NAMES
#undef BERTRT_16_NAMES
#undef BERTRT_A
#undef BERTRT_8

}  // namespace bertrt::cuda::hopper

#endif
