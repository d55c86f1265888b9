// The kernels of the CUDA backend: plain functions that put them into a stream.
//
// All pointers are the device's. Nothing is checked here (the plan and the batch have been) and
// nothing waits; a kernel that cannot be started raises DeviceError. Products, statistics and
// activations are computed in fp32 whatever the elements are, and a result is rounded once, when it
// is written. A row has the same bits whatever other rows stand around it: no order of a sum
// depends on the number of rows, and nothing is added by atomics.
#pragma once

#include <cstdint>

#include "core/ops.h"
#include "core/types.h"

struct CUstream_st;

namespace bertrt::cuda {

// A queue of work on a device, and how kernels follow each other in it.
struct Stream {
  CUstream_st* queue = nullptr;  // a cudaStream_t
  // Programmatic dependent launch: a kernel may start as soon as all blocks of the one before it
  // have, reads its weights meanwhile, and waits by itself for what that one writes. Only where
  // kernels_wait().
  bool overlaps = false;

  Stream(CUstream_st* q, bool o = false) : queue(q), overlaps(o) {}
  operator CUstream_st*() const { return queue; }
};

// Whether the kernels that run on the calling thread's device wait for those before them, as those
// compiled for sm_90 and later do.
bool kernels_wait();

// How many rows there are. A launch is made for `most`. Where `count` is given, the kernel reads on
// the device how many there really are, and what is beyond does nothing: so one launch serves every
// batch of at most so many rows, and none of its rows' bits depends on `most`.
struct RowCount {
  int64_t most;
  const int64_t* count = nullptr;

  RowCount(int64_t rows, const int64_t* on_device = nullptr) : most(rows), count(on_device) {}
};

// What rows are made of.
enum class Element { kFp32, kFp16, kBf16 };

constexpr int64_t bytes_of(Element element) { return element == Element::kFp32 ? 4 : 2; }

// Rows of a device, `stride` elements apart. They begin at multiples of 16 bytes, unless a function
// says that it takes any; what stands between a row's end and the next row is never read.
struct DeviceRows {
  void* data = nullptr;
  int64_t stride = 0;
  Element element = Element::kFp32;
};

struct ConstDeviceRows {
  const void* data = nullptr;
  int64_t stride = 0;
  Element element = Element::kFp32;

  ConstDeviceRows() = default;
  ConstDeviceRows(const void* d, int64_t s, Element e) : data(d), stride(s), element(e) {}
  ConstDeviceRows(DeviceRows rows) : data(rows.data), stride(rows.stride), element(rows.element) {}
};

// The smallest stride that keeps rows at multiples of 16 bytes.
constexpr int64_t row_stride(int64_t cols, Element element) {
  const int64_t vector = 16 / bytes_of(element);
  return (cols + vector - 1) / vector * vector;
}

// The tables of an embedding, a row for each id. type: without data where the model has none.
struct EmbeddingTables {
  ConstDeviceRows word;
  ConstDeviceRows type;
  ConstDeviceRows position;
};

// out[t] = norm(word[ids[t]] + type[types[t]] + position[positions[t]]), added in this order.
// Tables and out have one element; norm's arrays are fp32.
void embed_layer_norm(const EmbeddingTables& tables, const LayerNorm& norm, const int32_t* ids,
                      const int32_t* types, const int32_t* positions, RowCount tokens,
                      DeviceRows out, Stream stream);

// out = norm(x + residual); residual may be without data, x and out the same rows. One element.
void layer_norm(const LayerNorm& norm, ConstDeviceRows x, ConstDeviceRows residual, RowCount rows,
                DeviceRows out, Stream stream);

// Row i of out is row index[i] of x, or zeros where index[i] is negative; without an index, row i.
// out has x's element, or fp32 whatever x has, and any stride.
void gather_rows(ConstDeviceRows x, const int32_t* index, RowCount rows, int64_t cols,
                 DeviceRows out, Stream stream);

// What rows and weights of 8 bits are: integers, or e4m3 floating point (core/fp8.h).
enum class EightBits { kInt8, kFp8 };

// How a row was quantised: a value x is (q - zero) * scale, with q from 0 to 255, as on the CPU; or
// q * scale, with q in e4m3.
struct RowSteps {
  float scale;
  int32_t zero;
};

// Rows of 8-bit numbers, each with its RowSteps in the last kStepsBytes before the next row. They
// begin at multiples of 16 bytes.
struct QuantisedRows {
  void* data = nullptr;
  int64_t stride = 0;  // bytes
};

constexpr int64_t kStepsBytes = 16;
constexpr int64_t quantised_stride(int64_t cols) { return (cols + 15) / 16 * 16 + kStepsBytes; }

// kInt8: rows in 255 steps each, from the lowest to the highest of its values and 0, rounded to
// nearest, ties to even; the rule and its roundings are those of csrc/cpu/generic/gemm.inl.h.
// kFp8: the largest magnitude of a row becomes 448. A row with a value that is not finite gets
// steps worth NaN. x: fp16.
void quantise_rows(EightBits bits, ConstDeviceRows x, RowCount rows, int64_t cols,
                   QuantisedRows out, Stream stream);

// Weights in 8-bit integers, -127 to 127, or in e4m3: a row of `inputs` for each output.
struct QuantisedWeights {
  static constexpr int64_t kBeyond = 256;  // further values of scale and sum, which are read

