#include "cuda/runtime.h"

#include <cstdio>

#include "core/error.h"

namespace bertrt::cuda {
namespace {

// The oldest architecture that the kernels are compiled for: asynchronous copies, bf16.
constexpr int kOldestMajor = 8;

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string size_text(size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f MiB", static_cast<double>(bytes) / (1 << 20));
  return text;
}

// Why there is no device, for what cudaGetDeviceCount says.
std::string reason(cudaError_t error) {
  switch (error) {
    case cudaErrorInsufficientDriver: {
      int driver = 0, runtime = 0;
      (void)cudaDriverGetVersion(&driver);
      (void)cudaRuntimeGetVersion(&runtime);
      if (driver == 0) return "no NVIDIA driver is installed (libcuda.so.1 is not found)";
      return "the NVIDIA driver is too old: it runs CUDA " + version_text(driver) +
             ", and this build needs " + version_text(runtime);
    }
    case cudaErrorNoDevice:
      return "the NVIDIA driver finds no GPU (CUDA_VISIBLE_DEVICES may hide them)";
    case cudaErrorInitializationError:
      return "CUDA cannot be started in this process: a child that was forked after its parent had "
             "used CUDA has to be started by spawn instead";
    default:
      return std::string("CUDA cannot be started: ") + cudaGetErrorString(error);
  }
}

// Throws what an allocation's error means. Out of memory is no lasting state: the next allocation
// may succeed.
void check_allocation(cudaError_t error, const char* kind, size_t bytes) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();
  std::string message =
      "out of " + std::string(kind) + " memory: " + size_text(bytes) + " were asked for";
  size_t free = 0, total = 0;
  if (error != cudaErrorMemoryAllocation) {
    message = std::string("no ") + kind + " memory: " + cudaGetErrorString(error);
  } else if (cudaMemGetInfo(&free, &total) == cudaSuccess) {
    message += "; the GPU has " + size_text(free) + " free of " + size_text(total);
  }
  throw DeviceError(message);
}

}  // namespace

std::vector<Device> devices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    (void)cudaGetLastError();
    throw DeviceError(reason(error == cudaSuccess ? cudaErrorNoDevice : error));
  }
  std::vector<Device> found;
  for (int number = 0; number < count; ++number) {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, number), "a device's properties");
    found.push_back({number, properties.name, properties.major, properties.minor,
                     properties.multiProcessorCount,
                     static_cast<int64_t>(properties.totalGlobalMem)});
  }
  return found;
}

Device open_device(int number) {
  const std::vector<Device> found = devices();
  const std::string name = "cuda:" + std::to_string(number);
  if (number < 0 || number >= static_cast<int>(found.size())) {
    throw DeviceError("there is no device '" + name + "': this machine has " +
                      std::to_string(found.size()) + ", cuda:0" +
                      (found.size() > 1 ? " to cuda:" + std::to_string(found.size() - 1) : ""));
  }
  const Device& device = found[static_cast<size_t>(number)];
  if (device.major < kOldestMajor) {
    throw DeviceError(name + " is a " + device.name + " (" + device.arch() +
                      "); the kernels need sm_" + std::to_string(kOldestMajor) + "0 or later");
  }
  use_device(number);
  return device;
}

void use_device(int number) { check(cudaSetDevice(number), "a device"); }

int64_t free_memory(int number) {
  use_device(number);
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "the memory's size");
  return static_cast<int64_t>(free);
}

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();
  throw DeviceError(std::string("CUDA failed at ") + what + ": " + cudaGetErrorString(error) +
                    " (" + cudaGetErrorName(error) + ")");
}

DeviceMemory::DeviceMemory(size_t bytes) {
  check_allocation(cudaMalloc(&data_, bytes), "device", bytes);
  bytes_ = bytes;
}

void CapturedGraph::end(cudaStream_t stream) {
  cudaGraph_t graph = nullptr;
  (void)cudaStreamEndCapture(stream, &graph);
  if (graph) (void)cudaGraphDestroy(graph);
}

void CapturedGraph::make(cudaStream_t stream) {
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream, &graph), "a graph's end");
  const cudaError_t error = cudaGraphInstantiate(&graph_, graph, 0);
  (void)cudaGraphDestroy(graph);
  check(error, "a graph's making");
}

PinnedMemory::PinnedMemory(size_t bytes) {
  check_allocation(cudaHostAlloc(&data_, bytes, cudaHostAllocDefault), "pinned host", bytes);
  bytes_ = bytes;
}

}  // namespace bertrt::cuda
