// Attention of one head over one sequence, with a streaming softmax, in any precision.
//
// Query rows go in tiles, keys in blocks. The scores of a tile against a block live in scratch that
// stays in the first-level cache; between blocks only a row's maximum, its sum and its weighted
// values are carried on (Milakov and Gimelshein, arXiv:1805.02867). The matrix of scores is never
// written to memory. A row's result depends on its own sequence alone, not on how query rows are
// cut into tiles.
//
// Both products run on the multiply() of gemm.inl.h. Its operands come in units of 32 bits: a
// float, or two 16-bit values that follow each other in depth.
#pragma once

#include "cpu/generic/gemm.inl.h"

namespace bertrt::cpu::BERTRT_CPU_NAMESPACE {
namespace {

// 14 rows of 512 scores take 28 KiB. Models of up to 512 tokens never rescale.
inline constexpr int64_t kKeyBlock = 512;

inline constexpr float kLog2E = 1.44269504f;

// The formats say how queries, keys, values and the softmax's weights become operands:
//   row()      a query or a key, `count` floats, as units of up to `limit`, which row_limit() gives
//              for its length; returns what a step of it is worth
//   values()   16 columns of the values of a key block, tokens `stride` floats apart, as units
//              `step` apart; their worth goes to `scale`
//   weights()  a vector of softmax weights, stored at element i of a row; returns them as summed
//   score(), context()  what a sum of products is worth
//   exp()      of x times kExpUnits, times kLargestWeight: what a weight is
// Whole vectors of 16 are written: there is room.

struct AttentionF32 {
  using Product = Float32;
  static constexpr float kExpUnits = 1.0f;
  static constexpr float kLargestWeight = 1.0f;
  static F16 exp(F16 x) { return exp_f32(x); }
  static float row_limit(int64_t) { return 1.0f; }
  static float row(const float* x, int64_t count, float, void* out) {
    for_each_vector(x, count, [&](int64_t i, F16 v) { store(static_cast<float*>(out) + i, v); });
    return 1.0f;
  }
  static void values(const float* x, int cols, int64_t stride, int64_t tokens, void* out,
                     int64_t step, float*) {
    float* units = static_cast<float*>(out);
    for (int64_t t = 0; t < tokens; ++t) {
      store(units + t * step, load_first(x + t * stride, cols));
    }
  }
  static F16 weights(F16 e, void* row, int64_t i) {
    store(static_cast<float*>(row) + i, e);
    return e;
  }
  static F16 score(F16 sum, float, const float*) { return sum; }
  static F16 context(F16 sum, const float*) { return sum; }
};

// 16-bit integers: for int8, where attention needs more than 8 bits (most of a long row's softmax
// weights are below a 255th of the largest), and still exact sums, the same on every path. Queries
// and keys take the most steps for which a sum of head_dim products fits 32 bits, values the most
// for a key block with weights of up to kLargestWeight.
//
// Magnitudes are compared as integers: there infinity and NaN are the largest. Steps of such a row
// or column are worth NaN, what infinity less itself is, and so is all that comes of them.
template <class Integers>
struct AttentionS16 {
  using Product = Integers;
  static constexpr int kWeightBits = 13;
  static constexpr float kLargestWeight = 1 << kWeightBits;
  static constexpr float kExpUnits = kLog2E;
  static F16 exp(F16 x) { return exp2_short<kWeightBits>(x); }

  static float most_steps(float largest_sum) {
    return largest_sum < 32767.0f ? largest_sum : 32767.0f;
  }

  static float row_limit(int64_t count) {
    return most_steps(static_cast<float>(static_cast<int>(__builtin_sqrtf(2147483520.0f / count))));
  }

  static float row(const float* x, int64_t count, float limit, void* out) {
    I16 bits = zero_int();
    for_each_vector(x, count, [&](int64_t, F16 v) { bits = max(bits, magnitude_bits(v)); });
    const float largest = reduce_max_bits(bits);
    const float step = largest / limit;
    const F16 factor = broadcast(step > 0.0f ? limit / largest : 0.0f);
    int16_t* units = static_cast<int16_t*>(out);
    for_each_vector(x, count,
                    [&](int64_t i, F16 v) { store_s16(units + i, to_nearest_int(v * factor)); });
    return step + (largest - largest);
  }

