// Attention on Hopper's tensor cores (wgmma): no default, until a GPU has shown it.
#pragma once

#include "cuda/kernels.h"

namespace bertrt::cuda {

// Whether hopper::attention takes a layer: 16 bits, heads of 32 or 64, no bias by distance, on a
// device of compute capability 9.0. By the layer alone, so that a text's bits do not depend on its
// batch. Others are attention()'s.
bool hopper_attention_fits(const Attention& attention, Element element);

namespace hopper {

// As cuda::attention, of layers that fit. Raises DeviceError of others, and where the calling
// thread's device is not of compute capability 9.0.
void attention(const Attention& attention, const Sequences& sequences, ConstDeviceRows qkv,
               ConstDeviceRows first_queries, DeviceRows out, Stream stream);

}  // namespace hopper
}  // namespace bertrt::cuda
