// Memory, streams and events of the emulated devices.
#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "cuda/emulator/emulator.h"

namespace {

using bertrt::cuda::emulator::Allocation;
using bertrt::cuda::emulator::Fault;
using bertrt::cuda::emulator::Launch;
using bertrt::cuda::emulator::Settings;
using Clock = std::chrono::steady_clock;

constexpr size_t kAlignment = 256;  // of cudaMalloc
constexpr int kVersion = 13000;
constexpr unsigned char kPoison = 0xff;  // NaN in every element type

}  // namespace

// What is to be done, in order; positions count what was ever put in.
struct CUstream_st {
  int device = 0;
  bool blocking = true;  // for the default stream
  std::deque<std::function<cudaError_t()>> work;
  uint64_t done = 0;
  uint64_t end() const { return done + work.size(); }
};

struct CUevent_st {
  cudaStream_t stream = nullptr;  // null: never recorded, or its stream is gone and all was done
  uint64_t position = 0;
  std::shared_ptr<Clock::time_point> time = std::make_shared<Clock::time_point>();
};

namespace {

struct Runtime {
  std::recursive_mutex mutex;
  Settings settings;
  std::map<uintptr_t, Allocation> device_memory;  // by its first address
  std::map<uintptr_t, size_t> pinned_memory;
  std::set<cudaStream_t> streams;
  std::set<cudaEvent_t> events;
  std::vector<size_t> in_use;
  std::string fault;  // of a kernel: nothing works from there on

