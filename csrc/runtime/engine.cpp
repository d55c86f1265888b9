#include "runtime/engine.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>

#include "core/error.h"
#include "cpu/cpu_ops.h"
#include "cpu/isa.h"
#include "runtime/arena.h"

namespace bertrt {
namespace {

// A batch runs in parts of whole sequences, so that activations stay near the cache and the arena
// stays small however large the batch is. At 2,048 tokens reading the weights again for each part
// costs about a hundredth of the part's arithmetic.
constexpr int64_t kPartTokens = 2048;
constexpr int64_t kPartTokensPerThread = 256;

// Rows this far apart (or a multiple) share their sets of an 8-way, 32 KiB first-level cache.
constexpr int64_t kCacheWay = 4096 / sizeof(float);

int64_t padded_stride(int64_t cols) {
  int64_t stride = (cols + 15) / 16 * 16;
  if (stride % (kCacheWay / 4) == 0) stride += 16;
  return stride;
}

int64_t bytes_of(Precision precision) {
  switch (precision) {
    case Precision::kFp32:
      return 4;
    case Precision::kBf16:
      return 2;
    case Precision::kInt8:
      return 1;
  }
  return 0;
}

}  // namespace

// Whole sequences of a batch, and where their rows of the wanted outputs go.
struct Engine::Part {
  PackedBatch batch;
  std::vector<std::pair<int, float*>> outputs;  // value, destination
};

// The memory of one run. It grows to the largest part seen and is used again.
class Engine::Workspace {
 public:
  void* reserve(size_t bytes) {
    // Growing in big steps keeps the number of different sizes, and so fragmentation, small.
    constexpr size_t kStep = size_t{1} << 20;
    if (bytes > arena_.bytes()) {
      arena_ = AlignedBuffer();
      arena_ = AlignedBuffer((bytes + kStep - 1) / kStep * kStep);
    }
    return arena_.data();
  }

  std::vector<int32_t> index;

 private:
  AlignedBuffer arena_;
};

// Neither taking nor returning a workspace ever waits: a child forked while another thread held the
// lock must not hang on it.
class Engine::BorrowedWorkspace {
 public:
  explicit BorrowedWorkspace(Engine& engine) : engine_(engine) {
    std::unique_lock<std::mutex> lock(engine.free_mutex_, std::try_to_lock);
    if (lock.owns_lock() && !engine.free_.empty()) {
      workspace_ = std::move(engine.free_.back());
      engine.free_.pop_back();
    } else {
      workspace_ = std::make_unique<Workspace>();
    }
  }
  ~BorrowedWorkspace() {
    std::unique_lock<std::mutex> lock(engine_.free_mutex_, std::try_to_lock);
    if (lock.owns_lock()) engine_.free_.push_back(std::move(workspace_));
  }
  Workspace& operator*() const { return *workspace_; }

