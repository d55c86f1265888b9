// Matrix products of e4m3, apart from the others because they are compiled for other architectures:
// mma.sync has them from sm_89 on.
#include "core/error.h"
#include "cuda/linear_mma.cuh"

namespace bertrt::cuda {

// The sums that are taken out are as many again: a multiprocessor holds one block of the large
// tile, with twice the registers.
using LargeE4m3 = MmaTile<2, 4, 64, 32, 1>;
static_assert(LargeE4m3::kRows == LargeMma::kRows && LargeE4m3::kColumns == LargeMma::kColumns,
              "choose_tiles counts those");

void linear_fp8(Tiles tiles, const Linear& linear, QuantisedRows x, ConstDeviceRows residual,
                RowCount rows, DeviceRows out, Stream stream) {
  const auto p = quantised_product<E4m3>(linear, x, residual, rows, out);
  switch (tiles) {
    case Tiles::kSmall:
      return run<SmallMma>(linear_mma<Fp16, E4m3, SmallMma>, p, stream);
    case Tiles::kMedium:
      return run<MediumMma>(linear_mma<Fp16, E4m3, MediumMma>, p, stream);
    case Tiles::kLarge:
      return run<LargeE4m3>(linear_mma<Fp16, E4m3, LargeE4m3>, p, stream);
    case Tiles::kHopper:
      throw DeviceError("8-bit numbers have no product for Hopper alone");
  }
}

}  // namespace bertrt::cuda
