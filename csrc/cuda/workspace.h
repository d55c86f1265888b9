// The memory and the streams of runs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/error.h"
#include "cuda/runtime.h"

namespace bertrt::cuda {

// The memory and the stream of one run. Memory grows to the largest part seen and is used again.
class Workspace {
 public:
  // Throws DeviceError; then nothing of that kind of memory is held.
  void reserve(int64_t device, int64_t inputs, int64_t outputs) {
    grow(device_, device);
    grow(inputs_, inputs);
    grow(outputs_, outputs);
  }

  // Two events for each of so many steps: before it and behind it.
  const std::vector<Event>& events(size_t steps) {
    while (events_.size() < 2 * steps) events_.emplace_back();
    return events_;
  }

  const DeviceMemory& device() const { return device_; }
  const PinnedMemory& inputs() const { return inputs_; }
  const PinnedMemory& outputs() const { return outputs_; }
  const OwnedStream& stream() const { return stream_; }

 private:
  template <class Memory>
  static void grow(Memory& memory, int64_t bytes) {
    if (static_cast<size_t>(bytes) <= memory.bytes()) return;
    // Steps of an eighth keep the number of times that memory is asked for small.
    constexpr size_t kStep = size_t{1} << 16;
    const size_t wanted = std::max(static_cast<size_t>(bytes), memory.bytes() / 8 * 9);
    memory = Memory();
    memory = Memory((wanted + kStep - 1) / kStep * kStep);
  }

  OwnedStream stream_;
  DeviceMemory device_;
  PinnedMemory inputs_;
  PinnedMemory outputs_;
  std::vector<Event> events_;
};

// Workspaces of one device that no run is using.
class WorkspacePool {
 public:
  // A workspace for as long as this lives.
  class Borrowed {
   public:
    explicit Borrowed(WorkspacePool& pool) : pool_(pool), workspace_(pool.take()) {}
    ~Borrowed() {
      // After an error copies may be under way.
      (void)cudaStreamSynchronize(workspace_->stream());
      pool_.give_back(std::move(workspace_));
    }
    Borrowed(const Borrowed&) = delete;
    Borrowed& operator=(const Borrowed&) = delete;

    Workspace& operator*() const { return *workspace_; }

    // As Workspace::reserve; before it gives up, memory that no run is using goes back to the
    // device.
    void reserve(int64_t device, int64_t inputs, int64_t outputs) {
      try {
        workspace_->reserve(device, inputs, outputs);
      } catch (const DeviceError&) {
        pool_.clear();
        workspace_->reserve(device, inputs, outputs);
      }
    }

   private:
    WorkspacePool& pool_;
    std::unique_ptr<Workspace> workspace_;
  };

 private:
  std::unique_ptr<Workspace> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return std::make_unique<Workspace>();
    auto workspace = std::move(free_.back());
    free_.pop_back();
    return workspace;
  }

  void give_back(std::unique_ptr<Workspace> workspace) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(workspace));
  }

  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.clear();
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> free_;
};

}  // namespace bertrt::cuda
