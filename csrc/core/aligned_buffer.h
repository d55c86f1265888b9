// Memory for weights and activations.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bertrt {

// A block of memory at a cache-line boundary (large blocks at a page boundary, with huge pages
// asked for: a product streams its weights from a few hundred pages instead of a hundred thousand).
// Its contents are undefined.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    constexpr size_t kHugePage = size_t{2} << 20;
    const size_t alignment = bytes >= kHugePage ? kHugePage : 64;
    if (posix_memalign(&data_, alignment, bytes) != 0) throw std::bad_alloc();
#if defined(__linux__)
    // Advice only: without huge pages everything works, a little slower. Whole ones only: the end
    // of a matrix would take up to 2 MiB more.
    if (alignment == kHugePage) (void)madvise(data_, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  }
  AlignedBuffer(AlignedBuffer&& other) noexcept { swap(other); }
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~AlignedBuffer() { std::free(data_); }

  size_t bytes() const { return bytes_; }
  void* data() const { return data_; }
  float* floats() const { return static_cast<float*>(data_); }

 private:
  void swap(AlignedBuffer& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace bertrt
