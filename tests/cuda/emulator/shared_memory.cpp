#include "emulator/shared_memory.h"

#include <sys/mman.h>

#include <cstring>
#include <new>

namespace bertrt::cuda::emulator {

SharedMemory::SharedMemory() {
  void* const found =
      mmap(nullptr, kMaxSharedBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<unsigned char*>(found);
}

void SharedMemory::begin_block(size_t bytes, int threads) {
  warp_epochs_.assign(static_cast<size_t>(threads / kWarp), 0);
  begin_cluster_epoch();
  first_epoch_ = epoch_;
  std::memset(data_, 0xff, bytes);
}

std::string SharedMemory::touch(size_t first, size_t bytes, bool write, int thread) {
  for (size_t byte = first; byte < first + bytes; ++byte) {
    Shadow& shadow = shadow_[byte];
    const auto wrong = [&](const std::string& why) {
      return "thread " + std::to_string(thread) + (write ? " writes" : " reads") + " byte " +
             std::to_string(byte) + " of shared memory, " + why;
    };
    const bool written = shadow.write_epoch >= first_epoch_;
    if (shadow.on_its_way && written) {
      return wrong("to which a cp.async of thread " + std::to_string(shadow.writer) +
                   " is on its way that has not been waited for");
    }
    if (!write && !written) return wrong("to which nothing has been written");
    if (written && !ordered(shadow.writer, shadow.write_epoch, shadow.write_warp_epoch, thread)) {
      return wrong("which thread " + std::to_string(shadow.writer) +
                   " has written with no barrier between");
    }
    if (!write) {
      add_reader(shadow, thread);
      continue;
    }
    if (is_read_by_others(shadow, thread)) {
      const std::string who = shadow.reader == kSeveral
                                  ? "other threads have"
                                  : "thread " + std::to_string(shadow.reader) + " has";
      return wrong("which " + who + " read with no barrier between");
    }
    if (shadow.read_from_epoch == cluster_epoch_) {
      return wrong("which block " + std::to_string(shadow.read_from) +
                   " of the cluster has read with no barrier of the cluster between");
    }
    shadow.on_its_way = false;
    shadow.write_epoch = epoch_;
    shadow.write_cluster_epoch = cluster_epoch_;
    shadow.write_warp_epoch = warp_epoch(thread);
    shadow.writer = static_cast<int16_t>(thread);
  }
  return {};
}

std::string SharedMemory::touch_from(int rank, size_t first, size_t bytes) {
  for (size_t byte = first; byte < first + bytes; ++byte) {
    Shadow& shadow = shadow_[byte];
    const auto wrong = [&](const std::string& why) {
      return "byte " + std::to_string(byte) + " of another block's shared memory, " + why;
    };
    if (shadow.write_epoch < first_epoch_) return wrong("to which nothing has been written");
    if (shadow.on_its_way || shadow.write_cluster_epoch == cluster_epoch_) {
      return wrong("which its thread " + std::to_string(shadow.writer) +
                   " has written with no barrier of the cluster between");
    }
    shadow.read_from_epoch = cluster_epoch_;
    shadow.read_from = static_cast<int16_t>(rank);
  }
  return {};
}

void SharedMemory::send(size_t first) {
  for (size_t byte = first; byte < first + 16; ++byte) shadow_[byte].on_its_way = true;
}

void SharedMemory::land(size_t first, int thread) {
  for (size_t byte = first; byte < first + 16; ++byte) {
    Shadow& shadow = shadow_[byte];
    shadow.on_its_way = false;
    shadow.write_epoch = epoch_;
    shadow.write_cluster_epoch = cluster_epoch_;
    shadow.write_warp_epoch = warp_epoch(thread);
  }
}

// Whether what another thread did then comes before what this one does now.
bool SharedMemory::ordered(int16_t other, uint32_t epoch, uint32_t warp_epoch_then,
                           int thread) const {
  return epoch != epoch_ || other == thread ||
         (other / kWarp == thread / kWarp && warp_epoch_then != warp_epoch(thread));
}

bool SharedMemory::is_read_by_others(const Shadow& shadow, int thread) const {
  if (shadow.read_epoch != epoch_ || shadow.reader == thread) return false;
  return shadow.reader_warp != thread / kWarp || shadow.read_warp_epoch == warp_epoch(thread);
}

void SharedMemory::add_reader(Shadow& shadow, int thread) const {
  const auto warp = static_cast<int16_t>(thread / kWarp);
  if (shadow.read_epoch != epoch_) {
    shadow.reader = static_cast<int16_t>(thread);
    shadow.reader_warp = warp;
  } else if (shadow.reader_warp != warp) {
    shadow.reader = shadow.reader_warp = kSeveral;
  } else if (shadow.read_warp_epoch != warp_epoch(thread)) {
    shadow.reader = static_cast<int16_t>(thread);
  } else if (shadow.reader != thread) {
    shadow.reader = kSeveral;
  }
  shadow.read_epoch = epoch_;
  shadow.read_warp_epoch = warp_epoch(thread);
}

}  // namespace bertrt::cuda::emulator
