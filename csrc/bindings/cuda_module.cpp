#include "bindings/cuda.h"
#include "bindings/inputs.h"
#include "bindings/testing/cuda_kernels.h"

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "The compiled part of bertrt: plan execution on GPUs. Use bertrt.Engine.";
  bertrt::bindings::translate_errors();
  bertrt::bindings::bind_cuda_engine(module);
  bertrt::bindings::bind_cuda_kernels(module);
}
