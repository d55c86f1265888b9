#include "cuda/engine.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "runtime/arena.h"

namespace bertrt::cuda {
namespace {

// What a part returns at most, unless one sequence returns more: it passes through pinned memory.
constexpr int64_t kPartOutputBytes = int64_t{128} << 20;

// What cudaMalloc aligns to, and every array in the arena too.
constexpr int64_t kAlignment = 256;

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Arrays one behind the other in a block of memory that is not there yet.
class Places {
 public:
  int64_t add(int64_t bytes) {
    const int64_t offset = bytes_;
    bytes_ += aligned(bytes);
    return offset;
  }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

DeviceRows columns_from(DeviceRows rows, int64_t first) {
  return {static_cast<char*>(rows.data) + first * bytes_of(rows.element), rows.stride,
          rows.element};
}

}  // namespace

// The memory and the stream of one run. Memory grows to the largest part seen and is used again.
class Engine::Workspace {
 public:
  // Throws DeviceError; then nothing of that kind of memory is held.
  void reserve(int64_t device, int64_t inputs, int64_t outputs) {
    grow(device_, device);
    grow(inputs_, inputs);
    grow(outputs_, outputs);
  }

  // Two events for each of so many steps: before it and behind it.
  const std::vector<Event>& events(size_t steps) {
    while (events_.size() < 2 * steps) events_.emplace_back();
    return events_;
  }

  const DeviceMemory& device() const { return device_; }
  const PinnedMemory& inputs() const { return inputs_; }
  const PinnedMemory& outputs() const { return outputs_; }
  const OwnedStream& stream() const { return stream_; }

 private:
  template <class Memory>
  static void grow(Memory& memory, int64_t bytes) {
    if (static_cast<size_t>(bytes) <= memory.bytes()) return;
    // Steps of an eighth keep the number of times that memory is asked for small.
    constexpr size_t kStep = size_t{1} << 16;
    const size_t wanted = std::max(static_cast<size_t>(bytes), memory.bytes() / 8 * 9);
    memory = Memory();
    memory = Memory((wanted + kStep - 1) / kStep * kStep);
  }

  OwnedStream stream_;
  DeviceMemory device_;
  PinnedMemory inputs_;
  PinnedMemory outputs_;
  std::vector<Event> events_;
};

class Engine::BorrowedWorkspace {
 public:
  explicit BorrowedWorkspace(Engine& engine) : engine_(engine) {
    const std::lock_guard<std::mutex> lock(engine.free_mutex_);
    if (engine.free_.empty()) {
      workspace_ = std::make_unique<Workspace>();
    } else {
      workspace_ = std::move(engine.free_.back());
      engine.free_.pop_back();
    }
  }
  ~BorrowedWorkspace() {
    // After an error copies may be under way.
    (void)cudaStreamSynchronize(workspace_->stream());
    const std::lock_guard<std::mutex> lock(engine_.free_mutex_);
    engine_.free_.push_back(std::move(workspace_));
  }
  BorrowedWorkspace(const BorrowedWorkspace&) = delete;
  BorrowedWorkspace& operator=(const BorrowedWorkspace&) = delete;

  Workspace& operator*() const { return *workspace_; }

  // As Workspace::reserve; before it gives up, memory that no run is using goes back to the device.
  void reserve(int64_t device, int64_t inputs, int64_t outputs) {
    try {
      workspace_->reserve(device, inputs, outputs);
    } catch (const DeviceError&) {
      {
        const std::lock_guard<std::mutex> lock(engine_.free_mutex_);
        engine_.free_.clear();
      }
      workspace_->reserve(device, inputs, outputs);
    }
  }

