// What the compiler calls before each access under -fsanitize=thread;
// https://github.com/llvm/llvm-project, compiler-rt/lib/tsan/rtl/tsan_interface.h is the list.
#include <cstddef>

#include "emulator/machine.h"

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
