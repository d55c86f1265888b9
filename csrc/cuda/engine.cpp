#include "cuda/engine.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

namespace bertrt::cuda {
namespace {

// What a part returns at most, unless one sequence returns more: it passes through pinned memory.
constexpr int64_t kPartOutputBytes = int64_t{128} << 20;

// A part takes at most this share of the memory that is free beside the weights: two are under way
// for each of a few threads.
constexpr int64_t kShareOfMemory = 16;
constexpr int64_t kFewestTokens = 512;

// The tokens that suit a part: kPartTokens, or what the memory allows. Asks what a part of a
// thousand tokens takes that returns everything with a row a token or a sequence.
int64_t suitable_tokens(const Model& model) {
  Shape shape;
  shape.tokens = 1024;
  shape.seqs = 8;
  shape.longest = 128;
  std::vector<int> wanted;
  for (const auto& [name, value] : model.outputs) {
    if (shape.rows(model.values[value].rows) > 0) wanted.push_back(value);
  }
  const Part part(model, wanted, shape);
  const int64_t bytes = part.device_bytes() + part.output_bytes();
  const int64_t room = free_memory(model.device.number) / kShareOfMemory;
  const int64_t tokens = room / std::max<int64_t>(1, bytes / shape.tokens);
  return std::clamp(tokens, kFewestTokens, Engine::kPartTokens);
}

}  // namespace

Engine::Engine(std::shared_ptr<const Model> model, bool trace, bool graphs, int64_t part_tokens)
    : model_(std::move(model)),
      trace_(trace),
      part_tokens_(part_tokens > 0 ? part_tokens : suitable_tokens(*model_)),
      spent_(model_->nodes.size()) {
  use_device(model_->device.number);
  // Times of steps are those of one after the other.
  overlaps_ = !trace_ && kernels_wait();
  if (trace_) give_up_graphs("steps are measured one by one");
  if (!graphs) give_up_graphs("they were not asked for");
}

// A part that the device is computing.
class Engine::Run {
 public:
  Run(Engine& engine, const PackedBatch& batch, const std::vector<int>& wanted,
      const std::vector<float*>& destinations, WorkspacePool::Borrowed workspace)
      : engine_(engine),
        batch_(batch),
        destinations_(destinations),
        workspace_(std::move(workspace)) {
    const Shape shape(batch);
    const bool by_graph = engine.suits_graph(shape, wanted);
    if (!by_graph) own_ = std::make_unique<Prepared>(*engine.model_, wanted, shape);
    prepared_ =
        by_graph ? &workspace_->parts().get(*engine.model_, wanted, shape.rounded()) : own_.get();
    workspace_.reserve(prepared_->part);
    prepared_->part.write(batch, workspace_->memory());
    engine_.launch(*prepared_, *workspace_, by_graph);
  }

  // Waits for it, and has what is wanted where the caller wants it.
  void finish() {
    workspace_->stream().wait();
    for (size_t i = 0; i < destinations_.size(); ++i) {
      const int value = prepared_->wanted[i];
      const int64_t cells =
          engine_.model_->rows(value, batch_) * engine_.model_->values[value].cols;
      if (cells == 0) continue;
      std::memcpy(destinations_[i], prepared_->part.output(i, workspace_->memory()),
                  static_cast<size_t>(cells) * sizeof(float));
    }
    if (engine_.trace_) engine_.count(prepared_->part, batch_, *workspace_);
  }

