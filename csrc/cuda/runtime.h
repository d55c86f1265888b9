// The CUDA runtime's objects as C++ ones, and its errors as ours.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "cuda/kernels.h"

namespace bertrt::cuda {

struct Device {
  int number;
  std::string name;
  int major, minor;  // compute capability
  int multiprocessors;
  int64_t memory;  // bytes

  // "sm_90"
  std::string arch() const { return "sm_" + std::to_string(major) + std::to_string(minor); }
};

// The devices of this machine. Throws DeviceError that says which of driver and device is missing.
std::vector<Device> devices();

// A device, if this build runs on it; makes it the calling thread's. Throws DeviceError.
Device open_device(int number);

// Makes a device, once opened, the calling thread's.
void use_device(int number);

// Bytes of a device's memory that nobody uses.
int64_t free_memory(int number);

// Throws DeviceError unless all is well: what was tried, and what the runtime says.
void check(cudaError_t error, const char* what);

// Memory of the calling thread's device; its contents are undefined.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  // Throws DeviceError, with what was asked for and what is free, where there is not enough.
  explicit DeviceMemory(size_t bytes);
  DeviceMemory(DeviceMemory&& other) noexcept { swap(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    swap(other);
    return *this;
  }
  ~DeviceMemory() { (void)cudaFree(data_); }

  size_t bytes() const { return bytes_; }
  void* data() const { return data_; }
  void* at(int64_t offset) const { return static_cast<char*>(data_) + offset; }

 private:
  void swap(DeviceMemory& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Host memory whose pages stay where they are, so that a device copies it by itself.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  explicit PinnedMemory(size_t bytes);  // Throws DeviceError.
  PinnedMemory(PinnedMemory&& other) noexcept { swap(other); }
  PinnedMemory& operator=(PinnedMemory&& other) noexcept {
    swap(other);
    return *this;
  }
  ~PinnedMemory() { (void)cudaFreeHost(data_); }

  size_t bytes() const { return bytes_; }
  void* data() const { return data_; }
  void* at(int64_t offset) const { return static_cast<char*>(data_) + offset; }

 private:
  void swap(PinnedMemory& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// A queue of work on the calling thread's device, which waits for no other queue.
class OwnedStream {
 public:
  OwnedStream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream"); }
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;
  ~OwnedStream() { (void)cudaStreamDestroy(stream_); }

  operator cudaStream_t() const { return stream_; }
  operator Stream() const { return {stream_}; }
  void wait() const { check(cudaStreamSynchronize(stream_), "a run"); }

 private:
  cudaStream_t stream_ = nullptr;
};

// What was put into a stream, to be run again as one: a graph. Arguments are those of the capture,
// pointers among them: what they point to stays where it is for as long as this lives.
class CapturedGraph {
 public:
  CapturedGraph() = default;
  // Captures what `enqueue` puts into a stream, which runs nothing of it. Throws DeviceError; the
  // stream is as it was before.
  template <class Enqueue>
  CapturedGraph(cudaStream_t stream, const Enqueue& enqueue) {
    // Other threads may allocate meanwhile.
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "a graph's beginning");
    try {
      enqueue();
    } catch (...) {
      end(stream);
      (void)cudaGetLastError();
      throw;
    }
    make(stream);
  }
  CapturedGraph(CapturedGraph&& other) noexcept { std::swap(graph_, other.graph_); }
  CapturedGraph& operator=(CapturedGraph&& other) noexcept {
    std::swap(graph_, other.graph_);
    return *this;
  }
  ~CapturedGraph() {
    if (graph_) (void)cudaGraphExecDestroy(graph_);
  }

  explicit operator bool() const { return graph_; }
  void launch(cudaStream_t stream) const {
    check(cudaGraphLaunch(graph_, stream), "a graph's launch");
  }

 private:
  static void end(cudaStream_t stream);
  void make(cudaStream_t stream);

  cudaGraphExec_t graph_ = nullptr;
};

// A point in a stream whose time is taken.
class Event {
 public:
  Event() { check(cudaEventCreate(&event_), "an event"); }
  Event(Event&& other) noexcept { std::swap(event_, other.event_); }
  Event& operator=(Event&&) = delete;
  ~Event() {
    if (event_) (void)cudaEventDestroy(event_);
  }

  void record(cudaStream_t stream) const { check(cudaEventRecord(event_, stream), "an event"); }
  // Seconds between two events that have both come to pass.
  static double seconds(const Event& first, const Event& last) {
    float milliseconds = 0.0f;
    check(cudaEventElapsedTime(&milliseconds, first.event_, last.event_), "an event's time");
    return milliseconds * 1e-3;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace bertrt::cuda
