// The memory of runs.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/aligned_buffer.h"

namespace bertrt {

// The memory of one run. It grows to the largest part seen and is used again.
class Workspace {
 public:
  void* reserve(size_t bytes) {
    // Growing in big steps keeps the number of different sizes, and so fragmentation, small.
    constexpr size_t kStep = size_t{1} << 20;
    if (bytes > arena_.bytes()) {
      arena_ = AlignedBuffer();
      arena_ = AlignedBuffer((bytes + kStep - 1) / kStep * kStep);
    }
#if defined(__SANITIZE_ADDRESS__)
    // What a run has not asked for is nobody's, though it is there.
    __asan_unpoison_memory_region(arena_.data(), bytes);
    __asan_poison_memory_region(static_cast<char*>(arena_.data()) + bytes, arena_.bytes() - bytes);
#endif
    return arena_.data();
  }

  std::vector<int32_t> index;

 private:
  AlignedBuffer arena_;
};

// Workspaces that no run is using. Neither taking nor returning one ever waits: a child forked
// while another thread held the lock must not hang on it.
class WorkspacePool {
 public:
  // A workspace for as long as this lives.
  class Borrowed {
   public:
    explicit Borrowed(WorkspacePool& pool) : pool_(pool), workspace_(pool.take()) {}
    ~Borrowed() { pool_.give_back(std::move(workspace_)); }
    Borrowed(const Borrowed&) = delete;
    Borrowed& operator=(const Borrowed&) = delete;

    Workspace& operator*() const { return *workspace_; }

   private:
    WorkspacePool& pool_;
    std::unique_ptr<Workspace> workspace_;
  };

 private:
  std::unique_ptr<Workspace> take() {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock() || free_.empty()) return std::make_unique<Workspace>();
    auto workspace = std::move(free_.back());
    free_.pop_back();
    return workspace;
  }

  void give_back(std::unique_ptr<Workspace> workspace) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock.owns_lock()) free_.push_back(std::move(workspace));
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> free_;
};

}  // namespace bertrt
