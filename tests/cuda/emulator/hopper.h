// The face of cuda/hopper/primitives.cuh, made by the emulator: TMA, its barriers, and wgmma.
//
// Nothing happens before it must: a tile lands when its barrier's phase is over, products are
// computed when somebody waits for their group. Faults that it finds: a phase that gets more bytes
// or arrivals than it expects, or waits for ever; a tile or a descriptor at a wrong place, or of
// another layout; a product of bytes that have not landed, or whose barrier a thread has not waited
// for, or that their thread has not fenced for wgmma before it arrived there; a tile that lands, or
// a copy that begins, where products still read, or whose release the copying thread has not waited
// for; products without a fence before, or that nobody has waited for; registers that change while
// a product reads or sums them; threads of a warpgroup that do different products. Rows that nobody
// has written may be copied, since a launch is made for more rows than there are: they land as NaN,
// and nothing may come of them.
#pragma once

#include "emulator/device.h"

#define __grid_constant__

namespace bertrt::cuda {

uint32_t shared_address(const void* p);

namespace hopper {

struct Barrier {
  uint64_t opaque;
};

// The box is box_rows x 128 bytes.
struct TensorMap {
  const void* data;
  int64_t rows, cols, stride;
  int box_rows;
  int bytes;  // of an element
};

namespace emulator {
void barrier_init(Barrier* barrier, int arrivals);
void barrier_arrive(Barrier* barrier, int bytes, int rank);
void barrier_wait(Barrier* barrier, unsigned parity, Site site);
// `blocks`: a bit for each of the cluster's to whose shared memory it goes.
void tma_load(void* tile, const TensorMap& map, int64_t row, int column, Barrier* barrier,
              unsigned blocks);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int groups, Site site);
void fence_for_wgmma();
// Of 64 x 16 by 16 x columns. Its left operand is in `registers`, four a thread, if that is not
// null; `transposed`: the right one is MN-major. widen: of 16 bits; null: e4m3, of 64 x 32.
void wgmma(float* sums, const uint32_t* registers, uint64_t a, uint64_t b, bool transposed,
           int columns, bool add, float (*widen)(uint16_t));
}  // namespace emulator

bool available();  // as the settings say

template <class T>
TensorMap tensor_map(const T* data, int64_t rows, int64_t cols, int64_t stride, int box_rows) {
  if (reinterpret_cast<uintptr_t>(data) % 16 != 0 ||
      stride * static_cast<int64_t>(sizeof(T)) % 16 != 0 || box_rows > 256) {
    throw DeviceError("rows cannot be described to TMA");
  }
  return {data, rows, cols, stride, box_rows, sizeof(T)};
}

inline void barrier_init(Barrier* barrier, int arrivals) {
  emulator::barrier_init(barrier, arrivals);
}
inline void barrier_init_done() {}
inline unsigned cluster_rank() { return cuda::emulator::cluster_rank(); }
inline void barrier_arrive(Barrier* barrier, unsigned rank) {
  emulator::barrier_arrive(barrier, 0, static_cast<int>(rank));
}
inline void barrier_arrive(Barrier* barrier) { barrier_arrive(barrier, cluster_rank()); }
inline void barrier_expect(Barrier* barrier, int bytes) {
  emulator::barrier_arrive(barrier, bytes, static_cast<int>(cluster_rank()));
}
inline void barrier_wait(Barrier* barrier, unsigned parity, Site site = Site::current()) {
  emulator::barrier_wait(barrier, parity, site);
}
inline void tma_load(void* tile, const TensorMap& map, int64_t row, int column, Barrier* barrier) {
  emulator::tma_load(tile, map, row, column, barrier, 1U << cluster_rank());
}
inline void tma_load(void* tile, const TensorMap& map, int64_t row, int column, Barrier* barrier,
                     unsigned blocks) {
  emulator::tma_load(tile, map, row, column, barrier, blocks);
}
inline void cluster_barrier(Site site = Site::current()) { cuda::emulator::cluster_barrier(site); }
inline void load_peer(float (&to)[4], const float* shared, unsigned rank) {
  cuda::emulator::load_peer(to, shared, rank);
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
  emulator::wgmma(sums, nullptr, a, b, false, 128, add, cuda::emulator::widening<T>());
}

template <int kCount>
void compute_here(float (&)[kCount]) {}
inline void fence_for_wgmma() { emulator::fence_for_wgmma(); }
template <class T, bool kTransposed, int kSums>
void wgmma_of_registers(float (&sums)[kSums], const uint32_t (&a)[4], uint64_t b, bool add) {
  emulator::wgmma(sums, a, 0, b, kTransposed, kSums * 2, add, cuda::emulator::widening<T>());
}
inline void wgmma_m64n128k32(float (&sums)[64], uint64_t a, uint64_t b, bool add) {
  emulator::wgmma(sums, nullptr, a, b, false, 128, add, nullptr);
}

}  // namespace hopper
}  // namespace bertrt::cuda
