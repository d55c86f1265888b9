#include "emulator/hopper.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>

#include "emulator/emulator.h"
#include "emulator/machine.h"

namespace bertrt::cuda {

uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(emulator::machine().shared_offset(p));
}

namespace hopper::emulator {
namespace {

using cuda::emulator::kMaxSharedBytes;
using cuda::emulator::kMaxThreads;
using cuda::emulator::kWarp;
using cuda::emulator::machine;

constexpr int kGroup = 128;  // threads of a warpgroup
constexpr int kWarps = kMaxThreads / kWarp;
constexpr size_t kChunk = 16;

struct Load {
  size_t tile;
  TensorMap map;
  int64_t row;
  int column;
  std::vector<bool> written;  // of the box's rows
};

// How many releases of each warp somebody knows of: who arrives counts one, who waits learns.
using Releases = std::vector<uint32_t>;

struct BarrierState {
  int arrivals, pending;
  int64_t expected = 0, brought = 0;  // bytes, of this phase
  int phase = 0;                      // phases that are over
  std::vector<Load> loads;
  Releases coming = Releases(kWarps), known = Releases(kWarps);
};

// What landed in 16 bytes of shared memory last: by which barrier, in which of its phases.
struct Chunk {
  size_t barrier = SIZE_MAX;
  int phase = 0;
  bool on_its_way = false;
};

struct Product {
  uint64_t a, b;
  bool add;
  float (*widen)(uint16_t);
  float* sums[kGroup] = {};
  int arrived = 0;
  int group = 0;
  bool done = false;
  uint32_t released[kGroup / kWarp] = {};        // by each warp, in its count; 0: not yet
  std::vector<std::pair<size_t, int>> landings;  // what its threads have to have waited for
};

struct ThreadState {
  size_t products = 0;  // issued
  size_t waited = 0;    // of them
  int group = 0;
  bool fenced = false;
  std::map<size_t, int> phases;  // of barriers, waited for
  Releases seen = Releases(kWarps);
};

struct Model {
  std::map<size_t, BarrierState> barriers;
  std::vector<Chunk> chunks;
  std::vector<ThreadState> threads;
  std::vector<std::deque<Product>> products;  // of each warpgroup
  Releases releases;
};
Model model;

[[noreturn]] void fail(const std::string& what) {
  machine().fail("thread " + std::to_string(machine().current()) + ": " + what);
}

ThreadState& here() { return model.threads[static_cast<size_t>(machine().current())]; }
size_t warpgroup() { return static_cast<size_t>(machine().current() / kGroup); }

BarrierState& find(const Barrier* barrier) {
  const auto found = model.barriers.find(machine().shared_offset(barrier));
  if (found == model.barriers.end()) fail("no mbarrier has been initialised there");
  return found->second;
}

// The swizzle of 128 bytes is one of addresses: bits 4 to 6 change by bits 7 to 9.
size_t swizzle(size_t address) { return address ^ (address >> 7 & 7) << 4; }

void land(const Load& load, size_t barrier, int phase) {
  unsigned char* shared = machine().shared();
  for (int r = 0; r < load.map.box_rows; ++r) {
    for (int c = 0; c < 64; ++c) {
      const size_t to = swizzle(load.tile + static_cast<size_t>(r) * 128 + c * 2);
      const int64_t row = load.row + r, column = load.column + c;
      uint16_t bits = 0;
      if (row >= 0 && row < load.map.rows && column >= 0 && column < load.map.cols) {
        bits = load.written[static_cast<size_t>(r)]
                   ? static_cast<const uint16_t*>(load.map.data)[row * load.map.stride + column]
                   : uint16_t{0x7fff};  // no number, in fp16 and in bf16
      }
      std::memcpy(shared + to, &bits, 2);
      model.chunks[to / kChunk] = {barrier, phase, false};
    }
  }
}

void end_phase_if_over(size_t at, BarrierState& barrier) {
  if (barrier.brought > barrier.expected && barrier.pending == 0) {
    fail("an mbarrier expects " + std::to_string(barrier.expected) + " bytes and gets " +
         std::to_string(barrier.brought));
  }
  if (barrier.pending > 0 || barrier.brought < barrier.expected) return;
  ++barrier.phase;
  for (const Load& load : barrier.loads) land(load, at, barrier.phase);
  barrier.loads.clear();
  barrier.expected = barrier.brought = 0;
  barrier.pending = barrier.arrivals;
  barrier.known = barrier.coming;
  machine().make_progress();
}

// "Matrix Descriptor Format": the bytes of a K-major operand in the swizzle of 128 bytes.
struct Operand {
  size_t start, stride;