  const uint8_t* data = nullptr;
  int64_t stride = 0;            // bytes, a multiple of 16
  const float* scale = nullptr;  // what a step of each output's weights is worth
  const int32_t* sum = nullptr;  // of each output's weights, where they are integers
  EightBits bits = EightBits::kInt8;

  explicit operator bool() const { return data != nullptr; }
};

// A matrix product and what follows it.
struct Linear {
  ConstDeviceRows weight;  // a row of `inputs` values for each output
  int64_t inputs = 0;
  int64_t outputs = 0;
  const float* bias = nullptr;  // outputs values, or null
  Activation activation = Activation::kNone;
  QuantisedWeights quantised;  // in the place of `weight`
  // Whether it is Hopper's, where linear() would take mma.sync: of all batches or of none, for its
  // sums may have other bits (kernel_choice.h).
  bool hopper = false;
};

// out = activation(x * weight^T + bias) + residual; residual may be without data, or be out. One
// element. out and residual may begin anywhere, so that they can be columns of wider rows.
void linear(const Linear& linear, ConstDeviceRows x, ConstDeviceRows residual, RowCount rows,
            DeviceRows out, Stream stream);

// The same of rows and weights in the same 8 bits. Sums of integers are exact, and what they are
// worth is rounded as on the CPU; those of fp8 are in fp32 (linear_fp8.cu). out and residual: fp16.
void linear(const Linear& linear, QuantisedRows x, ConstDeviceRows residual, RowCount rows,
            DeviceRows out, Stream stream);

// A batch's sequences, as PackedBatch has them. Those that are launched for and not there are
// empty, and stand behind the others.
struct Sequences {
  const int32_t* cu_seqlens = nullptr;  // seqs + 1 values
  const int32_t* attended = nullptr;    // keys of each sequence, from its first; null: all
  int64_t seqs = 0;
  int64_t longest = 0;  // no sequence is longer
};

// softmax(scale * query * key^T) * value, sequence by sequence and head by head.
//
// qkv: a row a token, [query | key | value], each by head. out: a row a token; or, if first_queries
// has data, a row a sequence, of its first token, whose query that is. One element. Rows of queries
// without keys, in an empty sequence or one of padding alone, are zeros.
void attention(const Attention& attention, const Sequences& sequences, ConstDeviceRows qkv,
               ConstDeviceRows first_queries, DeviceRows out, Stream stream);

// The probabilities of the same attention: a row of fp32 for each pair of a sequence's tokens,
// query after query, and a column for each head; 0 beyond the keys. Sequence s has the rows from
// cu_pairs[s]. out may have any stride.
void attention_weights(const Attention& attention, const Sequences& sequences,
                       const int64_t* cu_pairs, ConstDeviceRows qkv, DeviceRows out, Stream stream);

// The kernels that these run on, for explain().
const char* linear_kernel(Element element, bool hopper);
const char* quantised_linear_kernel(EightBits bits, bool hopper);
const char* attention_kernel(Element element, int64_t head_dim, bool hopper);

}  // namespace bertrt::cuda
