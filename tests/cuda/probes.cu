#include "probes.h"

#include <map>

#include "cuda/device.cuh"

namespace bertrt::cuda::probes {
namespace {

constexpr int kThreads = 64;

using Probe = void (*)(const float* x, float* out);

// Right: what each of the wrong ones below should have been.

__global__ void neighbour(const float* x, float* out) {
  float* shared = shared_memory<float>();
  const unsigned t = threadIdx.x;
  shared[t] = x[t];
  syncthreads();
  out[t] = shared[(t + 1) % kThreads];
}

__global__ void neighbour_in_warp(const float* x, float* out) {
  float* shared = shared_memory<float>();
  const unsigned t = threadIdx.x;
  shared[t] = x[t];
  syncwarp();
  const float other = shared[t ^ 1];
  syncwarp();
  shared[t] = other;
  out[t] = shared[t];
}

// Two stages, each of which is used while the other one is filled.
__global__ void pipeline(const float* x, float* out) {
  float* shared = shared_memory<float>();
  const int t = static_cast<int>(threadIdx.x);
  constexpr int kPart = 16;  // floats a stage
  constexpr int kParts = kThreads / kPart;
  const auto fetch = [&](int part) {
    if (t < kPart / 4 && part < kParts) {
      cp_async16(shared + part % 2 * kPart + t * 4, x + part * kPart + t * 4);
    }
    cp_async_commit();
  };
  fetch(0);
  for (int part = 0; part < kParts; ++part) {
    fetch(part + 1);
    cp_async_wait<1>();
    syncthreads();
    if (t < kPart) out[part * kPart + t] = shared[part % 2 * kPart + kPart - 1 - t];
    syncthreads();
  }
}

__global__ void zero_fill(const float* x, float* out) {
  float* shared = shared_memory<float>();
  const int t = static_cast<int>(threadIdx.x);
  // All but the last 16 bytes.
  if (t < 16) cp_async16(shared + t * 4, x + t * 4, t < 15);
  cp_async_commit();
  cp_async_wait<0>();
  syncthreads();
  out[t] = shared[t];
}

__global__ void sums(const float* x, float* out) {
  const unsigned t = threadIdx.x;
  out[t] = t < 32 ? warp_sum(x[t]) : warp_max(x[t]);
}

// Wrong.

__global__ void barrier_of_some(const float* x, float* out) {
  if (threadIdx.x < 32) syncthreads();
  out[threadIdx.x] = x[threadIdx.x];
}

__global__ void two_barriers(const float* x, float* out) {
  if (threadIdx.x < 32) {
    syncthreads();
  } else {
    syncthreads();
  }
  out[threadIdx.x] = x[threadIdx.x];
}

__global__ void shuffle_of_some(const float* x, float* out) {
  float value = x[threadIdx.x];
  if (threadIdx.x % 4 == 0) value += shuffle_xor(value, 1);
  out[threadIdx.x] = value;
}

__global__ void two_sums(const float* x, float* out) {
  float value = x[threadIdx.x];
  if (threadIdx.x % 4 == 0) {
    value = warp_sum(value);
  } else {
    value = warp_sum(-value);
  }
  out[threadIdx.x] = value;
}

__global__ void no_barrier(const float* x, float* out) {
  float* shared = shared_memory<float>();
  const unsigned t = threadIdx.x;
  shared[t] = x[t];
  out[t] = shared[(t + 1) % kThreads];
}

__global__ void no_barrier_in_warp(const float* x, float* out) {
  float* shared = shared_memory<float>();
  const unsigned t = threadIdx.x;
  shared[t] = x[t];
  out[t] = shared[t ^ 1];
}

__global__ void barrier_of_warp_only(const float* x, float* out) {
  float* shared = shared_memory<float>();
  const unsigned t = threadIdx.x;
  shared[t] = x[t];
  syncwarp();
  out[t] = shared[t ^ 32];
}

// A stage is filled anew while slow threads may still read it.
__global__ void overwritten(const float* x, float* out) {
  float* shared = shared_memory<float>();
  const unsigned t = threadIdx.x;
  shared[t] = x[t];
  syncthreads();
  out[t] = shared[(t + 1) % kThreads];
  shared[t] = 2.0f;
}

__global__ void both_write(const float* x, float* out) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x / 2] = x[0];
  syncthreads();
  out[threadIdx.x] = shared[threadIdx.x / 2];
}

__global__ void unwritten(const float* x, float* out) {
  float* shared = shared_memory<float>();
  if (threadIdx.x != 5) shared[threadIdx.x] = x[threadIdx.x];
  syncthreads();
  out[threadIdx.x] = shared[threadIdx.x];
}

__global__ void no_wait(const float* x, float* out) {
  float* shared = shared_memory<float>();
  const int t = static_cast<int>(threadIdx.x);
  if (t < 16) cp_async16(shared + t * 4, x + t * 4);
  cp_async_commit();
  syncthreads();
  out[t] = shared[t];
  cp_async_wait<0>();
}

