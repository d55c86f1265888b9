// Which kernels a model takes where its device has several for the same step: the one place that
// decides it, by device, element and shape when a model is loaded, never by a batch's rows. So a
// text has the same bits in any batch, whichever kernels these are.
#pragma once

#include <optional>

#include "cuda/kernels.h"

namespace bertrt::cuda {

enum class Kernels {
  kMma,     // mma.sync: every device has them
  kHopper,  // wgmma and TMA, where they take a step, on compute capability 9.0; kMma's elsewhere
};

// What BERTRT_CUDA_KERNELS names, `mma` or `hopper`, for the calling thread's device; unset or
// empty, mma: no GPU has shown the others. Throws DeviceError for another name, and for hopper
// where the device has no such kernels.
Kernels chosen_kernels();

// Whether a product of rows of that element is Hopper's; bits: what its weights are in 8 bits.
bool hopper_takes_linear(Kernels kernels, Element element, std::optional<EightBits> bits);
// Likewise attention.
bool hopper_takes_attention(Kernels kernels, const Attention& attention, Element element);

}  // namespace bertrt::cuda
