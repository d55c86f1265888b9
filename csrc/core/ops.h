// What the CPU's engine runs: the fused operations of a plan on rows of float32.
//
// Each matrix is packed once, in the layout that its kernels read. Adding a precision means another
// kind of Matrix. GPUs have an executor of their own: cuda/engine.h.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "core/types.h"

namespace bertrt {

// One block of rows of a weight matrix as the model file has it: `outputs` rows of `inputs`
// values, or, if transposed, the other way round. Row r of the block becomes output column
// `column(r)` of the packed matrix.
struct WeightBlock {
  const void* data;
  Storage storage;
  const float* scales;  // of kInt8: outputs values
  int64_t outputs;
  int64_t inputs;
  bool transposed;
  const int64_t* columns;  // outputs values, or null for first_column, first_column + 1, ...
  int64_t first_column;
};

// A matrix in the layout of the kernels that read it. Made by Ops::pack, never changed after.
class Matrix {
 public:
  virtual ~Matrix() = default;
  int64_t inputs = 0;
  int64_t outputs = 0;
  Precision precision = Precision::kFp32;
};

// Rows of float32, `stride` values apart. The engine pads strides so that the rows of a tile do not
// fall into one set of the cache; what the caller asked for is dense.
struct Rows {
  float* data = nullptr;
  int64_t stride = 0;
};

struct ConstRows {
  const float* data = nullptr;
  int64_t stride = 0;

  ConstRows() = default;
  ConstRows(const float* d, int64_t s) : data(d), stride(s) {}
  ConstRows(Rows rows) : data(rows.data), stride(rows.stride) {}
};

struct Epilogue {
  const float* bias = nullptr;  // outputs values, or null
  Activation activation = Activation::kNone;
  // The columns that are wanted, from the first to before the last (-1: all); some before them may
  // be written too.
  int64_t first_column = 0;
  int64_t last_column = -1;
};

// Rows in the form in which `reader` multiplies them, Ops::operand_stride(*reader) bytes apart. An
// operation that has a row at hand writes it in this form too, so that nobody reads it once more.
struct Operand {
  const Matrix* reader = nullptr;  // null: no such form is wanted
  void* data = nullptr;
};

struct LayerNorm {
  const float* gamma = nullptr;
  const float* beta = nullptr;
  double eps = 0.0;
  int64_t hidden = 0;
};

struct Embedding {
  const float* word = nullptr;
  const float* type = nullptr;  // null: the model has no token types
  const float* position = nullptr;
  LayerNorm norm;
};

struct Attention {
  int64_t heads = 0;
  int64_t head_dim = 0;
  float scale = 0.0f;
  Precision precision = Precision::kFp32;
  // What is added to a scaled score, by how far the key stands behind the query: of head h at
  // distance d it is distance_bias[h * distance_stride + d]. Null: nothing.
  const float* distance_bias = nullptr;
  int64_t distance_stride = 0;

  const float* distance_bias_of(int64_t head) const {
    return distance_bias ? distance_bias + head * distance_stride : nullptr;
  }
};

class Ops {
 public:
  virtual ~Ops() = default;

  // The kernel family in use, e.g. "avx512", and the kernel that a matrix product runs on.
  virtual std::string name() const = 0;
  virtual std::string linear_kernel(Precision precision) const = 0;
  virtual std::string attention_kernel(Precision precision) const = 0;

  // Bytes that a packed matrix takes: a multiple of a cache line.
  virtual size_t packed_bytes(int64_t inputs, int64_t outputs, Precision precision) const = 0;
  // Packs into so many bytes at `memory`, which begins a cache line and outlives the matrix.
  virtual std::unique_ptr<Matrix> pack(const WeightBlock* blocks, int count, int64_t inputs,
                                       int64_t outputs, Precision precision,
                                       void* memory) const = 0;

  // Bytes of a row of an Operand; 0 if rows are multiplied as they are.
  virtual int64_t operand_stride(const Matrix& reader) const = 0;

  // Bytes of scratch that attention over sequences of at most `longest` tokens needs.
  virtual int64_t attention_scratch(const Attention& attention, int64_t longest) const = 0;

  // Whether a product can write its result as this reader's operand: not where a row's form depends
  // on the whole row.
  virtual bool makes_operand(const Matrix& reader) const = 0;
  virtual void to_operand(ConstRows x, int64_t rows, Operand out) = 0;

  virtual void embed(const Embedding& embedding, const PackedBatch& batch, Rows out,
                     Operand also) = 0;
  // x: the rows, or where operand_stride() is not 0, those rows as an operand. The result goes to
  // `out` or, if `instead` has a reader (of which makes_operand() holds), there. `next` is
  // the matrix of the next product, the beginning of which is fetched meanwhile, or null.
  virtual void linear(const Matrix& weight, const Epilogue& epilogue, ConstRows x,
                      const void* operand, int64_t rows, Rows out, Operand instead,
                      const Matrix* next) = 0;
  // qkv: tokens x 3 * heads * head_dim as [query | key | value]; out: tokens x heads * head_dim.
  // Or, if first_queries has data, for the first tokens only, whose queries those are: both a row a
  // sequence (out untouched where it is empty).
  // Queries without keys, in a sequence of padding alone, give zeros.
  virtual void attention(const Attention& attention, const PackedBatch& batch, ConstRows qkv,
                         ConstRows first_queries, Rows out, void* scratch) = 0;
  // The probabilities of the same attention, written down: a row for each pair of a sequence's
  // tokens, query after query, and a column for each head. Beyond the keys they are 0.
  virtual void attention_weights(const Attention& attention, const PackedBatch& batch,
                                 ConstRows qkv, Rows out) = 0;
  // LayerNorm of x or, if residual has data, of x + residual. x and out may be the same rows.
  virtual void layer_norm(const LayerNorm& norm, ConstRows x, ConstRows residual, int64_t rows,
                          Rows out, Operand also) = 0;
  // Row i of out is row index[i] of x, or zeros where index[i] is negative.
  virtual void gather_rows(ConstRows x, const int32_t* index, int64_t rows, int64_t cols,
                           Rows out) = 0;
};

}  // namespace bertrt
