// The engine's own threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>

#include "runtime/per_process.h"

namespace bertrt {

inline constexpr int kMaxThreads = 1024;

// How many cores the pools of this process have among them; 0, as at first: each has all. While
// several pools have calls under way, each wants its share of the cores, however many threads it
// has: two engines with two threads each on two cores run on one each, and none waits for a thread
// that the other keeps off its core.
void share_cores(int cores);

// Runs one loop at a time over `threads` threads, the caller's among them. Each takes its share of
// the indices in order and then what is left of the others': so threads seldom write what another
// reads, and yet a slow one holds up nobody. Callers write results that do not depend on who takes
// what. A loop wants no more threads than it has indices, and waits for none that has not begun
// when the last index is taken: a thread that the system keeps off its core delays nobody.
//
// A caller that finds the threads busy with somebody else's loop runs its own loop alone: so calls
// from several threads go side by side rather than queue. For each that is under way beside a
// loop's own caller the loop wants one worker less, since that caller's thread needs a core. After
// a fork the child starts threads of its own.
class ThreadPool {
 public:
  // `threads`: 1 to kMaxThreads; throws DeviceError for other numbers. Where the system gives fewer
  // (limits on a user's or a container's processes, or no memory for a stack) the pool has those. A
  // child has no more than its parent.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Those that there really are, the caller's among them.
  int threads() const { return threads(*own_); }

  // Stands for a call that runs loops one after the other.
  class Call {
   public:
    explicit Call(ThreadPool& pool);
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   private:
    std::atomic<int>& calls_;
    std::atomic<int>& pools_;
  };

  // The indices that a worker takes first of a loop over `count`; while another call begins or
  // ends, a guess.
  struct Share {
    int64_t begin, end;
  };
  Share share(int64_t count, int worker) const {
    return share_of(count, std::min<int64_t>(count, free_threads()), worker);
  }

  // Calls body(index, worker) for every index in [0, count), worker in [0, threads()).
  template <class Body>
  void parallel_for(int64_t count, const Body& body) {
    run({[](const void* b, int64_t index, int worker) {
           (*static_cast<const Body*>(b))(index, worker);
         },
         &body, count});
  }

 private:
  struct Workers;

  struct Own {
    Own();
    ~Own();

    std::atomic<int> calls{0};
    std::mutex busy;  // a loop is under way
    std::mutex starting;
    std::unique_ptr<Workers> workers;
    std::atomic<int> threads{0};  // 0: not started yet
  };

  // The threads that the other calls under way, and the other pools, leave to a loop.
  int free_threads() const;
  int threads(Own& own) const {
    const int started = own.threads.load(std::memory_order_acquire);
    return started ? started : start(own);
  }
  // Workers beyond the sharers have none.
  static Share share_of(int64_t count, int64_t sharers, int worker) {
    if (worker >= sharers) return {count, count};
    return {count * worker / sharers, count * (worker + 1) / sharers};
  }

  struct Loop {
    void (*call)(const void* body, int64_t index, int worker);
    const void* body;
    int64_t count;
  };
  int start(Own& own) const;
  void run(const Loop& loop);

  // At most; no more than there were at the last start, so that a loop of a child that was forked
  // inside a call, in a signal handler, finds the memory that the call has laid out.
  mutable std::atomic<int> most_;
  PerProcess<Own> own_;
};

}  // namespace bertrt
