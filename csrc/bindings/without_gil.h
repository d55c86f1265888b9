// Work that leaves Python to other threads, and work of such a thread in Python.
#pragma once

#include <chrono>
#include <utility>

#include <pybind11/pybind11.h>

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#include <unistd.h>
#endif

namespace bertrt::bindings {

// Runs what takes the GIL, or runs Python code, which gives it up and takes it again. Python before
// 3.14 ends a daemon thread that wants the GIL when the interpreter has shut down, by pthread_exit;
// its unwinding would end the process at the next destructor. As in 3.14 the thread stays where it
// is instead, until the process is gone. `work` has nothing to destroy itself: it would, without
// the GIL.
template <class Work>
void or_stay(const Work& work) {
#if defined(__GLIBCXX__)
  try {
    work();
  } catch (const abi::__forced_unwind&) {
    for (;;) pause();
  }
#else
  work();
#endif
}

// What a Python function returns. Throws what it raises.
template <class... Arguments>
pybind11::object call(const pybind11::object& function, const Arguments&... arguments) {
  PyObject* found = nullptr;
  or_stay(
      [&] { found = PyObject_CallFunctionObjArgs(function.ptr(), arguments.ptr()..., nullptr); });
  if (!found) throw pybind11::error_already_set();
  return pybind11::reinterpret_steal<pybind11::object>(found);
}

// Gives up the GIL for as long as this lives.
class WithoutGil {
 public:
  WithoutGil() : thread_(PyEval_SaveThread()) {}
  ~WithoutGil() {
    if (thread_) take();
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

  // In Python's main thread, lets its signal handlers run, and throws what they raise; then the GIL
  // is held. Asks seldom: a thread that is busy with Python code may keep the GIL for 5 ms.
  void check_signals() {
    if (Clock::now() < next_) return;
    take();
    bool raised = false;
    or_stay([&] { raised = PyErr_CheckSignals() != 0; });
    if (raised) throw pybind11::error_already_set();
    const bool handles = in_main_thread();
    thread_ = PyEval_SaveThread();
    next_ = handles ? Clock::now() + kInterval : Clock::time_point::max();
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr auto kInterval = std::chrono::milliseconds(100);

  static bool in_main_thread() {
    const pybind11::object main_thread = pybind11::module_::import("threading").attr("main_thread");
    const pybind11::object main = call(main_thread);
    return main.attr("ident").cast<unsigned long>() == PyThread_get_thread_ident();
  }

  void take() noexcept {
    or_stay([this] { PyEval_RestoreThread(std::exchange(thread_, nullptr)); });
  }

  PyThreadState* thread_;
  Clock::time_point next_ = Clock::now() + kInterval;
};

// Has the GIL for as long as this lives, whether or not the thread has it already.
class WithGil {
 public:
  WithGil() {
    or_stay([this] { state_ = PyGILState_Ensure(); });
  }
  ~WithGil() { PyGILState_Release(state_); }
  WithGil(const WithGil&) = delete;
  WithGil& operator=(const WithGil&) = delete;

 private:
  PyGILState_STATE state_{};
};

}  // namespace bertrt::bindings
