// The tile registers of AMX: eight of 16 rows of 64 bytes. Instructions with the numbers of their
// registers, which compilers do not allocate; in assembly, since the intrinsics take the numbers as
// tokens and do not tell the compiler that a load reads memory.
#pragma once

#include <cstdint>

namespace bertrt::cpu::amx {
namespace {

// The 64 bytes that LDTILECFG reads; all tiles are zero after it.
inline void load_config(const void* config) {
  asm volatile("ldtilecfg (%0)" ::"r"(config) : "memory");
}
inline void release_tiles() { asm volatile("tilerelease" ::: "memory"); }

template <int kTile>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
// Rows `stride` bytes apart.
template <int kTile>
inline void load_tile(const void* rows, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void store_tile(void* rows, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(stride), "i"(kTile) : "memory");
}

// sums += rows * weights, of pairs of bfloat16.
template <int kSums, int kRows, int kWeights>
inline void add_bf16_products() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kRows), "i"(kWeights));
}
// Of fours of 8-bit integers: the rows' unsigned, the weights' signed.
template <int kSums, int kRows, int kWeights>
inline void add_int8_products() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kRows), "i"(kWeights));
}

}  // namespace
}  // namespace bertrt::cpu::amx
