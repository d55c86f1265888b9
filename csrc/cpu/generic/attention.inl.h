// Attention of one head over one sequence, with a streaming softmax.
//
// Query rows go in tiles, keys in blocks. The scores of a tile against a block live in scratch that
// stays in the first-level cache; between blocks only a row's maximum, its sum and its weighted
// values are carried on (Milakov and Gimelshein, arXiv:1805.02867). The matrix of scores is never
// written to memory. A row's result depends on its own sequence alone, not on how query rows are
// cut into tiles.
#pragma once

#include "cpu/generic/gemm.inl.h"

namespace bertrt::cpu::BERTRT_CPU_NAMESPACE {
namespace {

// 14 rows of 512 scores take 28 KiB. Models of up to 512 tokens never rescale.
inline constexpr int64_t kKeyBlock = 512;

// Where the parts of a task's scratch begin, in floats. Every part is a multiple of 16 long.
struct AttentionScratch {
  int64_t keys;     // panels over tokens, each head_dim x kPanel
  int64_t values;   // panels over head_dim, each tokens x kPanel
  int64_t scores;   // kGemmRows x score_stride
  int64_t context;  // kGemmRows x context_stride
  int64_t size;
  int64_t score_stride;
  int64_t context_stride;

  AttentionScratch(int64_t tokens, int64_t head_dim) {
    score_stride = round_up(tokens < kKeyBlock ? tokens : kKeyBlock, kPanel);
    context_stride = round_up(head_dim, kPanel);
    keys = 0;
    values = keys + round_up(tokens, kPanel) * head_dim;
    scores = values + context_stride * tokens;
    context = scores + kGemmRows * score_stride;
    size = round_up(context + kGemmRows * context_stride, 16);
  }
};

int64_t attention_scratch(int64_t tokens, int64_t head_dim) {
  return AttentionScratch(tokens, head_dim).size;
}

// Keys transposed into panels: panel p holds keys [p * kPanel, ...), depth-major. Missing keys of
// the last panel are zero; their scores are cut off below.
inline void pack_keys(const AttentionTask& t, float* packed) {
  for (int64_t first = 0; first < t.tokens; first += kPanel) {
    const int64_t count = t.tokens - first < kPanel ? t.tokens - first : kPanel;
    for (int64_t j = 0; j < count; ++j) {
      const float* key = t.key + (first + j) * t.stride;
      for (int64_t d = 0; d < t.head_dim; ++d) packed[d * kPanel + j] = key[d];
    }
    for (int64_t j = count; j < kPanel; ++j) {
      for (int64_t d = 0; d < t.head_dim; ++d) packed[d * kPanel + j] = 0.0f;
    }
    packed += t.head_dim * kPanel;
  }
}

// Values in panels of kPanel columns, token-major; columns beyond head_dim are zero.
inline void pack_values(const AttentionTask& t, float* packed) {
  for (int64_t first = 0; first < t.head_dim; first += kPanel) {
    for (int64_t token = 0; token < t.tokens; ++token) {
      const float* value = t.value + token * t.stride + first;
      for (int j = 0; j < kPanel; j += 16) {
        const int64_t count = t.head_dim - first - j;
        F16 v = zero();
        if (count >= 16) {
          v = load(value + j);
        } else if (count > 0) {
          v = load_first(value + j, static_cast<int>(count));
        }
        store(packed + j, v);
      }
      packed += kPanel;
    }
  }
}

// out[kRows][kPanel] = or += a[kRows][depth] * panel.
template <int kRows>
inline void multiply_into(const float* a, int64_t a_stride, const float* panel, int64_t depth,
                          bool accumulate, float* out, int64_t out_stride) {
  Accumulators<Float32, kRows> acc;
  multiply<Float32, kRows>(a, a_stride, panel, depth, acc);
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kGemmVectors; ++j) {
      float* p = out + i * out_stride + 16 * j;
      store(p, accumulate ? load(p) + acc.sum[i][j] : acc.sum[i][j]);
    }
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

// scores = exp(scale * (scores - largest)), and returns their sum.
inline float row_exp(float* scores, int64_t count, float scale, float largest) {
  const F16 factor = broadcast(scale);
  const F16 shift = broadcast(largest);
  F16 sum = zero();
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const F16 e = exp_f32((load(scores + i) - shift) * factor);
    store(scores + i, e);
    sum = sum + e;
  }
  if (i < count) {
    const int rest = static_cast<int>(count - i);
    const F16 e = exp_f32((load_first(scores + i, rest) - shift) * factor);
    store_first(scores + i, e, rest);
    sum = sum + select_first(rest, e, zero());
  }
  return reduce_add(sum);
}

struct AttentionTile {
  const AttentionTask& task;
  const AttentionScratch& scratch;
  int64_t row;
};

template <int kRows>
struct AttentionBody {
  static void run(const AttentionTile& tile) {
    const AttentionTask& t = tile.task;
    const AttentionScratch& s = tile.scratch;
    const float* query = t.query + tile.row * t.stride;
    float* scores = t.scratch + s.scores;
    float* context = t.scratch + s.context;
    float largest[kRows];
    float sum[kRows];

    for (int64_t first = 0; first < t.tokens; first += kKeyBlock) {
      const int64_t count = t.tokens - first < kKeyBlock ? t.tokens - first : kKeyBlock;
      for (int64_t j = 0; j < count; j += kPanel) {
        const float* panel = t.scratch + s.keys + (first + j) * t.head_dim;
        multiply_into<kRows>(query, t.stride, panel, t.head_dim, false, scores + j, s.score_stride);
      }
      for (int i = 0; i < kRows; ++i) {
        float* row = scores + i * s.score_stride;
        const float block_max = row_max(row, count);
        if (first == 0) {
          largest[i] = block_max;
          sum[i] = row_exp(row, count, t.scale, block_max);
        } else {
          const float new_max = block_max > largest[i] ? block_max : largest[i];
          float rescale[16] = {};
          store(rescale, exp_f32(broadcast((largest[i] - new_max) * t.scale)));
          sum[i] = sum[i] * rescale[0] + row_exp(row, count, t.scale, new_max);
          largest[i] = new_max;
          for (int64_t j = 0; j < s.context_stride; j += 16) {
            float* p = context + i * s.context_stride + j;
            store(p, load(p) * load(rescale));
          }
        }
      }
      for (int64_t j = 0; j < t.head_dim; j += kPanel) {
        const float* panel = t.scratch + s.values + j * t.tokens + first * kPanel;
        multiply_into<kRows>(scores, s.score_stride, panel, count, first != 0, context + j,
                             s.context_stride);
      }
    }

    for (int i = 0; i < kRows; ++i) {
      const F16 factor = broadcast(1.0f / sum[i]);
      const float* row = context + i * s.context_stride;
      float* out = t.out + (tile.row + i) * t.out_stride;
      int64_t d = 0;
      for (; d + 16 <= t.head_dim; d += 16) store(out + d, load(row + d) * factor);
      if (d < t.head_dim) {
        store_first(out + d, load(row + d) * factor, static_cast<int>(t.head_dim - d));
      }
    }
  }
};

void attention_f32(const AttentionTask& t) {
  const AttentionScratch scratch(t.tokens, t.head_dim);
  pack_keys(t, t.scratch + scratch.keys);
  pack_values(t, t.scratch + scratch.values);
  for (int64_t row = t.row_begin; row < t.row_end; row += kGemmRows) {
    const int64_t rows = t.row_end - row < kGemmRows ? t.row_end - row : kGemmRows;
    const AttentionTile tile{t, scratch, row};
    with_rows<AttentionBody, kGemmRows>(static_cast<int>(rows), tile);
  }
}

}  // namespace
}  // namespace bertrt::cpu::BERTRT_CPU_NAMESPACE
