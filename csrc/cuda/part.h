// One pass of the plan over a part of a batch.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/batch_inputs.h"
#include "cuda/model.h"
#include "cuda/places.h"
#include "cuda/runtime.h"
#include "cuda/shape.h"
#include "runtime/arena.h"

namespace bertrt::cuda {

// The memory that a pass works in.
struct PartMemory {
  DeviceMemory device;   // inputs, and the arena of values behind them
  DeviceMemory results;  // what is returned
  PinnedMemory inputs;
  PinnedMemory outputs;
};

// Where the values of a pass lie, and its launches: both are the same for all batches that fit one
// shape, so that they are worked out once and may be captured.
class Part {
 public:
  // wanted: the values to be returned. The model outlives it.
  Part(const Model& model, const std::vector<int>& wanted, const Shape& shape);

  int64_t device_bytes() const { return inputs_.bytes() + total_; }
  int64_t input_bytes() const { return inputs_.bytes(); }
  int64_t output_bytes() const { return returned_.bytes(); }

  // Writes what is to be copied to the device, of a batch that fits the shape.
  void write(const PackedBatch& batch, const PartMemory& memory) const {
    inputs_.write(batch, memory.inputs);
  }

  // Puts a pass into a stream: one copy to the device, the steps, one copy back. The memory
  // suffices and stays where it is until the pass has ended. events: two a step, or null.
  void enqueue(const PartMemory& memory, Stream stream, const std::vector<Event>* events);

  // What was returned of the wanted value of this number, dense, in fp32.
  const void* output(size_t number, const PartMemory& memory) const {
    return memory.outputs.at(results_[number].returned);
  }

  // See StepTrace.
  void count_work(const PackedBatch& batch, std::vector<Spent>& spent) const;
  // Whether a step is part of it.
  bool has_step(size_t step) const { return demand_.steps[step]; }

 private:
  using Node = Model::Node;

  // Rows on the device.
  struct Place {
    int lifetime = -1;      // in the arena
    int64_t returned = -1;  // or among what is returned
    int64_t stride = 0;
    Element element = Element::kFp32;

    explicit operator bool() const { return lifetime >= 0 || returned >= 0; }
  };

  struct Result {
    int value;
    int64_t returned;  // where it lies
    bool in_place;     // the value itself does; or it is made of the value, in dense rows of fp32
  };

  // What a step needs besides its inputs and its output: its inputs once more, as rows or elements
  // that it can read; where an attention has first queries, what those are made of, and they; and
  // where a product is one of 8-bit numbers, its rows as such.
  struct Own {
    Place inputs[2];
    Place queries;
    Place quantised;
  };

  int steps() const { return static_cast<int>(model_.nodes.size()); }
  plan::RowKind row_kind(int value) const {
    return demand_.first_only[value] ? plan::RowKind::kSeqs : model_.values[value].rows;
  }
  int64_t rows(int value) const { return shape_.rows(row_kind(value)); }
  RowCount count(int value) const { return inputs_.count(row_kind(value)); }
  Element element_of(int value) const;
  bool has_first_queries(const Node& node) const;

  Place new_place(int64_t rows, int64_t stride, Element element, int first, int last);
  Place new_rows(int64_t rows, int64_t cols, Element element, int first, int last);
  Place new_quantised_rows(int64_t rows, const Linear& linear, int step);
  void place(const std::vector<int>& wanted);
  DeviceRows at(const Place& place) const;
  ConstDeviceRows input(int step, int which, Stream stream) const;
  void multiply(int step, const Linear& linear, ConstDeviceRows x, ConstDeviceRows residual,
                RowCount rows, DeviceRows out, Stream stream) const;
  const int32_t* first_rows_of(int value) const;
  ConstDeviceRows first_queries(int step, Stream stream) const;
  void run(int step, Stream stream) const;
  void make_results_of(int value, Stream stream) const;

  const Model& model_;
  const Shape shape_;
  const Demand demand_;
  BatchInputs inputs_;
  const PartMemory* memory_ = nullptr;  // of the pass that is enqueued
  std::vector<Place> values_;
  std::vector<Own> own_;  // by node
  std::vector<Result> results_;
  std::vector<Lifetime> lifetimes_;
  Places returned_;
  int64_t total_ = 0;  // of the arena
};

}  // namespace bertrt::cuda
