#include "runtime/model.h"

#include <deque>
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

  std::deque<LinearWeights> linear;
  std::map<std::pair<MatrixIdentity, Precision>, std::shared_ptr<const Matrix>> matrices;
  size_t bytes = 0;
  for (size_t i = 0; i < steps.size(); ++i) {
    const plan::Step& step = plan.steps[i];
    if (!step.weights.count("weight")) continue;
    linear.emplace_back(step);
    const Precision here = precision_of(step, steps[i].head);
    if (!matrices.emplace(std::pair(matrix_identity(step), here), nullptr).second) continue;
    bytes += ops->packed_bytes(linear.back().inputs, linear.back().outputs, here);
  }
  packed = AlignedBuffer(bytes);
  auto* place = static_cast<char*>(packed.data());

  for (const plan::Step& step : plan.steps) {
    nodes.emplace_back(steps[nodes.size()]);
    Node* node = &nodes.back();
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
        LinearWeights& weights = linear.front();
        std::shared_ptr<const Matrix>& matrix = matrices.at({matrix_identity(step), here});
        if (!matrix) {
          matrix = ops->pack(weights.blocks.data(), static_cast<int>(weights.blocks.size()),
                             weights.inputs, weights.outputs, here, place);
          place += ops->packed_bytes(weights.inputs, weights.outputs, here);
        }
        node->matrix = matrix;
        node->bias = std::move(weights.bias);
        linear.pop_front();
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
    release_matrices(step);
  }
}

Model::~Model() = default;

}  // namespace bertrt
