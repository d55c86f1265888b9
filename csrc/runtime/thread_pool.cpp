#include "runtime/thread_pool.h"

#include <pthread.h>

#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"
#include "core/float_mode.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bertrt {
namespace {

// The steps of a layer follow each other within microseconds, and waking a sleeping thread takes
// about fifty; a worker therefore looks for the next loop this long before it sleeps.
constexpr auto kSpin = std::chrono::microseconds(50);

// What a count in Taken holds.
constexpr int64_t kMostIndices = 0xffffffff;

std::atomic<int> shared_cores{0};

// How many pools have calls under way. Never destroyed: threads may run when the process ends.
const PerProcess<std::atomic<int>>& pools_in_calls = *new PerProcess<std::atomic<int>>;

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  // YIELD does nothing on most CPUs; this waits about as long as PAUSE.
  asm volatile("isb");
#else
  std::this_thread::yield();
#endif
}

}  // namespace

struct ThreadPool::Workers {
  // As many as can be had.
  explicit Workers(int count) : taken(static_cast<size_t>(count) + 1) {
    threads.reserve(static_cast<size_t>(count));
    try {
      for (int i = 1; i <= count; ++i) threads.emplace_back([this, i] { work(i); });
    } catch (const std::exception&) {
      // std::system_error of a limit, or std::bad_alloc: those that run are enough.
    }
  }

