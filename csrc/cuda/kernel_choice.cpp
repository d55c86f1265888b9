#include "cuda/kernel_choice.h"

#include <cstdlib>
#include <string>

#include "core/error.h"
#include "cuda/hopper/attention.h"
#include "cuda/hopper/present.h"

namespace bertrt::cuda {

Kernels chosen_kernels() {
  const char* value = std::getenv("BERTRT_CUDA_KERNELS");
  const std::string name = value && *value ? value : "mma";
  if (name == "mma") return Kernels::kMma;
  if (name != "hopper") {
    throw DeviceError("BERTRT_CUDA_KERNELS is '" + name +
                      "'; known are: mma, hopper; unset it for the kernels that every GPU has");
  }
  if (!hopper::present()) {
    throw DeviceError(
        "BERTRT_CUDA_KERNELS is 'hopper', whose kernels need a GPU of compute capability 9.0, "
        "which this one is not; unset it, or name mma");
  }
  return Kernels::kHopper;
}

bool hopper_takes_linear(Kernels kernels, Element element, std::optional<EightBits> bits) {
  return kernels == Kernels::kHopper && element != Element::kFp32 && bits != EightBits::kInt8;
}

bool hopper_takes_attention(Kernels kernels, const Attention& attention, Element element) {
  return kernels == Kernels::kHopper && hopper_attention_fits(attention, element);
}

}  // namespace bertrt::cuda
