// The state of the emulated devices, and what the parts of their runtime share: cuda_runtime_api.h
// says what they offer.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "emulator/emulator.h"

// What is to be done, in order; positions count what was ever put in.
struct CUstream_st {
  int device = 0;
  bool blocking = true;  // for the default stream
  std::deque<std::function<cudaError_t()>> work;
  CUgraph_st* capture = nullptr;  // where work goes instead
  bool broken = false;            // the capture is
  uint64_t done = 0;
  uint64_t end() const { return done + work.size(); }
};

struct CUgraph_st {
  std::vector<std::function<cudaError_t()>> work;
};
struct CUgraphExec_st {
  std::vector<std::function<cudaError_t()>> work;
};

struct CUevent_st {
  using Clock = std::chrono::steady_clock;

  cudaStream_t stream = nullptr;  // null: never recorded, or its stream is gone and all was done
  uint64_t position = 0;
  std::shared_ptr<Clock::time_point> time = std::make_shared<Clock::time_point>();
};

namespace bertrt::cuda::emulator {

constexpr size_t kAlignment = 256;  // of cudaMalloc

struct Runtime {
  std::recursive_mutex mutex;
  Settings settings;
  std::map<uintptr_t, Allocation> device_memory;  // by its first address
  std::map<uintptr_t, size_t> pinned_memory;
  std::set<cudaStream_t> streams;
  std::set<cudaEvent_t> events;
  std::set<cudaGraph_t> graphs;
  std::set<cudaGraphExec_t> execs;
  std::vector<size_t> in_use;
  std::string fault;  // of a kernel: nothing works from there on

  // Where a kernel's accesses are looked up first: the allocation of 256 bytes of addresses.
  static constexpr size_t kCached = 1024;
  std::array<std::pair<uintptr_t, const Allocation*>, kCached> cache{};
};

inline Runtime& runtime() {
  static Runtime runtime;
  return runtime;
}

// Held by whoever reads or changes the state.
struct Lock : std::lock_guard<std::recursive_mutex> {
  Lock() : lock_guard(runtime().mutex) {}
};

inline thread_local int current_device = 0;
inline thread_local cudaError_t last_error = cudaSuccess;
inline thread_local cudaStream_t capturing = nullptr;  // by this thread

inline cudaError_t report(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

// Whether this thread captures, where that does not allow what it calls; it breaks the capture.
inline bool breaks_capture() {
  if (capturing) capturing->broken = true;
  return capturing != nullptr;
}

// Whether a test wants a call to fail.
inline bool fails(const char* call) { return runtime().settings.fails == call; }

// Does a stream's work up to a position; all streams' work.
cudaError_t run_until(cudaStream_t stream, uint64_t position);
cudaError_t run_all();
// Puts work into a stream; the default stream does it at once.
cudaError_t put(cudaStream_t stream, std::function<cudaError_t()> work);

}  // namespace bertrt::cuda::emulator