__global__ void waits_for_too_few(const float* x, float* out) {
  float* shared = shared_memory<float>();
  const int t = static_cast<int>(threadIdx.x);
  if (t < 16) cp_async16(shared + t * 4, x + t * 4);
  cp_async_commit();
  cp_async_wait<1>();
  syncthreads();
  out[t] = shared[t];
  cp_async_wait<0>();
}

__global__ void no_commit(const float* x, float* out) {
  float* shared = shared_memory<float>();
  const int t = static_cast<int>(threadIdx.x);
  if (t < 16) cp_async16(shared + t * 4, x + t * 4);
  cp_async_wait<0>();
  syncthreads();
  out[t] = shared[t];
}

__global__ void waits_without_barrier(const float* x, float* out) {
  float* shared = shared_memory<float>();
  const int t = static_cast<int>(threadIdx.x);
  if (t < 16) cp_async16(shared + t * 4, x + t * 4);
  cp_async_commit();
  cp_async_wait<0>();
  out[t] = shared[t];
}

__global__ void never_waits(const float* x, float* out) {
  float* shared = shared_memory<float>();
  const int t = static_cast<int>(threadIdx.x);
  if (t < 16) cp_async16(shared + t * 4, x + t * 4);
  cp_async_commit();
  out[t] = x[t];
}

__global__ void cp_async_unaligned(const float* x, float*) {
  cp_async16(shared_memory<float>(), x + 1);
}

__global__ void reads_past_end(const float* x, float* out) {
  out[threadIdx.x] = x[threadIdx.x + 1];
}

__global__ void reads_before_begin(const float* x, float* out) {
  out[threadIdx.x] = x[static_cast<int>(threadIdx.x) - 1];
}

__global__ void writes_past_end(const float* x, float* out) {
  out[threadIdx.x + 1] = x[threadIdx.x];
}

// Of `out` nobody has written anything before.
__global__ void reads_unwritten_global(const float* x, float* out) {
  if (threadIdx.x % 2 == 0) out[threadIdx.x] = x[threadIdx.x];
  out[threadIdx.x] += 1.0f;
}

__global__ void copies_unwritten_global(const float* x, float* out) {
  const int t = static_cast<int>(threadIdx.x);
  if (t % 4 < 3) out[t] = x[t];
  if (t % 4 == 3) cp_async16(shared_memory<float>() + t - 3, out + t - 3);
  cp_async_commit();
  cp_async_wait<0>();
}

__global__ void writes_past_shared(const float* x, float* out) {
  shared_memory<float>()[threadIdx.x + 1] = x[threadIdx.x];
  out[threadIdx.x] = 0.0f;
}

__global__ void reads_unaligned(const float* x, float* out) {
  const Vector<float> vector = load_vector(x + threadIdx.x % 8);
  out[threadIdx.x] = vector.values[0];
}

__global__ void empty() {}

__global__ void waits(const float* x, float* out) {
  wait_for_kernels_before();
  out[threadIdx.x] = x[threadIdx.x];
}

__global__ void some_wait(const float* x, float* out) {
  if (threadIdx.x == 40) return;
  wait_for_kernels_before();
  out[threadIdx.x] = x[threadIdx.x];
}

__global__ void writes_and_waits(const float* x, float* out) {
  out[threadIdx.x] = 1.0f;
  wait_for_kernels_before();
  out[threadIdx.x] = x[threadIdx.x];
}

// Of what only the host writes, weights, it may.
__global__ void reads_and_waits(const float* x, float* out) {
  const float value = x[threadIdx.x];
  wait_for_kernels_before();
  out[threadIdx.x] = value;
}

__global__ void copies_and_waits(const float* x, float* out) {
  const int first = static_cast<int>(threadIdx.x) * 4;
  if (first < kThreads) cp_async16(shared_memory<float>() + first, x + first);
  cp_async_commit();
  wait_for_kernels_before();
  cp_async_wait<0>();
  syncthreads();
  out[threadIdx.x] = shared_memory<float>()[threadIdx.x];
}

const std::map<std::string, Probe>& overlapping_probes() {
  static const std::map<std::string, Probe> probes = {
      {"waits", waits},
      {"some_wait", some_wait},
      {"writes_and_waits", writes_and_waits},
      {"reads_and_waits", reads_and_waits},
      {"copies_and_waits", copies_and_waits},
  };
  return probes;
}

