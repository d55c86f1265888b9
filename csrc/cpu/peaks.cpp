#include "cpu/peaks.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/float_mode.h"

namespace bertrt::cpu {
namespace {

constexpr int kRuns = 16;
// Long beside the waking of a thread, short beside the time slice that another process would take.
constexpr double kRunSeconds = 0.01;
// Pieces a thread: one that is stopped in the middle of its work leaves the rest to the others.
constexpr int64_t kPieces = 8;

template <class Body>
double seconds(const Body& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

using PeakLoop = int64_t (*)(int64_t rounds, float x, float* out);

double operations_per_second(PeakLoop loop, ThreadPool& pool, int runs = kRuns) {
  const int64_t pieces = kPieces * pool.threads();
  std::vector<int64_t> operations(static_cast<size_t>(pieces));
  const auto run = [&](int64_t rounds) {
    return seconds([&] {
      pool.parallel_for(pieces, [&](int64_t piece, int) {
        float out[16] = {};
        operations[static_cast<size_t>(piece)] = loop(rounds, 0.5f, out);
      });
    });
  };
  // This warms up, too: a core takes a while to reach its clock.
  int64_t rounds = 1024;
  while (run(rounds) < kRunSeconds && rounds < int64_t{1} << 40) rounds *= 2;
  double best = 0.0;
  for (int i = 0; i < runs; ++i) {
    const double spent = run(rounds);
    double total = 0.0;
    for (const int64_t count : operations) total += static_cast<double>(count);
    best = std::max(best, total / spent);
  }
  return best;
}

// Far beyond the last cache, so that nothing read is left there from the run before.
int64_t beyond_caches() {
  int64_t bytes = int64_t{1} << 28;
#ifdef _SC_LEVEL3_CACHE_SIZE
  bytes = std::max(bytes, 4 * int64_t{sysconf(_SC_LEVEL3_CACHE_SIZE)});
#endif
  return bytes;
}

double read_bytes_per_second(const KernelTable& table, ThreadPool& pool) {
  constexpr int64_t kPiece = int64_t{1} << 20;
  const int64_t pieces = beyond_caches() / kPiece;
  const AlignedBuffer buffer(static_cast<size_t>(pieces * kPiece));
  auto* bytes = static_cast<char*>(buffer.data());
  std::vector<float> sums(static_cast<size_t>(pieces));
  // Memory that was never written is one page of zeros.
  pool.parallel_for(pieces, [&](int64_t piece, int) {
    std::memset(bytes + piece * kPiece, 0, static_cast<size_t>(kPiece));
  });
  double best = 0.0;
  for (int i = 0; i < kRuns; ++i) {
    const double spent = seconds([&] {
      pool.parallel_for(pieces, [&](int64_t piece, int) {
        const auto* x = reinterpret_cast<const float*>(bytes + piece * kPiece);
        sums[static_cast<size_t>(piece)] =
            table.read_f32(x, kPiece / static_cast<int64_t>(sizeof(float)));
      });
    });
    best = std::max(best, static_cast<double>(pieces * kPiece) / spent);
  }
  return best;
}

}  // namespace

Peaks measure_peaks(const KernelTable& table, ThreadPool& pool) {
  const FloatMode mode;
  return {operations_per_second(table.gemm_f32.peak, pool),
          operations_per_second(table.gemm_bf16.peak, pool),
          operations_per_second(table.gemm_s8.peak, pool), read_bytes_per_second(table, pool)};
}

double present_fp32_peak(const KernelTable& table, ThreadPool& pool) {
  const FloatMode mode;
  return operations_per_second(table.gemm_f32.peak, pool, 1);
}

}  // namespace bertrt::cpu
