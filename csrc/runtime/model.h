// A plan with its weights packed for a device: what engines of one model share.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/ops.h"
#include "plan/plan.h"
#include "runtime/graph.h"

namespace bertrt {

struct Model : Graph {
  // A step, ready to run.
  struct Node : Step {
    explicit Node(const Step& step) : Step(step) {}

    std::string kernel;
    std::shared_ptr<const Matrix> matrix;  // of several steps, where those share their weights
    std::vector<float> bias;
    std::vector<float> gamma, beta;
    Activation activation = Activation::kNone;
    LayerNorm norm;
    Embedding embedding;
    Attention attention;
  };

  // Packs the plan's matrices, each once, on so many threads, and lets go of their own memory;
  // afterwards only the tables of embeddings and distances are read where they are. Weights without
  // an owner must outlive the model. Throws PlanError, DeviceError.
  Model(const plan::Plan& plan, Precision precision, int threads)
      : Model(plan::validate(plan), precision, threads) {}
  ~Model();

  // The step that makes an attention's queries, keys and values.
  const Node& qkv_of(const Step& attention) const {
    return nodes[values[attention.inputs[0]].made_by];
  }

  std::string device;  // the kernels that it is packed for
  // All packed matrices, one after the other: each alone would fill its huge pages in part only,
  // or be too small for one.
  AlignedBuffer packed;
  std::vector<Node> nodes;  // by step

 private:
  Model(const plan::CheckedPlan& checked, Precision precision, int threads);

  std::vector<std::shared_ptr<const void>> tables_;  // what is read where it is
};

}  // namespace bertrt
