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

// Rows of a block that one thread takes through a stretch of steps (see PartRun). Every block reads
// all the weights of the stretch. Where threads share no cache that holds them, all of them read
// from the memory they share, so that the fewest rows, whose arithmetic has to last longer than
// that, grow with the threads: 16 rows balance it for each thread of the two measured, in every
// precision. The most leave several blocks to a thread, which even out how fast cores are.
constexpr int64_t kLeastBlockRowsPerThread = 16;
constexpr int64_t kMostBlockRows = 128;

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
      alone_(1),
      ops_(cpu::make_ops(cpu::table_by_name(model_->device), pool_)),
      ops_alone_(cpu::make_ops(cpu::table_by_name(model_->device), alone_)),
      trace_(trace),
      spent_(model_->nodes.size()) {}

// One pass of the plan over one part: where its values lie, and the steps.
//
// Steps that work row by row and follow each other, which is all of a layer but its attention, make
// a stretch. If the part has rows enough, a thread takes a block of rows through a whole stretch by
// itself: threads meet twice a layer rather than several times a step, and what passes from step to
// step within the stretch needs memory for a block only. If it has not, threads share every step.
class Engine::PartRun {
 public:
  PartRun(Engine& engine, const Part& part, const Demand& demand, Workspace& workspace)
      : engine_(engine), part_(part), demand_(demand), index_(workspace.index) {
    const size_t count = engine.model_->values.size();
    all_.ops = engine.ops_.get();
    all_.values.resize(count);
    all_.operands.resize(count);
    std::vector<int> uses(count, 0);
    std::vector<int> last_use(count, -1);
    for (int i = 0; i < steps(); ++i) {
      if (!demand_.steps[i]) continue;
      const auto use = [&](int value) {
        ++uses[value];
        last_use[value] = i;
      };
      for (const int input : node(i).inputs) use(input);
      if (makes_queries(node(i))) use(qkv_of(node(i)).inputs[0]);
    }
    for (const auto& [value, data] : part.outputs) {
      all_.values[value] = {data, engine_.model_->values[value].cols};
      ++uses[value];
    }
    for (int i = 0; i < steps(); ++i) {
      if (demand_.steps[i]) want_operand(node(i), uses);
    }
    find_stretches();
    find_memory(last_use, workspace);
  }

  void run() {
    for (const Stretch& stretch : stretches_) {
      if (stretch.blocks == 1) {
        run(stretch, all_, 1);
      } else {
        engine_.pool_.parallel_for(stretch.blocks, [&](int64_t block, int lane) {
          const int64_t tokens = part_.batch.tokens();
          const int64_t begin = tokens * block / stretch.blocks;
          const int64_t end = tokens * (block + 1) / stretch.blocks;
          run(stretch, block_of(stretch, begin, end, lane), lanes_);
        });
      }
      for (int i = stretch.begin; engine_.trace_ && i < stretch.end; ++i) {
        if (demand_.steps[i]) count_work(node(i), engine_.spent_[i]);
      }
    }
  }

 private:
  struct Stretch {
    int begin, end;  // steps
    int64_t blocks;  // 1: threads share every step
  };

  // What steps work on: all rows of the part, or a block of them.
  struct View {
    Ops* ops = nullptr;
    int64_t rows = -1;  // of a block
    std::vector<Rows> values;
    std::vector<Operand> operands;  // of values, for those that have one
    void* scratch = nullptr;
  };

  const Node& node(int step) const { return engine_.model_->nodes[step]; }

  // Whether a row of a step's result needs no more than the same row of its inputs.
  bool is_row_by_row(const Node& node) const {
    return (node.matrix || node.op == plan::Op::kLayerNorm) &&
           engine_.model_->values[node.output].rows == plan::RowKind::kTokens &&
           !demand_.first_only[node.output];
  }

  void find_stretches() {
    const int64_t tokens = part_.batch.tokens();
    const int64_t threads = engine_.pool_.threads();
    int64_t blocks = 1;
    const int64_t least = kLeastBlockRowsPerThread * threads;
    if (tokens >= threads * least) {
      const int64_t most = threads * std::max(kMostBlockRows, 2 * least);
      blocks = threads * ((tokens + most - 1) / most);
    }
    lanes_ = std::min(threads, blocks);
    block_rows_ = (tokens + blocks - 1) / blocks;
    for (int i = 0; i < steps(); ++i) {
      const bool by_rows = blocks > 1 && demand_.steps[i] && is_row_by_row(node(i));
      if (by_rows && !stretches_.empty() && stretches_.back().blocks > 1) {
        stretches_.back().end = i + 1;
      } else if (demand_.steps[i]) {
        stretches_.push_back({i, i + 1, by_rows ? blocks : 1});
      }
    }
  }

