#include "emulator/hopper.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <numeric>

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
  std::vector<uint32_t> fences_coming, fences_known;  // of each thread, before it arrived
};

// What landed in 16 bytes of shared memory last: by TMA, by which barrier, in which of its phases;
// or by cp.async, of which thread, after how many of its fences.
struct Chunk {
  size_t barrier = SIZE_MAX;
  int phase = 0;
  bool on_its_way = false;
  int writer = -1;
  uint32_t fences = 0;
};

// What a thread's registers held when it began a product.
template <class T>
struct Held {
  const T* registers = nullptr;
  std::vector<T> values;

  void hold(const T* of, size_t count) {
    registers = of;
    values.assign(of, of + count);
  }
  bool changed() const {
    return registers && std::memcmp(registers, values.data(), values.size() * sizeof(T)) != 0;
  }
};

struct Product {
  uint64_t a, b;
  bool of_registers, transposed;
  int columns;
  bool add;
  float (*widen)(uint16_t);
  float* sums[kGroup] = {};
  Held<uint32_t> left[kGroup];
  Held<float> before[kGroup];  // where no product is under way already that sums there
  int arrived = 0;
  int group = 0;
  bool done = false;
  uint32_t released[kGroup / kWarp] = {};        // by each warp, in its count; 0: not yet
  std::vector<std::pair<size_t, int>> landings;  // what its threads have to have waited for
  std::map<int, uint32_t> writers;               // fences of which they have to have heard

  size_t left_rows() const { return of_registers ? 0 : 64; }
};

struct ThreadState {
  size_t products = 0;  // issued
  size_t waited = 0;    // of them
  int group = 0;
  bool fenced = false;
  std::map<size_t, int> phases;  // of barriers, waited for
  Releases seen = Releases(kWarps);
  uint32_t fences = 0;  // its own, for wgmma
  std::vector<uint32_t> fences_seen;
};

struct Model {
  std::map<size_t, BarrierState> barriers;
  std::vector<Chunk> chunks;
  std::vector<ThreadState> threads;
  std::vector<std::deque<Product>> products;  // of each warpgroup
  Releases releases;
};
// Of each block of a cluster.
Model models[cuda::emulator::kMaxCluster];
Model& model() { return models[machine().rank()]; }

[[noreturn]] void fail(const std::string& what) {
  machine().fail("thread " + std::to_string(machine().current()) + ": " + what);
}

ThreadState& here() { return model().threads[static_cast<size_t>(machine().current())]; }
size_t warpgroup() { return static_cast<size_t>(machine().current() / kGroup); }

BarrierState& find(const Barrier* barrier) {
  const auto found = model().barriers.find(machine().shared_offset(barrier));
  if (found == model().barriers.end()) fail("no mbarrier has been initialised there");
  return found->second;
}

// The swizzle of 128 bytes is one of addresses: bits 4 to 6 change by bits 7 to 9.
size_t swizzle(size_t address) { return address ^ (address >> 7 & 7) << 4; }

