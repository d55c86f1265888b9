#include "runtime/engine.h"

#include <algorithm>
#include <chrono>

#include "core/float_mode.h"
#include "cpu/cpu_ops.h"
#include "cpu/isa.h"
#include "runtime/part_layout.h"

namespace bertrt {
namespace {

// A batch runs in parts of whole sequences, so that activations stay near the cache and the arena
// stays small however large the batch is. At 2,048 tokens reading the weights again for each part
// costs about a hundredth of the part's arithmetic.
constexpr int64_t kPartTokens = 2048;
constexpr int64_t kPartTokensPerThread = 256;

int64_t bytes_of(Precision precision) {
  switch (precision) {
    case Precision::kFp32:
      return 4;
    case Precision::kBf16:
      return 2;
    case Precision::kInt8:
    case Precision::kFp8:
      return 1;
  }
  return 0;
}

}  // namespace

Engine::Engine(std::shared_ptr<const Model> model, int threads, bool trace)
    : model_(std::move(model)),
      pool_(threads),
      alone_(1),
      ops_(cpu::make_ops(cpu::table_by_name(model_->device), pool_)),
      ops_alone_(cpu::make_ops(cpu::table_by_name(model_->device), alone_)),
      trace_(trace),
      spent_(model_->nodes.size()) {}

// One pass of the plan over one part.
class Engine::PartRun {
 public:
  PartRun(Engine& engine, const Part& part, const Demand& demand, Workspace& workspace,
          const std::function<void()>& between_steps)
      : engine_(engine),
        model_(*engine.model_),
        part_(part),
        demand_(demand),
        layout_(model_, part, demand, *engine.ops_, engine.pool_.threads(), workspace),
        index_(workspace.index),
        between_steps_(between_steps) {}

  void run() {
    for (const Stretch& stretch : layout_.stretches()) {
      between_steps_();
      const FloatMode mode;
      if (stretch.blocks == 1) {
        run(stretch, layout_.all(), 1);
      } else {
        engine_.pool_.parallel_for(stretch.blocks, [&](int64_t block, int lane) {
          run(stretch, layout_.block_of(stretch, block, lane), layout_.lanes());
        });
      }
      for (int i = stretch.begin; engine_.trace_ && i < stretch.end; ++i) {
        if (demand_.steps[i]) count_work(node(i), engine_.spent_[i]);
      }
    }
  }

 private:
  using Stretch = PartLayout::Stretch;
  using View = PartLayout::View;

  const Node& node(int step) const { return model_.nodes[step]; }

  // On the pool, or for a block on the thread that has taken it.
  Ops& ops_for(const View& view) const {
    return view.rows < 0 ? *engine_.ops_ : *engine_.ops_alone_;
  }

  void run(const Stretch& stretch, const View& view, int64_t lanes) {
    for (int i = stretch.begin; i < stretch.end; ++i) {
      if (!demand_.steps[i]) continue;
      if (!engine_.trace_) {
        run(view, node(i));
        continue;
      }
      const auto start = std::chrono::steady_clock::now();
      run(view, node(i));
      const auto spent = std::chrono::steady_clock::now() - start;
      // Of threads that go side by side each counts for its share.
      engine_.spent_[i].nanoseconds +=
          std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count() / lanes;
    }
  }

