// The emulated devices themselves, and the errors of their runtime.
#include "emulator/runtime.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

namespace bertrt::cuda::emulator {

const Settings& settings() { return runtime().settings; }

void reset(const Settings& settings) {
  Runtime& r = runtime();
  const Lock lock;
  run_all();
  r.fault.clear();
  last_error = cudaSuccess;
  current_device = 0;
  r.settings = settings;
  r.in_use.resize(std::max(r.in_use.size(), static_cast<size_t>(settings.devices)));
}

}  // namespace bertrt::cuda::emulator

using namespace bertrt::cuda::emulator;

namespace {

constexpr int kVersion = 13000;

}  // namespace

cudaError_t cudaDriverGetVersion(int* version) {
  *version = kVersion;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = kVersion;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  const Lock lock;
  *count = runtime().settings.devices;
  return *count > 0 ? cudaSuccess : report(cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int device) {
  const Lock lock;
  if (device < 0 || device >= runtime().settings.devices) return report(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  const Lock lock;
  if (device < 0 || device >= runtime().settings.devices) return report(cudaErrorInvalidDevice);
  *properties = {};
  std::strcpy(properties->name, "emulated device");
  properties->totalGlobalMem = runtime().settings.memory_bytes;
  properties->sharedMemPerBlockOptin = kMaxSharedBytes;
  properties->major = runtime().settings.capability / 10;
  properties->minor = runtime().settings.capability % 10;
  properties->multiProcessorCount = 1;
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
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorInvalidClusterSize:
      return "cudaErrorInvalidClusterSize";
  }
  return "unknown error";
}

const char* cudaGetErrorString(cudaError_t error) {
  if (error != cudaErrorLaunchFailure) return cudaGetErrorName(error);
  const Lock lock;
  thread_local std::string text;
  text = runtime().fault;
  return text.c_str();
}