 private:
  Engine& engine_;
  std::unique_ptr<Workspace> workspace_;
};

Engine::~Engine() = default;

Engine::Engine(std::shared_ptr<const Model> model, int threads, bool trace)
    : model_(std::move(model)),
      pool_(threads),
      ops_(cpu::make_ops(cpu::table_by_name(model_->device), pool_)),
      trace_(trace),
      spent_(model_->nodes.size()) {}

// One pass of the plan over one part: where its values lie, and the steps.
class Engine::PartRun {
 public:
  PartRun(Engine& engine, const Part& part, const Demand& demand, Workspace& workspace)
      : engine_(engine),
        part_(part),
        demand_(demand),
        index_(workspace.index),
        values_(engine.model_->values.size()),
        operands_(engine.model_->values.size()) {
    std::vector<int> uses(values_.size(), 0);
    std::vector<int> last_use(values_.size(), -1);
    for (int i = 0; i < steps(); ++i) {
      if (!demand_.steps[i]) continue;
      const Node& node = engine_.model_->nodes[i];
      const auto use = [&](int value) {
        ++uses[value];
        last_use[value] = i;
      };
      for (const int input : node.inputs) use(input);
      if (makes_queries(node)) use(qkv_of(node).inputs[0]);
    }
    for (const auto& [value, data] : part.outputs) {
      values_[value] = {data, engine_.model_->values[value].cols};
      ++uses[value];
    }
    for (int i = 0; i < steps(); ++i) {
      if (demand_.steps[i]) want_operand(engine_.model_->nodes[i], uses);
    }
    std::vector<Lifetime> lifetimes;
    std::vector<std::pair<int, bool>> owners;  // value, whether its operand
    int64_t scratch_bytes = 0;
    int64_t gathered = 0;
    for (int i = 0; i < steps(); ++i) {
      if (!demand_.steps[i]) continue;
      const Node& node = engine_.model_->nodes[i];
      scratch_bytes = std::max(scratch_bytes, scratch_of(node));
      for (const int input : node.inputs) gathered = std::max(gathered, gathered_size(input));
      if (const Matrix* reader = operands_[node.output].reader) {
        const int64_t bytes = engine_.ops_->operand_bytes(*reader, rows(node.output));
        lifetimes.push_back(
            {bytes / static_cast<int64_t>(sizeof(float)), i, last_use[node.output], 0});
        owners.emplace_back(node.output, true);
      }
      if (values_[node.output].stride || only_operand(node)) continue;
      values_[node.output].stride = padded_stride(engine_.model_->values[node.output].cols);
      lifetimes.push_back(
          {rows(node.output) * values_[node.output].stride, i, last_use[node.output], 0});
      owners.emplace_back(node.output, false);
    }
    // Sizes are multiples of a cache line, and so are the addresses.
    const int64_t arena = assign_offsets(lifetimes);
    auto* memory = static_cast<float*>(
        workspace.reserve(static_cast<size_t>(arena + 2 * gathered) * sizeof(float) +
                          static_cast<size_t>(scratch_bytes)));
    for (size_t i = 0; i < owners.size(); ++i) {
      float* place = memory + lifetimes[i].offset;
      const auto [value, operand] = owners[i];
      if (operand) {
        operands_[value].data = place;
      } else {
        values_[value].data = place;
      }
    }
    gathered_[0] = memory + arena;
    gathered_[1] = gathered_[0] + gathered;
    scratch_ = gathered_[1] + gathered;
  }

  void run() {
    for (int i = 0; i < steps(); ++i) {
      if (!demand_.steps[i]) continue;
      const Node& node = engine_.model_->nodes[i];
      if (!engine_.trace_) {
        run(node);
        continue;
      }
      const auto start = std::chrono::steady_clock::now();
      run(node);
      const auto spent = std::chrono::steady_clock::now() - start;
      Spent& total = engine_.spent_[i];
      total.nanoseconds += std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count();
      count_work(node, total);
    }
  }

 private:
  int steps() const { return static_cast<int>(engine_.model_->nodes.size()); }

  // See StepTrace.
  void count_work(const Node& node, Spent& total) const {
    const int64_t count = rows(node.output);
    const int64_t row_bytes =
        engine_.model_->values[node.output].cols * static_cast<int64_t>(sizeof(float));
    const auto count_product = [&](const Matrix& matrix, int64_t rows, int64_t columns) {
      total.operations += 2 * rows * matrix.inputs * columns;
      total.bytes += matrix.inputs * columns * bytes_of(matrix.precision);
    };
    if (node.matrix) {
      const int64_t left_out = demand_.keys_only[node.output] ? query_columns(node) : 0;
      count_product(*node.matrix, count, node.matrix->outputs - left_out);
      return;
    }
    if (makes_queries(node)) {
      const Node& qkv = qkv_of(node);
      count_product(*qkv.matrix, count, query_columns(qkv));
    }
    switch (node.op) {
      case plan::Op::kAttention:
      case plan::Op::kAttentionWeights: {
        int64_t pairs = 0;
        for (int64_t s = 0; s < part_.batch.seqs; ++s) {
          const int64_t length = part_.batch.length(s);
          pairs += length * (demand_.first_only[node.output] ? 1 : length);
        }
        // Scores; and, unless they are what is wanted, the weighted sum of the values.
        const int64_t products = node.op == plan::Op::kAttention ? 2 : 1;
        total.operations += 2 * products * pairs * node.attention.heads * node.attention.head_dim;
        return;
      }
      case plan::Op::kEmbedLayerNorm:
        total.bytes += (node.embedding.type ? 4 : 3) * count * row_bytes;
        return;
      default:
        total.bytes += 2 * count * row_bytes;
    }
  }

  int64_t rows(int value) const {
    return demand_.first_only[value] ? part_.batch.seqs : engine_.model_->rows(value, part_.batch);
  }

