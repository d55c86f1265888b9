#include "bindings/bindings.h"
#include "bindings/inputs.h"
#include "bindings/testing/kernels.h"

namespace py = pybind11;

PYBIND11_MODULE(_native, module) {
  module.doc() = "The compiled part of bertrt: plan execution on the CPU. Use bertrt.Engine.";

  bertrt::bindings::translate_errors();
  bertrt::bindings::bind_engine(module);
  bertrt::bindings::bind_machine(module);
  bertrt::bindings::bind_kernels(module);
}
