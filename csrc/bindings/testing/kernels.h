// The CPU's kernels one by one, for tests and benchmarks: each instruction set beside the
// reference.
#pragma once

#include <pybind11/pybind11.h>

namespace bertrt::bindings {

void bind_kernels(pybind11::module_& module);

}  // namespace bertrt::bindings