  int64_t scratch_of(const Node& node) const {
    if (node.matrix) {
      if (operands_[node.inputs[0]].reader && !gathers(node, 0)) return 0;
      return engine_.ops_->operand_bytes(*node.matrix, rows(node.output));
    }
    if (node.op != plan::Op::kAttention) return 0;
    const int64_t queries =
        makes_queries(node) ? engine_.ops_->operand_bytes(*qkv_of(node).matrix, part_.batch.seqs)
                            : 0;
    int64_t longest = 0;
    for (int64_t s = 0; s < part_.batch.seqs; ++s) {
      longest = std::max(longest, part_.batch.length(s));
    }
    return std::max(queries, engine_.ops_->attention_scratch(node.attention, longest));
  }

  // Floats that the first tokens' rows of a value take.
  int64_t gathered_size(int value) const {
    return part_.batch.seqs * padded_stride(engine_.model_->values[value].cols);
  }

  void gather(ConstRows x, int64_t cols, Rows out) const {
    engine_.ops_->gather_rows(x, index_.data(), static_cast<int64_t>(index_.size()), cols, out);
  }

  // Row numbers of the sequences' first tokens in a value, -1 for an empty sequence.
  void index_first_tokens(int value) {
    index_.clear();
    for (int64_t s = 0; s < part_.batch.seqs; ++s) {
      const int64_t row =
          demand_.first_only[value] ? s : part_.batch.cu_seqlens[s] - part_.batch.cu_seqlens[0];
      // Gluon's encoder returns zeros where nothing is attended to.
      index_.push_back(part_.batch.keys(s) ? static_cast<int32_t>(row) : -1);
    }
  }

  // Whether an input of a node that works row by row has more rows than the node's output.
  bool gathers(const Node& node, int which) const {
    return demand_.first_only[node.inputs[which]] != demand_.first_only[node.output];
  }

  // An input of a node that works row by row: the rows of the node's output.
  ConstRows input(const Node& node, int which) {
    const int value = node.inputs[which];
    if (!gathers(node, which)) return values_[value];
    const int64_t cols = engine_.model_->values[value].cols;
    const Rows rows{gathered_[which], padded_stride(cols)};
    index_first_tokens(value);
    gather(values_[value], cols, rows);
    return rows;
  }

  void linear(const Node& node, const Epilogue& epilogue, Rows out) {
    Ops& ops = *engine_.ops_;
    const ConstRows x = input(node, 0);
    const void* operand = operands_[node.inputs[0]].data;
    if (!operand || gathers(node, 0)) {
      operand = scratch_;
      if (ops.operand_bytes(*node.matrix, 1)) {
        ops.to_operand(x, rows(node.output), {node.matrix.get(), scratch_});
      }
    }
    ops.linear(*node.matrix, epilogue, x, operand, rows(node.output), out,
               only_operand(node) ? operands_[node.output] : Operand{});
  }

  // Has the step before a product write the product's operand, where it can: beside its rows, if it
  // has whole rows at hand; or instead of them, if it is a product and nobody else reads them.
  void want_operand(const Node& node, const std::vector<int>& uses) {
    if (!node.matrix || gathers(node, 0) || !engine_.ops_->operand_bytes(*node.matrix, 1)) return;
    const int value = node.inputs[0];
    bool can = false;
    switch (engine_.model_->nodes[engine_.model_->values[value].made_by].op) {
      case plan::Op::kEmbedLayerNorm:
      case plan::Op::kLinearAddLayerNorm:
      case plan::Op::kLayerNorm:
        can = true;
        break;
      case plan::Op::kLinear:
        can = uses[value] == 1 && engine_.ops_->makes_operand(*node.matrix);
        break;
      default:
        break;
    }
    if (can) operands_[value].reader = node.matrix.get();
  }

  static int64_t query_columns(const Node& qkv) { return qkv.matrix->outputs / 3; }

  // The step that makes an attention's queries, keys and values.
  const Node& qkv_of(const Node& attention) const {
    return engine_.model_->nodes[engine_.model_->values[attention.inputs[0]].made_by];
  }

  // Whether an attention makes the queries that it needs itself.
  bool makes_queries(const Node& node) const {
    return node.op == plan::Op::kAttention && demand_.keys_only[node.inputs[0]];
  }

