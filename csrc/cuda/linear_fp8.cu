// Matrix products of e4m3, apart from the others because they are compiled for other architectures:
// mma.sync has them from sm_89 on. There it is an instruction (QMMA); of sm_90a ptxas makes fp16 of
// the operands (F2FP) and multiplies those (HMMA), for Hopper's own products in fp8 are wgmma's.
#include "cuda/hopper/linear.h"
#include "cuda/linear_mma.cuh"

namespace bertrt::cuda {

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
    case Tiles::kWide:
      throw DeviceError("fp8 has no tiles of 128 x 256");
    case Tiles::kHopper:
    case Tiles::kHopperBlocks:
      return hopper::linear_fp8(p, stream, tiles == Tiles::kHopper);
  }
}

}  // namespace bertrt::cuda
