// The memory and the streams of runs.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/error.h"
#include "cuda/prepared.h"
#include "cuda/runtime.h"

namespace bertrt::cuda {

// The memory and the stream of one part of a batch at a time. Memory grows to the largest part seen
// and is used again.
class Workspace {
 public:
  // Throws DeviceError; then nothing of that kind of memory is held.
  void reserve(const Part& part) {
    grow(memory_.device, part.device_bytes());
    if (grow(memory_.results, part.output_bytes())) {
      // Rows beyond those of a batch are copied to the host with the others. Nobody reads them
      // there.
      check(cudaMemsetAsync(memory_.results.data(), 0, memory_.results.bytes(), stream_),
            "the memory of results");
    }
    grow(memory_.inputs, part.input_bytes());
    grow(memory_.outputs, part.output_bytes());
  }

  // Two events for each of so many steps: before it and behind it.
  const std::vector<Event>& events(size_t steps) {
    while (events_.size() < 2 * steps) events_.emplace_back();
    return events_;
  }

  const PartMemory& memory() const { return memory_; }
  const OwnedStream& stream() const { return stream_; }
  PreparedParts& parts() { return parts_; }

 private:
  // Whether it has become other memory.
  template <class Memory>
  bool grow(Memory& memory, int64_t bytes) {
    if (static_cast<size_t>(bytes) <= memory.bytes()) return false;
    // Steps of an eighth keep the number of times that memory is asked for small.
    constexpr size_t kStep = size_t{1} << 16;
    const size_t wanted = std::max(static_cast<size_t>(bytes), memory.bytes() / 8 * 9);
    parts_.drop_graphs();
    memory = Memory();
    memory = Memory((wanted + kStep - 1) / kStep * kStep);
    return true;
  }

  // In this order: graphs go before the memory that they were captured with.
  OwnedStream stream_;
  PartMemory memory_;
  std::vector<Event> events_;
  PreparedParts parts_;
};

// Workspaces of one device, kMost of them at most. A part of a batch takes one; where all are taken
// it waits for another part to end: more at once would take memory, and make no device quicker.
class WorkspacePool {
 public:
  static constexpr size_t kMost = 8;

  // A workspace for as long as this lives.
  class Borrowed {
   public:
    Borrowed(WorkspacePool& pool, std::unique_ptr<Workspace> workspace)
        : pool_(&pool), workspace_(std::move(workspace)) {}
    Borrowed(Borrowed&& other) noexcept = default;
    Borrowed& operator=(Borrowed&&) = delete;
    ~Borrowed() {
      if (!workspace_) return;
      // After an error copies may be under way.
      (void)cudaStreamSynchronize(workspace_->stream());
      pool_->give_back(std::move(workspace_));
    }

    Workspace& operator*() const { return *workspace_; }
    Workspace* operator->() const { return workspace_.get(); }

    // As Workspace::reserve; before it gives up, memory that no run is using goes back to the
    // device.
    void reserve(const Part& part) {
      try {
        workspace_->reserve(part);
      } catch (const DeviceError&) {
        pool_->clear();
        workspace_->reserve(part);
      }
    }

   private:
    WorkspacePool* pool_;
    std::unique_ptr<Workspace> workspace_;
  };

  // A workspace, the one that was used last if there is a choice: it knows the most shapes. Waits
  // for one; or, if not, has none where all are taken.
  Borrowed take() {
    std::unique_lock<std::mutex> lock(mutex_);
    given_back_.wait(lock, [this] { return taken_ < kMost; });
    return take_one();
  }
  std::unique_ptr<Borrowed> try_take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (taken_ == kMost) return nullptr;
    return std::make_unique<Borrowed>(take_one());
  }

 private:
  Borrowed take_one() {
    std::unique_ptr<Workspace> workspace;
    if (free_.empty()) {
      workspace = std::make_unique<Workspace>();
    } else {
      workspace = std::move(free_.back());
      free_.pop_back();
    }
    ++taken_;
    return {*this, std::move(workspace)};
  }

  void give_back(std::unique_ptr<Workspace> workspace) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      free_.push_back(std::move(workspace));
      --taken_;
    }
    given_back_.notify_one();
  }

  void clear() {
    std::vector<std::unique_ptr<Workspace>> gone;
    const std::lock_guard<std::mutex> lock(mutex_);
    gone.swap(free_);
  }

  std::mutex mutex_;
  std::condition_variable given_back_;
  std::vector<std::unique_ptr<Workspace>> free_;
  size_t taken_ = 0;
};

}  // namespace bertrt::cuda
