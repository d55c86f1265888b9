// The CUDA modules' part that is for use, and what their bindings share.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "core/error.h"
#include "cuda/kernels.h"

namespace bertrt::bindings {

void bind_cuda_engine(pybind11::module_& module);

inline cuda::Element parse_element(const std::string& name) {
  if (name == "fp32") return cuda::Element::kFp32;
  if (name == "fp16") return cuda::Element::kFp16;
  if (name == "bf16") return cuda::Element::kBf16;
  throw BatchError("element must be fp32, fp16 or bf16, not " + name);
}

}  // namespace bertrt::bindings
