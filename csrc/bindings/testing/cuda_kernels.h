// The CUDA kernels one by one, for tests: on a device, or on the emulator.
#pragma once

#include <pybind11/pybind11.h>

namespace bertrt::bindings {

void bind_cuda_kernels(pybind11::module_& module);
void bind_cuda_products(pybind11::module_& kernels);

}  // namespace bertrt::bindings
