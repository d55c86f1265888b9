#include "runtime/model.h"

#include <algorithm>
#include <map>
#include <set>

#include "cpu/cpu_ops.h"
#include "cpu/isa.h"
#include "runtime/thread_pool.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace bertrt {
namespace {

std::vector<float> to_vector(const plan::Weight& weight) {
  return {weight.data, weight.data + weight.shape[0]};
}

// Hands back the pages of a mapped file once they have been packed: they can be read again, and
// without this a model would be resident twice while it is loaded.
void release(const plan::Weight& weight) {
#if defined(__linux__)
  if (!weight.mapped) return;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  size_t bytes = sizeof(float);
  for (const int64_t extent : weight.shape) bytes *= static_cast<size_t>(extent);
  const auto begin = (reinterpret_cast<uintptr_t>(weight.data) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(weight.data) + bytes) / page * page;
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
#else
  (void)weight;
#endif
}

}  // namespace

Model::Model(const plan::Plan& plan, Precision precision, int threads)
    : vocab_size(plan.vocab_size),
      type_vocab_size(plan.type_vocab_size),
      max_length(plan.max_length) {
  ThreadPool pool(threads);
  const std::unique_ptr<Ops> ops = cpu::make_ops(cpu::select_table(), pool);
  device = ops->name();
  const auto shapes = plan::validate(plan);
  std::map<std::string, int> numbers;
  std::set<std::string> returned;
  for (const auto& [name, value] : plan.outputs) returned.insert(value);
  nodes.reserve(plan.steps.size());  // pointers into a node's vectors must stay

  for (const plan::Step& step : plan.steps) {
    nodes.emplace_back();
    Node* node = &nodes.back();
    node->op = step.op;
    node->name = step.name;
    node->activation = step.activation;
    for (const std::string& input : step.inputs) node->inputs.push_back(numbers.at(input));
    node->output = static_cast<int>(values.size());
    numbers[step.output] = node->output;
    const plan::ValueShape shape = shapes.at(step.output);
    values.push_back({shape.rows, shape.cols, static_cast<int>(nodes.size()) - 1});

    const auto weight = [&](const char* role) -> const plan::Weight& {
      return step.weights.at(role).front();
    };
    if (step.weights.count("gamma")) {
      node->gamma = to_vector(weight("gamma"));
      node->beta = to_vector(weight("beta"));
      node->norm = {node->gamma.data(), node->beta.data(), static_cast<float>(step.eps),
                    shape.cols};
    }

    // A head costs nothing beside the encoder, and its result is the model's.
    const bool head = shape.rows != plan::RowKind::kTokens ||
                      (step.op == plan::Op::kLinear && returned.count(step.output));
    const Precision here = head ? Precision::kFp32 : precision;
    switch (step.op) {
      case plan::Op::kEmbedLayerNorm:
        node->kernel = "embed_f32." + ops->name();
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
        const int64_t inputs = values[node->inputs[0]].cols;
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
            ops->pack(blocks.data(), static_cast<int>(blocks.size()), inputs, 3 * hidden, here);
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
        node->kernel = ops->linear_kernel(here);
        break;
      }
      case plan::Op::kAttention:
        node->attention = {step.heads, step.head_dim, static_cast<float>(step.scale), here};
        node->kernel = ops->attention_kernel(here);
        break;
      case plan::Op::kAttentionWeights:
        node->attention = {step.heads, step.head_dim, static_cast<float>(step.scale)};
        node->kernel = "attention_weights_f64";
        break;
      case plan::Op::kLinearAddLayerNorm:
      case plan::Op::kLinear: {
        const int64_t inputs = values[node->inputs[0]].cols;
        const WeightBlock block{weight("weight").data, shape.cols, inputs,
                                step.transposed,       nullptr,    0};
        node->matrix = ops->pack(&block, 1, inputs, shape.cols, here);
        if (step.weights.count("bias")) node->bias = to_vector(weight("bias"));
        node->kernel = ops->linear_kernel(here);
        break;
      }
      case plan::Op::kLayerNorm:
        node->kernel = "layer_norm_f32." + ops->name();
        break;
      case plan::Op::kFirstToken:
      case plan::Op::kGatherPositions:
        node->kernel = "gather_rows";
        break;
    }
    for (const char* role : {"weight", "bias"}) {
      const auto weights = step.weights.find(role);
      if (weights == step.weights.end()) continue;
      for (const plan::Weight& w : weights->second) release(w);
    }
  }
  for (const auto& [name, value] : plan.outputs) outputs.emplace_back(name, numbers.at(value));
}

Model::~Model() = default;

}  // namespace bertrt
