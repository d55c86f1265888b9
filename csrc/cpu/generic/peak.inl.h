// How fast this instruction set multiplies and adds at most: the ceiling of the matrix products.
// And how fast it reads.
//
// Both are loops for measuring, see cpu/peaks.h. The multiplications take all their operands from
// registers, in independent chains: each waits for its own last result only.
#pragma once

#include <cstdint>

namespace bertrt::cpu::BERTRT_CPU_NAMESPACE {
namespace {

// Chain says what a step of a chain is, and how many operations that are (an addition and a
// multiplication are two). A step depends on the one before it, so that none can be left out.

struct MultiplyAdd {
  using Sum = F16;
  static constexpr int64_t kOperations = 2 * 16;
  F16 factor, summand;
  explicit MultiplyAdd(float x) : factor(broadcast(x)), summand(broadcast(1.0f - x)) {}
  static Sum first(F16 x) { return x; }
  Sum step(Sum sum) const { return chain(sum, factor, summand); }
  static void keep(Sum sum, float* out) { store(out, sum + load(out)); }
};

struct MultiplyAddPairs {
  using Sum = I16;
  static constexpr int64_t kOperations = 4 * 16;
  int32_t pair;
  explicit MultiplyAddPairs(float x) : pair(static_cast<int32_t>(x)) {}
  static Sum first(F16 x) { return to_nearest_int(x); }
  Sum step(Sum sum) const { return chain(sum, pair); }
  static void keep(Sum sum, float* out) { store(out, to_float(sum) + load(out)); }
};

template <class Chain>
int64_t peak(int64_t rounds, float x, float* out) {
  const Chain chain(x);
  // Chains, or lanes, that begin with the same value would be one to the compiler.
  typename Chain::Sum sum[kPeakChains];
#pragma GCC unroll 32
  for (int i = 0; i < kPeakChains; ++i)
    sum[i] = Chain::first(load(out) * broadcast(static_cast<float>(i + 1)));
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 4
    for (int step = 0; step < 4; ++step) {
#pragma GCC unroll 16
      for (int i = 0; i < kPeakChains; ++i) sum[i] = chain.step(sum[i]);
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < kPeakChains; ++i) Chain::keep(sum[i], out);
  return rounds * 4 * kPeakChains * Chain::kOperations;
}

// The sum of `count` values, a multiple of 128: eight loads are under way that wait for none.
inline float read_f32(const float* x, int64_t count) {
  F16 sum[8] = {zero(), zero(), zero(), zero(), zero(), zero(), zero(), zero()};
  for (int64_t i = 0; i < count; i += 128) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) sum[j] = sum[j] + load(x + i + 16 * j);
  }
  for (int j = 1; j < 8; ++j) sum[0] = sum[0] + sum[j];
  return reduce_add(sum[0]);
}

}  // namespace
}  // namespace bertrt::cpu::BERTRT_CPU_NAMESPACE