  // See StepTrace.
  void count_work(const Node& node, Spent& total) const {
    const int64_t count = layout_.rows(node.output);
    const int64_t row_bytes = model_.values[node.output].cols * static_cast<int64_t>(sizeof(float));
    const auto count_product = [&](const Matrix& matrix, int64_t rows, int64_t columns) {
      total.operations += 2 * rows * matrix.inputs * columns;
      total.bytes += matrix.inputs * columns * bytes_of(matrix.precision);
    };
    if (node.matrix) {
      const int64_t left_out = demand_.keys_only[node.output] ? node.queries : 0;
      count_product(*node.matrix, count, node.matrix->outputs - left_out);
      return;
    }
    if (demand_.makes_queries(node)) {
      const Node& qkv = model_.qkv_of(node);
      count_product(*qkv.matrix, count, qkv.queries);
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

  // An input of a node that works row by row: the rows of the node's output.
  ConstRows input(const View& view, const Node& node, int which) {
    const int value = node.inputs[which];
    if (!demand_.gathers(node, which)) return view.values[value];
    const Rows rows = layout_.gathered(node, which);
    index_first_tokens(value);
    gather(layout_.all().values[value], layout_.gathered_cols(node, which), rows);
    return rows;
  }

  void linear(const View& view, const Node& node, const Epilogue& epilogue) {
    Ops& ops = ops_for(view);
    const int64_t count = layout_.rows(view, node.output);
    const ConstRows x = input(view, node, 0);
    const void* operand = view.scratch;
    if (layout_.has_operand(node)) {
      operand = view.operands[node.inputs[0]].data;
    } else if (ops.operand_stride(*node.matrix)) {
      ops.to_operand(x, count, {node.matrix.get(), view.scratch});
    }
    ops.linear(*node.matrix, epilogue, x, operand, count, view.values[node.output],
               layout_.only_operand(node) ? view.operands[node.output] : Operand{},
               next_matrix(node));
  }

  // The matrix of the next product, or null.
  const Matrix* next_matrix(const Node& node) const {
    const std::vector<Node>& nodes = model_.nodes;
    for (size_t i = static_cast<size_t>(&node - nodes.data()) + 1; i < nodes.size(); ++i) {
      if (nodes[i].matrix && demand_.steps[i]) return nodes[i].matrix.get();
    }
    return nullptr;
  }

  // The queries of the sequences' first tokens, a row a sequence.
  ConstRows first_queries(const Node& attention) {
    const int value = attention.inputs[0];
    const Node& qkv = model_.qkv_of(attention);
    const Rows queries = layout_.gathered(attention, 1);
    if (!demand_.makes_queries(attention)) {
      index_first_tokens(value);
      gather(layout_.all().values[value], layout_.gathered_cols(attention, 1), queries);
      return queries;
    }
    const int input = qkv.inputs[0];
    const Rows x = layout_.gathered(attention, 0);
    index_first_tokens(input);
    gather(layout_.all().values[input], layout_.gathered_cols(attention, 0), x);
    if (engine_.ops_->operand_stride(*qkv.matrix)) {
      engine_.ops_->to_operand(x, part_.batch.seqs, {qkv.matrix.get(), layout_.all().scratch});
    }
    Epilogue epilogue;
    epilogue.bias = qkv.bias.empty() ? nullptr : qkv.bias.data();
    epilogue.last_column = qkv.queries;
    engine_.ops_->linear(*qkv.matrix, epilogue, x, layout_.all().scratch, part_.batch.seqs, queries,
                         {}, next_matrix(attention));
    return queries;
  }

  void run(const View& view, const Node& node) {
    Ops& ops = ops_for(view);
    const Rows out = view.values[node.output];
    const Operand operand = view.operands[node.output];
    const PackedBatch& batch = part_.batch;
    Epilogue epilogue;
    epilogue.bias = node.bias.empty() ? nullptr : node.bias.data();
    switch (node.op) {
      case plan::Op::kEmbedLayerNorm:
        ops.embed(node.embedding, batch, out, operand);
        return;
      case plan::Op::kAttention:
        ops.attention(node.attention, batch, view.values[node.inputs[0]],
                      layout_.has_first_queries(node) ? first_queries(node) : ConstRows{}, out,
                      view.scratch);
        return;
      case plan::Op::kAttentionWeights:
        ops.attention_weights(node.attention, batch, view.values[node.inputs[0]], out);
        return;
      case plan::Op::kQkvLinear:
        if (demand_.keys_only[node.output]) epilogue.first_column = node.queries;
        linear(view, node, epilogue);
        return;
      case plan::Op::kLinear:
        epilogue.activation = node.activation;
        linear(view, node, epilogue);
        return;
      case plan::Op::kLinearAddLayerNorm:
        linear(view, node, epilogue);
        ops.layer_norm(node.norm, out, input(view, node, 1), layout_.rows(view, node.output), out,
                       operand);
        return;
      case plan::Op::kLayerNorm:
        ops.layer_norm(node.norm, input(view, node, 0), {}, layout_.rows(view, node.output), out,
                       operand);
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
    gather(view.values[node.inputs[0]], model_.values[node.output].cols, out);
  }

  Engine& engine_;
  const Model& model_;
  const Part& part_;
  const Demand& demand_;
  const PartLayout layout_;
  std::vector<int32_t>& index_;
  const std::function<void()>& between_steps_;
};

void Engine::run(const PackedBatch& batch, const std::vector<Output>& outputs,
                 const std::function<void()>& between_steps) {
  std::vector<int> wanted;
  std::vector<std::pair<int, float*>> destinations;
  for (const Output& output : outputs) {
    wanted.push_back(model_->output_value(output.name));
    destinations.emplace_back(wanted.back(), output.data);
  }
  const Demand demand(*model_, wanted);

  const ThreadPool::Call call(pool_);
  const WorkspacePool::Borrowed workspace(workspaces_);
  const int64_t limit = std::max(kPartTokens, kPartTokensPerThread * pool_.threads());
  for (int64_t begin = 0; begin < batch.seqs;) {
    const int64_t end = part_end(batch, begin, limit);
    Part part{batch.sequences(begin, end), destinations};
    PartRun(*this, part, demand, *workspace, between_steps).run();
    for (auto& [value, data] : destinations) {
      data += model_->rows(value, part.batch) * model_->values[value].cols;
    }
    begin = end;
  }
}

std::vector<StepTrace> Engine::steps() const { return step_traces(model_->nodes, spent_); }

}  // namespace bertrt
