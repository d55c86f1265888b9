// Blocks, warps and threads: how a kernel runs, and what it must not do.
#pragma once

#include <link.h>
#include <setjmp.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "emulator/device.h"
#include "emulator/emulator.h"
#include "emulator/shared_memory.h"

namespace bertrt::cuda::emulator {

// One, since the runtime runs one kernel at a time.
class Machine {
 public:
  Machine();

  // Raises Fault.
  void run(const Launch& launch);

  // Every access of a kernel to memory.
  void touch_aligned(const void* p, size_t bytes, bool write, const void* code) {
    if (current_ >= 0 && !reports_ && reinterpret_cast<uintptr_t>(p) % bytes != 0) {
      code_ = code;
      fail_access(write, p, "whose address is no multiple of " + std::to_string(bytes));
    }
    touch(p, bytes, write, code);
  }
  void touch(const void* p, size_t bytes, bool write, const void* code) {
    const auto address = reinterpret_cast<uintptr_t>(p);
    if (address - reinterpret_cast<uintptr_t>(stacks_) < kStacks * kStackBytes) return;
    if (current_ < 0 || reports_) return;
    code_ = code;
    if (block_->shared.holds(p)) {
      touch_shared(p, bytes, write, current_);
    } else if (address - image_begin_ >= image_end_ - image_begin_ &&
               address - reinterpret_cast<uintptr_t>(launch_->call.get()) >= launch_->call_bytes) {
      touch_global(p, bytes, write);
    }
    code_ = nullptr;
  }

  void syncthreads(Site site);
  void collective(const char* name, Site site, void* lane, WarpWork work);
  // By the last lane of a warp to come to its barrier.
  void begin_warp_epoch() { block_->shared.begin_warp_epoch(current_ / kWarp); }
  void cluster_barrier(Site site);
  // The block of that rank is there, and is to stay until a barrier of the cluster.
  void reach_peer(unsigned rank);
  // 16 bytes of the shared memory of a block of the cluster, by their place in one's own.
  const void* read_peer(const void* p, unsigned rank);

  // cp.async, its groups and their waits.
  void copy(void* shared, const void* global, bool there);
  void commit() { ++here().group; }
  void wait_for_copies(int groups);

  // What ldmatrix reads for one of a warp's lanes.
  void load_matrix_row(const void* row, int thread);
  void require_alignment(const void* p, size_t bytes);
  void wait_for_kernels_before() { here().has_waited = true; }

  // Runs other threads until `ready()`, which some of them bring about by make_progress().
  template <class Ready>
  void poll(const char* what, Site site, Ready ready) {
    while (!ready()) {
      here().polls = what;
      wait(State::kPolling, site);
    }
    here().state = State::kReady;
    make_progress();
  }
  void make_progress() { ++progress_; }
  void read_global(const void* p, size_t bytes) { touch_global(p, bytes, false); }
  // Likewise, and whether all of it has been written, for who may read what has not.
  bool read_written(const void* p, size_t bytes) { return touch_global(p, bytes, false, true); }
  // A string is made for fail(): of its templates the linker may take those that kernels have,
  // whose accesses come to touch().
  void begin_report() { reports_ = true; }
  [[noreturn]] void fail(const std::string& what);
  // What is wrong with a block as a whole, found by no thread.
  void report(const std::string& what) { fault_ = what; }

  unsigned char* shared() const { return block_->shared.data(); }
  unsigned char* shared(int rank) const {  // of a block of the cluster
    return blocks_[static_cast<size_t>(rank)]->shared.data();
  }
  uint32_t cluster_epoch(int rank) const {  // by that block's count
    return blocks_[static_cast<size_t>(rank)]->shared.cluster_epoch();
  }
  size_t shared_offset(const void* p) const { return block_->shared.offset(p); }
  size_t shared_bytes() const { return launch_->shared_bytes; }
  int current() const { return current_; }
  int rank() const { return block_->rank; }  // of the block in its cluster

 private:
  static constexpr size_t kStackBytes = 64 << 10;
  static constexpr size_t kPageBytes = 4 << 10;
  static constexpr size_t kStacks = kMaxThreads * kMaxCluster;

  struct Copy {
    unsigned char* to;
    const void* from;
    bool there;
    int group;
  };

  enum class State { kReady, kAtBarrier, kAtClusterBarrier, kAtCollective, kPolling, kDone };

  struct Thread {
    jmp_buf context;
    bool started = false;
    State state = State::kDone;
    Site site{};              // of the barrier or collective
    const char* polls = "";   // what it waits for, where it looks again and again
    bool has_waited = false;  // for the kernels before
    std::vector<Copy> copies;
    int group = 0;  // that cp.async goes to
  };

  struct Warp {
    const char* collective = nullptr;
    Site site{};
    int arrived = 0;
    void* lanes[kWarp];
  };

  struct Block {
    int rank = 0;
    uint3 index{};
    Thread* threads = nullptr;  // of threads_
    int left = 0;               // of them that have not ended
    int at_barrier = 0;
    std::vector<Warp> warps;
    SharedMemory shared;
  };

  Thread& here() { return block_->threads[current_]; }
  static int find_image(dl_phdr_info* info, size_t, void* data);

  void run_cluster(int64_t first_block);
  std::string stuck() const;
  void resume(size_t t);
  static void fiber();
  void end_thread();
  void leave();
  void wait(State state, Site site);

  [[noreturn]] void fail_access(bool write, const void* p, const std::string& why);

  bool touch_global(const void* p, size_t bytes, bool write, bool may_be_unwritten = false);
  void touch_shared(const void* p, size_t bytes, bool write, int thread);

  const Launch* launch_ = nullptr;
  std::vector<Thread> threads_;                 // of the cluster, block by block
  std::vector<std::unique_ptr<Block>> blocks_;  // as many as the largest cluster had
  Block* block_ = nullptr;                      // of the thread that runs
  size_t at_cluster_barrier_ = 0;
  uint64_t progress_ = 0;  // counts what a polling thread may wait for
  // The block's thread that runs: for the CPU's thread that runs the block. Host code beside
  // kernels calls the hooks too, and may run on another one meanwhile.
  static inline thread_local int current_ __attribute__((tls_model("initial-exec"))) = -1;
  jmp_buf scheduler_;
  std::string fault_;
  bool reports_ = false;
  const void* code_ = nullptr;  // the access that is looked at

  unsigned char* stacks_ = nullptr;
  uintptr_t image_begin_ = 0, image_end_ = 0;
};

inline Machine& machine() {
  static Machine machine;
  return machine;
}

}  // namespace bertrt::cuda::emulator

// What hopper.cpp keeps of a block.
namespace bertrt::cuda::hopper::emulator {
void begin_block(int rank, int threads);
void end_thread();
void end_block(int rank);
// A cp.async of 16 bytes to there begins; and has landed.
void begin_copy(size_t at);
void end_copy(size_t at);
}  // namespace bertrt::cuda::hopper::emulator
