// The face of cuda/hopper/primitives.cuh, made by the emulator: TMA, its barriers, and wgmma.
//
// Nothing happens before it must: a tile lands when its barrier's phase is over, products are
// computed when somebody waits for their group. Faults that it finds: a phase that gets more bytes
// or arrivals than it expects, or waits for ever; a tile or a descriptor at a wrong place, or of
// another layout; a product of bytes that have not landed, or whose barrier a thread has not waited
// for; a tile that lands where products still read, or whose release the copying thread has not
// waited for; products without a fence before, or that nobody has waited for; threads of a
// warpgroup that do different products. Rows that nobody has written may be copied, since a launch
// is made for more rows than there are: they land as NaN, and nothing may come of them.
#pragma once

#include "emulator/device.h"

#define __grid_constant__

namespace bertrt::cuda {

uint32_t shared_address(const void* p);

namespace hopper {

struct Barrier {
  uint64_t opaque;
};

// The box is box_rows x 64 elements of 16 bits.
struct TensorMap {
  const void* data;
  int64_t rows, cols, stride;
  int box_rows;
};

namespace emulator {
void barrier_init(Barrier* barrier, int arrivals);
void barrier_arrive(Barrier* barrier, int bytes);
void barrier_wait(Barrier* barrier, unsigned parity, Site site);
void tma_load(void* tile, const TensorMap& map, int64_t row, int column, Barrier* barrier);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int groups, Site site);
void wgmma(float* sums, uint64_t a, uint64_t b, bool add, float (*widen)(uint16_t));
}  // namespace emulator

bool available();  // as the settings say
inline int multiprocessors() { return 2; }

template <class T>
TensorMap tensor_map(const T* data, int64_t rows, int64_t cols, int64_t stride, int box_rows) {
  if (reinterpret_cast<uintptr_t>(data) % 16 != 0 || stride * 2 % 16 != 0 || box_rows > 256) {
    throw DeviceError("rows cannot be described to TMA");
  }
  return {data, rows, cols, stride, box_rows};
}

inline void barrier_init(Barrier* barrier, int arrivals) {
  emulator::barrier_init(barrier, arrivals);
}
inline void barrier_init_done() {}
inline void barrier_arrive(Barrier* barrier) { emulator::barrier_arrive(barrier, 0); }
inline void barrier_expect(Barrier* barrier, int bytes) {
  emulator::barrier_arrive(barrier, bytes);
}
inline void barrier_wait(Barrier* barrier, unsigned parity, Site site = Site::current()) {
  emulator::barrier_wait(barrier, parity, site);
}
inline void tma_load(void* tile, const TensorMap& map, int64_t row, int column, Barrier* barrier) {
  emulator::tma_load(tile, map, row, column, barrier);
}
inline void wgmma_fence() { emulator::wgmma_fence(); }
inline void wgmma_commit() { emulator::wgmma_commit(); }
template <int kGroups, int kSums>
void wgmma_wait(float (&)[kSums], Site site = Site::current()) {
  emulator::wgmma_wait(kGroups, site);
}
template <int kGroups, int kParts, int kSums>
void wgmma_wait(float (&)[kParts][kSums], Site site = Site::current()) {
  emulator::wgmma_wait(kGroups, site);
}
template <int kRegisters>
void give_registers() {}
template <int kRegisters>
void take_registers() {}
template <class T>
void wgmma_m64n128k16(float (&sums)[64], uint64_t a, uint64_t b, bool add) {
  emulator::wgmma(sums, a, b, add, cuda::emulator::widening<T>());
}

}  // namespace hopper
}  // namespace bertrt::cuda
