// The matrix product of one row tile with one packed panel, in any precision.
//
// Every element of the result is summed over the depth in the same order whatever the height of the
// tile: so a row has the same bits in any batch, and with fused multiply-add the same bits on AVX2
// and AVX-512. Sums of int8 products are exact, and so the same everywhere.
#pragma once

#include "cpu/generic/math.inl.h"

namespace bertrt::cpu::BERTRT_CPU_NAMESPACE {
namespace {

inline constexpr int kPanel = 16 * kGemmVectors;

// Sums are taken over this many inputs at a time and then added up, since a long chain of roundings
// loses more: over 24 layers, blocks of 256 were a third less exact. Adding the accumulators to
// memory this often costs no time that can be measured on Zen 4.
inline constexpr int64_t kDepthBlock = 96;
// In bf16 the inputs' own rounding hides that of the sums, and there it would cost a fiftieth.
inline constexpr int64_t kDepthBlockBf16 = 768;

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// A format says how a precision multiplies: Input is a group of inputs of a row, read at once;
// Weights are the same group of 16 columns; step() adds their products to 16 sums; value() is what
// a sum is worth; gelu_erf() is as exact as the products are. Weights that are widened on the way
// take registers, and so rows from a tile.

struct Float32 {
  using Input = float;
  using Sum = F16;
  using Weights = F16;
  static constexpr int kRows = kGemmRows;
  static constexpr int kGroup = 1;
  static constexpr bool kExact = false;
  static constexpr int64_t kBlock = kDepthBlock;          // groups
  static constexpr int64_t kVector = 16 * sizeof(float);  // bytes of 16 columns
  static Sum none() { return zero(); }
  static Weights load_weights(const char* p) { return load(reinterpret_cast<const float*>(p)); }
  static Sum step(Sum sum, const Input* x, Weights w) { return add_product(sum, x, w); }
  static F16 value(Sum sum, const GemmTile&, int, int) { return sum; }
  static F16 gelu_erf(F16 x) { return gelu_erf_f32(x); }
};

struct InputPair {
  float first, second;
};

// Weights in bfloat16; rows rounded to bfloat16 and kept as float32. Products are exact.
struct BFloat16 {
  using Input = InputPair;
  using Sum = F16;
  using Weights = PairsF16;
  static constexpr int kRows = kWideningRows;
  static constexpr int kGroup = 2;
  static constexpr bool kExact = false;
  static constexpr int64_t kBlock = kDepthBlockBf16 / 2;
  static constexpr int64_t kVector = 16 * 2 * sizeof(uint16_t);
  static Sum none() { return zero(); }
  static Weights load_weights(const char* p) {
    return load_bf16_pairs(reinterpret_cast<const uint16_t*>(p));
  }
  static Sum step(Sum sum, const Input* x, Weights w) {
    return add_product(add_product(sum, &x->first, w.first), &x->second, w.second);
  }
  static F16 value(Sum sum, const GemmTile&, int, int) { return sum; }
  static F16 gelu_erf(F16 x) { return gelu_erf_short(x); }
};

// What an integer sum is worth: the same operations in the same order on every path.
inline F16 dequantise(I16 sum, const GemmTile& tile, int row, int column) {
  const F16 scale = broadcast(tile.steps(row).scale) * load(tile.column_scale + column);
  return to_float(sum) * scale;
}

// Weights in 8 bits; rows in 255 steps from their lowest to their highest value, without the zero
// point, kept as 16 bits.
struct Int8 {
  using Input = int32_t;  // two 16-bit integers
  using Sum = I16;
  using Weights = PairsI16;
  static constexpr int kRows = kWideningRows;
  static constexpr int kGroup = 2;
  static constexpr bool kExact = true;
  static constexpr int64_t kVector = 16 * 2;
  static Sum none() { return zero_int(); }
  static Weights load_weights(const char* p) {
    return load_s8_pairs(reinterpret_cast<const int8_t*>(p));
  }
  static Sum step(Sum sum, const Input* x, Weights w) { return dot_pairs(sum, w, x); }
  static F16 value(Sum sum, const GemmTile& tile, int row, int column) {
    return dequantise(sum, tile, row, column);
  }
  static F16 gelu_erf(F16 x) { return gelu_erf_short(x); }
};

// Both in 16 bits.
struct Int16 {
  using Input = int32_t;  // two 16-bit integers
  using Sum = I16;
  using Weights = PairsI16;
  static constexpr int kRows = kWideningRows;
  static constexpr int kGroup = 2;
  static constexpr bool kExact = true;
  static constexpr int64_t kVector = 16 * 2 * sizeof(int16_t);
  static Sum none() { return zero_int(); }
  static Weights load_weights(const char* p) {
    return load_s16_pairs(reinterpret_cast<const int16_t*>(p));
  }
  static Sum step(Sum sum, const Input* x, Weights w) { return dot_pairs(sum, w, x); }
};

template <class Format, int kRows>
struct Accumulators {
  typename Format::Sum sum[kRows][kGemmVectors];
};

// Sums of a[kRows][depth] * panel[depth][kPanel], depth in groups, a_stride in inputs. Rows are
// read in place: three share a pointer, since an address may add once or twice the stride, and so
// 14 rows need five pointers.
template <class Format, int kRows, bool kFetch>
struct Rows {
  static constexpr int kPointers = (kRows + 2) / 3;
  const typename Format::Input* p[kPointers];
  int64_t stride;
  const char* panel;
  // What is to be fetched meanwhile, if kFetch: a stream for each vector of the panel.
  const char* fetch;
  int64_t fetch_step;
  int64_t fetch_apart;

