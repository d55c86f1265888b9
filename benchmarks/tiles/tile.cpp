// How much of its instruction's peak a product reaches on one core, by the height of its tiles;
// what measure.py compiles with a kernel, KERNEL, whose tile it has set.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cpu/kernel_table.h"

namespace bertrt::cpu {
namespace avx2 {
extern const KernelTable kTable;
}
namespace avx512 {
extern const KernelTable kTable;
}
namespace avx512_vnni {
extern const GemmKernel kGemmS8;
}
namespace avx512_bf16 {
extern const GemmKernel kGemmBf16;
}
}  // namespace bertrt::cpu

namespace {

using bertrt::cpu::GemmKernel;
using bertrt::cpu::GemmTile;
using bertrt::cpu::RowSteps;

// Seconds of the best of `turns` calls: what else the machine did is in the others.
template <class Body>
double best(int turns, const Body& body) {
  double least = 1e9;
  for (int i = 0; i < turns; ++i) {
    const auto begun = std::chrono::steady_clock::now();
    body();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
    least = std::min(least, took.count());
  }
  return least;
}

// Memory of zeros that begins with a cache line.
char* memory(int64_t bytes) {
  const auto whole = static_cast<size_t>((bytes + 63) / 64 * 64);
  void* found = std::aligned_alloc(64, whole);
  if (found == nullptr) std::abort();
  return static_cast<char*>(std::memset(found, 0, whole));
}

// The operations a second of tiles of so many rows, over 8 panels of weights and 4 tiles of rows,
// which stay in the second-level cache.
double rate(const GemmKernel& kernel, int64_t depth, int rows) {
  constexpr int kPanels = 8, kTiles = 4;
  const int64_t groups = depth / kernel.group;
  const int weight = kernel.group == 1 ? 4 : kernel.group == 2 ? 2 : 1;  // bytes
  const int64_t panel_bytes = depth * kernel.panel * weight;
  const int input = kernel.convert ? kernel.row_bytes : 4;
  int64_t stride = (depth * input + static_cast<int64_t>(sizeof(RowSteps)) + 63) / 64 * 64;
  if (stride % 1024 == 0) stride += 64;  // as the engine's rows: not all in one set of the cache
  const int64_t out_stride = static_cast<int64_t>(kernel.panel) * kPanels;
  char* weights = memory(panel_bytes * kPanels);
  char* a = memory(stride * rows * kTiles);
  auto* out = reinterpret_cast<float*>(memory(out_stride * rows * kTiles * 4));
  std::vector<float> scales(static_cast<size_t>(kernel.panel), 0.01f);
  std::vector<float> bias(static_cast<size_t>(kernel.panel), 0.1f);
  std::vector<int32_t> sums(static_cast<size_t>(kernel.panel), 3);

  const auto all = [&] {
    for (int p = 0; p < kPanels; ++p) {
      for (int t = 0; t < kTiles; ++t) {
        GemmTile tile{};
        tile.a = a + t * rows * stride;
        tile.a_stride = stride;
        tile.panel = weights + p * panel_bytes;
        tile.next.from = weights + (p + 1) % kPanels * panel_bytes + t * panel_bytes / kTiles;
        tile.next.bytes = panel_bytes / kTiles;
        tile.depth = groups;
        tile.row_steps = a + (t * rows + 1) * stride - sizeof(RowSteps);
        tile.column_scale = scales.data();
        tile.column_sum = sums.data();
        tile.bias = bias.data();
        tile.out = out + t * rows * out_stride + p * kernel.panel;
        tile.out_stride = out_stride;
        tile.rows = rows;
        tile.cols = kernel.panel;
        kernel.run(tile);
      }
    }
  };
  const double took = best(60, all);
  std::free(weights);
  std::free(a);
  std::free(out);
  return 2.0 * rows * kTiles * kernel.panel * kPanels * static_cast<double>(depth) / took;
}

}  // namespace

// Prints the peak, and a line for each depth and height: depth, rows, rate.
int main() {
  const GemmKernel& kernel = bertrt::cpu::KERNEL;
  float kept[16] = {};
  int64_t operations = 0;
  const double seconds = best(60, [&] { operations = kernel.peak(20000, 0.5f, kept); });
  std::printf("%.6g\n", static_cast<double>(operations) / seconds);
  for (const int64_t depth : {384, 768, 3072}) {
    for (int rows = 1; rows <= kernel.rows; ++rows) {
      std::printf("%d %d %.6g\n", static_cast<int>(depth), rows, rate(kernel, depth, rows));
    }
  }
  return kept[0] == 0.0f;
}
