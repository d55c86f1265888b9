// Many threads on one engine, under the thread sanitizer: the executor itself on the emulator's
// runtime, with a kernel that is a copy. (The emulator's kernels are compiled with the sanitizer's
// calls for its own use.) Exits with 0 if every thread had the answers to its own batches.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "core/error.h"
#include "cuda/engine.h"
#include "cuda/hopper/attention.h"
#include "cuda/hopper/present.h"
#include "emulator/emulator.h"

namespace bertrt::cuda {

// A row begins with its token's id.
void embed_layer_norm(const EmbeddingTables&, const LayerNorm&, const int32_t* ids, const int32_t*,
                      const int32_t*, RowCount tokens, DeviceRows out, Stream stream) {
  check(cudaMemcpy2DAsync(out.data, static_cast<size_t>(out.stride) * sizeof(float), ids,
                          sizeof(int32_t), sizeof(int32_t), static_cast<size_t>(tokens.most),
                          cudaMemcpyDeviceToDevice, stream),
        "the copy of ids");
}
void layer_norm(const LayerNorm&, ConstDeviceRows, ConstDeviceRows, RowCount, DeviceRows, Stream) {}
void gather_rows(ConstDeviceRows, const int32_t*, RowCount, int64_t, DeviceRows, Stream) {}
void linear(const Linear&, ConstDeviceRows, ConstDeviceRows, RowCount, DeviceRows, Stream) {}
void linear(const Linear&, QuantisedRows, ConstDeviceRows, RowCount, DeviceRows, Stream) {}
void quantise_rows(EightBits, ConstDeviceRows, RowCount, int64_t, QuantisedRows, Stream) {}
void attention(const Attention&, const Sequences&, ConstDeviceRows, ConstDeviceRows, DeviceRows,
               Stream) {}
void attention_weights(const Attention&, const Sequences&, const int64_t*, ConstDeviceRows,
                       DeviceRows, Stream) {}
bool kernels_wait() { return true; }
const char* linear_kernel(Element, bool) { return "none"; }
const char* quantised_linear_kernel(EightBits, bool) { return "none"; }
const char* attention_kernel(Element, int64_t, bool) { return "none"; }

bool hopper_attention_fits(const Attention&, Element) { return false; }

namespace hopper {
void attention(const Attention&, const Sequences&, ConstDeviceRows, ConstDeviceRows, DeviceRows,
               Stream) {}
bool present() { return false; }
}  // namespace hopper

namespace emulator {
void run(const Launch&) {}
}  // namespace emulator

namespace {

constexpr int kHidden = 4, kVocabulary = 1000, kLongest = 16;
constexpr int kThreads = 12, kRuns = 300;

plan::Plan make_plan(const std::vector<float>& weights) {
  const auto weight = [&](const char* name, std::vector<int64_t> shape) {
    plan::Weight made;
    made.name = name;
    made.data = made.identity = weights.data();
    made.shape = std::move(shape);
    return std::vector<plan::Weight>{made};
  };
  plan::Step step;
  step.op = plan::Op::kEmbedLayerNorm;
  step.name = step.output = "embeddings";
  step.eps = 1e-12;
  step.fields = {"eps"};
  step.weights["word"] = weight("word", {kVocabulary, kHidden});
  step.weights["position"] = weight("position", {kLongest, kHidden});
  step.weights["gamma"] = weight("gamma", {kHidden});
  step.weights["beta"] = weight("beta", {kHidden});
  plan::Plan plan;
  plan.version = plan::kVersion;
  plan.hidden = kHidden;
  plan.vocab_size = kVocabulary;
  plan.max_length = kLongest;
  plan.steps = {step};
  plan.outputs = {{"sequence_output", "embeddings"}};
  return plan;
}

// Runs a batch of sequences that end at `ends`, of random ids, and counts the wrong answers.
int run(Engine& engine, const std::vector<int32_t>& ends, std::mt19937& random) {
  std::vector<int32_t> ids, types(static_cast<size_t>(ends.back()));
  while (ids.size() < types.size()) ids.push_back(static_cast<int32_t>(random() % kVocabulary));
  std::vector<float> out(ids.size() * kHidden);
  PackedBatch batch;
  batch.token_ids = ids.data();
  batch.token_types = types.data();
  batch.cu_seqlens = ends.data();
  batch.seqs = static_cast<int64_t>(ends.size()) - 1;
  engine.run(batch, {{"sequence_output", out.data()}});
  int wrong = 0;
  for (size_t t = 0; t < ids.size(); ++t) {
    wrong += std::memcmp(&out[t * kHidden], &ids[t], sizeof(int32_t)) != 0;
  }
  return wrong;
}

// Random batches, in several parts now and then.
int work(Engine& engine, unsigned seed) {
  std::mt19937 random(seed);
  const auto draw = [&](unsigned most) { return 1 + static_cast<int32_t>(random() % most); };
  int wrong = 0;
  for (int i = 0; i < kRuns; ++i) {
    std::vector<int32_t> ends = {0};
    for (int s = draw(i % 10 ? 4 : 12); s > 0; --s) ends.push_back(ends.back() + draw(kLongest));
    wrong += run(engine, ends, random);
  }
  return wrong;
}

// How many of three batches of so many tokens run by a graph.
int64_t graphs_of(const std::shared_ptr<const Model>& model, int64_t tokens) {
  Engine engine(model);
  std::mt19937 random(1);
  std::vector<int32_t> ends = {0};
  while (ends.back() < tokens) {
    ends.push_back(std::min<int32_t>(ends.back() + kLongest, static_cast<int32_t>(tokens)));
  }
  for (int i = 0; i < 3; ++i) {
    if (run(engine, ends, random) != 0) return -1;
  }
  return engine.launches().by_graph;
}

}  // namespace
}  // namespace bertrt::cuda

int main() {
  using namespace bertrt::cuda;
  const std::vector<float> weights(kVocabulary * kHidden);
  const bertrt::plan::Plan plan = make_plan(weights);
  const auto model = std::make_shared<Model>(plan, Element::kFp32, 0);
  Engine engine(model, false, true, 64);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] { wrong += work(engine, static_cast<unsigned>(t)); });
  }
  for (int look = 0; look < 100; ++look) (void)engine.launches();
  for (std::thread& thread : threads) thread.join();
  const Engine::Launches launches = engine.launches();
  std::printf("%d wrong; %ld parts, %ld by graphs, of %ld\n", wrong.load(),
              static_cast<long>(launches.parts), static_cast<long>(launches.by_graph),
              static_cast<long>(launches.captured));
  if (wrong != 0 || launches.by_graph == 0 || !launches.no_graphs.empty()) return 1;
  const int64_t small = graphs_of(model, Engine::kGraphTokens);
  const int64_t large = graphs_of(model, Engine::kGraphTokens + 1);
  std::printf("%ld and %ld of three by graphs, below and above the limit\n",
              static_cast<long>(small), static_cast<long>(large));
  return small != 2 || large != 0;
}