  static void values(const float* x, int cols, int64_t stride, int64_t tokens, void* out,
                     int64_t step, float* scale) {
    I16 bits = zero_int();
    for (int64_t t = 0; t < tokens; ++t) {
      bits = max(bits, magnitude_bits(load_first(x + t * stride, cols)));
    }
    const F16 largest = from_bits(bits);
    const F16 steps = broadcast(most_steps(
        static_cast<float>(static_cast<int>(2147483520.0f / (kLargestWeight * tokens)))));
    // A column of zeros: 0 / smallest normal number.
    const F16 factor = steps / max(broadcast(1.17549435e-38f), largest);
    store(scale, largest / steps + (largest - largest));
    int32_t* units = static_cast<int32_t*>(out);
    for (int64_t t = 0; t < tokens; t += 2) {
      const I16 first = to_nearest_int(load_first(x + t * stride, cols) * factor);
      const I16 second = t + 1 < tokens
                             ? to_nearest_int(load_first(x + (t + 1) * stride, cols) * factor)
                             : zero_int();
      store(units + t / 2 * step, pair_s16(first, second));
    }
  }

  static F16 weights(F16 e, void* row, int64_t i) {
    const I16 steps = to_nearest_int(e);
    store_s16(static_cast<int16_t*>(row) + i, steps);
    return fma(e, zero(), to_float(steps));  // NaN, where the score was
  }

  static F16 score(I16 sum, float query, const float* keys) {
    return to_float(sum) * (broadcast(query) * load(keys));
  }
  static F16 context(I16 sum, const float* scale) { return to_float(sum) * load(scale); }
};

// Where the parts of a task's scratch begin, in units. Every part is a multiple of 16 long.
template <class Format>
struct AttentionScratch {
  static constexpr int kRows = Format::Product::kRows;
  static constexpr int kGroup = Format::Product::kGroup;

  int64_t depth;         // units of a query or key
  int64_t query_stride;  // units, likewise
  int64_t score_stride;
  int64_t context_stride;

  int64_t rows;     // 16 x query_stride: keys on their way into a panel
  int64_t queries;  // kRows x query_stride
  int64_t keys;     // panels over tokens, each depth x kPanel
  int64_t key_scales;
  int64_t values;        // panels over head_dim, each as many units as key blocks of a head need
  int64_t value_scales;  // per key block, context_stride
  int64_t scores;        // kRows x score_stride
  int64_t context;       // kRows x context_stride
  int64_t size;

  float row_limit;

  AttentionScratch(int64_t tokens, int64_t head_dim) {
    const int64_t padded = round_up(tokens, kPanel);
    const int64_t blocks = (tokens + kKeyBlock - 1) / kKeyBlock;
    depth = (head_dim + kGroup - 1) / kGroup;
    query_stride = round_up(head_dim, 16);
    score_stride = round_up(tokens < kKeyBlock ? tokens : kKeyBlock, kPanel);
    context_stride = round_up(head_dim, kPanel);
    rows = 0;
    queries = rows + 16 * query_stride;
    keys = queries + kRows * query_stride;
    key_scales = keys + padded * round_up(depth, 16);
    values = key_scales + padded;
    value_scales = values + context_stride * round_up((tokens + kGroup - 1) / kGroup, 16);
    scores = value_scales + blocks * context_stride;
    context = scores + kRows * score_stride;
    size = context + kRows * context_stride;
    row_limit = Format::row_limit(head_dim);
  }

