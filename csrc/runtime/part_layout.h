// How the steps of a plan share out one part of a batch, and where its values lie in memory.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "core/ops.h"
#include "runtime/model.h"
#include "runtime/workspace.h"

namespace bertrt {

// Whole sequences of a batch, and where their rows of the wanted outputs go.
struct Part {
  PackedBatch batch;
  std::vector<std::pair<int, float*>> outputs;  // value, destination
};

// Steps that work row by row and follow each other, which is all of a layer but its attention, make
// a stretch. If the part has rows enough, a thread takes a block of rows through a whole stretch by
// itself: threads meet twice a layer rather than several times a step, and what passes from step to
// step within the stretch needs memory for a block only. If it has not, threads share every step.
class PartLayout {
 public:
  using Node = Model::Node;

  struct Stretch {
    int begin, end;  // steps
    int64_t blocks;  // 1: threads share every step
  };

  // What steps work on: all rows of the part, or a block of them.
  struct View {
    int64_t rows = -1;  // of a block
    std::vector<Rows> values;
    std::vector<Operand> operands;  // of values, for those that have one
    void* scratch = nullptr;
  };

  // All of them outlive the layout, which takes the workspace's memory.
  PartLayout(const Model& model, const Part& part, const Demand& demand, const Ops& ops,
             int64_t threads, Workspace& workspace);

  const std::vector<Stretch>& stretches() const { return stretches_; }
  int64_t lanes() const { return lanes_; }  // threads that take blocks

  const View& all() const { return all_; }
  View block_of(const Stretch& stretch, int64_t block, int lane) const;

  int64_t rows(int value) const {
    return demand_.first_only[value] ? part_.batch.seqs : model_.rows(value, part_.batch);
  }
  int64_t rows(const View& view, int value) const {
    return view.rows >= 0 ? view.rows : rows(value);
  }

  // Whether an attention reads the first tokens' queries.
  bool has_first_queries(const Node& node) const {
    return node.op == plan::Op::kAttention && demand_.first_only[node.output];
  }

  // Memory for the rows of the sequences' first tokens that a step reads: of its inputs; or of an
  // attention that has first queries, those (1), and if it makes them itself, what of (0).
  Rows gathered(const Node& node, int which) const {
    return {gathered_[which], padded_stride(gathered_cols(node, which))};
  }
  // How many columns of such memory a step asks for; 0: none.
  int64_t gathered_cols(const Node& node, int which) const;

  // Whether the step before a product has written the form of its rows that the product reads; and
  // whether a step writes its result in that form alone.
  bool has_operand(const Node& node) const {
    const Matrix* reader = all_.operands[node.inputs[0]].reader;
    return reader && reader->precision == node.matrix->precision && !demand_.gathers(node, 0);
  }
  bool only_operand(const Node& node) const {
    return node.op == plan::Op::kLinear && all_.operands[node.output].reader;
  }

 private:
  const Node& node(int step) const { return model_.nodes[step]; }
  int steps() const { return static_cast<int>(model_.nodes.size()); }
  bool is_row_by_row(const Node& node) const;
  void want_operand(const Node& node, const std::vector<int>& uses);
  void find_stretches(int64_t threads);
  void find_memory(const std::vector<int>& last_use, Workspace& workspace);
  int64_t scratch_of(const Node& node, int64_t rows) const;
  static int64_t padded_stride(int64_t cols);

  const Model& model_;
  const Part& part_;
  const Demand& demand_;
  const Ops& ops_;
  View all_;
  float* gathered_[2];

  std::vector<Stretch> stretches_;
  int64_t lanes_ = 1;
  int64_t block_rows_ = 0;
  // A lane's memory, in floats; where values and operands lie in it, -1 for those that do not.
  float* lane_memory_ = nullptr;
  int64_t lane_size_ = 0;
  int64_t lane_scratch_ = 0;
  std::vector<int64_t> lane_values_, lane_operands_;
};

}  // namespace bertrt
