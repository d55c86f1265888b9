#include "runtime/thread_pool.h"

#include <pthread.h>
#include <unistd.h>

#include <chrono>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bertrt {
namespace {

// The steps of a layer follow each other within microseconds, and waking a sleeping thread takes
// about fifty; a worker therefore looks for the next loop this long before it sleeps.
constexpr auto kSpin = std::chrono::microseconds(50);

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

struct ThreadPool::Workers {
  explicit Workers(int count) : owner(getpid()) {
    for (int i = 1; i <= count; ++i) threads.emplace_back([this, i] { work(i); });
  }

  ~Workers() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      stop = true;
    }
    wake.notify_all();
    for (std::thread& thread : threads) thread.join();
  }

  void drain(int worker) {
    for (int64_t i = next.fetch_add(1, std::memory_order_relaxed); i < loop.count;
         i = next.fetch_add(1, std::memory_order_relaxed)) {
      loop.call(loop.body, i, worker);
    }
  }

  void work(int worker) {
    uint64_t seen = 0;
    for (;;) {
      if (!await_generation(seen)) return;
      seen = generation.load(std::memory_order_acquire);
      drain(worker);
      busy.fetch_sub(1, std::memory_order_release);
    }
  }

  // Returns false when the pool stops.
  bool await_generation(uint64_t seen) {
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < 32; ++i) {
        if (generation.load(std::memory_order_acquire) != seen) return true;
        pause();
      }
    } while (std::chrono::steady_clock::now() < deadline);
    std::unique_lock<std::mutex> lock(mutex);
    ++sleeping;
    wake.wait(lock, [&] { return stop || generation.load(std::memory_order_relaxed) != seen; });
    --sleeping;
    return !stop;
  }

  void run(const Loop& work) {
    loop = work;
    next.store(0, std::memory_order_relaxed);
    busy.store(static_cast<int>(threads.size()), std::memory_order_relaxed);
    bool any_asleep;
    {
      std::lock_guard<std::mutex> lock(mutex);
      generation.fetch_add(1, std::memory_order_release);
      any_asleep = sleeping > 0;
    }
    if (any_asleep) wake.notify_all();
    drain(0);
    // What is left is at most one index per worker. If the machine is shared, the worker may have
    // been put off the core: give it ours after a while.
    for (int spins = 0; busy.load(std::memory_order_acquire) != 0; ++spins) {
      if (spins < 2000) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

  const pid_t owner;
  std::vector<std::thread> threads;
  std::mutex mutex;  // guards stop, sleeping and the wake-up
  std::condition_variable wake;
  bool stop = false;
  int sleeping = 0;
  std::atomic<uint64_t> generation{0};
  std::atomic<int64_t> next{0};
  std::atomic<int> busy{0};
  Loop loop{};
};

ThreadPool::ThreadPool(int threads) : threads_(threads) {}

ThreadPool::~ThreadPool() {
  // In a forked child the threads exist only in the parent: nothing to join.
  if (workers_ && workers_->owner != getpid()) workers_.release();
}

void ThreadPool::run(const Loop& loop) {
  if (threads_ > 1 && loop.count > 1) {
    std::unique_lock<std::mutex> lock(start_, std::try_to_lock);
    if (lock.owns_lock()) {
      if (workers_ && workers_->owner != getpid()) workers_.release();
      if (!workers_) workers_ = std::make_unique<Workers>(threads_ - 1);
      workers_->run(loop);
      return;
    }
  }
  for (int64_t i = 0; i < loop.count; ++i) loop.call(loop.body, i, 0);
}

}  // namespace bertrt