const std::map<std::string, Probe>& probes() {
  static const std::map<std::string, Probe> probes = {
      {"neighbour", neighbour},
      {"neighbour_in_warp", neighbour_in_warp},
      {"pipeline", pipeline},
      {"zero_fill", zero_fill},
      {"sums", sums},
      {"barrier_of_some", barrier_of_some},
      {"two_barriers", two_barriers},
      {"shuffle_of_some", shuffle_of_some},
      {"two_sums", two_sums},
      {"no_barrier", no_barrier},
      {"no_barrier_in_warp", no_barrier_in_warp},
      {"barrier_of_warp_only", barrier_of_warp_only},
      {"overwritten", overwritten},
      {"both_write", both_write},
      {"unwritten", unwritten},
      {"no_wait", no_wait},
      {"waits_for_too_few", waits_for_too_few},
      {"no_commit", no_commit},
      {"waits_without_barrier", waits_without_barrier},
      {"never_waits", never_waits},
      {"cp_async_unaligned", cp_async_unaligned},
      {"reads_past_end", reads_past_end},
      {"reads_before_begin", reads_before_begin},
      {"writes_past_end", writes_past_end},
      {"reads_unwritten_global", reads_unwritten_global},
      {"copies_unwritten_global", copies_unwritten_global},
      {"writes_past_shared", writes_past_shared},
      {"reads_unaligned", reads_unaligned},
  };
  return probes;
}

template <class T>
__global__ void product_kernel(const uint16_t* a, const uint16_t* b, bool transposed, float* sums) {
  // Rows of 16 elements of a, and 8 or 16 rows of b behind them.
  uint16_t* shared_a = shared_memory<uint16_t>();
  uint16_t* shared_b = shared_a + 16 * 16;
  const int lane = static_cast<int>(threadIdx.x);
  store_vector(shared_a + lane * 8, load_vector(a + lane * 8));
  if (lane < 16) store_vector(shared_b + lane * 8, load_vector(b + lane * 8));
  syncwarp();

  // Matrices 0 and 1 are rows 0 to 7 and 8 to 15 of the first eight columns, 2 and 3 of the others:
  // the order of an A fragment's registers.
  uint32_t fragment_a[4];
  ldmatrix_x4(fragment_a, shared_a + lane % 16 * 16 + lane / 16 * 8);
  // Of b two matrices only, its first and last eight of depth; lanes 16 to 31 name them again.
  uint32_t both[4];
  if (transposed) {
    ldmatrix_x4_trans(both, shared_b + lane % 16 * 8);
  } else {
    ldmatrix_x4(both, shared_b + lane % 8 * 16 + lane / 8 % 2 * 8);
  }
  const uint32_t fragment_b[2] = {both[0], both[1]};

  float mine[4];
  const int row = lane / 4, column = lane % 4 * 2;
  for (int i = 0; i < 4; ++i) mine[i] = sums[(row + i / 2 * 8) * 8 + column + i % 2];
  mma_m16n8k16<T>(mine, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) sums[(row + i / 2 * 8) * 8 + column + i % 2] = mine[i];
}

template <class T>
__global__ void narrow_kernel(const float* x, int64_t count, uint16_t* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) out[i] = from_float<T>(x[i]).bits;
}

template <class T>
__global__ void widen_kernel(const uint16_t* x, int64_t count, float* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) out[i] = to_float(T{x[i]});
}

unsigned blocks(int64_t count) { return static_cast<unsigned>((count + 255) / 256); }

}  // namespace

void run_overlapping(const std::string& name, const float* x, float* between, float* out) {
  const Stream stream(nullptr, true);
  if (between) {
    launch(waits, 1, kThreads, kThreads * sizeof(float), stream, x, between);
    x = between;
  }
  launch(overlapping_probes().at(name), 1, kThreads, kThreads * sizeof(float), stream, x, out);
}

void run(const std::string& name, const float* x, float* out, Stream stream) {
  launch(probes().at(name), 1, kThreads, kThreads * sizeof(float), stream, x, out);
}

void start_empty(unsigned cluster, int64_t blocks, int threads, size_t shared_bytes,
                 Stream stream) {
  launch_clusters(cluster, empty, dim3(static_cast<unsigned>(blocks)), threads, shared_bytes,
                  stream);
}

std::vector<std::string> names() {
  std::vector<std::string> names;
  for (const auto& [name, probe] : probes()) names.push_back(name);
  return names;
}

void product(Element element, const uint16_t* a, const uint16_t* b, bool transposed, float* sums,
             Stream stream) {
  launch(element == Element::kFp16 ? product_kernel<Fp16> : product_kernel<Bf16>, 1, kWarp,
         (16 * 16 + 16 * 8) * sizeof(uint16_t), stream, a, b, transposed, sums);
}

void narrow(Element element, const float* x, int64_t count, uint16_t* out, Stream stream) {
  launch(element == Element::kFp16 ? narrow_kernel<Fp16> : narrow_kernel<Bf16>, blocks(count), 256,
         0, stream, x, count, out);
}

void widen(Element element, const uint16_t* x, int64_t count, float* out, Stream stream) {
  launch(element == Element::kFp16 ? widen_kernel<Fp16> : widen_kernel<Bf16>, blocks(count), 256, 0,
         stream, x, count, out);
}

}  // namespace bertrt::cuda::probes