 private:
  Engine& engine_;
  std::unique_ptr<Workspace> workspace_;
};

Engine::Engine(std::shared_ptr<const Model> model, bool trace, int64_t part_tokens)
    : model_(std::move(model)),
      trace_(trace),
      part_tokens_(part_tokens),
      spent_(model_->nodes.size()) {}

Engine::~Engine() = default;

// What a part brings to the device besides weights, in one block that is copied at once.
class Engine::Inputs {
 public:
  explicit Inputs(const PackedBatch& batch) : batch_(batch) {
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

  int64_t bytes() const { return places_.bytes(); }

  void write(const PinnedMemory& memory) const {
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

  // From here on the arrays lie on the device, from its memory's beginning.
  void on_device(const DeviceMemory& memory) { memory_ = &memory; }

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
    int64_t longest = 0;
    for (int64_t s = 0; s < batch_.seqs; ++s) longest = std::max(longest, batch_.length(s));
    return {ints(cu_seqlens_), batch_.attended ? ints(attended_) : nullptr, batch_.seqs, longest};
  }

 private:
  const int32_t* ints(int64_t place) const {
    return static_cast<const int32_t*>(memory_->at(place));
  }

  const PackedBatch& batch_;
  const DeviceMemory* memory_ = nullptr;
  Places places_;
  int64_t cu_pairs_, ids_, types_, positions_, cu_seqlens_, attended_, first_tokens_, first_rows_,
      masked_;
};

// One pass of the plan over one part: where its values lie, and the steps.
class Engine::PartRun {
 public:
  PartRun(Engine& engine, const PackedBatch& batch,
          const std::vector<std::pair<int, float*>>& wanted, const Demand& demand,
          BorrowedWorkspace& borrowed)
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

  // The step that makes an attention's queries, keys and values.
  const Node& qkv_of(const Node& attention) const {
    return model_.nodes[model_.values[attention.inputs[0]].made_by];
  }

  bool has_first_queries(const Node& node) const {
    return node.op == plan::Op::kAttention && demand_.first_only[node.output];
  }

  // Whether an attention makes the queries that it needs itself.
  bool makes_queries(const Node& node) const {
    return node.op == plan::Op::kAttention && demand_.keys_only[node.inputs[0]];
  }

  // Whether an input of a node that works row by row has more rows than the node's output.
  bool gathers(const Node& node, int which) const {
    return demand_.first_only[node.inputs[which]] != demand_.first_only[node.output];
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
    lifetimes_.push_back({aligned(rows * stride * bytes_of(element)), first, last, 0});
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
      if (makes_queries(node)) last_use[qkv_of(node).inputs[0]] = i;
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
        if (!gathers(node, which) && element_of(value) == node.element) continue;
        own_[i].inputs[which] = new_rows(count, model_.values[value].cols, node.element, i, i);
      }
      if (has_first_queries(node)) {
        const Node& qkv = qkv_of(node);
        own_[i].queries = new_rows(count, qkv.linear.outputs / 3, node.element, i, i);
        if (makes_queries(node)) {
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
    gather_rows(at(values_[value]), gathers(node, which) ? first_rows_of(value) : nullptr,
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
    const Node& qkv = qkv_of(node);
    const Own& own = own_[step];
    const int made_of = makes_queries(node) ? qkv.inputs[0] : node.inputs[0];
    const Place& place = makes_queries(node) ? own.inputs[0] : own.queries;
    const int64_t cols = makes_queries(node) ? qkv.linear.inputs : qkv.linear.outputs / 3;
    gather_rows(at(values_[made_of]), first_rows_of(made_of), batch_.seqs, cols, at(place),
                stream_);
    if (makes_queries(node)) {
      Linear queries = qkv.linear;
      queries.outputs /= 3;
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
          linear(keys_and_values(node.linear), input(step, 0), {}, count,
                 columns_from(out, node.linear.outputs / 3), stream_);
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

  // A product for queries, keys and values without its first third.
  static Linear keys_and_values(Linear linear) {
    const int64_t hidden = linear.outputs / 3;
    linear.weight.data = static_cast<const char*>(linear.weight.data) +
                         hidden * linear.weight.stride * bytes_of(linear.weight.element);
    if (linear.bias) linear.bias += hidden;
    linear.outputs -= hidden;
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
      count_product(keys ? keys_and_values(node.linear) : node.linear);
      return;
    }
    if (makes_queries(node)) {
      Linear queries = qkv_of(node).linear;
      queries.outputs /= 3;
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
  Inputs inputs_;
  std::vector<Place> values_;
  std::vector<Own> own_;  // by node
  std::vector<Result> results_;
  std::vector<Lifetime> lifetimes_;
  Places returned_;
  int64_t arena_ = 0, total_ = 0;  // where the arena begins, and its size
};

void Engine::run(const PackedBatch& batch, const std::vector<Output>& outputs) {
  model_->check(batch, outputs);
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
    } else if (made.rows == plan::RowKind::kTokens) {
      token_bytes += made.cols * static_cast<int64_t>(sizeof(float));
    }
  }
  const Demand demand(*model_, values);
  const int64_t limit = std::min(part_tokens_, kPartOutputBytes / token_bytes);

  use_device(model_->device.number);
  BorrowedWorkspace workspace(*this);
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
