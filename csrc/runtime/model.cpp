#include "runtime/model.h"

#include <algorithm>
#include <map>

#include "core/error.h"
#include "core/float_mode.h"
#include "cpu/cpu_ops.h"
#include "cpu/isa.h"
#include "runtime/thread_pool.h"
#include "runtime/weights.h"

namespace bertrt {

Model::Model(const plan::CheckedPlan& checked, Precision precision, int threads) : Graph(checked) {
  ThreadPool pool(threads);
  const std::unique_ptr<Ops> ops = cpu::make_ops(cpu::select_table(), pool);
  device = ops->name();
  nodes.reserve(steps.size());  // pointers into a node's vectors must stay

  struct Packed {
    size_t offset = 0;  // in `packed`
    std::shared_ptr<const Matrix> matrix;
  };
  std::map<std::pair<MatrixIdentity, Precision>, Packed> matrices;
  std::vector<Precision> precisions;
  std::vector<Packed*> packed_of;  // by step; null where it has no matrix
  size_t bytes = 0;
  for (const plan::CheckedStep& step : checked.steps) {
    const bool head = steps[precisions.size()].head;
    precisions.push_back(step.step->precision.value_or(head ? Precision::kFp32 : precision));
    packed_of.push_back(nullptr);
    if (precisions.back() == Precision::kFp8) {
      throw PlanError("plan: step '" + step.step->name +
                      "' is to run in fp8, which a CPU has not: load it on a GPU");
    }
    if (step.matrix.empty()) continue;
    const auto [at, is_new] =
        matrices.emplace(std::pair(matrix_identity(step), precisions.back()), Packed{});
    packed_of.back() = &at->second;
    if (!is_new) continue;
    at->second.offset = bytes;
    bytes += ops->packed_bytes(step.matrix_inputs, step.matrix_outputs, precisions.back());
  }
  packed = AlignedBuffer(bytes);

  const auto table = [this](const plan::Weight* weight) -> const float* {
    if (!weight) return nullptr;
    tables_.push_back(weight->owner);
    return weight->floats();
  };
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
    const plan::CheckedStep& bound = checked.steps[number];
    const plan::Step& step = *bound.step;
    Packed* const own = packed_of[number];
    load_weights(*checked.plan, step, own && own->matrix);  // in the caller's mode
    const FloatMode mode;
    Node* node = &nodes[number];
    node->activation = step.activation;
    if (bound.gamma) {
      node->gamma = vector_of(*bound.gamma);
      node->beta = vector_of(*bound.beta);
      node->norm = {node->gamma.data(), node->beta.data(), step.eps, bound.result.cols};
    }

    const Precision here = precisions[number];
    switch (step.op) {
      case plan::Op::kEmbedLayerNorm:
        node->kernel = "embed_f32." + ops->name();
        node->embedding = {table(bound.word), table(bound.type), table(bound.position), node->norm};
        break;
      case plan::Op::kQkvLinear:
      case plan::Op::kLinearAddLayerNorm:
      case plan::Op::kLinear: {
        LinearWeights weights(bound);
        if (!own->matrix) {
          own->matrix = ops->pack(weights.blocks.data(), static_cast<int>(weights.blocks.size()),
                                  bound.matrix_inputs, bound.matrix_outputs, here,
                                  static_cast<char*>(packed.data()) + own->offset);
        }
        node->matrix = own->matrix;
        node->bias = std::move(weights.bias);
        node->kernel = ops->linear_kernel(here);
        break;
      }
      case plan::Op::kAttention:
      case plan::Op::kAttentionWeights:
        node->attention.heads = step.heads;
        node->attention.head_dim = step.head_dim;
        node->attention.scale = static_cast<float>(step.scale);
        node->attention.precision = here;
        if (bound.distances) {
          node->attention.distance_stride = bound.distances->shape[1];
          node->attention.distance_bias = table(bound.distances) + bound.distances->shape[1] / 2;
        }
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