  // The panel of values for columns from `column` on and keys from `first` on.
  int64_t value_panel(int64_t tokens, int64_t column, int64_t first) const {
    return values + column * ((tokens + kGroup - 1) / kGroup) + first / kGroup * kPanel;
  }
};

// Asks for what the next task reads where this one reads a row.
inline void fetch_ahead(const AttentionTask& t, const float* row) {
  if (t.ahead == 0) return;
  for (int64_t d = 0; d < t.head_dim; d += 16) __builtin_prefetch(row + t.ahead + d, 0, 2);
}

// Keys go in transposed: panel p holds keys [p * kPanel, ...), unit after unit. What is missing in
// the last panel is zero; its scores are cut off below.
template <class Format>
inline void pack_keys(const AttentionTask& t, const AttentionScratch<Format>& s) {
  float* rows = t.scratch + s.rows;
  for (int64_t first = 0; first < round_up(t.tokens, kPanel); first += 16) {
    for (int64_t j = 0; j < 16; ++j) {
      float scale = 0.0f;
      if (first + j < t.tokens) {
        fetch_ahead(t, t.key + (first + j) * t.stride);
        fetch_ahead(t, t.value + (first + j) * t.stride);
        scale = Format::row(t.key + (first + j) * t.stride, t.head_dim, s.row_limit,
                            rows + j * s.query_stride);
      }
      t.scratch[s.key_scales + first + j] = scale;
    }
    float* panel = t.scratch + s.keys + first / kPanel * (s.depth * kPanel) + first % kPanel;
    for (int64_t u = 0; u < s.depth; u += 16) {
      F16 block[16];
      for (int64_t j = 0; j < 16; ++j) {
        block[j] = first + j < t.tokens ? load(rows + j * s.query_stride + u) : zero();
      }
      transpose(block);
      for (int64_t d = 0; d < 16 && u + d < s.depth; ++d) store(panel + (u + d) * kPanel, block[d]);
    }
  }
}

// Values in panels of kPanel columns, one key block after the other; columns beyond head_dim are
// zero.
template <class Format>
inline void pack_values(const AttentionTask& t, const AttentionScratch<Format>& s) {
  for (int64_t first = 0; first < t.tokens; first += kKeyBlock) {
    const int64_t count = t.tokens - first < kKeyBlock ? t.tokens - first : kKeyBlock;
    float* scales = t.scratch + s.value_scales + first / kKeyBlock * s.context_stride;
    for (int64_t column = 0; column < s.context_stride; column += 16) {
      const int64_t left = t.head_dim - column;
      float* panel = t.scratch + s.value_panel(t.tokens, column / kPanel * kPanel, first);
      Format::values(t.value + first * t.stride + column,
                     static_cast<int>(left < 0    ? 0
                                      : left < 16 ? left
                                                  : 16),
                     t.stride, count, panel + column % kPanel, kPanel, scales + column);
    }
  }
}

// Adds what a row's keys have by their distance, in units of the products: a score is scaled later.
inline void add_bias(float* scores, int64_t count, const float* bias, float scale) {
  const F16 units = broadcast(1.0f / scale);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) store(scores + i, fma(load(bias + i), units, load(scores + i)));
  if (i < count) {
    const int rest = static_cast<int>(count - i);
    const F16 sum = fma(load_first(bias + i, rest), units, load_first(scores + i, rest));
    store_first(scores + i, sum, rest);
  }
}

// The largest of count scores.
inline float row_max(const float* scores, int64_t count) {
  F16 largest = broadcast(-__builtin_huge_valf());
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) largest = max(largest, load(scores + i));
  if (i < count) {
    const int rest = static_cast<int>(count - i);
    largest = max(largest, select_first(rest, load_first(scores + i, rest), largest));
  }
  return reduce_max(largest);
}

// Turns scores into softmax weights, exp(scale * (score - largest)) in the format's units, in place
// (a weight is no wider than a score), followed by zeros up to whole vectors; returns their sum.
template <class Format>
inline float row_exp(float* scores, int64_t count, float scale, float largest) {
  const F16 factor = broadcast(scale * Format::kExpUnits);
  const F16 shift = broadcast(largest);
  F16 sum = zero();
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const F16 e = Format::exp((load(scores + i) - shift) * factor);
    sum = sum + Format::weights(e, scores, i);
  }
  if (i < count) {
    const int rest = static_cast<int>(count - i);
    const F16 e = Format::exp((load_first(scores + i, rest) - shift) * factor);
    sum = sum + Format::weights(select_first(rest, e, zero()), scores, i);
  }
  return reduce_add(sum);
}

// Asks for the lines that a row of the result goes to.
inline void fetch_result(const AttentionTask& t, int64_t row) {
  if (t.ahead == 0) return;
  float* out = t.out + row * t.out_stride;
  for (int64_t d = 0; d < t.head_dim; d += 16) __builtin_prefetch(out + d, 1);
}

template <class Format>
struct AttentionTile {
  const AttentionTask& task;
  const AttentionScratch<Format>& scratch;
  int64_t row;
};

template <class Format>
struct AttentionRows {
  template <int kRows>
  struct Body {
    using Product = typename Format::Product;
    using Input = typename Product::Input;

