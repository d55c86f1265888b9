#include "cuda/engine.h"

#include <algorithm>
#include <cstring>

#include "cuda/batch_inputs.h"
#include "cuda/places.h"
#include "runtime/arena.h"

namespace bertrt::cuda {
namespace {

// What a part returns at most, unless one sequence returns more: it passes through pinned memory.
constexpr int64_t kPartOutputBytes = int64_t{128} << 20;

DeviceRows columns_from(DeviceRows rows, int64_t first) {
  return {static_cast<char*>(rows.data) + first * bytes_of(rows.element), rows.stride,
          rows.element};
}

}  // namespace

Engine::Engine(std::shared_ptr<const Model> model, bool trace, int64_t part_tokens)
    : model_(std::move(model)),
      trace_(trace),
      part_tokens_(part_tokens),
      spent_(model_->nodes.size()) {}

// One pass of the plan over one part: where its values lie, and the steps.
class Engine::PartRun {
 public:
  PartRun(Engine& engine, const PackedBatch& batch,
          const std::vector<std::pair<int, float*>>& wanted, const Demand& demand,
          WorkspacePool::Borrowed& borrowed)
      : engine_(engine),
        model_(*engine.model_),
        batch_(batch),
        demand_(demand),
        workspace_(*borrowed),
        stream_((*borrowed).stream()),
        inputs_(batch),
        values_(model_.values.size()),
        own_(model_.nodes.size()) {
    for (const auto& [value, data] : wanted) {
      const int64_t cells = rows(value) * model_.values[value].cols;
      results_.push_back({value, data, cells * static_cast<int64_t>(sizeof(float)), 0, {}});
    }
    place();
    borrowed.reserve(arena_ + total_, inputs_.bytes(), returned_.bytes());
  }

  void run() {
    const std::vector<Event>* events =
        engine_.trace_ ? &workspace_.events(static_cast<size_t>(steps())) : nullptr;
    inputs_.write(workspace_.inputs());
    inputs_.on_device(workspace_.device());
    check(cudaMemcpyAsync(workspace_.device().data(), workspace_.inputs().data(),
                          static_cast<size_t>(inputs_.bytes()), cudaMemcpyHostToDevice, stream_),
          "the copy of a batch");
    for (int i = 0; i < steps(); ++i) {
      if (!demand_.steps[i]) continue;
      const auto before = 2 * static_cast<size_t>(i);
      if (events) (*events)[before].record(stream_);
      run(i);
      if (events) (*events)[before + 1].record(stream_);
      send(model_.nodes[i].output);
    }
    workspace_.stream().wait();
    for (const Result& result : results_) {
      std::memcpy(result.destination, workspace_.outputs().at(result.staged),
                  static_cast<size_t>(result.bytes));
    }
    if (!events) return;
    for (int i = 0; i < steps(); ++i) {
      if (!demand_.steps[i]) continue;
      const auto before = 2 * static_cast<size_t>(i);
      const double seconds = Event::seconds((*events)[before], (*events)[before + 1]);
      engine_.spent_[i].nanoseconds += static_cast<int64_t>(seconds * 1e9);
      count_work(model_.nodes[i], engine_.spent_[i]);
    }
  }

 private:
  // Rows in the arena.
  struct Place {
    int lifetime = -1;
    int64_t stride = 0;
    Element element = Element::kFp32;
  };

  struct Result {
    int value;
    float* destination;
    int64_t bytes;
    int64_t staged;  // in the pinned memory
    Place dense;     // where its rows are made dense fp32 ones, unless they are
  };

  // What a step needs besides its inputs and its output: its inputs once more, as rows or elements
  // that it can read; and where an attention has first queries, what those are made of, and they.
  struct Own {
    Place inputs[2];
    Place queries;
  };

  int steps() const { return static_cast<int>(model_.nodes.size()); }

  int64_t rows(int value) const {
    return demand_.first_only[value] ? batch_.seqs : model_.rows(value, batch_);
  }

