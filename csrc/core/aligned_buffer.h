// Memory for weights and activations.
#pragma once

#include <cstddef>
#include <cstdint>
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
    if (is_mapped()) {
      map();
    } else if (bytes > 0 && posix_memalign(&data_, 64, bytes) != 0) {
      throw std::bad_alloc();
    }
  }
  AlignedBuffer(AlignedBuffer&& other) noexcept { swap(other); }
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~AlignedBuffer() {
    if (is_mapped()) {
      unmap();
    } else {
      std::free(data_);
    }
  }

  size_t bytes() const { return bytes_; }
  void* data() const { return data_; }
  float* floats() const { return static_cast<float*>(data_); }

 private:
  void swap(AlignedBuffer& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  static constexpr size_t kHugePage = size_t{2} << 20;

// A sanitizer watches the ends of malloc's blocks only.
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
  // Large blocks are mappings of their own: malloc would keep what an engine lets go of.
  bool is_mapped() const { return bytes_ >= kHugePage; }
  size_t mapped_bytes() const { return (bytes_ + kHugePage - 1) / kHugePage * kHugePage; }

  void map() {
    if (bytes_ > SIZE_MAX / 2) throw std::bad_alloc();
    const size_t size = mapped_bytes();
    void* found =
        mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED) throw std::bad_alloc();
    char* begin = static_cast<char*>(found);
    const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
    if (before > 0) (void)munmap(begin, before);
    (void)munmap(begin + before + size, kHugePage - before);
    data_ = begin + before;
    // Advice only: without huge pages everything works, a little slower. Whole ones only: the end
    // of a matrix would take up to 2 MiB more.
    (void)madvise(data_, bytes_ / kHugePage * kHugePage, MADV_HUGEPAGE);
  }
  void unmap() { (void)munmap(data_, mapped_bytes()); }
#else
  bool is_mapped() const { return false; }
  void map() {}
  void unmap() {}
#endif

  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace bertrt