  inline __attribute__((always_inline)) void multiply(int64_t depth,
                                                      Accumulators<Format, kRows>& acc) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kGemmVectors; ++j) acc.sum[i][j] = Format::none();
    }
    for (int64_t k = 0; k < depth; ++k) {
      typename Format::Weights w[kGemmVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kGemmVectors; ++j) {
        w[j] = Format::load_weights(panel + j * Format::kVector);
        if constexpr (kFetch) __builtin_prefetch(fetch + j * fetch_apart, 0, 2);
      }
      if constexpr (kFetch) fetch += fetch_step;
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const typename Format::Input* x = p[i / 3] + (i % 3) * stride;
#pragma GCC unroll 4
        for (int j = 0; j < kGemmVectors; ++j) acc.sum[i][j] = Format::step(acc.sum[i][j], x, w[j]);
      }
      panel += kGemmVectors * Format::kVector;
#pragma GCC unroll 16
      for (int j = 0; j < kPointers; ++j) ++p[j];
    }
  }
};

template <class Format, int kRows, bool kFetch = false>
inline __attribute__((always_inline)) void multiply(const typename Format::Input* a,
                                                    int64_t a_stride, const void* weights,
                                                    int64_t depth,
                                                    Accumulators<Format, kRows>& result,
                                                    const Fetch& next = {}) {
  Rows<Format, kRows, kFetch> rows;
#pragma GCC unroll 16
  for (int j = 0; j < rows.kPointers; ++j) rows.p[j] = a + 3 * j * a_stride;
  rows.stride = a_stride;
  rows.panel = static_cast<const char*>(weights);
  if constexpr (kFetch) {
    rows.fetch = static_cast<const char*>(next.from ? next.from : weights);
    rows.fetch_step = (next.bytes + depth * kGemmVectors - 1) / (depth * kGemmVectors);
    rows.fetch_apart = rows.fetch_step * depth;
  }
  if constexpr (Format::kExact) {
    rows.multiply(depth, result);
    return;
  } else {
    for (int64_t begin = 0; begin < depth; begin += Format::kBlock) {
      Accumulators<Format, kRows> block;
      rows.multiply(begin + Format::kBlock < depth ? Format::kBlock : depth - begin, block);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kGemmVectors; ++j) {
          result.sum[i][j] = begin == 0 ? block.sum[i][j] : result.sum[i][j] + block.sum[i][j];
        }
      }
      // Of seven rows and two vectors 32 registers hold the sums of a block and of all before just
      // not, beside the weights. GCC 12 then keeps one of the weights on the stack: a quarter of
      // the time. So the sums of all wait in memory, as those of more rows do.
      if constexpr (kRows * kGemmVectors == 14) asm("" : "+m"(result));
    }
  }
}

template <class Format, int kRows>
void gemm_rows(const GemmTile& t) {
  using Input = typename Format::Input;
  // The product takes longer than these lines need to arrive.
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kGemmVectors; ++j) __builtin_prefetch(t.out + i * t.out_stride + 16 * j, 1);
  }
  Accumulators<Format, kRows> acc;
  multiply<Format, kRows, true>(static_cast<const Input*>(t.a),
                                t.a_stride / static_cast<int64_t>(sizeof(Input)), t.panel, t.depth,
                                acc, t.next);