  Element element_of(int value) const {
    const Node& node = model_.nodes[model_.values[value].made_by];
    return node.op == plan::Op::kAttentionWeights ? Element::kFp32 : node.element;
  }

  bool has_first_queries(const Node& node) const {
    return node.op == plan::Op::kAttention && demand_.first_only[node.output];
  }

  static bool works_by_row(const Node& node) {
    switch (node.op) {
      case plan::Op::kQkvLinear:
      case plan::Op::kLinear:
      case plan::Op::kLinearAddLayerNorm:
      case plan::Op::kLayerNorm:
        return true;
      default:
        return false;
    }
  }

  // Rows that live from step `first` to step `last`.
  Place new_place(int64_t rows, int64_t stride, Element element, int first, int last) {
    lifetimes_.push_back({aligned(room(rows, stride) * bytes_of(element)), first, last, 0});
    return {static_cast<int>(lifetimes_.size()) - 1, stride, element};
  }
  // Likewise, with the stride that kernels ask for.
  Place new_rows(int64_t rows, int64_t cols, Element element, int first, int last) {
    return new_place(rows, row_stride(cols, element), element, first, last);
  }

  // Gives everything its place, on the device and in pinned memory.
  void place() {
    std::vector<int> last_use(values_.size(), -1);
    for (int i = 0; i < steps(); ++i) {
      if (!demand_.steps[i]) continue;
      const Node& node = model_.nodes[i];
      for (const int input : node.inputs) last_use[input] = i;
      if (demand_.makes_queries(node)) last_use[model_.qkv_of(node).inputs[0]] = i;
    }
    for (int i = 0; i < steps(); ++i) {
      if (!demand_.steps[i]) continue;
      const Node& node = model_.nodes[i];
      const int64_t count = rows(node.output);
      const int last = std::max(i, last_use[node.output]);
      values_[node.output] =
          new_rows(count, model_.values[node.output].cols, element_of(node.output), i, last);
      for (int which = 0; which < static_cast<int>(node.inputs.size()); ++which) {
        const int value = node.inputs[which];
        if (!works_by_row(node)) continue;
        if (!demand_.gathers(node, which) && element_of(value) == node.element) continue;
        own_[i].inputs[which] = new_rows(count, model_.values[value].cols, node.element, i, i);
      }
      if (has_first_queries(node)) {
        const Node& qkv = model_.qkv_of(node);
        own_[i].queries = new_rows(count, qkv.queries, node.element, i, i);
        if (demand_.makes_queries(node)) {
          own_[i].inputs[0] = new_rows(count, qkv.linear.inputs, node.element, i, i);
        }
      }
    }
    for (Result& result : results_) {
      const Graph::Value& value = model_.values[result.value];
      result.staged = returned_.add(result.bytes);
      const Place& place = values_[result.value];
      if (place.element == Element::kFp32 && place.stride == value.cols) continue;
      result.dense =
          new_place(rows(result.value), value.cols, Element::kFp32, value.made_by, value.made_by);
    }
    arena_ = inputs_.bytes();
    total_ = assign_offsets(lifetimes_);
  }

  DeviceRows at(const Place& place) const {
    return {workspace_.device().at(arena_ + lifetimes_[place.lifetime].offset), place.stride,
            place.element};
  }

  // An input of a node that works row by row: the rows of the node's output, of its element.
  ConstDeviceRows input(int step, int which) const {
    const Node& node = model_.nodes[step];
    const int value = node.inputs[which];
    const Place& own = own_[step].inputs[which];
    if (own.lifetime < 0) return at(values_[value]);
    gather_rows(at(values_[value]), demand_.gathers(node, which) ? first_rows_of(value) : nullptr,
                rows(node.output), model_.values[value].cols, at(own), stream_);
    return at(own);
  }

  // The rows of the sequences' first tokens in a value.
  const int32_t* first_rows_of(int value) const {
    return demand_.first_only[value] ? inputs_.first_rows() : inputs_.first_tokens();
  }