  // Where a kernel's accesses are looked up first: the allocation of 256 bytes of addresses.
  static constexpr size_t kCached = 1024;
  std::array<std::pair<uintptr_t, const Allocation*>, kCached> cache{};
};

Runtime& runtime() {
  static Runtime runtime;
  return runtime;
}

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t report(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t run_until(cudaStream_t stream, uint64_t position) {
  Runtime& r = runtime();
  while (stream->done < position && !stream->work.empty()) {
    const auto next = std::move(stream->work.front());
    stream->work.pop_front();
    ++stream->done;
    if (r.fault.empty()) next();
  }
  return r.fault.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

cudaError_t run_all() {
  Runtime& r = runtime();
  for (const cudaStream_t stream : r.streams) run_until(stream, stream->end());
  return r.fault.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

// What the default stream comes after.
cudaError_t run_blocking() {
  Runtime& r = runtime();
  for (const cudaStream_t stream : r.streams) {
    if (stream->blocking) run_until(stream, stream->end());
  }
  return r.fault.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

// Puts work into a stream; the default stream does it at once.
cudaError_t put(cudaStream_t stream, std::function<cudaError_t()> work) {
  Runtime& r = runtime();
  if (!stream) {
    const cudaError_t error = run_blocking();
    return error == cudaSuccess ? work() : error;
  }
  if (!r.streams.count(stream)) return cudaErrorInvalidResourceHandle;
  if (!r.fault.empty()) return cudaErrorLaunchFailure;
  stream->work.push_back(std::move(work));
  return cudaSuccess;
}

const Allocation* holding(uintptr_t address) {
  Runtime& r = runtime();
  auto& [granule, cached] = r.cache[address / kAlignment % Runtime::kCached];
  if (cached && granule == address / kAlignment && address < cached->end) return cached;
  auto next = r.device_memory.upper_bound(address);
  if (next == r.device_memory.begin()) return nullptr;
  const Allocation& found = std::prev(next)->second;
  if (address >= found.end) return nullptr;
  granule = address / kAlignment;
  cached = &found;
  return &found;
}

bool in_device_memory(const void* p, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  const Allocation* allocation = holding(address);
  return allocation && address + bytes <= allocation->end;
}

bool pinned(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  const auto& memory = runtime().pinned_memory;
  auto next = memory.upper_bound(address);
  return next != memory.begin() && address < std::prev(next)->first + std::prev(next)->second;
}

// Whether a pointer is what the kind of a copy says.
bool on_side(const void* p, size_t bytes, bool device) {
  return device ? in_device_memory(p, bytes) : !holding(reinterpret_cast<uintptr_t>(p));
}

}  // namespace

namespace bertrt::cuda::emulator {

const Allocation* find_allocation(uintptr_t address) { return holding(address); }

const Settings& settings() { return runtime().settings; }

void reset(const Settings& settings) {
  Runtime& r = runtime();
  const std::lock_guard<std::recursive_mutex> lock(r.mutex);
  run_all();
  r.fault.clear();
  last_error = cudaSuccess;
  current_device = 0;
  r.settings = settings;
  r.in_use.resize(std::max(r.in_use.size(), static_cast<size_t>(settings.devices)));
}

size_t bytes_in_use(int device) {
  Runtime& r = runtime();
  const std::lock_guard<std::recursive_mutex> lock(r.mutex);
  const auto index = static_cast<size_t>(device);
  return index < r.in_use.size() ? r.in_use[index] : 0;
}

cudaError_t enqueue(Launch launch, cudaStream_t stream) {
  Runtime& r = runtime();
  const std::lock_guard<std::recursive_mutex> lock(r.mutex);
  if (launch.threads < 32 || launch.threads > kMaxThreads || launch.threads % 32 != 0 ||
      launch.shared_bytes > kMaxSharedBytes || launch.grid.x < 1 || launch.grid.y < 1 ||
      launch.grid.z < 1 || launch.grid.x > 0x7fffffff || launch.grid.y > 0xffff ||
      launch.grid.z > 0xffff) {
    return report(cudaErrorInvalidConfiguration);
  }
  launch.device = current_device;
  if (stream && r.streams.count(stream) && stream->device != current_device) {
    return report(cudaErrorInvalidResourceHandle);
  }
  return report(put(stream, [launch = std::move(launch)] {
    try {
      run(launch);
    } catch (const Fault& fault) {
      runtime().fault = fault.what();
      return cudaErrorLaunchFailure;
    }
    return cudaSuccess;
  }));
}

}  // namespace bertrt::cuda::emulator

#define BERTRT_LOCKED const std::lock_guard<std::recursive_mutex> lock(runtime().mutex)

cudaError_t cudaDriverGetVersion(int* version) {
  *version = kVersion;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = kVersion;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  BERTRT_LOCKED;
  *count = runtime().settings.devices;
  return *count > 0 ? cudaSuccess : report(cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int device) {
  BERTRT_LOCKED;
  if (device < 0 || device >= runtime().settings.devices) return report(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  BERTRT_LOCKED;
  if (device < 0 || device >= runtime().settings.devices) return report(cudaErrorInvalidDevice);
  *properties = {};
  std::strcpy(properties->name, "emulated device");
  properties->totalGlobalMem = runtime().settings.memory_bytes;
  properties->sharedMemPerBlockOptin = bertrt::cuda::emulator::kMaxSharedBytes;
  properties->major = 8;
  properties->multiProcessorCount = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  BERTRT_LOCKED;
  return report(run_all());
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  BERTRT_LOCKED;
  *total = runtime().settings.memory_bytes;
  const size_t used = bertrt::cuda::emulator::bytes_in_use(current_device);
  *free = *total > used ? *total - used : 0;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInitializationError:
      return "cudaErrorInitializationError";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
  }
  return "unknown error";
}

const char* cudaGetErrorString(cudaError_t error) {
  if (error != cudaErrorLaunchFailure) return cudaGetErrorName(error);
  BERTRT_LOCKED;
  thread_local std::string text;
  text = runtime().fault;
  return text.c_str();
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  BERTRT_LOCKED;
  Runtime& r = runtime();
  *memory = nullptr;
  if (bytes == 0) return cudaSuccess;
  const auto device = static_cast<size_t>(current_device);
  if (r.in_use.size() <= device) r.in_use.resize(device + 1);
  const size_t whole = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (bytes > r.settings.memory_bytes || r.in_use[device] + whole > r.settings.memory_bytes) {
    return report(cudaErrorMemoryAllocation);
  }
  void* const found = std::aligned_alloc(kAlignment, whole);
  if (!found) return report(cudaErrorMemoryAllocation);
  std::memset(found, kPoison, whole);
  const auto begin = reinterpret_cast<uintptr_t>(found);
  r.device_memory[begin] = {begin, begin + bytes, current_device};
  r.in_use[device] += whole;
  *memory = found;
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  BERTRT_LOCKED;
  Runtime& r = runtime();
  if (!memory) return cudaSuccess;
  const auto found = r.device_memory.find(reinterpret_cast<uintptr_t>(memory));
  if (found == r.device_memory.end()) return report(cudaErrorInvalidValue);
  const cudaError_t error = run_all();
  const Allocation allocation = found->second;
  const size_t whole =
      (allocation.end - allocation.begin + kAlignment - 1) / kAlignment * kAlignment;
  r.in_use[static_cast<size_t>(allocation.device)] -= whole;
  r.device_memory.erase(found);
  r.cache = {};
  std::free(memory);
  return report(error);
}

cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  BERTRT_LOCKED;
  *memory = nullptr;
  if (bytes == 0) return cudaSuccess;
  *memory = std::malloc(bytes);
  if (!*memory) return report(cudaErrorMemoryAllocation);
  std::memset(*memory, kPoison, bytes);
  runtime().pinned_memory[reinterpret_cast<uintptr_t>(*memory)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** memory, size_t bytes) { return cudaHostAlloc(memory, bytes, 0); }

cudaError_t cudaFreeHost(void* memory) {
  BERTRT_LOCKED;
  if (!memory) return cudaSuccess;
  const cudaError_t error = run_all();
  if (!runtime().pinned_memory.erase(reinterpret_cast<uintptr_t>(memory))) {
    return report(cudaErrorInvalidValue);
  }
  std::free(memory);
  return report(error);
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  BERTRT_LOCKED;
  if (width == 0 || height == 0) return cudaSuccess;
  if (to_pitch < width || from_pitch < width) return report(cudaErrorInvalidValue);
  if (kind != cudaMemcpyDefault) {
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (!on_side(to, (height - 1) * to_pitch + width, to_device) ||
        !on_side(from, (height - 1) * from_pitch + width, from_device)) {
      return report(cudaErrorInvalidValue);
    }
  }
  const auto paged = [](const void* p) {
    return !holding(reinterpret_cast<uintptr_t>(p)) && !pinned(p);
  };
  const cudaError_t error = put(stream, [=] {
    for (size_t row = 0; row < height; ++row) {
      std::memmove(static_cast<char*>(to) + row * to_pitch,
                   static_cast<const char*>(from) + row * from_pitch, width);
    }
    return cudaSuccess;
  });
  // Memory that is not pinned is copied before the call returns.
  if (error == cudaSuccess && stream && (paged(to) || paged(from))) {
    return report(run_until(stream, stream->end()));
  }
  return report(error);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}
cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                         size_t width, size_t height, cudaMemcpyKind kind) {
  return cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, height, kind, nullptr);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}

cudaError_t cudaMemsetAsync(void* memory, int byte, size_t bytes, cudaStream_t stream) {
  BERTRT_LOCKED;
  if (bytes == 0) return cudaSuccess;
  if (!in_device_memory(memory, bytes)) return report(cudaErrorInvalidValue);
  return report(put(stream, [=] {
    std::memset(memory, byte, bytes);
    return cudaSuccess;
  }));
}
cudaError_t cudaMemset(void* memory, int byte, size_t bytes) {
  return cudaMemsetAsync(memory, byte, bytes, nullptr);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  BERTRT_LOCKED;
  *stream = new CUstream_st;
  (*stream)->device = current_device;
  (*stream)->blocking = !(flags & cudaStreamNonBlocking);
  runtime().streams.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, 0); }

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  BERTRT_LOCKED;
  Runtime& r = runtime();
  if (!r.streams.count(stream)) return report(cudaErrorInvalidResourceHandle);
  const cudaError_t error = run_until(stream, stream->end());
  for (const cudaEvent_t event : r.events) {
    if (event->stream == stream) event->stream = nullptr;
  }
  r.streams.erase(stream);
  delete stream;
  return report(error);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  BERTRT_LOCKED;
  if (!stream) return report(run_blocking());
  if (!runtime().streams.count(stream)) return report(cudaErrorInvalidResourceHandle);
  return report(run_until(stream, stream->end()));
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  BERTRT_LOCKED;
  if (!runtime().events.count(event)) return report(cudaErrorInvalidResourceHandle);
  const cudaStream_t first = event->stream;
  const uint64_t position = event->position;
  if (!first) return cudaSuccess;
  return report(put(stream, [=] {
    // A stream that is gone had done all its work.
    return runtime().streams.count(first) ? run_until(first, position) : cudaSuccess;
  }));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  BERTRT_LOCKED;
  *event = new CUevent_st;
  runtime().events.insert(*event);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  BERTRT_LOCKED;
  if (!runtime().events.count(event)) return report(cudaErrorInvalidResourceHandle);
  event->time = std::make_shared<Clock::time_point>();
  const cudaError_t error = put(stream, [time = event->time] {
    *time = Clock::now();
    return cudaSuccess;
  });
  if (error != cudaSuccess) return report(error);
  event->stream = stream;
  event->position = stream ? stream->end() : 0;
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  BERTRT_LOCKED;
  if (!runtime().events.count(event)) return report(cudaErrorInvalidResourceHandle);
  if (event->stream) return report(run_until(event->stream, event->position));
  return report(runtime().fault.empty() ? cudaSuccess : cudaErrorLaunchFailure);
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t first, cudaEvent_t last) {
  BERTRT_LOCKED;
  if (!runtime().events.count(first) || !runtime().events.count(last)) {
    return report(cudaErrorInvalidResourceHandle);
  }
  for (const cudaEvent_t event : {first, last}) {
    if (event->stream && event->stream->done < event->position) return cudaErrorNotReady;
  }
  *milliseconds = std::chrono::duration<float, std::milli>(*last->time - *first->time).count();
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  BERTRT_LOCKED;
  if (!runtime().events.erase(event)) return report(cudaErrorInvalidResourceHandle);
  delete event;
  return cudaSuccess;
}