  // Gives every value and operand a place in memory for as long as it lives; one that lives within
  // a stretch gets a place in each lane instead, for a block of its rows.
  void find_memory(const std::vector<int>& last_use, Workspace& workspace) {
    std::vector<const Stretch*> stretch_of(static_cast<size_t>(steps()), nullptr);
    for (const Stretch& stretch : stretches_) {
      for (int i = stretch.begin; i < stretch.end; ++i) stretch_of[i] = &stretch;
    }
    lane_values_.resize(all_.values.size(), -1);
    lane_operands_.resize(all_.values.size(), -1);
    std::vector<Lifetime> lives, lane_lives;
    std::vector<std::pair<int, bool>> owners, lane_owners;  // value, whether its operand
    int64_t scratch_bytes = 0;
    int64_t lane_scratch_bytes = 0;
    int64_t gathered = 0;
    for (int i = 0; i < steps(); ++i) {
      if (!demand_.steps[i]) continue;
      const Stretch& stretch = *stretch_of[i];
      const int value = node(i).output;
      const int last = last_use[value];
      const auto place = [&](int64_t row_floats, bool operand) {
        if (stretch.blocks > 1 && last < stretch.end) {
          lane_lives.push_back({block_rows_ * row_floats, i, last, 0});
          lane_owners.emplace_back(value, operand);
        } else {
          // Blocks are at different steps of a stretch at the same time.
          lives.push_back(
              {rows(all_, value) * row_floats, stretch.begin, stretch_of[last]->end - 1, 0});
          owners.emplace_back(value, operand);
        }
      };
      if (const Matrix* reader = all_.operands[value].reader) {
        place(engine_.ops_->operand_stride(*reader) / static_cast<int64_t>(sizeof(float)), true);
      }
      Rows& out = all_.values[value];
      if (!out.stride && !only_operand(all_, node(i))) {
        out.stride = padded_stride(engine_.model_->values[value].cols);
        place(out.stride, false);
      }
      if (stretch.blocks > 1) {
        lane_scratch_bytes = std::max(lane_scratch_bytes, scratch_of(node(i), block_rows_));
      } else {
        scratch_bytes = std::max(scratch_bytes, scratch_of(node(i), rows(all_, value)));
        for (const int input : node(i).inputs) gathered = std::max(gathered, gathered_size(input));
      }
    }
    // Sizes are multiples of a cache line, and so are the addresses.
    const int64_t arena = assign_offsets(lives);
    const int64_t lane_arena = assign_offsets(lane_lives);
    lane_size_ = lane_arena + lane_scratch_bytes / static_cast<int64_t>(sizeof(float));
    lane_scratch_ = lane_arena;
    auto* memory = static_cast<float*>(workspace.reserve(
        static_cast<size_t>(arena + lanes_ * lane_size_ + 2 * gathered) * sizeof(float) +
        static_cast<size_t>(scratch_bytes)));
    for (size_t i = 0; i < owners.size(); ++i) {
      float* place = memory + lives[i].offset;
      const auto [value, operand] = owners[i];
      if (operand) {
        all_.operands[value].data = place;
      } else {
        all_.values[value].data = place;
      }
    }
    for (size_t i = 0; i < lane_owners.size(); ++i) {
      const auto [value, operand] = lane_owners[i];
      (operand ? lane_operands_ : lane_values_)[value] = lane_lives[i].offset;
    }
    lane_memory_ = memory + arena;
    gathered_[0] = lane_memory_ + lanes_ * lane_size_;
    gathered_[1] = gathered_[0] + gathered;
    all_.scratch = gathered_[1] + gathered;
  }

