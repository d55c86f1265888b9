// A plan with its weights packed for a device: what engines of one model share.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/ops.h"
#include "plan/plan.h"

namespace bertrt {

struct Model {
  // A step, ready to run: weights packed, values numbered.
  struct Node {
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
  };

  struct Value {
    plan::RowKind rows;
    int64_t cols;
    int made_by;  // node
  };

  // Packs the plan's matrices, on so many threads; afterwards only embedding tables are read from
  // the weights' memory, which must outlive the model. Throws PlanError, DeviceError.
  Model(const plan::Plan& plan, Precision precision, int threads);
  ~Model();

  std::string device;  // the kernels that it is packed for
  int64_t vocab_size;
  int64_t type_vocab_size;
  int64_t max_length;
  std::vector<Node> nodes;
  std::vector<Value> values;
  std::vector<std::pair<std::string, int>> outputs;  // name, value
};

}  // namespace bertrt