  explicit Operand(uint64_t bits)
      : start((bits & 0x3fff) << 4), stride((bits >> 32 & 0x3fff) << 4) {
    if (bits >> 62 != 1) fail("a descriptor of another swizzle than that of 128 bytes");
    if ((bits >> 49 & 7) != 0 || (start >> 7 & 7) != 0) {
      fail("a descriptor of a tile that does not begin at a multiple of 1,024");
    }
    if ((start & 127) % 32 != 0) fail("a descriptor between two steps of the depth");
    if (stride != 1024) fail("a descriptor whose groups of eight rows are not 1,024 bytes apart");
  }
  size_t at(int row, int k) const {
    const auto r = static_cast<size_t>(row);
    return swizzle(start + r / 8 * stride + r % 8 * 128 + static_cast<size_t>(k) * 2);
  }
};

void compute(Product& product) {
  const Operand left(product.a), right(product.b);
  const unsigned char* shared = machine().shared();
  const auto read = [&](size_t at) {
    uint16_t bits;
    std::memcpy(&bits, shared + at, 2);
    return product.widen(bits);
  };
  static float a[64][16], b[128][16];
  for (int k = 0; k < 16; ++k) {
    for (int r = 0; r < 64; ++r) a[r][k] = read(left.at(r, k));
    for (int c = 0; c < 128; ++c) b[c][k] = read(right.at(c, k));
  }
  // "wgmma.mma_async.m64nNk16", D: a warp has 16 rows; eight columns are four sums a thread.
  for (int t = 0; t < kGroup; ++t) {
    const int warp = t / 32, lane = t % 32;
    for (int eight = 0; eight < 16; ++eight) {
      for (int s = 0; s < 4; ++s) {
        float& to = product.sums[t][eight * 4 + s];
        const float* row = a[warp * 16 + lane / 4 + (s < 2 ? 0 : 8)];
        const float* column = b[eight * 8 + lane % 4 * 2 + s % 2];
        double sum = product.add ? to : 0.0;
        for (int k = 0; k < 16; ++k) sum += static_cast<double>(row[k]) * column[k];
        to = static_cast<float>(sum);
      }
    }
  }
  product.done = true;
}

// The bytes that a product reads lie in these: whole groups of eight rows.
bool reads(const Product& product, size_t begin, size_t end) {
  const auto within = [&](uint64_t descriptor, size_t rows) {
    const size_t first = ((descriptor & 0x3fff) << 4) & ~size_t{1023};
    return first < end && begin < first + rows * 128;
  };
  return within(product.a, 64) || within(product.b, 128);
}

}  // namespace

void begin_block(int threads) {
  const auto count = static_cast<size_t>(threads);
  model.barriers.clear();
  model.chunks.assign(kMaxSharedBytes / kChunk, {});
  model.threads.assign(count, {});
  model.products.assign((count + kGroup - 1) / kGroup, {});
  model.releases.assign(kWarps, 0);
}

void end_thread() {
  const ThreadState& thread = here();
  if (thread.waited != thread.products) fail("a wgmma that it has not waited for");
}

void end_block() {
  for (const auto& [at, barrier] : model.barriers) {
    if (!barrier.loads.empty()) machine().report("the block ends before a copy by TMA has");
  }
}

void barrier_init(Barrier* barrier, int arrivals) {
  machine().require_alignment(barrier, 8);
  BarrierState state;
  state.arrivals = state.pending = arrivals;
  if (!model.barriers.emplace(machine().shared_offset(barrier), state).second) {
    fail("an mbarrier is initialised again");
  }
}

void barrier_arrive(Barrier* barrier, int bytes) {
  BarrierState& state = find(barrier);
  if (state.pending == 0) fail("an mbarrier gets more arrivals than it expects");
  const auto warp = static_cast<size_t>(machine().current() / kWarp);
  const uint32_t count = ++model.releases[warp];
  auto& products = model.products[warpgroup()];
  for (size_t i = 0; i < here().waited; ++i) {
    uint32_t& released = products[i].released[warp % (kGroup / kWarp)];
    if (released == 0) released = count;
  }
  state.coming[warp] = count;
  state.expected += bytes;
  --state.pending;
  end_phase_if_over(machine().shared_offset(barrier), state);
}

void barrier_wait(Barrier* barrier, unsigned parity, Site site) {
  BarrierState& state = find(barrier);
  machine().poll("an mbarrier", site,
                 [&] { return (static_cast<unsigned>(state.phase) & 1) != parity; });
  ThreadState& thread = here();
  thread.phases[machine().shared_offset(barrier)] = state.phase;
  for (size_t w = 0; w < kWarps; ++w) thread.seen[w] = std::max(thread.seen[w], state.known[w]);
}

void tma_load(void* tile, const TensorMap& map, int64_t row, int column, Barrier* barrier) {
  BarrierState& state = find(barrier);
  machine().require_alignment(tile, 1024);
  const size_t begin = machine().shared_offset(tile);
  const size_t end = begin + static_cast<size_t>(map.box_rows) * 128;
  if (end > machine().shared_bytes()) fail("a copy by TMA past the end of shared memory");
  for (size_t chunk = begin / kChunk; chunk < end / kChunk; ++chunk) {
    if (model.chunks[chunk].on_its_way) fail("two copies by TMA to one place");
    model.chunks[chunk].on_its_way = true;
  }
  for (size_t g = 0; g < model.products.size(); ++g) {
    for (const Product& product : model.products[g]) {
      if (!reads(product, begin, end)) continue;
      for (size_t w = 0; w < kGroup / kWarp; ++w) {
        const uint32_t released = product.released[w];
        if (released == 0 || here().seen[g * (kGroup / kWarp) + w] < released) {
          fail("a copy by TMA to where products read that have not been released");
        }
      }
    }
  }
  std::vector<bool> written(static_cast<size_t>(map.box_rows));
  for (int64_t r = std::max<int64_t>(row, 0); r < std::min(map.rows, row + map.box_rows); ++r) {
    const int64_t columns = std::min<int64_t>(map.cols - column, 64);
    if (columns <= 0) break;
    written[static_cast<size_t>(r - row)] =
        machine().read_written(static_cast<const uint16_t*>(map.data) + r * map.stride + column,
                               static_cast<size_t>(columns) * 2);
  }
  state.loads.push_back({begin, map, row, column, written});
  state.brought += map.box_rows * 128;
  end_phase_if_over(machine().shared_offset(barrier), state);
}

void wgmma_fence() { here().fenced = true; }

void wgmma_commit() { ++here().group; }

void wgmma(float* sums, uint64_t a, uint64_t b, bool add, float (*widen)(uint16_t)) {
  ThreadState& thread = here();
  if (!thread.fenced) fail("a wgmma without a wgmma.fence before");
  auto& products = model.products[warpgroup()];
  if (thread.products == products.size()) {
    Product product;
    product.a = a;
    product.b = b;
    product.add = add;
    product.widen = widen;
    product.group = thread.group;
    const auto need = [&](const Operand& operand, int rows) {
      for (int r = 0; r < rows; ++r) {
        for (int k = 0; k < 16; k += 8) {
          const size_t at = operand.at(r, k);
          if (at + kChunk > machine().shared_bytes()) fail("a wgmma past the end of shared memory");
          const Chunk& chunk = model.chunks[at / kChunk];
          if (chunk.barrier == SIZE_MAX || chunk.on_its_way) {
            fail("a wgmma of bytes that have not landed");
          }
          const auto landing = std::make_pair(chunk.barrier, chunk.phase);
          auto& all = product.landings;
          if (std::find(all.begin(), all.end(), landing) == all.end()) all.push_back(landing);
        }
      }
    };
    need(Operand(a), 64);
    need(Operand(b), 128);
    products.push_back(product);
  }
  Product& product = products[thread.products++];
  if (product.a != a || product.b != b || product.add != add || product.group != thread.group) {
    fail("divergence: threads of a warpgroup do different wgmma");
  }
  for (const auto& [barrier, phase] : product.landings) {
    const auto waited = thread.phases.find(barrier);
    if (waited == thread.phases.end() || waited->second < phase) {
      fail("a wgmma of bytes for whose mbarrier it has not waited");
    }
  }
  product.sums[machine().current() % kGroup] = sums;
  if (++product.arrived == kGroup) machine().make_progress();
}

void wgmma_wait(int groups, Site site) {
  ThreadState& thread = here();
  auto& products = model.products[warpgroup()];
  while (thread.waited < thread.products && products[thread.waited].group < thread.group - groups) {
    Product& product = products[thread.waited];
    machine().poll("wgmma", site, [&] { return product.arrived == kGroup; });
    if (!product.done) compute(product);
    ++thread.waited;
  }
  if (groups == 0) {
    if (thread.waited != thread.products) fail("a wgmma that belongs to no group");
    thread.fenced = false;
  }
}

}  // namespace hopper::emulator

bool hopper::available() { return cuda::emulator::settings().hopper; }

}  // namespace bertrt::cuda
