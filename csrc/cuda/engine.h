// Walks a plan over packed batches on one device.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/model.h"
#include "cuda/workspace.h"

namespace bertrt::cuda {

class Engine {
 public:
  // A batch runs in parts of whole sequences of at most so many tokens, so that memory is bounded
  // by the part: a product over this many rows has long reached its full speed. Parts are smaller
  // where the device has little memory, or where much is to be returned.
  static constexpr int64_t kPartTokens = 16384;
  // Parts of at most so many tokens run by graphs: what is larger keeps the device busy for longer
  // than the CPU takes to launch it (some 2 us a kernel, 0.2 ms for BERT base's), and has more
  // shapes than are kept.
  static constexpr int64_t kGraphTokens = 1024;

  // trace: whether steps are measured, one after the other. graphs: whether small parts run by
  // graphs. part_tokens: 0 for what suits the device.
  explicit Engine(std::shared_ptr<const Model> model, bool trace = false, bool graphs = true,
                  int64_t part_tokens = 0);

  // Computes the outputs asked for, and nothing that they do not need: see Demand. Two parts are
  // under way at a time: while the device computes one, the next one is written and the one before
  // it read. Safe to call from several threads, each of which gets streams and memory of its own
  // (see WorkspacePool); they are used again by later runs. The batch has passed Graph::check().
  // Throws DeviceError, also where the device's memory does not suffice: the engine lives on, and
  // runs what does fit.
  void run(const PackedBatch& batch, const std::vector<Output>& outputs);

  const Graph& graph() const { return *model_; }
  const Device& device() const { return model_->device; }
  int64_t part_tokens() const { return part_tokens_; }
  // Seconds are the device's.
  std::vector<StepTrace> steps() const;

  // How parts were launched since loading.
  struct Launches {
    int64_t parts = 0;
    int64_t captured = 0;   // graphs that were made
    int64_t by_graph = 0;   // parts that ran by one
    bool overlap = false;   // whether kernels do: see Stream
    std::string no_graphs;  // why there are none, or no more; empty: there are
  };
  Launches launches() const;

 private:
  class Run;

  bool suits_graph(const Shape& shape, const std::vector<int>& wanted) const;
  void launch(Prepared& prepared, Workspace& workspace, bool by_graph);
  void give_up_graphs(const std::string& why);
  void count(const Part& part, const PackedBatch& batch, Workspace& workspace);

  const std::shared_ptr<const Model> model_;
  const bool trace_;
  const int64_t part_tokens_;
  bool overlaps_ = false;
  std::vector<Spent> spent_;  // by node
  std::atomic<int64_t> parts_{0}, captured_{0}, by_graph_{0};
  std::atomic<bool> graphs_{true};
  mutable std::mutex mutex_;
  std::string no_graphs_;
  WorkspacePool workspaces_;
};

}  // namespace bertrt::cuda
