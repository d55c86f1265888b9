// Blocks, warps and threads: how a kernel runs, and what it must not do.
#include "cuda/emulator/emulator.h"

#include <link.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "cuda/emulator/device.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace bertrt::cuda::emulator {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 64 << 10;
constexpr size_t kPageBytes = 4 << 10;

// What was done with a byte of shared memory, and when. Barriers of the block count epochs, which
// go on from block to block; barriers of a warp count its own.
struct Shadow {
  uint32_t write_epoch = 0, write_warp_epoch = 0;
  uint32_t read_epoch = 0, read_warp_epoch = 0;
  int16_t writer = 0;
  int16_t reader = 0;       // a thread, or
  int16_t reader_warp = 0;  // where reader is kSeveral, their warp, if not kSeveral either
  bool on_its_way = false;  // a cp.async of `writer` has yet to land
};
constexpr int16_t kSeveral = -1;

struct Copy {
  unsigned char* to;
  const void* from;
  int bytes;
  int group;
};

enum class State { kReady, kAtBarrier, kAtCollective, kDone };

struct Thread {
  jmp_buf context;
  bool started = false;
  State state = State::kDone;
  Site site{};  // of the barrier or collective
  std::vector<Copy> copies;
  int group = 0;  // that cp.async goes to
};

struct Warp {
  const char* collective = nullptr;
  Site site{};
  int arrived = 0;
  void* lanes[kWarp];
  uint32_t epoch = 0;
};

std::string at(Site site) {
  const char* name = std::strrchr(site.file, '/');
  return std::string(name ? name + 1 : site.file) + ":" + std::to_string(site.line);
}

class Machine;
Machine& machine();

