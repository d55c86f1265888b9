// One function a part of the CUDA modules, _cuda and _cuda_emulated, and what they share.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "core/error.h"
#include "cuda/kernels.h"

namespace bertrt::bindings {

void bind_cuda_engine(pybind11::module_& module);
void bind_cuda_kernels(pybind11::module_& module);
void bind_cuda_products(pybind11::module_& kernels);

inline cuda::Element parse_element(const std::string& name) {
  if (name == "fp32") return cuda::Element::kFp32;
  if (name == "fp16") return cuda::Element::kFp16;
  if (name == "bf16") return cuda::Element::kBf16;
  throw BatchError("element must be fp32, fp16 or bf16, not " + name);
}

}  // namespace bertrt::bindings