    static void run(const AttentionTile<Format>& tile) {
      const AttentionTask& t = tile.task;
      const AttentionScratch<Format>& s = tile.scratch;
      float* scores = t.scratch + s.scores;
      float* context = t.scratch + s.context;
      float largest[kRows];
      float sum[kRows];
      float scale[kRows];
      for (int i = 0; i < kRows; ++i) {
        fetch_ahead(t, t.query + (tile.row + i) * t.query_stride);
        fetch_result(t, tile.row + i);
        scale[i] = Format::row(t.query + (tile.row + i) * t.query_stride, t.head_dim, s.row_limit,
                               t.scratch + s.queries + i * s.query_stride);
      }

      for (int64_t first = 0; first < t.tokens; first += kKeyBlock) {
        const int64_t count = t.tokens - first < kKeyBlock ? t.tokens - first : kKeyBlock;
        for (int64_t j = 0; j < count; j += kPanel) {
          Accumulators<Product, kRows> acc;
          multiply<Product, kRows>(reinterpret_cast<const Input*>(t.scratch + s.queries),
                                   s.query_stride * 4 / static_cast<int64_t>(sizeof(Input)),
                                   t.scratch + s.keys + (first + j) * s.depth, s.depth, acc);
          const float* keys = t.scratch + s.key_scales + first + j;
#pragma GCC unroll 16
          for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
            for (int v = 0; v < kGemmVectors; ++v) {
              store(scores + i * s.score_stride + j + 16 * v,
                    Format::score(acc.sum[i][v], scale[i], keys + 16 * v));
            }
          }
        }
        for (int i = 0; t.bias && i < kRows; ++i) {
          add_bias(scores + i * s.score_stride, count, t.bias + (first - tile.row - i), t.scale);
        }
        // All maxima first: so no row's exponentials wait for its own.
        float block_max[kRows];
        for (int i = 0; i < kRows; ++i) block_max[i] = row_max(scores + i * s.score_stride, count);
        for (int i = 0; i < kRows; ++i) {
          float* row = scores + i * s.score_stride;
          if (first == 0) {
            largest[i] = block_max[i];
            sum[i] = row_exp<Format>(row, count, t.scale, largest[i]);
          } else {
            const float new_max = block_max[i] > largest[i] ? block_max[i] : largest[i];
            const float step = (largest[i] - new_max) * (t.scale * Format::kExpUnits);
            float rescale[16] = {};
            store(rescale, Format::exp(broadcast(step)) * broadcast(1.0f / Format::kLargestWeight));
            sum[i] = sum[i] * rescale[0] + row_exp<Format>(row, count, t.scale, new_max);
            largest[i] = new_max;
            for (int64_t j = 0; j < s.context_stride; j += 16) {
              float* p = context + i * s.context_stride + j;
              store(p, load(p) * load(rescale));
            }
          }
        }
        const float* values = t.scratch + s.value_scales + first / kKeyBlock * s.context_stride;
        for (int64_t j = 0; j < t.head_dim; j += kPanel) {
          Accumulators<Product, kRows> acc;
          multiply<Product, kRows>(reinterpret_cast<const Input*>(scores),
                                   s.score_stride * 4 / static_cast<int64_t>(sizeof(Input)),
                                   t.scratch + s.value_panel(t.tokens, j, first),
                                   (count + Product::kGroup - 1) / Product::kGroup, acc);
#pragma GCC unroll 16
          for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
            for (int v = 0; v < kGemmVectors; ++v) {
              float* p = context + i * s.context_stride + j + 16 * v;
              const F16 more = Format::context(acc.sum[i][v], values + j + 16 * v);
              store(p, first ? load(p) + more : more);
            }
          }
        }
      }

      for (int i = 0; i < kRows; ++i) {
        const F16 factor = broadcast(1.0f / sum[i]);
        const float* row = context + i * s.context_stride;
        float* out = t.out + (tile.row + i) * t.out_stride;
        for_each_vector(row, t.head_dim, [&](int64_t d, F16 v) {
          const int64_t left = t.head_dim - d;
          if (left >= 16) {
            store(out + d, v * factor);
          } else {
            store_first(out + d, v * factor, static_cast<int>(left));
          }
        });
      }
    }
  };
};

template <class Format>
int64_t attention_scratch(int64_t tokens, int64_t head_dim) {
  return AttentionScratch<Format>(tokens, head_dim).size;
}

template <class Format>
void attention(const AttentionTask& t) {
  constexpr int kRows = Format::Product::kRows;
  const AttentionScratch<Format> scratch(t.tokens, t.head_dim);
  pack_keys<Format>(t, scratch);
  pack_values<Format>(t, scratch);
  const int64_t rows = t.row_end - t.row_begin;
  const int64_t tiles = (rows + kRows - 1) / kRows;
  for (int64_t i = 0; i < tiles; ++i) {
    // Tiles of nearly equal height, as in a product.
    const int64_t row = t.row_begin + rows * i / tiles;
    const int64_t end = t.row_begin + rows * (i + 1) / tiles;
    const AttentionTile<Format> tile{t, scratch, row};
    with_rows<AttentionRows<Format>::template Body, kRows>(static_cast<int>(end - row), tile);
  }
}

}  // namespace
}  // namespace bertrt::cpu::BERTRT_CPU_NAMESPACE
