// One function a part of the CUDA module; cuda_module.cpp is the list.
#pragma once

#include <pybind11/pybind11.h>

namespace bertrt::bindings {

void bind_cuda_engine(pybind11::module_& module);
void bind_cuda_kernels(pybind11::module_& module);

}  // namespace bertrt::bindings
