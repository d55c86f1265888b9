// A block's shared memory, and what was done with each byte of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "emulator/emulator.h"

namespace bertrt::cuda::emulator {

constexpr int kWarp = 32;

// Finds bytes that two threads touch, one of them writing, with no barrier between; that are read
// before anything was written there in this block; that are touched while a cp.async is on its
// way there; and that another block of the cluster reads, where no barrier of the cluster stands
// between that and what this one writes.
class SharedMemory {
 public:
  SharedMemory();

  unsigned char* data() const { return data_; }
  bool holds(const void* p) const { return offset(p) < kMaxSharedBytes; }
  size_t offset(const void* p) const {
    return static_cast<size_t>(static_cast<const unsigned char*>(p) - data_);
  }

  void begin_block(size_t bytes, int threads);
  // All threads of the block, or all lanes of a warp, were at a barrier.
  void begin_epoch() { ++epoch_; }
  // All threads of the cluster were at one.
  void begin_cluster_epoch() {
    ++epoch_;
    ++cluster_epoch_;
  }
  void begin_warp_epoch(int warp) { ++warp_epochs_[static_cast<size_t>(warp)]; }

  // A thread touches bytes: what is wrong with it, or nothing.
  std::string touch(size_t first, size_t bytes, bool write, int thread);

  // A thread of another block reads bytes: likewise.
  std::string touch_from(int rank, size_t first, size_t bytes);
  // Another block reads or writes here, or arrives at a barrier; and whether one may still, since
  // no barrier of the cluster has come behind it.
  void reach_from_elsewhere() { last_reached_ = cluster_epoch_; }
  bool may_be_reached() const { return last_reached_ == cluster_epoch_; }
  uint32_t cluster_epoch() const { return cluster_epoch_; }

  // A cp.async of 16 bytes: on its way, behind a touch of the thread; and landed in its wait.
  void send(size_t first);
  void land(size_t first, int thread);

 private:
  // Barriers of the block, and of the cluster, count epochs, which go on from block to block;
  // barriers of a warp count its own.
  struct Shadow {
    uint32_t write_epoch = 0, write_warp_epoch = 0;
    uint32_t read_epoch = 0, read_warp_epoch = 0;
    uint32_t write_cluster_epoch = 0, read_from_epoch = 0;  // the latter by another block
    int16_t read_from = 0;                                  // its rank
    int16_t writer = 0;
    int16_t reader = 0;       // a thread, or
    int16_t reader_warp = 0;  // where reader is kSeveral, their warp, if not kSeveral either
    bool on_its_way = false;  // a cp.async of `writer` has yet to land
  };
  static constexpr int16_t kSeveral = -1;

  uint32_t warp_epoch(int thread) const {
    return warp_epochs_[static_cast<size_t>(thread / kWarp)];
  }
  bool ordered(int16_t other, uint32_t epoch, uint32_t warp_epoch_then, int thread) const;
  bool is_read_by_others(const Shadow& shadow, int thread) const;
  void add_reader(Shadow& shadow, int thread) const;

  unsigned char* data_ = nullptr;
  std::vector<Shadow> shadow_ = std::vector<Shadow>(kMaxSharedBytes);
  uint32_t epoch_ = 0;
  uint32_t first_epoch_ = 0;  // of this block
  uint32_t cluster_epoch_ = 0;
  uint32_t last_reached_ = 0;  // by another block
  std::vector<uint32_t> warp_epochs_;
};

}  // namespace bertrt::cuda::emulator
