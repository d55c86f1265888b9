// How large a part of a batch is, as far as its launches depend on it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>

#include "core/types.h"
#include "plan/plan.h"

namespace bertrt::cuda {

struct Shape {
  int64_t tokens = 0;
  int64_t seqs = 0;
  int64_t longest = 0;  // no sequence is longer
  int64_t masked_per_seq = 0;
  int64_t pairs = 0;  // of a sequence's tokens, in all

  Shape() = default;
  explicit Shape(const PackedBatch& batch)
      : tokens(batch.tokens()), seqs(batch.seqs), masked_per_seq(batch.masked_per_seq) {
    for (int64_t s = 0; s < seqs; ++s) {
      longest = std::max(longest, batch.length(s));
      pairs += batch.length(s) * batch.length(s);
    }
  }

  // The shape of a bucket, which this one and its like fit into. Tokens in steps of a seventh to
  // a quarter, so that little is launched or copied for nothing; sequences in powers of two, since
  // an empty one costs a block or two that end at once; the longest one as attention's blocks of 64
  // queries are counted, in powers of two.
  Shape rounded() const {
    Shape bucket = *this;
    bucket.tokens = 16;
    while (bucket.tokens < tokens) bucket.tokens += std::max<int64_t>(4, power(bucket.tokens) / 4);
    bucket.seqs = power(2 * seqs - 1);
    bucket.longest = 64 * power(2 * ((longest + 63) / 64) - 1);
    bucket.pairs = 0;
    return bucket;
  }

  int64_t rows(plan::RowKind kind) const {
    switch (kind) {
      case plan::RowKind::kTokens:
      case plan::RowKind::kQkv:
        return tokens;
      case plan::RowKind::kSeqs:
        return seqs;
      case plan::RowKind::kPositions:
        return seqs * masked_per_seq;
      case plan::RowKind::kPairs:
        return pairs;
    }
    return 0;
  }

  bool operator==(const Shape& other) const {
    const auto all = [](const Shape& s) {
      return std::tie(s.tokens, s.seqs, s.longest, s.masked_per_seq, s.pairs);
    };
    return all(*this) == all(other);
  }

 private:
  // The largest power of two that is not above n; 1 at least.
  static int64_t power(int64_t n) {
    int64_t found = 1;
    while (2 * found <= n) found *= 2;
    return found;
  }
};

}  // namespace bertrt::cuda
