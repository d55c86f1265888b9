// Walks a plan over packed batches.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/ops.h"
#include "runtime/graph.h"
#include "runtime/model.h"
#include "runtime/thread_pool.h"
#include "runtime/workspace.h"

namespace bertrt {

class Engine {
 public:
  // Throws DeviceError.
  Engine(std::shared_ptr<const Model> model, int threads, bool trace);

  // Computes the outputs asked for, no step that they do not need, and, where they need no more, of
  // the last layer the first tokens' rows only. The batch has passed Graph::check(). Between steps
  // it calls `between_steps`, which may throw to end the run. Safe to call from several threads.
  // Throws std::bad_alloc; the engine lives on, and runs what does fit.
  void run(const PackedBatch& batch, const std::vector<Output>& outputs,
           const std::function<void()>& between_steps);

  const Graph& graph() const { return *model_; }
  // Those that there really are.
  int threads() const { return pool_.threads(); }
  std::string device_name() const { return ops_->name(); }
  std::vector<StepTrace> steps() const;

 private:
  using Node = Model::Node;
  class PartRun;

  const std::shared_ptr<const Model> model_;
  ThreadPool pool_;
  ThreadPool alone_;
  std::unique_ptr<Ops> ops_;        // on the pool
  std::unique_ptr<Ops> ops_alone_;  // on the calling thread
  const bool trace_;
  std::vector<Spent> spent_;  // by node
  WorkspacePool workspaces_;
};

}  // namespace bertrt
