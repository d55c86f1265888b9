#include "runtime/model.h"

#include <algorithm>
#include <map>

#include "cpu/cpu_ops.h"
#include "cpu/isa.h"
#include "runtime/thread_pool.h"
#include "runtime/weights.h"

namespace bertrt {

Model::Model(const plan::Plan& plan, Precision precision, int threads) : Graph(plan) {
  ThreadPool pool(threads);
  const std::unique_ptr<Ops> ops = cpu::make_ops(cpu::select_table(), pool);
  device = ops->name();
  nodes.reserve(steps.size());  // pointers into a node's vectors must stay
  const auto precision_of = [&](const plan::Step& step, bool head) {
    return step.precision.value_or(head ? Precision::kFp32 : precision);
  };

  using Packed = std::shared_ptr<const Matrix>;
  std::map<std::pair<MatrixIdentity, Precision>, Packed> matrices;
  std::vector<Packed*> packed_of;  // by step; null where it has no matrix
  size_t bytes = 0;
  for (size_t i = 0; i < steps.size(); ++i) {
    const plan::Step& step = plan.steps[i];
    packed_of.push_back(nullptr);
    if (!step.weights.count("weight")) continue;
    const Precision here = precision_of(step, steps[i].head);
    const auto [at, is_new] = matrices.emplace(std::pair(matrix_identity(step), here), nullptr);
    packed_of.back() = &at->second;
    if (!is_new) continue;
    const auto [inputs, outputs] = matrix_extents(step);
    bytes += ops->packed_bytes(inputs, outputs, here);
  }
  packed = AlignedBuffer(bytes);
  auto* place = static_cast<char*>(packed.data());

  // Tables stay where they are read, matrices only until they are packed: those first, so that
  // their memory, and not that of the tables, is what is used again from step to step; and a file
  // that is read from its beginning may have the tables at its end.
  std::vector<size_t> order;
  for (size_t i = 0; i < steps.size(); ++i) {
    nodes.emplace_back(steps[i]);
    order.push_back(i);
  }
  std::stable_partition(order.begin(), order.end(), [&](size_t i) { return packed_of[i]; });
  for (const size_t number : order) {
    const plan::Step& step = plan.steps[number];
    Packed* const own = packed_of[number];
    load_weights(plan, step, own && *own);
    Node* node = &nodes[number];
    const Value& shape = values[node->output];
    node->activation = step.activation;

    const auto table = [&](const char* role) {
      const plan::Weight& weight = step.weights.at(role).front();
      tables.push_back(weight.owner);
      return weight.floats();
    };
    if (step.weights.count("gamma")) {
      node->gamma = vector_of(step, "gamma");
      node->beta = vector_of(step, "beta");
      node->norm = {node->gamma.data(), node->beta.data(), static_cast<float>(step.eps),
                    shape.cols};
    }

    const Precision here = precision_of(step, node->head);
    switch (step.op) {
      case plan::Op::kEmbedLayerNorm:
        node->kernel = "embed_f32." + ops->name();
        node->embedding.word = table("word");
        node->embedding.position = table("position");
        if (step.weights.count("type")) node->embedding.type = table("type");
        node->embedding.norm = node->norm;
        break;
      case plan::Op::kQkvLinear:
      case plan::Op::kLinearAddLayerNorm:
      case plan::Op::kLinear: {
        LinearWeights weights(step);
        if (!*own) {
          *own = ops->pack(weights.blocks.data(), static_cast<int>(weights.blocks.size()),
                           weights.inputs, weights.outputs, here, place);
          place += ops->packed_bytes(weights.inputs, weights.outputs, here);
        }
        node->matrix = *own;
        node->bias = std::move(weights.bias);
        node->kernel = ops->linear_kernel(here);
        break;
      }
      case plan::Op::kAttention:
      case plan::Op::kAttentionWeights:
        if (step.weights.count("bias")) (void)table("bias");
        node->attention = {step.heads,
                           step.head_dim,
                           static_cast<float>(step.scale),
                           here,
                           distance_bias_of(step, max_length),
                           2 * max_length - 1};
        node->kernel =
            step.op == plan::Op::kAttention ? ops->attention_kernel(here) : "attention_weights_f64";
        break;
      case plan::Op::kLayerNorm:
        node->kernel = "layer_norm_f32." + ops->name();
        break;
      case plan::Op::kFirstToken:
      case plan::Op::kGatherPositions:
        node->kernel = "gather_rows";
        break;
    }
    release_weights(step);
  }
}

Model::~Model() = default;

}  // namespace bertrt
