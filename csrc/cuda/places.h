// Where arrays lie in a block of a device's memory, or of pinned memory.
#pragma once

#include <cstdint>

namespace bertrt::cuda {

// What cudaMalloc aligns to, and every array in a block too.
constexpr int64_t kAlignment = 256;

inline int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Arrays one behind the other in a block of memory that is not there yet.
class Places {
 public:
  int64_t add(int64_t bytes) {
    const int64_t offset = bytes_;
    bytes_ += aligned(bytes);
    return offset;
  }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

}  // namespace bertrt::cuda