// The machine: one, since the runtime runs one kernel at a time.
class Machine {
 public:
  Machine() {
    stacks_ = static_cast<unsigned char*>(mmap(nullptr, kMaxThreads * kStackBytes, PROT_NONE,
                                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    shared_ = static_cast<unsigned char*>(
        mmap(nullptr, kMaxSharedBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (stacks_ == MAP_FAILED || shared_ == MAP_FAILED) throw std::bad_alloc();
    // The lowest page of a stack stays closed.
    for (int t = 0; t < kMaxThreads; ++t) {
      mprotect(stacks_ + t * kStackBytes + kPageBytes, kStackBytes - kPageBytes,
               PROT_READ | PROT_WRITE);
    }
    dl_iterate_phdr(&Machine::find_image, this);
  }

  void run(const Launch& launch) {
    launch_ = &launch;
    const int64_t blocks = int64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
    gridDim = launch.grid;
    blockDim = dim3(static_cast<unsigned>(launch.threads));
    fault_.clear();
    for (int64_t b = 0; b < blocks && fault_.empty(); ++b) {
      const int64_t block = settings().backwards ? blocks - 1 - b : b;
      blockIdx = {static_cast<unsigned>(block % launch.grid.x),
                  static_cast<unsigned>(block / launch.grid.x % launch.grid.y),
                  static_cast<unsigned>(block / launch.grid.x / launch.grid.y)};
      run_block();
    }
    if (!fault_.empty()) {
      // The other threads are left where they stood.
      for (Thread& thread : threads_) thread = Thread();
      throw Fault(fault_ + " (block " + std::to_string(blockIdx.x) + ", " +
                  std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + ")");
    }
  }

  // Every access of a kernel to memory.
  void touch_aligned(const void* p, size_t bytes, bool write, const void* code) {
    if (current_ >= 0 && reinterpret_cast<uintptr_t>(p) % bytes != 0) {
      code_ = code;
      fail_access(write, p, "whose address is no multiple of " + std::to_string(bytes));
    }
    touch(p, bytes, write, code);
  }
  void touch(const void* p, size_t bytes, bool write, const void* code) {
    const auto address = reinterpret_cast<uintptr_t>(p);
    if (address - reinterpret_cast<uintptr_t>(stacks_) < kMaxThreads * kStackBytes) return;
    if (current_ < 0) return;
    code_ = code;
    if (is_shared(p)) {
      touch_shared(p, bytes, write, current_);
    } else if (address - image_begin_ >= image_end_ - image_begin_ &&
               address - reinterpret_cast<uintptr_t>(launch_->call.get()) >= launch_->call_bytes) {
      touch_global(p, bytes, write);
    }
    code_ = nullptr;
  }

  void syncthreads(Site site) {
    for (const Thread& other : threads_) {
      if (other.state == State::kAtBarrier && !same(other.site, site)) {
        fail("divergence: thread " + std::to_string(current_) + " is at the barrier " + at(site) +
             ", thread " + std::to_string(&other - threads_.data()) + " at the one of " +
             at(other.site));
      }
    }
    if (++at_barrier_ < launch_->threads) {
      wait(State::kAtBarrier, site);
      return;
    }
    at_barrier_ = 0;
    ++epoch_;
    for (Thread& thread : threads_) {
      if (thread.state == State::kAtBarrier) thread.state = State::kReady;
    }
  }

  void collective(const char* name, Site site, void* lane, WarpWork work) {
    Warp& warp = warps_[static_cast<size_t>(current_ / kWarp)];
    if (warp.arrived == 0) {
      warp.collective = name;
      warp.site = site;
    } else if (std::strcmp(warp.collective, name) != 0 || !same(warp.site, site)) {
      fail("divergence: thread " + std::to_string(current_) + " is at " + name + " " + at(site) +
           ", others of its warp at " + warp.collective + " " + at(warp.site));
    }
    warp.lanes[current_ % kWarp] = lane;
    if (++warp.arrived < kWarp) {
      wait(State::kAtCollective, site);
      return;
    }
    // A copy on this fiber's stack, which `work` may read.
    void* lanes[kWarp];
    std::copy(warp.lanes, warp.lanes + kWarp, lanes);
    work(lanes);
    warp.arrived = 0;
    const int first = current_ / kWarp * kWarp;
    for (int t = first; t < first + kWarp; ++t) {
      threads_[static_cast<size_t>(t)].state = State::kReady;
    }
  }

  // By the last lane of a warp to come to its barrier.
  void begin_warp_epoch() { ++warps_[static_cast<size_t>(current_ / kWarp)].epoch; }

  void copy(void* shared, const void* global, int bytes) {
    if (bytes < 0 || bytes > 16) fail("cp.async of " + std::to_string(bytes) + " of 16 bytes");
    require_alignment(shared, 16);
    require_alignment(global, 16);
    if (!is_shared(shared)) fail_access(true, shared, "by cp.async, which is not shared memory");
    touch_shared(shared, 16, true, current_);
    if (bytes > 0) touch_global(global, static_cast<size_t>(bytes), false);
    auto* to = static_cast<unsigned char*>(shared);
    for (int i = 0; i < 16; ++i) shadow_[static_cast<size_t>(to - shared_ + i)].on_its_way = true;
    Thread& thread = here();
    thread.copies.push_back({to, global, bytes, thread.group});
  }
  void commit() { ++here().group; }
  void wait_for_copies(int groups) {
    Thread& thread = here();
    const auto landed = std::stable_partition(
        thread.copies.begin(), thread.copies.end(),
        [&](const Copy& copy) { return copy.group >= thread.group - groups; });
    for (auto copy = landed; copy != thread.copies.end(); ++copy) {
      std::memset(copy->to, 0, 16);
      if (copy->bytes > 0) std::memcpy(copy->to, copy->from, static_cast<size_t>(copy->bytes));
      for (int i = 0; i < 16; ++i) {
        Shadow& shadow = shadow_[static_cast<size_t>(copy->to - shared_ + i)];
        shadow.on_its_way = false;
        shadow.write_epoch = epoch_;
        shadow.write_warp_epoch = warp_epoch(current_);
      }
    }
    thread.copies.erase(landed, thread.copies.end());
  }

  void load_matrix_row(const void* row, int thread) {
    if (!is_shared(row)) fail_access(false, row, "by ldmatrix, which is not shared memory");
    require_alignment(row, 16);
    touch_shared(row, 16, false, thread);
  }

  void require_alignment(const void* p, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(p) % bytes != 0) {
      fail_access(false, p, "whose address must be a multiple of " + std::to_string(bytes));
    }
  }

  unsigned char* shared() { return shared_; }
  int current() const { return current_; }

 private:
  static bool same(Site a, Site b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }
  Thread& here() { return threads_[static_cast<size_t>(current_)]; }
  uint32_t warp_epoch(int thread) const {
    return warps_[static_cast<size_t>(thread / kWarp)].epoch;
  }

  // The constants of a kernel lie in the module that holds this function.
  static int find_image(dl_phdr_info* info, size_t, void* data) {
    auto* machine = static_cast<Machine*>(data);
    const auto here = reinterpret_cast<uintptr_t>(&Machine::find_image);
    uintptr_t begin = UINTPTR_MAX, end = 0;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const auto& header = info->dlpi_phdr[i];
      if (header.p_type != PT_LOAD) continue;
      begin = std::min<uintptr_t>(begin, info->dlpi_addr + header.p_vaddr);
      end = std::max<uintptr_t>(end, info->dlpi_addr + header.p_vaddr + header.p_memsz);
    }
    if (here < begin || here >= end) return 0;
    machine->image_begin_ = begin;
    machine->image_end_ = end;
    return 1;
  }

  void run_block() {
    const auto count = static_cast<size_t>(launch_->threads);
    threads_.resize(count);
    warps_.assign(count / kWarp, Warp());
    at_barrier_ = 0;
    first_epoch_ = ++epoch_;
    std::memset(shared_, 0xff, launch_->shared_bytes);
    for (Thread& thread : threads_) {
      thread.state = State::kReady;
      thread.group = 0;
    }
    for (size_t done = 0; done < count;) {
      bool moved = false;
      for (size_t i = 0; i < count; ++i) {
        const size_t t = settings().backwards ? count - 1 - i : i;
        if (threads_[t].state != State::kReady) continue;
        moved = true;
        resume(static_cast<int>(t));
        if (!fault_.empty()) return;
        if (threads_[t].state == State::kDone) ++done;
      }
      if (!moved) {
        fault_ = stuck();
        return;
      }
    }
  }

  // Why no thread can go on.
  std::string stuck() const {
    std::string what = "divergence:";
    for (size_t t = 0; t < threads_.size();) {
      const Thread& thread = threads_[t];
      const size_t first = t;
      while (t < threads_.size() && threads_[t].state == thread.state &&
             (thread.state == State::kDone || same(threads_[t].site, thread.site))) {
        ++t;
      }
      what += (first ? ", threads " : " threads ") + std::to_string(first) + " to " +
              std::to_string(t - 1);
      if (thread.state == State::kDone) {
        what += " have ended";
      } else if (thread.state == State::kAtBarrier) {
        what += " wait at the barrier " + at(thread.site);
      } else {
        what += std::string(" wait at ") + warps_[first / kWarp].collective + " " + at(thread.site);
      }
    }
    return what;
  }

  // Fibers are born by makecontext and switched by longjmp, which unlike swapcontext makes no
  // system call. A fiber outlives its thread: it runs the next block's, too.
  void resume(int t) {
    current_ = t;
    threadIdx = {static_cast<unsigned>(t), 0, 0};
    Thread& thread = here();
    if (_setjmp(scheduler_) == 0) {
      if (thread.started) _longjmp(thread.context, 1);
      thread.started = true;
      ucontext_t context;
      getcontext(&context);
      context.uc_stack.ss_sp = stacks_ + t * kStackBytes + kPageBytes;
      context.uc_stack.ss_size = kStackBytes - kPageBytes;
      context.uc_link = nullptr;
      makecontext(&context, &Machine::fiber, 0);
      setcontext(&context);
    }
    current_ = -1;
  }
  static void fiber();

  // Back to the scheduler, until this thread is ready again.
  void leave() {
    if (_setjmp(here().context) == 0) _longjmp(scheduler_, 1);
  }
  void wait(State state, Site site) {
    here().state = state;
    here().site = site;
    leave();
  }

  [[noreturn]] void fail(const std::string& what) {
    fault_ = what;
    if (code_) {
      // For addr2line.
      fault_ += " [code at +0x" + hex(reinterpret_cast<uintptr_t>(code_) - image_begin_) + "]";
    }
    code_ = nullptr;
    _longjmp(scheduler_, 1);
  }
  static std::string hex(uintptr_t value) {
    char text[2 * sizeof(value) + 1];
    std::snprintf(text, sizeof(text), "%lx", static_cast<unsigned long>(value));
    return text;
  }
  [[noreturn]] void fail_access(bool write, const void* p, const std::string& why) {
    fail("thread " + std::to_string(current_) + (write ? " writes" : " reads") + " at 0x" +
         hex(reinterpret_cast<uintptr_t>(p)) + ", " + why);
  }

  bool is_shared(const void* p) const {
    return static_cast<size_t>(static_cast<const unsigned char*>(p) - shared_) < kMaxSharedBytes;
  }

  void touch_global(const void* p, size_t bytes, bool write) {
    const auto address = reinterpret_cast<uintptr_t>(p);
    const Allocation* allocation = find_allocation(address);
    if (!allocation) fail_access(write, p, "which is no device memory in use");
    if (address + bytes > allocation->end) {
      fail_access(write, p, "past the end of an allocation");
    }
    if (allocation->device != launch_->device) {
      fail_access(write, p, "the memory of device " + std::to_string(allocation->device));
    }
  }

  // Whether what another thread did then comes before what this one does now.
  bool ordered(int16_t other, uint32_t epoch, uint32_t warp_epoch_then, int thread) const {
    return epoch != epoch_ || other == thread ||
           (other / kWarp == thread / kWarp && warp_epoch_then != warp_epoch(thread));
  }

  void touch_shared(const void* p, size_t bytes, bool write, int thread) {
    const auto first = static_cast<size_t>(static_cast<const unsigned char*>(p) - shared_);
    if (first + bytes > launch_->shared_bytes) {
      fail_access(write, p,
                  "past the end of shared memory (byte " + std::to_string(first) + " of " +
                      std::to_string(launch_->shared_bytes) + ")");
    }
    for (size_t byte = first; byte < first + bytes; ++byte) {
      Shadow& shadow = shadow_[byte];
      if (shadow.on_its_way && shadow.write_epoch >= first_epoch_) {
        fail_race(write, byte, thread,
                  "to which a cp.async of thread " + std::to_string(shadow.writer) +
                      " is on its way that has not been waited for");
      }
      if (!write && shadow.write_epoch < first_epoch_) {
        fail_race(write, byte, thread, "to which nothing has been written");
      }
      if (shadow.write_epoch >= first_epoch_ &&
          !ordered(shadow.writer, shadow.write_epoch, shadow.write_warp_epoch, thread)) {
        fail_race(write, byte, thread,
                  "which thread " + std::to_string(shadow.writer) +
                      " has written with no barrier between");
      }
      if (write) {
        check_readers(shadow, byte, thread);
        shadow.on_its_way = false;
        shadow.write_epoch = epoch_;
        shadow.write_warp_epoch = warp_epoch(thread);
        shadow.writer = static_cast<int16_t>(thread);
      } else {
        add_reader(shadow, thread);
      }
    }
  }

  void add_reader(Shadow& shadow, int thread) {
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

  void check_readers(const Shadow& shadow, size_t byte, int thread) {
    if (shadow.read_epoch != epoch_ || shadow.reader == thread) return;
    if (shadow.reader_warp == thread / kWarp && shadow.read_warp_epoch != warp_epoch(thread))
      return;
    fail_race(
        true, byte, thread,
        (shadow.reader == kSeveral ? "which other threads have"
                                   : "which thread " + std::to_string(shadow.reader) + " has") +
            std::string(" read with no barrier between"));
  }

  [[noreturn]] void fail_race(bool write, size_t byte, int thread, const std::string& why) {
    fail("thread " + std::to_string(thread) + (write ? " writes" : " reads") + " byte " +
         std::to_string(byte) + " of shared memory, " + why);
  }

  const Launch* launch_ = nullptr;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  int at_barrier_ = 0;
  // The thread that runs: for the CPU's thread that runs the block. Host code beside kernels calls
  // the hooks too, and may run on another one meanwhile.
  static inline thread_local int current_ __attribute__((tls_model("initial-exec"))) = -1;
  jmp_buf scheduler_;
  std::string fault_;
  const void* code_ = nullptr;  // the access that is looked at

  unsigned char* stacks_ = nullptr;
  unsigned char* shared_ = nullptr;
  std::vector<Shadow> shadow_ = std::vector<Shadow>(kMaxSharedBytes);
  uint32_t epoch_ = 0;
  uint32_t first_epoch_ = 0;  // of this block
  uintptr_t image_begin_ = 0, image_end_ = 0;
};

Machine& machine() {
  static Machine machine;
  return machine;
}

void Machine::fiber() {
  Machine& m = machine();
  for (;;) {
    m.launch_->run_thread(m.launch_->call.get());
    if (!m.here().copies.empty()) m.fail("a cp.async that nobody has waited for");
    m.here().state = State::kDone;
    m.leave();
  }
}

}  // namespace

void run(const Launch& launch) { machine().run(launch); }

void warp_collective(const char* name, Site site, void* lane, WarpWork work) {
  machine().collective(name, site, lane, work);
}
void syncthreads(Site site) { machine().syncthreads(site); }
void syncwarp(Site site) {
  warp_collective("syncwarp", site, nullptr, [](void* const*) { machine().begin_warp_epoch(); });
}
void cp_async16(void* shared, const void* global, int bytes) {
  machine().copy(shared, global, bytes);
}
void cp_async_commit() { machine().commit(); }
void cp_async_wait(int groups) { machine().wait_for_copies(groups); }
void require_alignment(const void* p, int bytes) {
  machine().require_alignment(p, static_cast<size_t>(bytes));
}
void* shared_memory() { return machine().shared(); }

// PTX ISA 9.7.14.5.15, "Warp-level matrix load instruction: ldmatrix".
void ldmatrix_x4(uint32_t* out, const void* row, bool transposed, Site site) {
  struct Lane {
    const void* row;
    uint32_t* out;
    bool transposed;
    int thread;
  } mine{row, out, transposed, machine().current()};
  warp_collective(transposed ? "ldmatrix.trans" : "ldmatrix", site, &mine, [](void* const* lanes) {
    uint16_t elements[4][8][8];
    for (int l = 0; l < kWarp; ++l) {
      const Lane& lane = *static_cast<Lane*>(lanes[l]);
      machine().load_matrix_row(lane.row, lane.thread);
      std::memcpy(elements[l / 8][l % 8], lane.row, 16);
    }
    for (int l = 0; l < kWarp; ++l) {
      const Lane& lane = *static_cast<Lane*>(lanes[l]);
      for (int m = 0; m < 4; ++m) {
        const int major = l / 4, minor = l % 4 * 2;
        const auto element = [&](int i) -> uint32_t {
          return lane.transposed ? elements[m][minor + i][major] : elements[m][major][minor + i];
        };
        lane.out[m] = element(0) | element(1) << 16;
      }
    }
  });
}

// PTX ISA 9.7.14.5.8, "Matrix Fragments for mma.m16n8k16 with floating point type". The order of
// the hardware's sums is not documented; here they are exact but for one rounding at the end.
void mma_m16n8k16(float* sums, const uint32_t* a, const uint32_t* b, float (*widen)(uint16_t),
                  Site site) {
  struct Lane {
    float* sums;
    const uint32_t* a;
    const uint32_t* b;
    float (*widen)(uint16_t);
  } mine{sums, a, b, widen};
  warp_collective("mma", site, &mine, [](void* const* lanes) {
    float a[16][16], b[8][16];  // b by columns
    for (int l = 0; l < kWarp; ++l) {
      const Lane& lane = *static_cast<Lane*>(lanes[l]);
      const int group = l / 4, pair = l % 4 * 2;
      for (int i = 0; i < 8; ++i) {
        const auto bits = static_cast<uint16_t>(lane.a[i / 2] >> (i % 2 * 16));
        a[group + (i / 2 % 2 ? 8 : 0)][pair + i % 2 + (i < 4 ? 0 : 8)] = lane.widen(bits);
      }
      for (int i = 0; i < 4; ++i) {
        const auto bits = static_cast<uint16_t>(lane.b[i / 2] >> (i % 2 * 16));
        b[group][pair + i % 2 + (i < 2 ? 0 : 8)] = lane.widen(bits);
      }
    }
    for (int l = 0; l < kWarp; ++l) {
      const Lane& lane = *static_cast<Lane*>(lanes[l]);
      for (int i = 0; i < 4; ++i) {
        const float* row = a[l / 4 + (i < 2 ? 0 : 8)];
        const float* column = b[l % 4 * 2 + i % 2];
        double sum = lane.sums[i];
        for (int k = 0; k < 16; ++k) sum += static_cast<double>(row[k]) * column[k];
        lane.sums[i] = static_cast<float>(sum);
      }
    }
  });
}

float fp16_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = bits >> 10 & 31;
  const uint32_t fraction = bits & 1023;
  float size;
  if (exponent == 0) {
    size = static_cast<float>(fraction) * 0x1p-24f;
  } else {
    const uint32_t wide = (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
    std::memcpy(&size, &wide, sizeof(size));
  }
  return sign ? -size : size;
}

float bf16_to_float(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

uint16_t float_to_fp16(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (std::isnan(value)) return 0x7fff;
  if (size == 0.0f) return sign;
  if (size >= 65520.0f) return sign | 0x7c00;
  int exponent;
  std::frexp(size, &exponent);
  exponent = std::max(exponent, -13);  // below, numbers are multiples of 2^-24
  // In units of the last of 11 bits; exact, so that the one rounding is nearbyint's, ties to even.
  const auto units = static_cast<uint16_t>(std::nearbyint(std::ldexp(size, 11 - exponent)));
  // A unit more carries into the exponent as it should.
  return static_cast<uint16_t>(sign | (((exponent + 13) << 10) + units));
}

uint16_t float_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if (std::isnan(value)) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace bertrt::cuda::emulator

// What the compiler calls before each access; https://github.com/llvm/llvm-project,
// compiler-rt/lib/tsan/rtl/tsan_interface.h is the list.
extern "C" {
using bertrt::cuda::emulator::machine;

#define BERTRT_HOOK(bytes)                                                 \
  void __tsan_read##bytes(void* p) {                                       \
    machine().touch_aligned(p, bytes, false, __builtin_return_address(0)); \
  }                                                                        \
  void __tsan_write##bytes(void* p) {                                      \
    machine().touch_aligned(p, bytes, true, __builtin_return_address(0));  \
  }                                                                        \
  void __tsan_unaligned_read##bytes(void* p) {                             \
    machine().touch(p, bytes, false, __builtin_return_address(0));         \
  }                                                                        \
  void __tsan_unaligned_write##bytes(void* p) {                            \
    machine().touch(p, bytes, true, __builtin_return_address(0));          \
  }
BERTRT_HOOK(1)
BERTRT_HOOK(2)
BERTRT_HOOK(4)
BERTRT_HOOK(8)
BERTRT_HOOK(16)
#undef BERTRT_HOOK
void __tsan_read_range(void* p, size_t bytes) {
  machine().touch(p, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t bytes) {
  machine().touch(p, bytes, true, __builtin_return_address(0));
}
void __tsan_vptr_read(void*) {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
// Of host code: guards of static variables, counts of shared pointers. Kernels have no atomics.
int __tsan_atomic32_fetch_add(volatile int* p, int value, int) {
  return __atomic_fetch_add(p, value, __ATOMIC_SEQ_CST);
}
char __tsan_atomic8_load(const volatile char* p, int) {
  return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}
}
