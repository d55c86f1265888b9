#include "cuda/batch_inputs.h"

#include <algorithm>

namespace bertrt::cuda {
namespace {

constexpr plan::RowKind kRowKinds[] = {plan::RowKind::kTokens, plan::RowKind::kQkv,
                                       plan::RowKind::kSeqs, plan::RowKind::kPositions,
                                       plan::RowKind::kPairs};

}  // namespace

BatchInputs::BatchInputs(const Shape& shape) : shape_(shape) {
  const int64_t tokens = shape.tokens, seqs = shape.seqs, word = sizeof(int32_t);
  counts_ = places_.add(sizeof(kRowKinds) / sizeof(kRowKinds[0]) * sizeof(int64_t));
  cu_pairs_ = places_.add((seqs + 1) * static_cast<int64_t>(sizeof(int64_t)));
  ids_ = places_.add(tokens * word);
  types_ = places_.add(tokens * word);
  positions_ = places_.add(tokens * word);
  cu_seqlens_ = places_.add((seqs + 1) * word);
  attended_ = places_.add(seqs * word);
  first_tokens_ = places_.add(seqs * word);
  first_rows_ = places_.add(seqs * word);
  masked_ = places_.add(seqs * shape.masked_per_seq * word);
}

void BatchInputs::write(const PackedBatch& batch, const PinnedMemory& memory) const {
  const auto ints = [&](int64_t place) { return static_cast<int32_t*>(memory.at(place)); };
  const int64_t tokens = batch.tokens();
  std::copy_n(batch.token_ids, tokens, ints(ids_));
  std::copy_n(batch.token_types, tokens, ints(types_));
  auto* pairs = static_cast<int64_t*>(memory.at(cu_pairs_));
  pairs[0] = 0;
  for (int64_t s = 0; s <= batch.seqs; ++s) {
    ints(cu_seqlens_)[s] = batch.cu_seqlens[s] - batch.cu_seqlens[0];
  }
  for (int64_t s = 0; s < batch.seqs; ++s) {
    const int64_t length = batch.length(s);
    const int32_t first = ints(cu_seqlens_)[s];
    pairs[s + 1] = pairs[s] + length * length;
    for (int64_t i = 0; i < length; ++i) ints(positions_)[first + i] = static_cast<int32_t>(i);
    ints(attended_)[s] = static_cast<int32_t>(batch.keys(s));
    // Gluon's encoder returns zeros where nothing is attended to.
    ints(first_tokens_)[s] = batch.keys(s) ? first : -1;
    ints(first_rows_)[s] = batch.keys(s) ? static_cast<int32_t>(s) : -1;
    for (int64_t i = 0; i < batch.masked_per_seq; ++i) {
      const int64_t at = s * batch.masked_per_seq + i;
      ints(masked_)[at] = first + batch.masked_positions[at];
    }
  }
  for (int64_t s = batch.seqs; s < shape_.seqs; ++s) {
    pairs[s + 1] = pairs[batch.seqs];
    ints(cu_seqlens_)[s + 1] = static_cast<int32_t>(tokens);
    ints(attended_)[s] = 0;
    ints(first_tokens_)[s] = ints(first_rows_)[s] = -1;
  }
  const Shape there(batch);
  auto* counts = static_cast<int64_t*>(memory.at(counts_));
  for (const plan::RowKind kind : kRowKinds) counts[static_cast<int>(kind)] = there.rows(kind);
}

}  // namespace bertrt::cuda
