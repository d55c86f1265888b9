// In which mode floats are computed, whatever the mode of the thread that calls us.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace bertrt {

// While one lives, its thread rounds to nearest, goes on where an exception is raised, and takes
// denormals, as operands and as results, for zeros: where a CPU computes with them in microcode a
// product full of them takes many times as long. Afterwards the thread's mode is what it was, and
// so are the flags of past exceptions. A new thread has the mode of the one that starts it.
//
// Of x86-64 and 64-bit Arm alone: on other CPUs the thread's own mode stays. On x86-64 the loads
// and stores of the control word take about ten nanoseconds.
class FloatMode {
 public:
#if defined(__x86_64__)
  FloatMode() : before_(present()) { _mm_setcsr(kOurs); }
  ~FloatMode() { _mm_setcsr(before_); }
  // The thread's mode and flags: what MXCSR holds (Intel SDM volume 1, 10.2.3).
  static unsigned present() { return _mm_getcsr(); }
#elif defined(__aarch64__)
  FloatMode() : before_(present()) {
    asm volatile("mrs %0, fpsr" : "=r"(flags_));
    set(kOurs);
  }
  ~FloatMode() {
    set(before_);
    asm volatile("msr fpsr, %0" ::"r"(flags_) : "memory");
  }
  // The thread's mode: what FPCR holds (Arm ARM, C5.2). The flags are in FPSR.
  static unsigned present() {
    uint64_t mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return static_cast<unsigned>(mode);
  }
#else
  FloatMode() {}
  ~FloatMode() {}
  static unsigned present() { return 0; }
#endif
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

 private:
#if defined(__x86_64__)
  // _MM_DENORMALS_ZERO_ON, which is in a header for SSE3, is 0x40.
  static constexpr unsigned kOurs = _MM_MASK_MASK | _MM_ROUND_NEAREST | _MM_FLUSH_ZERO_ON | 0x40;
  const unsigned before_;
#elif defined(__aarch64__)
  // FZ alone. What is not set: traps, another rounding, the alternate handling of denormals (AH)
  // and another rounding of bfloat16 products (EBF), of CPUs that have these.
  static constexpr unsigned kOurs = 1u << 24;
  static void set(uint64_t mode) { asm volatile("msr fpcr, %0" ::"r"(mode) : "memory"); }
  const unsigned before_;
  uint64_t flags_;
#endif
};

}  // namespace bertrt