#pragma GCC unroll 4
  for (int j = 0; j < kGemmVectors; ++j) {
    const int cols = t.cols - 16 * j;
    if (cols <= 0) break;
    const bool whole = cols >= 16;
    F16 bias = zero();
    if (t.bias) bias = whole ? load(t.bias + 16 * j) : load_first(t.bias + 16 * j, cols);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const F16 value = Format::value(acc.sum[i][j], t, i, 16 * j) + bias;
      float* out = t.out + i * t.out_stride + 16 * j;
      if (whole) {
        store(out, value);
      } else {
        store_first(out, value, cols);
      }
    }
  }
  // The tile is still in the first-level cache.
  activate<Format::gelu_erf>(t.activation, t.out, t.out_stride, kRows, t.cols);
}

// Calls Body<rows>::run(argument) for a number of rows known at run time.
template <template <int> class Body, int kRows, class Argument>
inline void with_rows(int rows, Argument& argument) {
  if constexpr (kRows == 1) {
    Body<1>::run(argument);
  } else if (rows == kRows) {
    Body<kRows>::run(argument);
  } else {
    with_rows<Body, kRows - 1>(rows, argument);
  }
}

template <class Format>
struct Gemm {
  template <int kRows>
  struct Body {
    static void run(const GemmTile& tile) { gemm_rows<Format, kRows>(tile); }
  };
  static void run(const GemmTile& tile) { with_rows<Body, Format::kRows>(tile.rows, tile); }
};

// Rows in the form that the formats above read.

// Calls body(first, F16) for every 16 of count values; missing ones are zero.
template <class Body>
inline void for_each_vector(const float* x, int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) body(i, load(x + i));
  if (i < count) body(i, load_first(x + i, static_cast<int>(count - i)));
}

inline void convert_bf16(const float* x, int64_t depth, void* out, RowSteps*) {
  float* row = static_cast<float*>(out);
  for_each_vector(x, depth, [&](int64_t i, F16 v) { store(row + i, round_to_bf16(v)); });
}

// The steps of a row: 255 from its lowest to its highest value, 0 included. GELU's values lie on
// one side of zero: steps around zero would waste half of them.
//
// A row of zeros, or so small that a step would be a denormal, has steps of 0; a row with a value
// that is not finite has steps worth NaN, so that nothing plausible comes of it.
inline RowSteps row_steps(const float* x, int64_t depth, float& inverse) {
  F16 lowest[2] = {zero(), zero()};
  F16 highest[2] = {zero(), zero()};
  F16 poison[2] = {zero(), zero()};
  const auto look = [&](int which, F16 v) {
    lowest[which] = min(lowest[which], v);
    highest[which] = max(highest[which], v);
    poison[which] = fma(v, zero(), poison[which]);
  };
  int64_t i = 0;
  for (; i + 32 <= depth; i += 32) {
    look(0, load(x + i));
    look(1, load(x + i + 16));
  }
  for_each_vector(x + i, depth - i, [&](int64_t, F16 v) { look(0, v); });
  const float low = -reduce_max(zero() - min(lowest[0], lowest[1]));
  const float range = reduce_max(max(highest[0], highest[1])) - low;
  const float step = range / 255.0f;
  inverse = step > 0.0f ? 255.0f / range : 0.0f;
  const float offset = -low * inverse + 0.5f;
  const auto zero_point = static_cast<int32_t>(offset > 0.0f && offset < 256.0f ? offset : 0.0f);
  return {step + reduce_add(poison[0] + poison[1]), zero_point};
}

// Quantises a row and passes its values, as steps from 0 to 255, to body(first, I16, zero point):
// rounded to nearest, ties to even.
template <class Body>
inline RowSteps quantise(const float* x, int64_t depth, const Body& body) {
  float inverse;
  const RowSteps steps = row_steps(x, depth, inverse);
  const F16 factor = broadcast(inverse);
  const I16 zero_point = broadcast_int(steps.zero);
  const I16 last = broadcast_int(255);
  for_each_vector(x, depth, [&](int64_t i, F16 v) {
    const I16 q = to_nearest_int(v * factor) + zero_point;
    body(i, min(max(q, zero_int()), last), zero_point);
  });
  return steps;
}

inline void convert_s8(const float* x, int64_t depth, void* out, RowSteps* steps) {
  int16_t* row = static_cast<int16_t*>(out);
  *steps = quantise(x, depth, [&](int64_t i, I16 q, I16 zero) { store_s16(row + i, q - zero); });
}

}  // namespace
}  // namespace bertrt::cpu::BERTRT_CPU_NAMESPACE
