// Products on Hopper's tensor cores (wgmma, TMA): no default, until a GPU has shown them.
#pragma once

#include "cuda/linear.cuh"

namespace bertrt::cuda::hopper {

// As cuda::linear, for p's elements of 16 bits; p.tiles_across is chosen here. `clusters`: whether
// blocks may share the work of a tile, or the copies of its weights; the bits are the same. Raises
// DeviceError where the calling thread's device is not of compute capability 9.0.
template <class T>
void linear(Product<T> p, Stream stream, bool clusters = true);

// The same of rows and weights in e4m3 (linear_fp8.cu).
void linear_fp8(Product<Fp16, E4m3> p, Stream stream, bool clusters = true);

}  // namespace bertrt::cuda::hopper
