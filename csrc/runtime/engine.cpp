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

std::vector<float> to_vector(const plan::Weight& weight) {
  return {weight.data, weight.data + weight.shape[0]};
}

}  // namespace

// A step, ready to run: weights packed, values numbered.
struct Engine::Node {
  plan::Op op;
  std::string name;
  std::string kernel;
  std::vector<int> inputs;
  int output;

  std::unique_ptr<Matrix> matrix;
  std::vector<float> bias;
  std::vector<float> gamma, beta;
  Activation activation = Activation::kNone;
  LayerNorm norm;
  Embedding embedding;
  Attention attention;
  std::atomic<int64_t> nanoseconds{0};
};

// Whole sequences of a batch, and where their rows of the wanted outputs go.
struct Engine::Part {
  PackedBatch batch;
  std::vector<std::pair<int, float*>> outputs;  // value, destination

  int64_t rows(plan::RowKind kind) const {
    switch (kind) {
      case plan::RowKind::kTokens:
        return batch.tokens();
      case plan::RowKind::kSeqs:
        return batch.seqs;
      case plan::RowKind::kPositions:
        return batch.seqs * batch.masked_per_seq;
    }
    return 0;
  }
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

Engine::Engine(const plan::Plan& plan, Precision precision, int threads, bool trace)
    : pool_(threads),
      ops_(cpu::make_ops(cpu::select_table(), pool_)),
      vocab_size_(plan.vocab_size),
      type_vocab_size_(plan.type_vocab_size),
      max_length_(plan.max_length),
      trace_(trace) {
  const auto shapes = plan::validate(plan);
  std::map<std::string, int> numbers;

  for (const plan::Step& step : plan.steps) {
    auto node = std::make_unique<Node>();
    node->op = step.op;
    node->name = step.name;
    node->activation = step.activation;
    for (const std::string& input : step.inputs) node->inputs.push_back(numbers.at(input));
    node->output = static_cast<int>(values_.size());
    numbers[step.output] = node->output;
    const plan::ValueShape shape = shapes.at(step.output);
    values_.push_back({shape.rows, shape.cols, static_cast<int>(nodes_.size())});

    const auto weight = [&](const char* role) -> const plan::Weight& {
      return step.weights.at(role).front();
    };
    if (step.weights.count("gamma")) {
      node->gamma = to_vector(weight("gamma"));
      node->beta = to_vector(weight("beta"));
      node->norm = {node->gamma.data(), node->beta.data(), static_cast<float>(step.eps),
                    shape.cols};
    }

    // A head's few rows cost nothing, and their result is the model's.
    const Precision here = shape.rows == plan::RowKind::kTokens ? precision : Precision::kFp32;
    switch (step.op) {
      case plan::Op::kEmbedLayerNorm:
        node->kernel = "embed_f32." + ops_->name();
        node->embedding.word = weight("word").data;
        node->embedding.position = weight("position").data;
        if (step.weights.count("type")) node->embedding.type = weight("type").data;
        node->embedding.norm = node->norm;
        break;
      case plan::Op::kQkvLinear: {
        // Both layouts become [query | key | value], each by head.
        const int64_t hidden = step.heads * step.head_dim;
        std::vector<int64_t> columns;
        for (int64_t head = 0; head < step.heads; ++head) {
          for (int64_t part = 0; part < 3; ++part) {
            for (int64_t d = 0; d < step.head_dim; ++d) {
              columns.push_back(part * hidden + head * step.head_dim + d);
            }
          }
        }
        const int64_t inputs = values_[node->inputs[0]].cols;
        std::vector<WeightBlock> blocks;
        if (step.weight_layout == plan::QkvLayout::kSeparate) {
          for (const plan::Weight& w : step.weights.at("weight")) {
            const auto first = static_cast<int64_t>(blocks.size()) * hidden;
            blocks.push_back({w.data, hidden, inputs, step.transposed, nullptr, first});
          }
        } else {
          blocks.push_back(
              {weight("weight").data, 3 * hidden, inputs, step.transposed, columns.data(), 0});
        }
        node->matrix =
            ops_->pack(blocks.data(), static_cast<int>(blocks.size()), inputs, 3 * hidden, here);
        node->bias.resize(static_cast<size_t>(3 * hidden));
        if (step.bias_layout == plan::QkvLayout::kSeparate) {
          float* out = node->bias.data();
          for (const plan::Weight& b : step.weights.at("bias")) {
            out = std::copy(b.data, b.data + hidden, out);
          }
        } else {
          for (size_t i = 0; i < columns.size(); ++i) {
            node->bias[static_cast<size_t>(columns[i])] = weight("bias").data[i];
          }
        }
        node->kernel = ops_->linear_kernel(here);
        break;
      }
      case plan::Op::kAttention:
        node->attention = {step.heads, step.head_dim, static_cast<float>(step.scale)};
        node->kernel = ops_->attention_kernel();
        break;
      case plan::Op::kLinearAddLayerNorm:
      case plan::Op::kLinear: {
        const int64_t inputs = values_[node->inputs[0]].cols;
        const WeightBlock block{weight("weight").data, shape.cols, inputs,
                                step.transposed,       nullptr,    0};
        node->matrix = ops_->pack(&block, 1, inputs, shape.cols, here);
        if (step.weights.count("bias")) node->bias = to_vector(weight("bias"));
        node->kernel = ops_->linear_kernel(here);
        break;
      }
      case plan::Op::kLayerNorm:
        node->kernel = "layer_norm_f32." + ops_->name();
        break;
      case plan::Op::kFirstToken:
      case plan::Op::kGatherPositions:
        node->kernel = "gather_rows";
        break;
    }
    nodes_.push_back(std::move(node));
  }
  for (const auto& [name, value] : plan.outputs) outputs_.emplace_back(name, numbers.at(value));
}

int Engine::output_value(const std::string& name) const {
  std::string known;
  for (const auto& [output, value] : outputs_) {
    if (output == name) return value;
    known += known.empty() ? "" : ", ";
    known += output;
  }
  throw BatchError("output '" + name + "' is not one of the model's: " + known);
}

int64_t Engine::output_rows(const std::string& name, const PackedBatch& batch) const {
  return Part{batch, {}}.rows(values_[output_value(name)].rows);
}

int64_t Engine::output_cols(const std::string& name) const {
  return values_[output_value(name)].cols;
}

void Engine::check(const PackedBatch& batch) const {
  if (batch.cu_seqlens[0] != 0) throw BatchError("cu_seqlens does not begin with 0");
  for (int64_t s = 0; s < batch.seqs; ++s) {
    const int64_t length = int64_t{batch.cu_seqlens[s + 1]} - batch.cu_seqlens[s];
    if (length < 0 || length > max_length_) {
      throw BatchError("sequence " + std::to_string(s) + " has length " + std::to_string(length) +
                       ", expected 0 to " + std::to_string(max_length_));
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
  const int64_t types = std::max<int64_t>(1, type_vocab_size_);
  for (int64_t i = 0; i < batch.tokens(); ++i) {
    if (batch.token_ids[i] < 0 || batch.token_ids[i] >= vocab_size_) {
      throw BatchError("token id " + std::to_string(batch.token_ids[i]) + " at token " +
                       std::to_string(i) + " is outside 0 to " + std::to_string(vocab_size_ - 1));
    }
    if (type_vocab_size_ && (batch.token_types[i] < 0 || batch.token_types[i] >= types)) {
      throw BatchError("token type " + std::to_string(batch.token_types[i]) + " at token " +
                       std::to_string(i) + " is outside 0 to " + std::to_string(types - 1));
    }
  }
}

void Engine::run(const PackedBatch& batch, const std::vector<Output>& outputs) {
  check(batch);
  std::vector<char> needed(nodes_.size(), 0);
  std::vector<std::pair<int, float*>> destinations;
  for (const Output& output : outputs) {
    const int value = output_value(output.name);
    if (values_[value].rows == plan::RowKind::kPositions && !batch.masked_positions) {
      throw BatchError("output '" + output.name + "' needs masked_positions");
    }
    destinations.emplace_back(value, output.data);
    needed[values_[value].made_by] = 1;
  }
  for (size_t i = nodes_.size(); i-- > 0;) {
    if (!needed[i]) continue;
    for (const int input : nodes_[i]->inputs) needed[values_[input].made_by] = 1;
  }

  BorrowedWorkspace workspace(*this);
  const int64_t limit = std::max(kPartTokens, kPartTokensPerThread * pool_.threads());
  for (int64_t begin = 0; begin < batch.seqs;) {
    int64_t end = begin + 1;
    while (end < batch.seqs && batch.cu_seqlens[end + 1] - batch.cu_seqlens[begin] <= limit) ++end;
    Part part;
    part.batch = batch;
    part.batch.token_ids += batch.cu_seqlens[begin];
    part.batch.token_types += batch.cu_seqlens[begin];
    part.batch.cu_seqlens += begin;
    part.batch.seqs = end - begin;
    if (batch.masked_positions) part.batch.masked_positions += begin * batch.masked_per_seq;
    part.outputs = destinations;
    run_part(part, needed, *workspace);
    for (auto& [value, data] : destinations) {
      data += part.rows(values_[value].rows) * values_[value].cols;
    }
    begin = end;
  }
}

void Engine::run_part(const Part& part, const std::vector<char>& needed, Workspace& workspace) {
  const int steps = static_cast<int>(nodes_.size());
  std::vector<int> last_use(values_.size(), -1);
  for (int i = 0; i < steps; ++i) {
    if (!needed[i]) continue;
    for (const int input : nodes_[i]->inputs) last_use[input] = i;
  }
  std::vector<Rows> values(values_.size());
  for (const auto& [value, data] : part.outputs) values[value] = {data, values_[value].cols};

  std::vector<Lifetime> lifetimes;
  std::vector<int> owners;
  for (int i = 0; i < steps; ++i) {
    const int value = nodes_[i]->output;
    if (!needed[i] || values[value].stride) continue;
    values[value].stride = padded_stride(values_[value].cols);
    const int64_t size = part.rows(values_[value].rows) * values[value].stride;
    lifetimes.push_back({size, i, last_use[value], 0});
    owners.push_back(value);
  }
  const int64_t arena = assign_offsets(lifetimes);
  int64_t longest = 0;
  for (int64_t s = 0; s < part.batch.seqs; ++s) {
    longest = std::max<int64_t>(longest, part.batch.cu_seqlens[s + 1] - part.batch.cu_seqlens[s]);
  }
  int64_t scratch_bytes = 0;
  for (int i = 0; i < steps; ++i) {
    if (!needed[i]) continue;
    const Node& node = *nodes_[i];
    if (node.op == plan::Op::kAttention) {
      scratch_bytes = std::max(scratch_bytes, ops_->attention_scratch(node.attention, longest));
    } else if (node.matrix) {
      const int64_t rows = part.rows(values_[node.output].rows);
      scratch_bytes = std::max(scratch_bytes, ops_->linear_scratch(*node.matrix, rows));
    }
  }
  const int64_t arena_bytes = arena * static_cast<int64_t>(sizeof(float));
  char* memory =
      static_cast<char*>(workspace.reserve(static_cast<size_t>(arena_bytes + scratch_bytes)));
  void* scratch = memory + arena_bytes;  // strides are multiples of 16 floats: still aligned
  for (size_t i = 0; i < owners.size(); ++i) {
    values[owners[i]].data = reinterpret_cast<float*>(memory) + lifetimes[i].offset;
  }

  std::vector<int32_t>& index = workspace.index;
  for (int i = 0; i < steps; ++i) {
    if (!needed[i]) continue;
    Node& node = *nodes_[i];
    if (!trace_) {
      run_node(node, part, values, scratch, index);
      continue;
    }
    const auto start = std::chrono::steady_clock::now();
    run_node(node, part, values, scratch, index);
    const auto spent = std::chrono::steady_clock::now() - start;
    node.nanoseconds += std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count();
  }
}

void Engine::run_node(Node& node, const Part& part, const std::vector<Rows>& values, void* scratch,
                      std::vector<int32_t>& index) {
  const Rows out = values[node.output];
  const PackedBatch& batch = part.batch;
  Epilogue epilogue;
  epilogue.bias = node.bias.empty() ? nullptr : node.bias.data();
  switch (node.op) {
    case plan::Op::kEmbedLayerNorm:
      ops_->embed(node.embedding, batch, out);
      return;
    case plan::Op::kAttention:
      ops_->attention(node.attention, batch, values[node.inputs[0]], out, scratch);
      return;
    case plan::Op::kQkvLinear:
    case plan::Op::kLinear:
      epilogue.activation = node.activation;
      ops_->linear(*node.matrix, epilogue, values[node.inputs[0]],
                   part.rows(values_[node.output].rows), out, scratch);
      return;
    case plan::Op::kLinearAddLayerNorm: {
      const int64_t rows = part.rows(values_[node.output].rows);
      epilogue.residual = values[node.inputs[1]];
      ops_->linear(*node.matrix, epilogue, values[node.inputs[0]], rows, out, scratch);
      ops_->layer_norm(node.norm, out, rows, out);
      return;
    }
    case plan::Op::kLayerNorm:
      ops_->layer_norm(node.norm, values[node.inputs[0]], part.rows(values_[node.output].rows),
                       out);
      return;
    case plan::Op::kFirstToken:
      index.clear();
      for (int64_t s = 0; s < batch.seqs; ++s) {
        const int32_t first = batch.cu_seqlens[s] - batch.cu_seqlens[0];
        index.push_back(batch.cu_seqlens[s + 1] > batch.cu_seqlens[s] ? first : -1);
      }
      break;
    case plan::Op::kGatherPositions:
      index.clear();
      for (int64_t s = 0; s < batch.seqs; ++s) {
        const int32_t first = batch.cu_seqlens[s] - batch.cu_seqlens[0];
        for (int64_t i = 0; i < batch.masked_per_seq; ++i) {
          index.push_back(first + batch.masked_positions[s * batch.masked_per_seq + i]);
        }
      }
      break;
  }
  ops_->gather_rows(values[node.inputs[0]], index.data(), static_cast<int64_t>(index.size()),
                    values_[node.output].cols, out);
}

std::vector<StepTime> Engine::steps() const {
  std::vector<StepTime> steps;
  for (const auto& node : nodes_) {
    steps.push_back({node->name, node->kernel, static_cast<double>(node->nanoseconds) * 1e-9});
  }
  return steps;
}

}  // namespace bertrt