 private:
  Engine& engine_;
  const PackedBatch batch_;
  const std::vector<float*> destinations_;
  WorkspacePool::Borrowed workspace_;
  std::unique_ptr<Prepared> own_;  // where the workspace keeps none
  Prepared* prepared_;
};

void Engine::run(const PackedBatch& batch, const std::vector<Output>& outputs) {
  std::vector<int> wanted;
  std::vector<float*> destinations;
  int64_t token_bytes = 1;  // returned for a token, at most
  for (const Output& output : outputs) {
    const int value = model_->output_value(output.name);
    wanted.push_back(value);
    destinations.push_back(output.data);
    const Graph::Value& made = model_->values[value];
    if (made.rows == plan::RowKind::kPairs) {
      token_bytes += model_->max_length * made.cols * static_cast<int64_t>(sizeof(float));
    } else if (made.rows == plan::RowKind::kTokens || made.rows == plan::RowKind::kQkv) {
      token_bytes += made.cols * static_cast<int64_t>(sizeof(float));
    }
  }
  const int64_t limit = std::min(part_tokens_, kPartOutputBytes / token_bytes);

  use_device(model_->device.number);
  std::unique_ptr<Run> under_way;
  for (int64_t begin = 0; begin < batch.seqs;) {
    const int64_t end = part_end(batch, begin, limit);
    const PackedBatch part = batch.sequences(begin, end);
    std::unique_ptr<Run> next;
    const auto start = [&](WorkspacePool::Borrowed workspace) {
      next = std::make_unique<Run>(*this, part, wanted, destinations, std::move(workspace));
    };
    if (under_way) {
      // Where others have all workspaces, or the memory is not enough for two, it is one at a time:
      // who holds one never waits for another.
      try {
        if (auto second = workspaces_.try_take()) start(std::move(*second));
      } catch (const DeviceError&) {
        next.reset();
      }
      under_way->finish();
      under_way.reset();
    }
    if (!next) start(workspaces_.take());
    under_way = std::move(next);
    for (size_t i = 0; i < wanted.size(); ++i) {
      destinations[i] += model_->rows(wanted[i], part) * model_->values[wanted[i]].cols;
    }
    begin = end;
  }
  if (under_way) under_way->finish();
}

// Whether a part runs by a graph. Probabilities of attention, whose number of rows goes with the
// square of a bucket's length, do not.
bool Engine::suits_graph(const Shape& shape, const std::vector<int>& wanted) const {
  return graphs_ && shape.tokens <= kGraphTokens &&
         std::none_of(wanted.begin(), wanted.end(), [&](int value) {
           return model_->values[value].rows == plan::RowKind::kPairs;
         });
}

// The first part of a bucket is launched step by step, so that no kernel is loaded in a capture,
// and nothing is captured for a shape that is not seen again.
void Engine::launch(Prepared& prepared, Workspace& workspace, bool by_graph) {
  ++parts_;
  const Stream stream(workspace.stream(), overlaps_);
  if (by_graph && prepared.has_run && graphs_) {
    try {
      if (!prepared.graph) {
        prepared.graph = CapturedGraph(
            stream, [&] { prepared.part.enqueue(workspace.memory(), stream, nullptr); });
        ++captured_;
      }
      prepared.graph.launch(stream);
      ++by_graph_;
      return;
    } catch (const DeviceError& error) {
      give_up_graphs(error.what());
      workspace.parts().drop_graphs();
    }
  }
  prepared.part.enqueue(workspace.memory(), stream,
                        trace_ ? &workspace.events(model_->nodes.size()) : nullptr);
  prepared.has_run = true;
}

// From here on all parts are launched step by step.
void Engine::give_up_graphs(const std::string& why) {
  graphs_ = false;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (no_graphs_.empty()) no_graphs_ = why;
}

// What a traced part has done.
void Engine::count(const Part& part, const PackedBatch& batch, Workspace& workspace) {
  part.count_work(batch, spent_);
  const std::vector<Event>& events = workspace.events(model_->nodes.size());
  for (size_t i = 0; i < model_->nodes.size(); ++i) {
    if (!part.has_step(i)) continue;
    const double seconds = Event::seconds(events[2 * i], events[2 * i + 1]);
    spent_[i].nanoseconds += static_cast<int64_t>(seconds * 1e9);
  }
}

std::vector<StepTrace> Engine::steps() const { return step_traces(model_->nodes, spent_); }

Engine::Launches Engine::launches() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return {parts_, captured_, by_graph_, overlaps_, no_graphs_};
}

}  // namespace bertrt::cuda
