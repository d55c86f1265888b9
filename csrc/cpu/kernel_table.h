// The kernels of one instruction set, as plain functions over raw memory.
//
// This table is the single list of CPU kernels: selection fills it, the drivers call through it,
// and the tests walk over it once per instruction set. A kernel checks nothing (its caller has) and
// starts no thread.
#pragma once

#include <cstdint>

#include "core/ops.h"
#include "core/types.h"

namespace bertrt::cpu {

// How a row was quantised: a value x is (q - zero) * scale, with q from 0 to 255. Zero is exact.
struct RowSteps {
  float scale;
  int32_t zero;
};

// What a kernel fetches into the second-level cache while it computes, evenly over its time: a tile
// that asked for a whole panel at once would wait for memory that idles during the next tile.
struct Fetch {
  const void* from = nullptr;  // null: nothing
  int64_t bytes = 0;
};

// out[rows][cols] = epilogue(a[rows][depth] * panel[depth][panel width]), in one precision.
struct GemmTile {
  const void* a;     // rows as the kernel's convert() writes them
  int64_t a_stride;  // bytes
  const void* panel;
  Fetch next;
  int64_t depth;  // in groups of the kernel's inputs
  // int8: how each row was quantised (RowSteps, a_stride apart), what a step of a column is worth,
  // and its steps' sum.
  const char* row_steps;
  const float* column_scale;
  const int32_t* column_sum;
  const float* bias;  // cols values, or null
  Activation activation;
  float* out;
  int64_t out_stride;
  int rows;  // 1 to the kernel's tile rows
  int cols;  // 1 to the panel width

  const RowSteps& steps(int row) const {
    return *reinterpret_cast<const RowSteps*>(row_steps + row * a_stride);
  }
};

// A matrix product in one precision: the kernel and the layouts that it reads stand together, so
// that they change together.
//
// A panel holds `panel` columns of the weights; `group` inputs that follow each other stand side by
// side, column after column, then the next group. Inputs beyond the depth are zero.
struct GemmKernel {
  const char* name;
  int rows;  // most rows of a tile
  int panel;
  int group;
  // Writes one row of `depth` floats in the form that run() reads (round_up(depth, 16) inputs of
  // `row_bytes` bytes each, or the cache line to its end) and, for int8, how. Null: rows are read
  // as they are.
  void (*convert)(const float* x, int64_t depth, void* out, RowSteps* steps);
  int row_bytes;
  bool by_value;  // convert() takes each value for itself: a row may be converted in pieces
  void (*run)(const GemmTile& tile);
  // The ceiling of run(): its instruction on registers alone, for measuring. Returns the operations
  // done; adds what came of them to 16 floats, so that they have to be done. x: any small number.
  int64_t (*peak)(int64_t rounds, float x, float* out);
  // Tiles other than the last are a multiple of row_block high; panels are filled up with zeros to
  // a multiple of group_block groups.
  int row_block = 1;
  int group_block = 1;
  // What a thread calls before it runs tiles of so many rows, and after all of them; or null.
  void (*configure)(int rows) = nullptr;
  void (*release)() = nullptr;
};

// One head of one sequence, for query rows [row_begin, row_end).
struct AttentionTask {
  const float* query;  // first token of the sequence, this head; likewise key and value
  const float* key;
  const float* value;
  int64_t query_stride;  // floats between tokens
  int64_t stride;        // likewise, of key and value
  int64_t ahead;         // floats from this head's rows to those to fetch meanwhile; 0: none
  float* out;            // first token of the sequence, this head
  int64_t out_stride;
  int64_t tokens;
  int64_t row_begin, row_end;
  int64_t head_dim;
  float scale;
  const float* bias;  // by distance from query to key, from 0; null: none. See Attention
  float* scratch;     // the kernel's scratch(tokens, head_dim) floats, 64-byte aligned
};

// Attention in one precision.
struct AttentionKernel {
  const char* name;
  int rows;  // most query rows of a tile
  int64_t (*scratch)(int64_t tokens, int64_t head_dim);
  void (*run)(const AttentionTask& task);
};

struct KernelTable {
  const char* isa;

  GemmKernel gemm_f32;
  GemmKernel gemm_bf16;
  GemmKernel gemm_s8;

  AttentionKernel attention_f32;
  AttentionKernel attention_bf16;  // attention_f32 where there are no bf16 products
  AttentionKernel attention_s16;   // for int8

  // out = LayerNorm(x + residual); residual may be null, x and out the same.
  void (*layer_norm_f32)(const LayerNorm& norm, const float* x, const float* residual, float* out);
  void (*embed_f32)(const Embedding& embedding, int32_t word, int32_t type, int32_t position,
                    float* out);
  void (*activation_f32)(Activation activation, float* x, int64_t count);

  // The sum of `count` values, a multiple of 128: reading memory, for measuring.
  float (*read_f32)(const float* x, int64_t count);
};

}  // namespace bertrt::cpu
