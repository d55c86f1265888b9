// Matrix products of e4m3, apart from the others because they are compiled for other architectures:
// mma.sync has them from sm_89 on. There it is an instruction (QMMA); of sm_90a ptxas makes fp16 of
// the operands (F2FP) and multiplies those (HMMA), for Hopper's own products in fp8 are wgmma's.
#include "cuda/hopper/linear.h"
#include "cuda/linear_mma.cuh"

namespace bertrt::cuda {

// 64 x 128, where the others have 128 x 128: the sums that are taken out are as many again, and
// sm_90a needs 180 registers for 32 of each, with the operands in fp16.
using LargeE4m3 = MmaTile<2, 4, 32, 32, 1>;

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
    case Tiles::kHopperBlocks:
      return hopper::linear_fp8(p, stream, tiles == Tiles::kHopper);
  }
}

}  // namespace bertrt::cuda
