// The small vocabulary that every part of the runtime shares.
#pragma once

#include <cstdint>

namespace bertrt {

// What a linear layer applies to its sums. The two GELUs are different functions: erf is
// x * Phi(x), tanh is the approximation that some checkpoints were trained with.
enum class Activation { kNone, kRelu, kGeluErf, kGeluTanh, kTanh };

// How the products of token rows with weight matrices are computed. Everything between them
// (LayerNorm, softmax, GELU, residuals), the pooler and the heads stay in float32; behind products
// of values rounded to 8 bits, GELU is a shorter polynomial, within 4.6e-5.
//
// kInt8: weights in 254 steps per output, around zero; rows in 255 steps per token, from its lowest
// to its highest value; exact integer sums.
//
// kFp8: on GPUs alone; weights and rows in e4m3 (fp8.h), scaled by output and by token.
enum class Precision { kFp32, kBf16, kInt8, kFp8 };

// What a weight is stored as. A matrix in int8 or fp8 has a scale for each output: what 1 is worth.
enum class Storage { kFloat32, kBfloat16, kInt8, kFp8 };

// A ragged batch: the tokens of all sequences end to end, nothing padded. Sequence s holds tokens
// [cu_seqlens[s], cu_seqlens[s + 1]); an empty sequence is allowed.
struct PackedBatch {
  const int32_t* token_ids = nullptr;
  const int32_t* token_types = nullptr;
  const int32_t* cu_seqlens = nullptr;  // seqs + 1 values, from 0 up
  int64_t seqs = 0;
  const int32_t* masked_positions = nullptr;  // (seqs, masked_per_seq), within each sequence
  int64_t masked_per_seq = 0;
  // How many tokens of each sequence, from the first, are attended to, the rest being padding that
  // a caller wants to see attend; null: all.
  const int32_t* attended = nullptr;

  // The sequences from `begin` to before `end`.
  PackedBatch sequences(int64_t begin, int64_t end) const {
    PackedBatch part = *this;
    part.token_ids += cu_seqlens[begin];
    part.token_types += cu_seqlens[begin];
    part.cu_seqlens += begin;
    part.seqs = end - begin;
    if (attended) part.attended += begin;
    if (masked_positions) part.masked_positions += begin * masked_per_seq;
    return part;
  }

  // In 64 bits: a batch is measured before it is checked.
  int64_t length(int64_t seq) const { return int64_t{cu_seqlens[seq + 1]} - cu_seqlens[seq]; }
  int64_t keys(int64_t seq) const { return attended ? attended[seq] : length(seq); }
  int64_t tokens() const { return int64_t{cu_seqlens[seqs]} - cu_seqlens[0]; }
};

}  // namespace bertrt
