// The tiles that linear() computes its result in: a choice of speed alone, a row's bits are the
// same in each. Tests and measurements name one.
#pragma once

#include "cuda/kernels.h"

namespace bertrt::cuda {

enum class Tiles { kSmall, kMedium, kLarge };

// What linear() takes.
Tiles choose_tiles(Element element, int64_t rows, int64_t outputs);

void linear_in_tiles(Tiles tiles, const Linear& linear, ConstDeviceRows x, ConstDeviceRows residual,
                     RowCount rows, DeviceRows out, Stream stream);
void linear_in_tiles(Tiles tiles, const Linear& linear, QuantisedRows x, ConstDeviceRows residual,
                     RowCount rows, DeviceRows out, Stream stream);

}  // namespace bertrt::cuda