void land(const Load& load, size_t barrier, int phase) {
  unsigned char* shared = machine().shared();
  for (int r = 0; r < load.map.box_rows; ++r) {
    const int bytes = load.map.bytes;
    for (int c = 0; c < 128 / bytes; ++c) {
      const size_t to = swizzle(load.tile + static_cast<size_t>(r) * 128 + c * bytes);
      const int64_t row = load.row + r, column = load.column + c;
      uint16_t bits = 0;
      if (row >= 0 && row < load.map.rows && column >= 0 && column < load.map.cols) {
        // Where nobody has written: no number, in any of the elements.
        bits = 0x7fff;
        if (load.written[static_cast<size_t>(r)]) {
          std::memcpy(
              &bits,
              static_cast<const char*>(load.map.data) + (row * load.map.stride + column) * bytes,
              bytes);
        }
      }
      std::memcpy(shared + to, &bits, bytes);
      model().chunks[to / kChunk] = {barrier, phase, false, -1, 0};
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
  barrier.fences_known = barrier.fences_coming;
  machine().make_progress();
}

// "Matrix Descriptor Format": the bytes of an operand in the swizzle of 128 bytes or of 64. Its
// rows stand below each other: K-major, the operand's own, 16 elements of each; MN-major, a row for
// each step of the depth.
struct Operand {
  size_t start, stride, row_bytes;
  bool transposed;

  Operand(uint64_t bits, bool is_transposed, int columns)
      : start((bits & 0x3fff) << 4),
        stride((bits >> 32 & 0x3fff) << 4),
        row_bytes(bits >> 62 == 1 ? 128 : 64),
        transposed(is_transposed) {
    if (bits >> 62 != 1 && bits >> 62 != 2) {
      fail("a descriptor of another swizzle than those of 128 and 64 bytes");
    }
    if ((bits >> 49 & 7) != 0 || start / row_bytes % 8 != 0) {
      fail("a descriptor of a tile that does not begin at a multiple of 1,024");
    }
    if (start % row_bytes % 32 != 0) fail("a descriptor between two steps of the depth");
    if (stride != 8 * row_bytes) {
      fail("a descriptor whose groups of eight rows are not 1,024 bytes apart, or 512");
    }
    if (transposed && (start % row_bytes != 0 || static_cast<size_t>(columns) * 2 != row_bytes)) {
      fail("a descriptor of values that are not whole rows");
    }
  }
  // Of element k of the depth of an operand's row.
  size_t at(int row, int k) const {
    const auto down = static_cast<size_t>(transposed ? k : row);
    const auto across = static_cast<size_t>(transposed ? row : k) * 2;
    const size_t address = start + down / 8 * stride + down % 8 * row_bytes + across;
    return row_bytes == 128 ? swizzle(address) : address ^ (address >> 7 & 3) << 4;
  }
};

// "wgmma.mma_async.m64nNk16", A: a register has two elements of a row.
float left_element(const Product& product, int row, int k) {
  const int thread = row / 16 * 32 + row % 8 * 4 + k % 8 / 2;
  const uint32_t two = product.left[thread].values[k / 8 * 2 + row % 16 / 8];
  return product.widen(static_cast<uint16_t>(k % 2 ? two >> 16 : two));
}

void compute(Product& product) {
  const unsigned char* shared = machine().shared();
  const auto read = [&](size_t at) {
    uint16_t bits;
    std::memcpy(&bits, shared + at, 2);
    return product.widen(bits);
  };
  const auto value = [&](const Operand& operand, int row, int k) {
    return product.widen ? read(operand.at(row, k))
                         : cuda::emulator::e4m3_to_float(shared[operand.at(row, k / 2) + k % 2]);
  };
  for (int t = 0; t < kGroup; ++t) {
    if (product.left[t].changed()) fail("a wgmma whose left operand changes while it reads it");
    if (product.before[t].changed()) fail("a wgmma whose sums change while it adds to them");
  }
  const int depth = product.widen ? 16 : 32;
  static float a[64][32], b[128][32];
  const Operand right(product.b, product.transposed, product.columns);
  for (int k = 0; k < depth; ++k) {
    for (int r = 0; r < 64; ++r) {
      a[r][k] = product.of_registers ? left_element(product, r, k)
                                     : value(Operand(product.a, false, 64), r, k);
    }
    for (int c = 0; c < product.columns; ++c) b[c][k] = value(right, c, k);
  }
  // "wgmma.mma_async.m64nNk16", D: a warp has 16 rows; eight columns are four sums a thread.
  for (int t = 0; t < kGroup; ++t) {
    const int warp = t / 32, lane = t % 32;
    for (int eight = 0; eight < product.columns / 8; ++eight) {
      for (int s = 0; s < 4; ++s) {
        float& to = product.sums[t][eight * 4 + s];
        const float* row = a[warp * 16 + lane / 4 + (s < 2 ? 0 : 8)];
        const float* column = b[eight * 8 + lane % 4 * 2 + s % 2];
        double terms[33] = {product.add ? to : 0.0};
        for (int k = 0; k < depth; ++k) terms[1 + k] = static_cast<double>(row[k]) * column[k];
        to = product.widen ? static_cast<float>(std::accumulate(terms, terms + 1 + depth, 0.0))
                           : cuda::emulator::sum_of_few_bits(terms, 1 + depth);
      }
    }
  }
  product.done = true;
}

// The bytes that a product reads lie in these: whole groups of eight rows.
bool reads(const Product& product, size_t begin, size_t end) {
  const auto within = [&](uint64_t descriptor, size_t rows) {
    const size_t row_bytes = descriptor >> 62 == 1 ? 128 : 64;
    const size_t first = ((descriptor & 0x3fff) << 4) & ~(8 * row_bytes - 1);
    return rows > 0 && first < end && begin < first + rows * row_bytes;
  };
  const size_t right_rows = product.transposed ? 16 : static_cast<size_t>(product.columns);
  return within(product.a, product.left_rows()) || within(product.b, right_rows);
}

// Before something comes to these bytes: whoever reads there has let them go, and this thread
// knows.
void require_released(const char* what, size_t begin, size_t end) {
  for (size_t g = 0; g < model().products.size(); ++g) {
    for (const Product& product : model().products[g]) {
      if (!reads(product, begin, end)) continue;
      for (size_t w = 0; w < kGroup / kWarp; ++w) {
        const uint32_t released = product.released[w];
        if (released == 0 || here().seen[g * (kGroup / kWarp) + w] < released) {
          fail(std::string(what) + " to where products read that have not been released");
        }
      }
    }
  }
}

}  // namespace

void begin_block(int rank, int threads) {
  Model& model = models[rank];
  const auto count = static_cast<size_t>(threads);
  model.barriers.clear();
  model.chunks.assign(kMaxSharedBytes / kChunk, {});
  ThreadState thread;
  thread.fences_seen.assign(count, 0);
  model.threads.assign(count, thread);
  model.products.assign((count + kGroup - 1) / kGroup, {});
  model.releases.assign(kWarps, 0);
}

void end_thread() {
  const ThreadState& thread = here();
  if (thread.waited != thread.products) fail("a wgmma that it has not waited for");
}

void end_block(int rank) {
  for (const auto& [at, barrier] : models[rank].barriers) {
    if (!barrier.loads.empty()) machine().report("the block ends before a copy by TMA has");
  }
}

void barrier_init(Barrier* barrier, int arrivals) {
  machine().require_alignment(barrier, 8);
  BarrierState state;
  state.arrivals = state.pending = arrivals;
  state.fences_coming = state.fences_known = here().fences_seen;
  if (!model().barriers.emplace(machine().shared_offset(barrier), state).second) {
    fail("an mbarrier is initialised again");
  }
}

void barrier_arrive(Barrier* barrier, int bytes) {
  BarrierState& state = find(barrier);
  if (state.pending == 0) fail("an mbarrier gets more arrivals than it expects");
  const auto warp = static_cast<size_t>(machine().current() / kWarp);
  const uint32_t count = ++model().releases[warp];
  auto& products = model().products[warpgroup()];
  for (size_t i = 0; i < here().waited; ++i) {
    uint32_t& released = products[i].released[warp % (kGroup / kWarp)];
    if (released == 0) released = count;
  }
  state.coming[warp] = count;
  state.fences_coming[static_cast<size_t>(machine().current())] = here().fences;
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
  for (size_t t = 0; t < thread.fences_seen.size(); ++t) {
    thread.fences_seen[t] = std::max(thread.fences_seen[t], state.fences_known[t]);
  }
}

void tma_load(void* tile, const TensorMap& map, int64_t row, int column, Barrier* barrier) {
  BarrierState& state = find(barrier);
  machine().require_alignment(tile, 1024);
  const size_t begin = machine().shared_offset(tile);
  const size_t end = begin + static_cast<size_t>(map.box_rows) * 128;
  if (end > machine().shared_bytes()) fail("a copy by TMA past the end of shared memory");
  for (size_t chunk = begin / kChunk; chunk < end / kChunk; ++chunk) {
    if (model().chunks[chunk].on_its_way) fail("two copies by TMA to one place");
    model().chunks[chunk].on_its_way = true;
  }
  require_released("a copy by TMA", begin, end);
  std::vector<bool> written(static_cast<size_t>(map.box_rows));
  for (int64_t r = std::max<int64_t>(row, 0); r < std::min(map.rows, row + map.box_rows); ++r) {
    const int64_t columns = std::min<int64_t>(map.cols - column, 128 / map.bytes);
    if (columns <= 0) break;
    written[static_cast<size_t>(r - row)] = machine().read_written(
        static_cast<const char*>(map.data) + (r * map.stride + column) * map.bytes,
        static_cast<size_t>(columns * map.bytes));
  }
  state.loads.push_back({begin, map, row, column, written});
  state.brought += map.box_rows * 128;
  end_phase_if_over(machine().shared_offset(barrier), state);
}

void wgmma_fence() { here().fenced = true; }

void wgmma_commit() { ++here().group; }

void fence_for_wgmma() { ++here().fences; }

void begin_copy(size_t at) {
  require_released("a cp.async", at, at + kChunk);
  model().chunks[at / kChunk].on_its_way = true;
}

void end_copy(size_t at) {
  model().chunks[at / kChunk] = {SIZE_MAX, 0, false, machine().current(), here().fences};
}

void wgmma(float* sums, const uint32_t* registers, uint64_t a, uint64_t b, bool transposed,
           int columns, bool add, float (*widen)(uint16_t)) {
  ThreadState& thread = here();
  if (!thread.fenced) fail("a wgmma without a wgmma.fence before");
  auto& products = model().products[warpgroup()];
  if (thread.products == products.size()) {
    Product product;
    product.a = a;
    product.b = b;
    product.of_registers = registers != nullptr;
    product.transposed = transposed;
    product.columns = columns;
    product.add = add;
    product.widen = widen;
    product.group = thread.group;
    const auto need = [&](const Operand& operand, int rows) {
      for (int r = 0; r < rows; r += operand.transposed ? 8 : 1) {
        for (int k = 0; k < 16; k += operand.transposed ? 1 : 8) {
          const size_t at = operand.at(r, k);
          if (at + kChunk > machine().shared_bytes()) fail("a wgmma past the end of shared memory");
          const Chunk& chunk = model().chunks[at / kChunk];
          if ((chunk.barrier == SIZE_MAX && chunk.writer < 0) || chunk.on_its_way) {
            fail("a wgmma of bytes that have not landed");
          }
          if (chunk.writer >= 0) {
            uint32_t& fences = product.writers[chunk.writer];
            fences = std::max(fences, chunk.fences);
            continue;
          }
          const auto landing = std::make_pair(chunk.barrier, chunk.phase);
          auto& all = product.landings;
          if (std::find(all.begin(), all.end(), landing) == all.end()) all.push_back(landing);
        }
      }
    };
    if (!registers) need(Operand(a, false, 64), 64);
    need(Operand(b, transposed, columns), columns);
    products.push_back(product);
  }
  Product& product = products[thread.products++];
  if (product.a != a || product.b != b || product.add != add || product.group != thread.group ||
      product.transposed != transposed || product.columns != columns) {
    fail("divergence: threads of a warpgroup do different wgmma");
  }
  for (const auto& [barrier, phase] : product.landings) {
    const auto waited = thread.phases.find(barrier);
    if (waited == thread.phases.end() || waited->second < phase) {
      fail("a wgmma of bytes for whose mbarrier it has not waited");
    }
  }
  for (const auto& [writer, fences] : product.writers) {
    if (thread.fences_seen[static_cast<size_t>(writer)] <= fences) {
      fail("a wgmma of bytes for whose writer's fence and mbarrier it has not waited");
    }
  }
  const auto t = static_cast<size_t>(machine().current() % kGroup);
  if (registers) product.left[t].hold(registers, 4);
  const bool under_way =
      std::any_of(products.begin() + static_cast<std::ptrdiff_t>(thread.waited),
                  products.begin() + static_cast<std::ptrdiff_t>(thread.products - 1),
                  [&](const Product& other) { return !other.done && other.sums[t] == sums; });
  if (!under_way) product.before[t].hold(sums, static_cast<size_t>(columns) / 2);
  product.sums[machine().current() % kGroup] = sums;
  if (++product.arrived == kGroup) machine().make_progress();
}

void wgmma_wait(int groups, Site site) {
  ThreadState& thread = here();
  auto& products = model().products[warpgroup()];
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