  ~Workers() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      stop = true;
    }
    wake.notify_all();
    for (std::thread& thread : threads) thread.join();
  }

  // Takes its own share of loop `number`, then what is left of the others', while the loop is open:
  // it closes when nothing is.
  void drain(int worker, uint32_t number) {
    for (int i = 0; i < sharers; ++i) {
      if (i > 0 && !(state.load(std::memory_order_relaxed) & kOpen)) return;
      const int sharer = (worker + i) % sharers;
      const Share share = share_of(loop.count, sharers, sharer);
      std::atomic<uint64_t>& count = taken[static_cast<size_t>(sharer)].count;
      uint64_t now = count.load(std::memory_order_relaxed);
      for (;;) {
        const int64_t before = number_of(now) == number ? now & 0xffffffff : 0;
        if (share.begin + before >= share.end) break;
        const uint64_t after = uint64_t{number} << 32 | static_cast<uint64_t>(before + 1);
        if (!count.compare_exchange_weak(now, after, std::memory_order_relaxed)) continue;
        loop.call(loop.body, share.begin + before, worker);
        now = count.load(std::memory_order_relaxed);
      }
    }
  }

  void work(int worker) {
    const FloatMode mode;
    uint32_t seen = 0;
    while (join(worker, seen)) {
      drain(worker, seen);
      state.fetch_sub(1, std::memory_order_release);
    }
  }

  // Waits for a loop that wants this worker, joins it, and notes its number in `seen`. False when
  // the pool stops.
  bool join(int worker, uint32_t& seen) {
    for (;;) {
      const auto deadline = std::chrono::steady_clock::now() + kSpin;
      do {
        for (int i = 0; i < 32; ++i) {
          uint64_t now = state.load(std::memory_order_acquire);
          while (wants(now, worker, seen)) {
            if (state.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel)) {
              seen = number_of(now);
              return true;
            }
          }
          pause();
        }
      } while (std::chrono::steady_clock::now() < deadline);
      std::unique_lock<std::mutex> lock(mutex);
      ++sleeping;
      wake.wait(lock,
                [&] { return stop || wants(state.load(std::memory_order_acquire), worker, seen); });
      --sleeping;
      if (stop) return false;
    }
  }

  // At most `most` threads share the loop.
  void run(const Loop& work, int most) {
    loop = work;
    sharers = static_cast<int>(std::min<int64_t>(most, work.count));
    const uint32_t number = number_of(state.load(std::memory_order_relaxed)) + 1;
    if (number == 0) {  // numbers begin anew: no old count may pass for a new one
      for (Taken& of : taken) of.count.store(0, std::memory_order_relaxed);
    }
    const auto wanted = static_cast<uint64_t>(sharers - 1);
    bool any_asleep;
    {
      std::lock_guard<std::mutex> lock(mutex);
      state.store(uint64_t{number} << 32 | wanted << kWantedShift | kOpen,
                  std::memory_order_release);
      any_asleep = sleeping > 0;
    }
    if (any_asleep) {
      leave_this_core_to_the_caller();
      wake.notify_all();
    }
    drain(0, number);
    // Every index is taken. Who has not joined by now need not; who has is at its last index. If
    // the machine is shared, that thread may be off its core: give it ours after a while.
    state.fetch_and(~kOpen, std::memory_order_acq_rel);
    for (int spins = 0; (state.load(std::memory_order_acquire) & kJoined) != 0; ++spins) {
      if (spins < 2000) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

  // Linux may wake a worker on the core of the caller, who spins there, while another core idles
  // (it does where it knows of no cache that the two share, as in many virtual machines), and may
  // leave it there for as long as it sleeps between loops. So workers may run where the caller may,
  // but for the core where it is.
  void leave_this_core_to_the_caller() {
#if defined(__linux__)
    const int core = sched_getcpu();
    cpu_set_t allowed;
    if (core < 0 || core == callers_core || sched_getaffinity(0, sizeof(allowed), &allowed) != 0) {
      return;
    }
    CPU_CLR(core, &allowed);
    if (CPU_COUNT(&allowed) == 0) return;
    for (std::thread& thread : threads) {
      (void)pthread_setaffinity_np(thread.native_handle(), sizeof(allowed), &allowed);
    }
    callers_core = core;
#endif
  }

  // How many indices of a worker's share are taken, below the number of the loop: a count of
  // another loop is none. It lies on a cache line of its own, which stays with the worker from loop
  // to loop.
  struct alignas(64) Taken {
    std::atomic<uint64_t> count{0};
  };

  // One number, so that nobody sees half of it: how many loops there were, how many workers the
  // last one wants (the first so many), whether it may still be joined, and how many have joined
  // and not left. The loop is set while nobody has joined and nobody may.
  static constexpr uint64_t kJoined = 0xffff;
  static constexpr uint64_t kOpen = 1 << 16;
  static constexpr int kWantedShift = 17;

  static uint32_t number_of(uint64_t state) { return static_cast<uint32_t>(state >> 32); }
  static bool wants(uint64_t state, int worker, uint32_t seen) {
    const auto wanted = static_cast<int>((state & 0xffffffff) >> kWantedShift);
    return (state & kOpen) && number_of(state) != seen && worker <= wanted;
  }

  std::vector<std::thread> threads;
  std::mutex mutex;  // guards stop, sleeping and the wake-up
  std::condition_variable wake;
  bool stop = false;
  int sleeping = 0;
  alignas(64) std::atomic<uint64_t> state{0};
  Loop loop{};
  int sharers = 0;
  std::vector<Taken> taken;  // of each worker
  int callers_core = -1;     // when workers were last woken
};

void share_cores(int cores) { shared_cores.store(cores, std::memory_order_relaxed); }

ThreadPool::Call::Call(ThreadPool& pool) : calls_(pool.own_->calls), pools_(*pools_in_calls) {
  if (calls_.fetch_add(1) == 0) pools_.fetch_add(1);
}

ThreadPool::Call::~Call() {
  if (calls_.fetch_sub(1) == 1) pools_.fetch_sub(1);
}

int ThreadPool::free_threads() const {
  Own& own = *own_;
  const int calls = own.calls.load(std::memory_order_relaxed);
  const int left = threads(own) - std::max(0, calls - 1);
  const int cores = shared_cores.load(std::memory_order_relaxed);
  const int pools = pools_in_calls->load(std::memory_order_relaxed);
  return std::max(1, cores > 0 && pools > 1 ? std::min(left, cores / pools) : left);
}

ThreadPool::Own::Own() = default;
ThreadPool::Own::~Own() = default;

ThreadPool::ThreadPool(int threads) : most_(threads) {
  if (threads < 1 || threads > kMaxThreads) {
    throw DeviceError("threads is " + std::to_string(threads) + ", expected 1 to " +
                      std::to_string(kMaxThreads));
  }
  start(*own_);
}

ThreadPool::~ThreadPool() = default;

int ThreadPool::start(Own& own) const {
  const std::lock_guard<std::mutex> lock(own.starting);
  if (!own.workers) {
    own.workers = std::make_unique<Workers>(most_ - 1);
    most_ = static_cast<int>(own.workers->threads.size()) + 1;
    own.threads.store(most_, std::memory_order_release);
  }
  return own.threads.load(std::memory_order_relaxed);
}

void ThreadPool::run(const Loop& loop) {
  Own& own = *own_;
  const int most = free_threads();
  if (most > 1 && loop.count > 1 && loop.count <= kMostIndices) {
    const std::unique_lock<std::mutex> lock(own.busy, std::try_to_lock);
    if (lock.owns_lock()) {
      own.workers->run(loop, most);
      return;
    }
  }
  for (int64_t i = 0; i < loop.count; ++i) loop.call(loop.body, i, 0);
}

}  // namespace bertrt
