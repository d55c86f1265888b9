// The face of device.cuh, made by the emulator.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>

#include "core/error.h"
#include "cuda/element.h"
#include "cuda/kernels.h"
#include "emulator/emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

// Of the thread that runs.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

namespace bertrt::cuda {

// Where a collective was called from.
struct Site {
  const char* file;
  int line;
  static Site current(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

namespace emulator {

// The lanes of a warp meet; the last one to come runs work(what each lane brought).
using WarpWork = void (*)(void* const* lanes);
void warp_collective(const char* name, Site site, void* lane, WarpWork work);
void syncthreads(Site site);
void syncwarp(Site site);
void cp_async16(void* shared, const void* global, bool there);
void cp_async_commit();
void cp_async_wait(int groups);
void ldmatrix_x4(uint32_t* out, const void* row, bool transposed, Site site);
void mma_m16n8k16(float* sums, const uint32_t* a, const uint32_t* b, float (*widen)(uint16_t),
                  Site site);
void mma_m16n8k32(int32_t* sums, const uint32_t* a, const uint32_t* b, Site site);
void mma_m16n8k32(float* sums, const uint32_t* a, const uint32_t* b, Site site);
void require_alignment(const void* p, int bytes);
void wait_for_kernels_before();
void* shared_memory();
unsigned cluster_rank();
void cluster_barrier(Site site);
void load_peer(void* to, const void* shared, unsigned rank);

float fp16_to_float(uint16_t bits);
float bf16_to_float(uint16_t bits);
float e4m3_to_float(uint8_t bits);
float sum_of_few_bits(const double* terms, int count);
uint16_t float_to_fp16(float value);
uint16_t float_to_bf16(float value);

template <class T>
float (*widening())(uint16_t) {
  return std::is_same_v<T, Fp16> ? fp16_to_float : bf16_to_float;
}

}  // namespace emulator

template <class... Params, class... Args>
void launch_clusters(unsigned cluster, void (*kernel)(Params...), dim3 grid, int threads,
                     size_t shared_bytes, Stream stream, Args... args) {
  const auto call = [=] { kernel(args...); };
  using Call = decltype(call);
  const cudaError_t error =
      emulator::enqueue({std::make_shared<Call>(call), sizeof(Call),
                         [](const void* call) { (*static_cast<const Call*>(call))(); }, cluster,
                         grid, threads, shared_bytes, stream.overlaps},
                        stream);
  if (error != cudaSuccess) {
    throw DeviceError(std::string("a kernel cannot run: ") + cudaGetErrorString(error));
  }
}

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, int threads, size_t shared_bytes, Stream stream,
            Args... args) {
  launch_clusters(1, kernel, grid, threads, shared_bytes, stream, args...);
}

inline int multiprocessors() { return emulator::settings().multiprocessors; }

inline bool compiled_to_wait() { return true; }
inline void wait_for_kernels_before() { emulator::wait_for_kernels_before(); }

template <class T>
T* shared_memory() {
  return static_cast<T*>(emulator::shared_memory());
}

inline void syncthreads(Site site = Site::current()) { emulator::syncthreads(site); }
inline void syncwarp(Site site = Site::current()) { emulator::syncwarp(site); }

template <class T>
T shuffle_xor(T value, int mask, Site site = Site::current()) {
  struct Lane {
    T value;
    int mask;
    T result;
  } mine{value, mask, {}};
  emulator::warp_collective("shuffle", site, &mine, [](void* const* lanes) {
    for (int l = 0; l < 32; ++l) {
      Lane& reader = *static_cast<Lane*>(lanes[l]);
      reader.result = static_cast<Lane*>(lanes[(l ^ reader.mask) & 31])->value;
    }
  });
  return mine.result;
}

inline void cp_async16(void* shared, const void* global, bool there = true) {
  emulator::cp_async16(shared, global, there);
}
inline void cp_async_commit() { emulator::cp_async_commit(); }
template <int kGroups>
void cp_async_wait() {
  emulator::cp_async_wait(kGroups);
}

inline void ldmatrix_x4(uint32_t (&out)[4], const void* row, Site site = Site::current()) {
  emulator::ldmatrix_x4(out, row, false, site);
}
inline void ldmatrix_x4_trans(uint32_t (&out)[4], const void* row, Site site = Site::current()) {
  emulator::ldmatrix_x4(out, row, true, site);
}

template <class T>
void mma_m16n8k16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  Site site = Site::current()) {
  emulator::mma_m16n8k16(sums, a, b, emulator::widening<T>(), site);
}

inline void mma_m16n8k32(int32_t (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                         Site site = Site::current()) {
  emulator::mma_m16n8k32(sums, a, b, site);
}

inline void mma_m16n8k32(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                         Site site = Site::current()) {
  emulator::mma_m16n8k32(sums, a, b, site);
}

// Compiled with -ffp-contract=off.
inline float multiply(float a, float b) { return a * b; }

inline int32_t to_nearest_int(float x) {
  if (std::isnan(x)) return 0;
  constexpr float kBeyond = 2147483648.0f;
  if (x >= kBeyond) return INT32_MAX;
  return x < -kBeyond ? INT32_MIN : static_cast<int32_t>(std::nearbyint(x));
}

template <class T>
uint32_t pack2(float low, float high) {
  const auto narrow = std::is_same_v<T, Fp16> ? emulator::float_to_fp16 : emulator::float_to_bf16;
  return narrow(low) | static_cast<uint32_t>(narrow(high)) << 16;
}
inline float to_float(Fp16 value) { return emulator::fp16_to_float(value.bits); }

inline float fast_exp2(float x) { return std::exp2(x); }

inline void require_alignment(const void* p, int bytes) { emulator::require_alignment(p, bytes); }

}  // namespace bertrt::cuda