  View block_of(const Stretch& stretch, int64_t begin, int64_t end, int lane) const {
    View view = all_;
    view.ops = engine_.ops_alone_.get();
    view.rows = end - begin;
    float* memory = lane_memory_ + lane * lane_size_;
    view.scratch = memory + lane_scratch_;
    const auto place = [&](int value) {
      Rows& rows = view.values[value];
      Operand& operand = view.operands[value];
      if (lane_values_[value] >= 0) {
        rows.data = memory + lane_values_[value];
      } else if (rows.data) {
        rows.data = all_.values[value].data + begin * rows.stride;
      }
      if (lane_operands_[value] >= 0) {
        operand.data = memory + lane_operands_[value];
      } else if (operand.data) {
        operand.data = static_cast<char*>(all_.operands[value].data) +
                       begin * view.ops->operand_stride(*operand.reader);
      }
    };
    for (int i = stretch.begin; i < stretch.end; ++i) {
      if (!demand_.steps[i]) continue;
      place(node(i).output);
      for (const int input : node(i).inputs) place(input);
    }
    return view;
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

  int steps() const { return static_cast<int>(engine_.model_->nodes.size()); }

  // See StepTrace.
  void count_work(const Node& node, Spent& total) const {
    const int64_t count = rows(all_, node.output);
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

  int64_t rows(const View& view, int value) const {
    if (view.rows >= 0) return view.rows;
    return demand_.first_only[value] ? part_.batch.seqs : engine_.model_->rows(value, part_.batch);
  }

  // Bytes of scratch for so many rows.
  int64_t scratch_of(const Node& node, int64_t rows) const {
    if (node.matrix) {
      if (has_operand(node)) return 0;
      return rows * engine_.ops_->operand_stride(*node.matrix);
    }
    if (node.op != plan::Op::kAttention) return 0;
    const int64_t queries =
        makes_queries(node) ? part_.batch.seqs * engine_.ops_->operand_stride(*qkv_of(node).matrix)
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
  ConstRows input(const View& view, const Node& node, int which) {
    const int value = node.inputs[which];
    if (!gathers(node, which)) return view.values[value];
    const int64_t cols = engine_.model_->values[value].cols;
    const Rows rows{gathered_[which], padded_stride(cols)};
    index_first_tokens(value);
    gather(all_.values[value], cols, rows);
    return rows;
  }

  // Whether the step before a product has written the form of its rows that the product reads.
  bool has_operand(const Node& node) const {
    const Matrix* reader = all_.operands[node.inputs[0]].reader;
    return reader && reader->precision == node.matrix->precision && !gathers(node, 0);
  }

  void linear(const View& view, const Node& node, const Epilogue& epilogue) {
    Ops& ops = *view.ops;
    const int64_t count = rows(view, node.output);
    const ConstRows x = input(view, node, 0);
    const void* operand = view.scratch;
    if (has_operand(node)) {
      operand = view.operands[node.inputs[0]].data;
    } else if (ops.operand_stride(*node.matrix)) {
      ops.to_operand(x, count, {node.matrix.get(), view.scratch});
    }
    ops.linear(*node.matrix, epilogue, x, operand, count, view.values[node.output],
               only_operand(view, node) ? view.operands[node.output] : Operand{},
               next_matrix(node));
  }

  // The matrix of the next product, or null.
  const Matrix* next_matrix(const Node& node) const {
    const std::vector<Node>& nodes = engine_.model_->nodes;
    for (size_t i = static_cast<size_t>(&node - nodes.data()) + 1; i < nodes.size(); ++i) {
      if (nodes[i].matrix && demand_.steps[i]) return nodes[i].matrix.get();
    }
    return nullptr;
  }

  // Has the step before a product write the product's operand, where it can: beside its rows, if it
  // has whole rows at hand; or instead of them, if it is a product and nobody else reads them.
  void want_operand(const Node& node, const std::vector<int>& uses) {
    if (!node.matrix || gathers(node, 0) || !engine_.ops_->operand_stride(*node.matrix)) return;
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
    if (can) all_.operands[value].reader = node.matrix.get();
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
      gather(all_.values[value], hidden, queries);
      return queries;
    }
    const int input = qkv.inputs[0];
    const int64_t inputs = engine_.model_->values[input].cols;
    const Rows x{gathered_[0], padded_stride(inputs)};
    index_first_tokens(input);
    gather(all_.values[input], inputs, x);
    if (engine_.ops_->operand_stride(*qkv.matrix)) {
      engine_.ops_->to_operand(x, part_.batch.seqs, {qkv.matrix.get(), all_.scratch});
    }
    Epilogue epilogue;
    epilogue.bias = qkv.bias.empty() ? nullptr : qkv.bias.data();
    epilogue.last_column = hidden;
    engine_.ops_->linear(*qkv.matrix, epilogue, x, all_.scratch, part_.batch.seqs, queries, {},
                         next_matrix(attention));
    return queries;
  }

  static bool only_operand(const View& view, const Node& node) {
    return node.op == plan::Op::kLinear && view.operands[node.output].reader;
  }

  void run(const View& view, const Node& node) {
    Ops& ops = *view.ops;
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
                      demand_.first_only[node.output] ? first_queries(node) : ConstRows{}, out,
                      view.scratch);
        return;
      case plan::Op::kAttentionWeights:
        ops.attention_weights(node.attention, batch, view.values[node.inputs[0]], out);
        return;
      case plan::Op::kQkvLinear:
        if (demand_.keys_only[node.output]) epilogue.first_column = query_columns(node);
        linear(view, node, epilogue);
        return;
      case plan::Op::kLinear:
        epilogue.activation = node.activation;
        linear(view, node, epilogue);
        return;
      case plan::Op::kLinearAddLayerNorm:
        linear(view, node, epilogue);
        ops.layer_norm(node.norm, out, input(view, node, 1), rows(view, node.output), out, operand);
        return;
      case plan::Op::kLayerNorm:
        ops.layer_norm(node.norm, input(view, node, 0), {}, rows(view, node.output), out, operand);
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
    gather(view.values[node.inputs[0]], engine_.model_->values[node.output].cols, out);
  }

  Engine& engine_;
  const Part& part_;
  const Demand& demand_;
  std::vector<int32_t>& index_;
  View all_;
  float* gathered_[2];  // a node reads two values at most

  std::vector<Stretch> stretches_;
  int64_t lanes_ = 1;  // threads that take blocks
  int64_t block_rows_ = 0;
  // A lane's memory, in floats; where values and operands lie in it, -1 for those that do not.
  float* lane_memory_ = nullptr;
  int64_t lane_size_ = 0;
  int64_t lane_scratch_ = 0;
  std::vector<int64_t> lane_values_, lane_operands_;
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

  const ThreadPool::Call call(pool_);
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

std::vector<StepTrace> Engine::steps() const { return step_traces(model_->nodes, spent_); }

}  // namespace bertrt
