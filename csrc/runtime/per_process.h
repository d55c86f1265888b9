// What a forked child has anew.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace bertrt {

// How many forks lie between this process and the one that loaded the library: another number says
// that a fork came between. (Process ids do not: a grandchild may get one that was in use before.)
uint64_t forks();

// A T of this process's own. What belongs to threads cannot be used in a forked child, where no
// thread of the parent lives on: their locks may be held, their counts above zero, for good. So the
// child gets a new T at its first use, and what it has of its parent's is never touched, nor
// destroyed. Making a T must be cheap: threads that are first at once each make one, and one of
// them stays.
template <class T>
class PerProcess {
 public:
  PerProcess() : current_(new Own) {}
  ~PerProcess() {
    const Own* own = current_.load(std::memory_order_acquire);
    if (own->made == forks()) delete own;
  }
  PerProcess(const PerProcess&) = delete;
  PerProcess& operator=(const PerProcess&) = delete;

  T& operator*() const {
    Own* own = current_.load(std::memory_order_acquire);
    return own->made == forks() ? own->value : renew(own);
  }
  T* operator->() const { return &**this; }

 private:
  struct Own {
    const uint64_t made = forks();
    T value{};
  };

  T& renew(Own* before) const {
    auto own = std::make_unique<Own>();
    const bool first =
        current_.compare_exchange_strong(before, own.get(), std::memory_order_acq_rel);
    return (first ? own.release() : before)->value;
  }

  mutable std::atomic<Own*> current_;
};

}  // namespace bertrt
