// Walks a plan over packed batches on one device.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cuda/model.h"
#include "cuda/workspace.h"

namespace bertrt::cuda {

class Engine {
 public:
  // A batch runs in parts of whole sequences of at most so many tokens, so that memory is bounded
  // by the part: a product over this many rows has long reached its full speed. Parts are smaller
  // where much is to be returned.
  static constexpr int64_t kPartTokens = 16384;

  Engine(std::shared_ptr<const Model> model, bool trace, int64_t part_tokens = kPartTokens);

  // Computes the outputs asked for, and nothing that they do not need: see Demand. Safe to call
  // from several threads, each of which gets a stream and memory of its own; they are used again by
  // later runs. The batch has passed Graph::check(). Throws DeviceError, also where the device's
  // memory does not suffice: the engine lives on, and runs what does fit.
  void run(const PackedBatch& batch, const std::vector<Output>& outputs);

  const Graph& graph() const { return *model_; }
  const Device& device() const { return model_->device; }
  // Seconds are the device's.
  std::vector<StepTrace> steps() const;

 private:
  using Node = Model::Node;
  class PartRun;

  const std::shared_ptr<const Model> model_;
  const bool trace_;
  const int64_t part_tokens_;
  std::vector<Spent> spent_;  // by node
  WorkspacePool workspaces_;
};

}  // namespace bertrt::cuda
