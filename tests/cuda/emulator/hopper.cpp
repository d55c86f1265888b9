// mbarriers and copies by TMA, and what a block begins and ends with.
#include <algorithm>
#include <cstring>

#include "emulator/hopper_model.h"

namespace bertrt::cuda {

uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(emulator::machine().shared_offset(p));
}

namespace hopper::emulator {
namespace {

// Of a block of the cluster, the mbarrier that stands where this one does.
BarrierState& find(const Barrier* barrier, int rank) {
  const bool own = rank == machine().rank();
  machine().reach_peer(static_cast<unsigned>(rank));
  auto& barriers = models[rank].barriers;
  const auto found = barriers.find(machine().shared_offset(barrier));
  if (found == barriers.end()) fail("no mbarrier has been initialised there");
  if (!own && found->second.cluster_epoch == machine().cluster_epoch(rank)) {
    fail("an mbarrier of another block with no barrier of the cluster behind its initialisation");
  }
  return found->second;
}
BarrierState& find(const Barrier* barrier) { return find(barrier, machine().rank()); }

void land(int rank, const Load& load, size_t barrier, int phase) {
  unsigned char* shared = machine().shared(rank);
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
      models[rank].chunks[to / kChunk] = {barrier, phase, false, -1, 0};
    }
  }
}

void end_phase_if_over(int rank, size_t at, BarrierState& barrier) {
  if (barrier.brought > barrier.expected && barrier.pending == 0) {
    fail("an mbarrier expects ", barrier.expected, " bytes and gets ", barrier.brought);
  }
  if (barrier.pending > 0 || barrier.brought < barrier.expected) return;
  ++barrier.phase;
  for (const Load& load : barrier.loads) land(rank, load, at, barrier.phase);
  barrier.loads.clear();
  barrier.expected = barrier.brought = 0;
  barrier.pending = barrier.arrivals;
  barrier.known = barrier.coming;
  barrier.fences_known = barrier.fences_coming;
  machine().make_progress();
}

// Before something comes to these bytes of a block: whoever reads there has let them go, and this
// thread knows.
void require_released(const char* what, int rank, size_t begin, size_t end) {
  const auto& groups = models[rank].products;
  for (size_t g = 0; g < groups.size(); ++g) {
    for (const Product& product : groups[g]) {
      if (!reads(product, begin, end)) continue;
      for (size_t w = 0; w < kGroup / kWarp; ++w) {
        const uint32_t released = product.released[w];
        const size_t of_cluster = static_cast<size_t>(rank) * kWarps + g * (kGroup / kWarp) + w;
        if (released == 0 || here().seen[of_cluster] < released) {
          fail(what, " to where products read that have not been released");
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
  state.cluster_epoch = machine().cluster_epoch(machine().rank());
  if (!model().barriers.emplace(machine().shared_offset(barrier), state).second) {
    fail("an mbarrier is initialised again");
  }
}

void barrier_arrive(Barrier* barrier, int bytes, int rank) {
  BarrierState& state = find(barrier, rank);
  if (state.pending == 0) fail("an mbarrier gets more arrivals than it expects");
  const auto warp = static_cast<size_t>(machine().current() / kWarp);
  const uint32_t count = ++model().releases[warp];
  auto& products = model().products[warpgroup()];
  for (size_t i = 0; i < here().waited; ++i) {
    uint32_t& released = products[i].released[warp % (kGroup / kWarp)];
    if (released == 0) released = count;
  }
  state.coming[static_cast<size_t>(machine().rank()) * kWarps + warp] = count;
  if (rank == machine().rank()) {
    state.fences_coming[static_cast<size_t>(machine().current())] = here().fences;
  }
  state.expected += bytes;
  --state.pending;
  end_phase_if_over(rank, machine().shared_offset(barrier), state);
}

void barrier_wait(Barrier* barrier, unsigned parity, Site site) {
  BarrierState& state = find(barrier);
  machine().poll("an mbarrier", site,
                 [&] { return (static_cast<unsigned>(state.phase) & 1) != parity; });
  ThreadState& thread = here();
  thread.phases[machine().shared_offset(barrier)] = state.phase;
  for (size_t w = 0; w < kWarpsOfCluster; ++w)
    thread.seen[w] = std::max(thread.seen[w], state.known[w]);
  for (size_t t = 0; t < thread.fences_seen.size(); ++t) {
    thread.fences_seen[t] = std::max(thread.fences_seen[t], state.fences_known[t]);
  }
}

void tma_load(void* tile, const TensorMap& map, int64_t row, int column, Barrier* barrier,
              unsigned blocks) {
  machine().require_alignment(tile, 1024);
  const size_t begin = machine().shared_offset(tile);
  const size_t end = begin + static_cast<size_t>(map.box_rows) * 128;
  if (end > machine().shared_bytes()) fail("a copy by TMA past the end of shared memory");
  std::vector<bool> written(static_cast<size_t>(map.box_rows));
  for (int64_t r = std::max<int64_t>(row, 0); r < std::min(map.rows, row + map.box_rows); ++r) {
    const int64_t columns = std::min<int64_t>(map.cols - column, 128 / map.bytes);
    if (columns <= 0) break;
    written[static_cast<size_t>(r - row)] = machine().read_written(
        static_cast<const char*>(map.data) + (r * map.stride + column) * map.bytes,
        static_cast<size_t>(columns * map.bytes));
  }
  for (int rank = 0; blocks >> rank != 0; ++rank) {
    if ((blocks >> rank & 1) == 0) continue;
    BarrierState& state = find(barrier, rank);
    for (size_t chunk = begin / kChunk; chunk < end / kChunk; ++chunk) {
      if (models[rank].chunks[chunk].on_its_way) fail("two copies by TMA to one place");
      models[rank].chunks[chunk].on_its_way = true;
    }
    require_released("a copy by TMA", rank, begin, end);
    state.loads.push_back({begin, map, row, column, written});
    state.brought += map.box_rows * 128;
    end_phase_if_over(rank, machine().shared_offset(barrier), state);
  }
}

void begin_copy(size_t at) {
  require_released("a cp.async", machine().rank(), at, at + kChunk);
  model().chunks[at / kChunk].on_its_way = true;
}

void end_copy(size_t at) {
  model().chunks[at / kChunk] = {SIZE_MAX, 0, false, machine().current(), here().fences};
}

}  // namespace hopper::emulator

bool hopper::available() { return cuda::emulator::settings().hopper; }

}  // namespace bertrt::cuda
