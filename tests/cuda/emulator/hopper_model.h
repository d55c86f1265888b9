// What the emulator keeps of a block's mbarriers, copies by TMA and products by wgmma.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "emulator/emulator.h"
#include "emulator/hopper.h"
#include "emulator/machine.h"

namespace bertrt::cuda::hopper::emulator {

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

// How many releases of each warp of a cluster somebody knows of: who arrives counts one, who waits
// learns.
using Releases = std::vector<uint32_t>;
constexpr int kWarpsOfCluster = cuda::emulator::kMaxCluster * kWarps;

struct BarrierState {
  int arrivals, pending;
  int64_t expected = 0, brought = 0;  // bytes, of this phase
  int phase = 0;                      // phases that are over
  std::vector<Load> loads;
  Releases coming = Releases(kWarpsOfCluster), known = Releases(kWarpsOfCluster);
  uint32_t cluster_epoch = 0;                         // in which it was initialised
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
  Releases seen = Releases(kWarpsOfCluster);
  uint32_t fences = 0;  // its own, for wgmma
  std::vector<uint32_t> fences_seen;
};

struct Model {
  std::map<size_t, BarrierState> barriers;
  std::vector<Chunk> chunks;
  std::vector<ThreadState> threads;
  std::vector<std::deque<Product>> products;  // of each warpgroup
  std::vector<uint32_t> releases;             // of each warp
};
// Of each block of a cluster.
inline Model models[cuda::emulator::kMaxCluster];
inline Model& model() { return models[machine().rank()]; }

inline std::string text(const char* part) { return part; }
inline std::string text(int64_t part) { return std::to_string(part); }
template <class... Parts>
[[noreturn]] void fail(Parts... parts) {
  machine().begin_report();
  machine().fail("thread " + std::to_string(machine().current()) + ": " + (text(parts) + ...));
}

inline ThreadState& here() { return model().threads[static_cast<size_t>(machine().current())]; }
inline size_t warpgroup() { return static_cast<size_t>(machine().current() / kGroup); }

// The swizzle of 128 bytes is one of addresses: bits 4 to 6 change by bits 7 to 9.
inline size_t swizzle(size_t address) { return address ^ (address >> 7 & 7) << 4; }

// The bytes that a product reads lie in these: whole groups of eight rows.
inline bool reads(const Product& product, size_t begin, size_t end) {
  const auto within = [&](uint64_t descriptor, size_t rows) {
    const size_t row_bytes = descriptor >> 62 == 1 ? 128 : 64;
    const size_t first = ((descriptor & 0x3fff) << 4) & ~(8 * row_bytes - 1);
    return rows > 0 && first < end && begin < first + rows * row_bytes;
  };
  const size_t right_rows = product.transposed ? 16 : static_cast<size_t>(product.columns);
  return within(product.a, product.left_rows()) || within(product.b, right_rows);
}

}  // namespace bertrt::cuda::hopper::emulator