  // The queries of the sequences' first tokens, a row a sequence.
  ConstDeviceRows first_queries(int step) const {
    const Node& node = model_.nodes[step];
    const Node& qkv = model_.qkv_of(node);
    const Own& own = own_[step];
    const int made_of = demand_.makes_queries(node) ? qkv.inputs[0] : node.inputs[0];
    const Place& place = demand_.makes_queries(node) ? own.inputs[0] : own.queries;
    const int64_t cols = demand_.makes_queries(node) ? qkv.linear.inputs : qkv.queries;
    gather_rows(at(values_[made_of]), first_rows_of(made_of), batch_.seqs, cols, at(place),
                stream_);
    if (demand_.makes_queries(node)) {
      Linear queries = qkv.linear;
      queries.outputs = qkv.queries;
      bertrt::cuda::linear(queries, at(place), {}, batch_.seqs, at(own.queries), stream_);
    }
    return at(own.queries);
  }

  void run(int step) const {
    const Node& node = model_.nodes[step];
    const int64_t count = rows(node.output);
    if (count == 0) return;
    const DeviceRows out = at(values_[node.output]);
    switch (node.op) {
      case plan::Op::kEmbedLayerNorm:
        embed_layer_norm(node.embedding, node.norm, inputs_.ids(), inputs_.types(),
                         inputs_.positions(), count, out, stream_);
        return;
      case plan::Op::kQkvLinear:
        if (demand_.keys_only[node.output]) {
          linear(keys_and_values(node), input(step, 0), {}, count, columns_from(out, node.queries),
                 stream_);
          return;
        }
        linear(node.linear, input(step, 0), {}, count, out, stream_);
        return;
      case plan::Op::kLinear:
        linear(node.linear, input(step, 0), {}, count, out, stream_);
        return;
      case plan::Op::kLinearAddLayerNorm:
        linear(node.linear, input(step, 0), input(step, 1), count, out, stream_);
        layer_norm(node.norm, out, {}, count, out, stream_);
        return;
      case plan::Op::kLayerNorm:
        layer_norm(node.norm, input(step, 0), {}, count, out, stream_);
        return;
      case plan::Op::kAttention:
        attention(node.attention, inputs_.sequences(), at(values_[node.inputs[0]]),
                  has_first_queries(node) ? first_queries(step) : ConstDeviceRows{}, out, stream_);
        return;
      case plan::Op::kAttentionWeights:
        attention_weights(node.attention, inputs_.sequences(), inputs_.cu_pairs(),
                          at(values_[node.inputs[0]]), out, stream_);
        return;
      case plan::Op::kFirstToken:
        gather_rows(at(values_[node.inputs[0]]), first_rows_of(node.inputs[0]), count,
                    model_.values[node.output].cols, out, stream_);
        return;
      case plan::Op::kGatherPositions:
        gather_rows(at(values_[node.inputs[0]]), inputs_.masked(), count,
                    model_.values[node.output].cols, out, stream_);
        return;
    }
  }

  // A product for queries, keys and values without the queries.
  static Linear keys_and_values(const Node& qkv) {
    Linear linear = qkv.linear;
    linear.weight.data = static_cast<const char*>(linear.weight.data) +
                         qkv.queries * linear.weight.stride * bytes_of(linear.weight.element);
    if (linear.bias) linear.bias += qkv.queries;
    linear.outputs -= qkv.queries;
    return linear;
  }

  // Has a value that the caller wants copied to pinned memory.
  void send(int value) const {
    for (const Result& result : results_) {
      if (result.value != value || result.bytes == 0) continue;
      DeviceRows rows = at(values_[value]);
      if (result.dense.lifetime >= 0) {
        const DeviceRows dense = at(result.dense);
        const int64_t cols = model_.values[value].cols;
        gather_rows(rows, nullptr, this->rows(value), cols, dense, stream_);
        rows = dense;
      }
      check(cudaMemcpyAsync(workspace_.outputs().at(result.staged), rows.data,
                            static_cast<size_t>(result.bytes), cudaMemcpyDeviceToHost, stream_),
            "the copy of a result");
    }
  }

