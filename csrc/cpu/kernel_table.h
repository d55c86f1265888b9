// The kernels of one instruction set, as plain functions over raw memory.
//
// This table is the single list of CPU kernels: selection fills it, the drivers call through it,
// and the tests walk over it once per instruction set. A kernel checks nothing (its caller has) and
// starts no thread. A matrix kernel and the panel width that its weights are packed for stand
// together, so that they change together; another precision adds another such pair.
#pragma once

#include <cstdint>

#include "core/ops.h"
#include "core/types.h"

namespace bertrt::cpu {

// out[rows][cols] = epilogue(a[rows][depth] * panel[depth][panel width]).
struct GemmTile {
  const float* a;
  int64_t a_stride;
  const float* panel;
  int64_t depth;
  const float* bias;      // cols values, or null
  const float* residual;  // or null
  int64_t residual_stride;
  Activation activation;
  float* out;
  int64_t out_stride;
  int rows;  // 1 to the kernel's tile rows
  int cols;  // 1 to the panel width
};

// One head of one sequence, for query rows [row_begin, row_end).
struct AttentionTask {
  const float* query;  // first token of the sequence, this head; likewise key and value
  const float* key;
  const float* value;
  int64_t stride;  // floats between tokens
  float* out;      // first token of the sequence, this head
  int64_t out_stride;
  int64_t tokens;
  int64_t row_begin, row_end;
  int64_t head_dim;
  float scale;
  float* scratch;  // attention_scratch(tokens, head_dim) floats, 64-byte aligned
};

struct KernelTable {
  const char* isa;

  int gemm_rows;   // most rows of a tile
  int gemm_panel;  // columns of a packed panel
  void (*gemm_f32)(const GemmTile& tile);

  int64_t (*attention_scratch)(int64_t tokens, int64_t head_dim);
  void (*attention_f32)(const AttentionTask& task);

  void (*layer_norm_f32)(const LayerNorm& norm, const float* x, float* out);
  void (*embed_f32)(const Embedding& embedding, int32_t word, int32_t type, int32_t position,
                    float* out);
  void (*activation_f32)(Activation activation, float* x, int64_t count);
};

}  // namespace bertrt::cpu
