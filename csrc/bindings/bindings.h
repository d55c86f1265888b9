// One function a part of the Python module; module.cpp is the list. What tests and benchmarks alone
// call is in testing/.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace bertrt::bindings {

using FloatArray = pybind11::array_t<float, pybind11::array::c_style>;
using IntArray = pybind11::array_t<int32_t, pybind11::array::c_style>;

void bind_engine(pybind11::module_& module);
void bind_machine(pybind11::module_& module);

}  // namespace bertrt::bindings