  // See StepTrace.
  void count_work(const Node& node, Spent& total) const {
    const int64_t count = rows(node.output);
    const int64_t row_bytes = model_.values[node.output].cols * bytes_of(element_of(node.output));
    const auto count_product = [&](const Linear& linear) {
      total.operations += 2 * count * linear.inputs * linear.outputs;
      total.bytes += linear.inputs * linear.outputs * bytes_of(linear.weight.element);
    };
    if (node.linear.outputs) {
      const bool keys = demand_.keys_only[node.output];
      count_product(keys ? keys_and_values(node) : node.linear);
      return;
    }
    if (demand_.makes_queries(node)) {
      const Node& qkv = model_.qkv_of(node);
      Linear queries = qkv.linear;
      queries.outputs = qkv.queries;
      count_product(queries);
    }
    switch (node.op) {
      case plan::Op::kAttention:
      case plan::Op::kAttentionWeights: {
        int64_t pairs = 0;
        for (int64_t s = 0; s < batch_.seqs; ++s) {
          pairs += batch_.length(s) * (has_first_queries(node) ? 1 : batch_.length(s));
        }
        // Scores; and, unless they are what is wanted, the weighted sum of the values.
        const int64_t products = node.op == plan::Op::kAttention ? 2 : 1;
        total.operations += 2 * products * pairs * node.attention.heads * node.attention.head_dim;
        return;
      }
      case plan::Op::kEmbedLayerNorm:
        total.bytes += (node.embedding.type.data ? 4 : 3) * count * row_bytes;
        return;
      default:
        total.bytes += 2 * count * row_bytes;
    }
  }

  Engine& engine_;
  const Model& model_;
  const PackedBatch& batch_;
  const Demand& demand_;
  Workspace& workspace_;
  const cudaStream_t stream_;
  BatchInputs inputs_;
  std::vector<Place> values_;
  std::vector<Own> own_;  // by node
  std::vector<Result> results_;
  std::vector<Lifetime> lifetimes_;
  Places returned_;
  int64_t arena_ = 0, total_ = 0;  // where the arena begins, and its size
};

void Engine::run(const PackedBatch& batch, const std::vector<Output>& outputs) {
  std::vector<int> values;
  std::vector<std::pair<int, float*>> wanted;
  int64_t token_bytes = 1;  // returned for a token, at most
  for (const Output& output : outputs) {
    const int value = model_->output_value(output.name);
    values.push_back(value);
    wanted.emplace_back(value, output.data);
    const Graph::Value& made = model_->values[value];
    if (made.rows == plan::RowKind::kPairs) {
      token_bytes += model_->max_length * made.cols * static_cast<int64_t>(sizeof(float));
    } else if (made.rows == plan::RowKind::kTokens || made.rows == plan::RowKind::kQkv) {
      token_bytes += made.cols * static_cast<int64_t>(sizeof(float));
    }
  }
  const Demand demand(*model_, values);
  const int64_t limit = std::min(part_tokens_, kPartOutputBytes / token_bytes);

  use_device(model_->device.number);
  WorkspacePool::Borrowed workspace(workspaces_);
  for (int64_t begin = 0; begin < batch.seqs;) {
    const int64_t end = part_end(batch, begin, limit);
    const PackedBatch part = batch.sequences(begin, end);
    PartRun(*this, part, wanted, demand, workspace).run();
    for (auto& [value, data] : wanted) {
      data += model_->rows(value, part) * model_->values[value].cols;
    }
    begin = end;
  }
}

std::vector<StepTrace> Engine::steps() const { return step_traces(model_->nodes, spent_); }

}  // namespace bertrt::cuda
