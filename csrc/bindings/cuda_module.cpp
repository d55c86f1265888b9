#include "bindings/cuda_bindings.h"
#include "bindings/inputs.h"

#ifdef BERTRT_CUDA_EMULATOR
#define BERTRT_CUDA_MODULE _cuda_emulated
#else
#define BERTRT_CUDA_MODULE _cuda
#endif

PYBIND11_MODULE(BERTRT_CUDA_MODULE, module) {
  module.doc() = "The compiled part of bertrt: plan execution on GPUs. Use bertrt.Engine.";
  bertrt::bindings::translate_errors();
  bertrt::bindings::bind_cuda_engine(module);
  bertrt::bindings::bind_cuda_kernels(module);
}
