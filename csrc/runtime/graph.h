// A validated plan with its values numbered, and what can be said of it without a device: what
// every engine walks.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/types.h"
#include "plan/plan.h"

namespace bertrt {

// One output that the caller wants, dense, with the rows that its value has for this batch.
struct Output {
  std::string name;
  float* data;
};

// What a step has done since loading, if tracing is on.
struct StepTrace {
  std::string name;
  std::string kernel;
  double seconds = 0.0;
  // Additions and multiplications of matrix products; and the bytes that have to move at least:
  // a product's packed weights, once a part, or the rows that another step reads and writes.
  int64_t operations = 0;
  int64_t bytes = 0;
};

// What a step's StepTrace is made of, for threads to add to.
struct Spent {
  std::atomic<int64_t> nanoseconds{0}, operations{0}, bytes{0};
};

// One for each of a model's nodes, which have names and kernels.
template <class Node>
std::vector<StepTrace> step_traces(const std::vector<Node>& nodes,
                                   const std::vector<Spent>& spent) {
  std::vector<StepTrace> traces;
  for (size_t i = 0; i < nodes.size(); ++i) {
    traces.push_back({nodes[i].name, nodes[i].kernel,
                      static_cast<double>(spent[i].nanoseconds) * 1e-9, spent[i].operations,
                      spent[i].bytes});
  }
  return traces;
}

struct Graph {
  struct Step {
    plan::Op op;
    std::string name;
    std::vector<int> inputs;  // values
    int output;
    // Its result is the model's alone, or has fewer rows than tokens: it costs nothing beside the
    // encoder.
    bool head;
    int64_t queries;  // columns of a qkv_linear's result; as many are keys, as many values
  };

  struct Value {
    plan::RowKind rows;
    int64_t cols;
    int made_by;  // step
  };

  explicit Graph(const plan::CheckedPlan& checked);

  // Throws BatchError if there is no such output.
  int output_value(const std::string& name) const;
  // Throws BatchError if a batch does not fit the plan, or lacks what these outputs need. All else
  // of a batch may be asked only then.
  void check(const PackedBatch& batch, const std::vector<std::string>& wanted) const;
  int64_t rows(int value, const PackedBatch& batch) const;

  int64_t vocab_size;
  int64_t type_vocab_size;
  int64_t max_length;
  std::vector<Step> steps;
  std::vector<Value> values;
  std::vector<std::pair<std::string, int>> outputs;  // name, value
};

// What has to be computed for the outputs asked for.
struct Demand {
  Demand(const Graph& graph, const std::vector<int>& outputs);

  // Whether an input of a step that works row by row has more rows than the step's output.
  bool gathers(const Graph::Step& step, int which) const {
    return first_only[step.inputs[which]] != first_only[step.output];
  }
  // Whether an attention makes the queries that it needs itself.
  bool makes_queries(const Graph::Step& step) const {
    return step.op == plan::Op::kAttention && keys_only[step.inputs[0]];
  }

  std::vector<char> steps;
  // Values with a row per token of which only the first tokens' are read: they have a row per
  // sequence instead. (A classifier reads one row of the last layer.)
  std::vector<char> first_only;
  // Values of which only attention over first tokens reads: of their rows it reads keys and values.
  std::vector<char> keys_only;
};

// The end of the part of a batch that begins with sequence `begin`: whole sequences of at most
// `limit` tokens together, or one.
int64_t part_end(const PackedBatch& batch, int64_t begin, int64_t limit);

}  // namespace bertrt
