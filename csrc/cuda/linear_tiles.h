// The tiles that linear() computes its result in: a choice of speed alone, a row's bits are the
// same in each but Hopper's. Tests and measurements name one.
#pragma once

#include "cuda/kernels.h"

namespace bertrt::cuda {

// kHopper: hopper/linear.h, for 16 bits on compute capability 9.0; DeviceError elsewhere. Its sums
// may have other bits than those of the other tiles: it is no choice of rows, but of a layer for
// all its batches, Linear::hopper.
// kHopperBlocks: the same without clusters of blocks, and with the same bits: for measurements.
// kWide: in 16 bits for layers of one part of the depth (depth.h), and for 8-bit integers;
// DeviceError elsewhere.
enum class Tiles { kSmall, kMedium, kLarge, kWide, kHopper, kHopperBlocks };

// What linear() takes of those of mma.sync, or of fp32, on a device of so many multiprocessors.
// element: of the result.
Tiles choose_tiles(const Linear& linear, Element element, int64_t rows, int multiprocessors);

void linear_in_tiles(Tiles tiles, const Linear& linear, ConstDeviceRows x, ConstDeviceRows residual,
                     RowCount rows, DeviceRows out, Stream stream);
void linear_in_tiles(Tiles tiles, const Linear& linear, QuantisedRows x, ConstDeviceRows residual,
                     RowCount rows, DeviceRows out, Stream stream);
// The latter's part for e4m3, in a source that is compiled for other architectures. Some row.
void linear_fp8(Tiles tiles, const Linear& linear, QuantisedRows x, ConstDeviceRows residual,
                RowCount rows, DeviceRows out, Stream stream);

}  // namespace bertrt::cuda
