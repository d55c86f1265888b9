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
#include "runtime/per_process.h"

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
  std::unique_ptr<Workspace> next;  // of a WorkspacePool

 private:
  AlignedBuffer arena_;
};

// Workspaces that no run is using.
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
    Own& own = *own_;
    const std::lock_guard<std::mutex> lock(own.mutex);
    if (!own.free) return std::make_unique<Workspace>();
    auto workspace = std::move(own.free);
    own.free = std::move(workspace->next);
    return workspace;
  }

  void give_back(std::unique_ptr<Workspace> workspace) {
    Own& own = *own_;
    const std::lock_guard<std::mutex> lock(own.mutex);
    workspace->next = std::move(own.free);
    own.free = std::move(workspace);
  }

  struct Own {
    std::mutex mutex;
    std::unique_ptr<Workspace> free;  // the first one, and the others behind it
  };

  PerProcess<Own> own_;
};

}  // namespace bertrt