  // The queries of the sequences' first tokens, a row a sequence.
  ConstRows first_queries(const Node& attention) {
    const int value = attention.inputs[0];
    const Node& qkv = qkv_of(attention);
    const int64_t hidden = query_columns(qkv);
    const Rows queries{gathered_[1], padded_stride(hidden)};
    if (!makes_queries(attention)) {
      index_first_tokens(value);
      gather(values_[value], hidden, queries);
      return queries;
    }
    const int input = qkv.inputs[0];
    const int64_t inputs = engine_.model_->values[input].cols;
    const Rows x{gathered_[0], padded_stride(inputs)};
    index_first_tokens(input);
    gather(values_[input], inputs, x);
    if (engine_.ops_->operand_bytes(*qkv.matrix, 1)) {
      engine_.ops_->to_operand(x, part_.batch.seqs, {qkv.matrix.get(), scratch_});
    }
    Epilogue epilogue;
    epilogue.bias = qkv.bias.empty() ? nullptr : qkv.bias.data();
    epilogue.last_column = hidden;
    engine_.ops_->linear(*qkv.matrix, epilogue, x, scratch_, part_.batch.seqs, queries, {});
    return queries;
  }

  bool only_operand(const Node& node) const {
    return node.op == plan::Op::kLinear && operands_[node.output].reader;
  }

  void run(const Node& node) {
    Ops& ops = *engine_.ops_;
    const Rows out = values_[node.output];
    const PackedBatch& batch = part_.batch;
    Epilogue epilogue;
    epilogue.bias = node.bias.empty() ? nullptr : node.bias.data();
    switch (node.op) {
      case plan::Op::kEmbedLayerNorm:
        ops.embed(node.embedding, batch, out, operands_[node.output]);
        return;
      case plan::Op::kAttention:
        ops.attention(node.attention, batch, values_[node.inputs[0]],
                      demand_.first_only[node.output] ? first_queries(node) : ConstRows{}, out,
                      scratch_);
        return;
      case plan::Op::kAttentionWeights:
        ops.attention_weights(node.attention, batch, values_[node.inputs[0]], out);
        return;
      case plan::Op::kQkvLinear:
        if (demand_.keys_only[node.output]) epilogue.first_column = query_columns(node);
        linear(node, epilogue, out);
        return;
      case plan::Op::kLinear:
        epilogue.activation = node.activation;
        linear(node, epilogue, out);
        return;
      case plan::Op::kLinearAddLayerNorm:
        linear(node, epilogue, out);
        ops.layer_norm(node.norm, out, input(node, 1), rows(node.output), out,
                       operands_[node.output]);
        return;
      case plan::Op::kLayerNorm:
        ops.layer_norm(node.norm, input(node, 0), {}, rows(node.output), out,
                       operands_[node.output]);
        return;
      case plan::Op::kFirstToken:
        index_first_tokens(node.inputs[0]);
        break;
      case plan::Op::kGatherPositions:
        index_.clear();
        for (int64_t s = 0; s < batch.seqs; ++s) {
          const int32_t first = batch.cu_seqlens[s] - batch.cu_seqlens[0];
          for (int64_t i = 0; i < batch.masked_per_seq; ++i) {
            index_.push_back(first + batch.masked_positions[s * batch.masked_per_seq + i]);
          }
        }
        break;
    }
    gather(values_[node.inputs[0]], engine_.model_->values[node.output].cols, out);
  }

  Engine& engine_;
  const Part& part_;
  const Demand& demand_;
  std::vector<int32_t>& index_;
  std::vector<Rows> values_;
  std::vector<Operand> operands_;  // of values, for those that have one
  float* gathered_[2];             // a node reads two values at most
  void* scratch_;
};

void Engine::run(const PackedBatch& batch, const std::vector<Output>& outputs) {
  model_->check(batch, outputs);
  std::vector<int> wanted;
  std::vector<std::pair<int, float*>> destinations;
  for (const Output& output : outputs) {
    wanted.push_back(model_->output_value(output.name));
    destinations.emplace_back(wanted.back(), output.data);
  }
  const Demand demand(*model_, wanted);

  BorrowedWorkspace workspace(*this);
  const int64_t limit = std::max(kPartTokens, kPartTokensPerThread * pool_.threads());
  for (int64_t begin = 0; begin < batch.seqs;) {
    const int64_t end = part_end(batch, begin, limit);
    Part part{batch.sequences(begin, end), destinations};
    PartRun(*this, part, demand, *workspace).run();
    for (auto& [value, data] : destinations) {
      data += model_->rows(value, part.batch) * model_->values[value].cols;
    }
    begin = end;
  }
}

std::vector<StepTrace> Engine::steps() const {
  std::vector<StepTrace> steps;
  for (size_t i = 0; i < spent_.size(); ++i) {
    const Node& node = model_->nodes[i];
    const Spent& spent = spent_[i];
    steps.push_back({node.name, node.kernel, static_cast<double>(spent.nanoseconds) * 1e-9,
                     spent.operations, spent.bytes});
  }
  return steps;
}

}  // namespace bertrt
