#include "runtime/per_process.h"

#include <pthread.h>

#include <new>

namespace bertrt {
namespace {

std::atomic<uint64_t> count{0};

// The child's only thread counts, before fork() returns there.
[[maybe_unused]] const bool registered = [] {
  const auto in_child = [] { count.fetch_add(1, std::memory_order_relaxed); };
  if (pthread_atfork(nullptr, nullptr, in_child) != 0) throw std::bad_alloc();
  return true;
}();

}  // namespace

uint64_t forks() { return count.load(std::memory_order_relaxed); }

}  // namespace bertrt
