// The arrays of a batch on the device.
#pragma once

#include <cstdint>

#include "core/types.h"
#include "cuda/kernels.h"
#include "cuda/places.h"
#include "cuda/runtime.h"
#include "cuda/shape.h"

namespace bertrt::cuda {

// What a batch, or a part of one, brings to the device besides weights, in one block that is copied
// at once. Where its places lie depends on the shape alone.
class BatchInputs {
 public:
  explicit BatchInputs(const Shape& shape);

  int64_t bytes() const { return places_.bytes(); }

  // Writes those of a batch that fits the shape. Sequences that it lacks are empty.
  void write(const PackedBatch& batch, const PinnedMemory& memory) const;

  // From here on the arrays lie on the device, from its memory's beginning.
  void on_device(const DeviceMemory& memory) { memory_ = &memory; }

  // How many rows of a kind there really are.
  RowCount count(plan::RowKind kind) const {
    return {shape_.rows(kind),
            static_cast<const int64_t*>(memory_->at(counts_)) + static_cast<int64_t>(kind)};
  }
  const int32_t* ids() const { return ints(ids_); }
  const int32_t* types() const { return ints(types_); }
  const int32_t* positions() const { return ints(positions_); }
  // Rows of the sequences' first tokens in a value that has a row a token, or a row a sequence; -1
  // for an empty sequence.
  const int32_t* first_tokens() const { return ints(first_tokens_); }
  const int32_t* first_rows() const { return ints(first_rows_); }
  const int32_t* masked() const { return ints(masked_); }
  const int64_t* cu_pairs() const { return static_cast<const int64_t*>(memory_->at(cu_pairs_)); }
  Sequences sequences() const {
    return {ints(cu_seqlens_), ints(attended_), shape_.seqs, shape_.longest};
  }

 private:
  const int32_t* ints(int64_t place) const {
    return static_cast<const int32_t*>(memory_->at(place));
  }

  Shape shape_;
  const DeviceMemory* memory_ = nullptr;
  Places places_;
  int64_t counts_, cu_pairs_, ids_, types_, positions_, cu_seqlens_, attended_, first_tokens_,
      first_rows_, masked_;
};

}  // namespace bertrt::cuda
