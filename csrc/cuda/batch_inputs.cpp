#include "cuda/batch_inputs.h"

#include <algorithm>

namespace bertrt::cuda {

BatchInputs::BatchInputs(const PackedBatch& batch) : batch_(batch) {
  const int64_t tokens = batch.tokens(), seqs = batch.seqs, word = sizeof(int32_t);
  cu_pairs_ = places_.add((seqs + 1) * static_cast<int64_t>(sizeof(int64_t)));
  ids_ = places_.add(tokens * word);
  types_ = places_.add(tokens * word);
  positions_ = places_.add(tokens * word);
  cu_seqlens_ = places_.add((seqs + 1) * word);
  attended_ = places_.add(seqs * word);
  first_tokens_ = places_.add(seqs * word);
  first_rows_ = places_.add(seqs * word);
  masked_ = places_.add(seqs * batch.masked_per_seq * word);
}

void BatchInputs::write(const PinnedMemory& memory) const {
  const auto ints = [&](int64_t place) { return static_cast<int32_t*>(memory.at(place)); };
  const int64_t tokens = batch_.tokens();
  std::copy_n(batch_.token_ids, tokens, ints(ids_));
  std::copy_n(batch_.token_types, tokens, ints(types_));
  auto* pairs = static_cast<int64_t*>(memory.at(cu_pairs_));
  pairs[0] = 0;
  for (int64_t s = 0; s <= batch_.seqs; ++s) {
    ints(cu_seqlens_)[s] = batch_.cu_seqlens[s] - batch_.cu_seqlens[0];
  }
  for (int64_t s = 0; s < batch_.seqs; ++s) {
    const int64_t length = batch_.length(s);
    const int32_t first = ints(cu_seqlens_)[s];
    pairs[s + 1] = pairs[s] + length * length;
    for (int64_t i = 0; i < length; ++i) ints(positions_)[first + i] = static_cast<int32_t>(i);
    ints(attended_)[s] = static_cast<int32_t>(batch_.keys(s));
    // Gluon's encoder returns zeros where nothing is attended to.
    ints(first_tokens_)[s] = batch_.keys(s) ? first : -1;
    ints(first_rows_)[s] = batch_.keys(s) ? static_cast<int32_t>(s) : -1;
    for (int64_t i = 0; i < batch_.masked_per_seq; ++i) {
      const int64_t at = s * batch_.masked_per_seq + i;
      ints(masked_)[at] = first + batch_.masked_positions[at];
    }
  }
}

Sequences BatchInputs::sequences() const {
  int64_t longest = 0;
  for (int64_t s = 0; s < batch_.seqs; ++s) longest = std::max(longest, batch_.length(s));
  return {ints(cu_seqlens_), batch_.attended ? ints(attended_) : nullptr, batch_.seqs, longest};
}

}  // namespace bertrt::cuda
