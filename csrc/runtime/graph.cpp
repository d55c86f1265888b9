#include "runtime/graph.h"

#include <algorithm>
#include <set>

#include "core/error.h"

namespace bertrt {

namespace {

bool has_token_rows(plan::RowKind rows) {
  return rows == plan::RowKind::kTokens || rows == plan::RowKind::kQkv;
}

}  // namespace

Graph::Graph(const plan::CheckedPlan& checked)
    : vocab_size(checked.plan->vocab_size),
      type_vocab_size(checked.plan->type_vocab_size),
      max_length(checked.plan->max_length) {
  std::set<int> returned(checked.outputs.begin(), checked.outputs.end()), read;
  for (const plan::CheckedStep& step : checked.steps) {
    read.insert(step.inputs.begin(), step.inputs.end());
  }
  for (const plan::CheckedStep& step : checked.steps) {
    const int number = static_cast<int>(steps.size());
    const bool head = !has_token_rows(step.result.rows) ||
                      (step.step->op == plan::Op::kLinear && returned.count(number) != 0 &&
                       read.count(number) == 0);
    // A step makes one value: its own number is the value's.
    values.push_back({step.result.rows, step.result.cols, number});
    steps.push_back({step.step->op, step.step->name, step.inputs, number, head, step.queries});
  }
  for (size_t i = 0; i < checked.outputs.size(); ++i) {
    outputs.emplace_back(checked.plan->outputs[i].first, checked.outputs[i]);
  }
}

int Graph::output_value(const std::string& name) const {
  std::string known;
  for (const auto& [output, value] : outputs) {
    if (output == name) return value;
    known += known.empty() ? "" : ", ";
    known += output;
  }
  throw BatchError("output '" + name + "' is not one of the model's: " + known);
}

void Graph::check(const PackedBatch& batch, const std::vector<std::string>& wanted) const {
  if (batch.cu_seqlens[0] != 0) throw BatchError("cu_seqlens does not begin with 0");
  for (int64_t s = 0; s < batch.seqs; ++s) {
    const int64_t length = int64_t{batch.cu_seqlens[s + 1]} - batch.cu_seqlens[s];
    if (length < 0 || length > max_length) {
      throw BatchError("sequence " + std::to_string(s) + " has length " + std::to_string(length) +
                       ", expected 0 to " + std::to_string(max_length));
    }
    if (batch.attended && (batch.attended[s] < 0 || batch.attended[s] > length)) {
      throw BatchError("sequence " + std::to_string(s) + " has " + std::to_string(length) +
                       " tokens, of which " + std::to_string(batch.attended[s]) +
                       " cannot be attended to");
    }
    for (int64_t i = 0; i < batch.masked_per_seq; ++i) {
      const int32_t position = batch.masked_positions[s * batch.masked_per_seq + i];
      if (position < 0 || position >= length) {
        throw BatchError("masked position " + std::to_string(position) + " of sequence " +
                         std::to_string(s) + " is outside its " + std::to_string(length) +
                         " tokens");
      }
    }
  }
  const int64_t types = std::max<int64_t>(1, type_vocab_size);
  for (int64_t i = 0; i < batch.tokens(); ++i) {
    if (batch.token_ids[i] < 0 || batch.token_ids[i] >= vocab_size) {
      throw BatchError("token id " + std::to_string(batch.token_ids[i]) + " at token " +
                       std::to_string(i) + " is outside 0 to " + std::to_string(vocab_size - 1));
    }
    if (type_vocab_size && (batch.token_types[i] < 0 || batch.token_types[i] >= types)) {
      throw BatchError("token type " + std::to_string(batch.token_types[i]) + " at token " +
                       std::to_string(i) + " is outside 0 to " + std::to_string(types - 1));
    }
  }
  for (const std::string& output : wanted) {
    const bool positions = values[output_value(output)].rows == plan::RowKind::kPositions;
    if (positions && !batch.masked_positions) {
      throw BatchError("output '" + output + "' needs masked_positions");
    }
  }
}

int64_t Graph::rows(int value, const PackedBatch& batch) const {
  switch (values[value].rows) {
    case plan::RowKind::kTokens:
    case plan::RowKind::kQkv:
      return batch.tokens();
    case plan::RowKind::kSeqs:
      return batch.seqs;
    case plan::RowKind::kPositions:
      return batch.seqs * batch.masked_per_seq;
    case plan::RowKind::kPairs: {
      int64_t pairs = 0;
      for (int64_t s = 0; s < batch.seqs; ++s) pairs += batch.length(s) * batch.length(s);
      return pairs;
    }
  }
  return 0;
}

Demand::Demand(const Graph& graph, const std::vector<int>& outputs) : steps(graph.steps.size(), 0) {
  std::vector<char> all_rows(graph.values.size(), 0);
  for (const int value : outputs) {
    steps[graph.values[value].made_by] = 1;
    all_rows[value] = 1;
  }
  for (size_t i = graph.steps.size(); i-- > 0;) {
    if (!steps[i]) continue;
    const Graph::Step& step = graph.steps[i];
    bool all = true;
    switch (step.op) {
      case plan::Op::kFirstToken:
        all = false;
        break;
      case plan::Op::kLinear:
      case plan::Op::kLinearAddLayerNorm:
      case plan::Op::kLayerNorm:
        all = all_rows[step.output];
        break;
      case plan::Op::kEmbedLayerNorm:
      case plan::Op::kQkvLinear:
        all_rows[step.output] = 1;  // made for all tokens whoever asks
        break;
      case plan::Op::kAttention:
      case plan::Op::kAttentionWeights:
      case plan::Op::kGatherPositions:
        break;
    }
    for (const int input : step.inputs) {
      steps[graph.values[input].made_by] = 1;
      if (all) all_rows[input] = 1;
    }
  }
  for (size_t v = 0; v < graph.values.size(); ++v) {
    first_only.push_back(graph.values[v].rows == plan::RowKind::kTokens && !all_rows[v]);
    const plan::Op op = graph.steps[graph.values[v].made_by].op;
    keys_only.push_back(op == plan::Op::kQkvLinear);
  }
  for (const int value : outputs) keys_only[value] = 0;
  for (size_t i = 0; i < graph.steps.size(); ++i) {
    const Graph::Step& step = graph.steps[i];
    const bool keys = step.op == plan::Op::kAttention && first_only[step.output];
    if (!steps[i] || keys) continue;
    for (const int input : step.inputs) keys_only[input] = 0;
  }
}

int64_t part_end(const PackedBatch& batch, int64_t begin, int64_t limit) {
  int64_t end = begin + 1;
  while (end < batch.seqs && batch.cu_seqlens[end + 1] - batch.cu_seqlens[begin] <= limit) ++end;
  return end;
}

}  // namespace bertrt
