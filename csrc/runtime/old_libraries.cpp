// What the headers of newer systems call and the libraries of manylinux_2_28 lack: in modules that
// cmake/manylinux.cmake links, and in those alone.
#include <cxxabi.h>

#include <exception>
#include <new>

extern "C" {

// glibc 2.32: libstdc++'s reference counts leave out atomic operations while it is true.
extern const char __libc_single_threaded;
const char __libc_single_threaded = 0;

// CXXABI_1.3.15, which GCC 14 and later call where an exception leaves a noexcept function.
[[noreturn]] void __cxa_call_terminate(void* thrown) noexcept;
void __cxa_call_terminate(void* thrown) noexcept {
  abi::__cxa_begin_catch(thrown);  // so that a handler may ask for the exception
  std::terminate();
}

// What exception_ptr's copies and destructors called before they were inlined.
void bertrt_copy_exception(void* to, const void* from) noexcept
    __asm__("_ZNSt15__exception_ptr13exception_ptrC1ERKS0_");
void bertrt_drop_exception(void* held) noexcept
    __asm__("_ZNSt15__exception_ptr13exception_ptrD1Ev");
}

namespace std {

// libstdc++ of GCC 11: GLIBCXX_3.4.29
void __throw_bad_array_new_length() { throw bad_array_new_length(); }

// Of GCC 11, too: CXXABI_1.3.13. An exception_ptr is a pointer that is counted where it points to:
// a copy that nobody drops is one count more, and a drop of a copy that nobody made one less.
namespace __exception_ptr {

void exception_ptr::_M_addref() noexcept {
  void* copy;
  bertrt_copy_exception(&copy, this);
}

void exception_ptr::_M_release() noexcept {
  void* copy = _M_exception_object;
  bertrt_drop_exception(&copy);
}

}  // namespace __exception_ptr
}  // namespace std
