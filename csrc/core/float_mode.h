// In which mode floats are computed, whatever the mode of the thread that calls us.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace bertrt {

// While one lives, its thread rounds to nearest, goes on where an exception is raised, and takes
// denormals, as operands and as results, for zeros: where a CPU computes with them in microcode a
// product full of them takes many times as long. Afterwards the thread's mode is what it was, and
// so are the flags of past exceptions. A new thread has the mode of the one that starts it.
//
// Of x86-64 alone: on other CPUs the thread's own mode stays. The loads and stores of the control
// word take about ten nanoseconds.
class FloatMode {
 public:
#if defined(__x86_64__)
  FloatMode() : before_(present()) { _mm_setcsr(kOurs); }
  ~FloatMode() { _mm_setcsr(before_); }
  // The thread's mode and flags: what MXCSR holds (Intel SDM volume 1, 10.2.3).
  static unsigned present() { return _mm_getcsr(); }
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
#endif
};

}  // namespace bertrt
