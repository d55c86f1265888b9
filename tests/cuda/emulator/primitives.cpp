// The primitives of device.cuh: barriers, copies to shared memory, tensor core products.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator/device.h"
#include "emulator/machine.h"

namespace bertrt::cuda::emulator {

void warp_collective(const char* name, Site site, void* lane, WarpWork work) {
  machine().collective(name, site, lane, work);
}
void syncthreads(Site site) { machine().syncthreads(site); }
void syncwarp(Site site) {
  warp_collective("syncwarp", site, nullptr, [](void* const*) { machine().begin_warp_epoch(); });
}
void cp_async16(void* shared, const void* global, bool there) {
  machine().copy(shared, global, there);
}
void cp_async_commit() { machine().commit(); }
void cp_async_wait(int groups) { machine().wait_for_copies(groups); }
void require_alignment(const void* p, int bytes) {
  machine().require_alignment(p, static_cast<size_t>(bytes));
}
void wait_for_kernels_before() { machine().wait_for_kernels_before(); }
void* shared_memory() { return machine().shared(); }
unsigned cluster_rank() { return static_cast<unsigned>(machine().rank()); }
void cluster_barrier(Site site) { machine().cluster_barrier(site); }
void load_peer(void* to, const void* shared, unsigned rank) {
  std::memcpy(to, machine().read_peer(shared, rank), 16);
}

// PTX ISA 9.7.14.5.15, "Warp-level matrix load instruction: ldmatrix".
void ldmatrix_x4(uint32_t* out, const void* row, bool transposed, Site site) {
  struct Lane {
    const void* row;
    uint32_t* out;
    bool transposed;
    int thread;
  } mine{row, out, transposed, machine().current()};
  warp_collective(transposed ? "ldmatrix.trans" : "ldmatrix", site, &mine, [](void* const* lanes) {
    uint16_t elements[4][8][8];
    for (int l = 0; l < kWarp; ++l) {
      const Lane& lane = *static_cast<Lane*>(lanes[l]);
      machine().load_matrix_row(lane.row, lane.thread);
      std::memcpy(elements[l / 8][l % 8], lane.row, 16);
    }
    for (int l = 0; l < kWarp; ++l) {
      const Lane& lane = *static_cast<Lane*>(lanes[l]);
      for (int m = 0; m < 4; ++m) {
        const int major = l / 4, minor = l % 4 * 2;
        const auto element = [&](int i) -> uint32_t {
          return lane.transposed ? elements[m][minor + i][major] : elements[m][major][minor + i];
        };
        lane.out[m] = element(0) | element(1) << 16;
      }
    }
  });
}

// PTX ISA 9.7.14.5.8, "Matrix Fragments for mma.m16n8k16 with floating point type". The order of
// the hardware's sums is not documented; here they are exact but for one rounding at the end.
void mma_m16n8k16(float* sums, const uint32_t* a, const uint32_t* b, float (*widen)(uint16_t),
                  Site site) {
  struct Lane {
    float* sums;
    const uint32_t* a;
    const uint32_t* b;
    float (*widen)(uint16_t);
  } mine{sums, a, b, widen};
  warp_collective("mma", site, &mine, [](void* const* lanes) {
    float a[16][16], b[8][16];  // b by columns
    for (int l = 0; l < kWarp; ++l) {
      const Lane& lane = *static_cast<Lane*>(lanes[l]);
      const int group = l / 4, pair = l % 4 * 2;
      for (int i = 0; i < 8; ++i) {
        const auto bits = static_cast<uint16_t>(lane.a[i / 2] >> (i % 2 * 16));
        a[group + (i / 2 % 2 ? 8 : 0)][pair + i % 2 + (i < 4 ? 0 : 8)] = lane.widen(bits);
      }
      for (int i = 0; i < 4; ++i) {
        const auto bits = static_cast<uint16_t>(lane.b[i / 2] >> (i % 2 * 16));
        b[group][pair + i % 2 + (i < 2 ? 0 : 8)] = lane.widen(bits);
      }
    }
    for (int l = 0; l < kWarp; ++l) {
      const Lane& lane = *static_cast<Lane*>(lanes[l]);
      for (int i = 0; i < 4; ++i) {
        const float* row = a[l / 4 + (i < 2 ? 0 : 8)];
        const float* column = b[l % 4 * 2 + i % 2];
        double sum = lane.sums[i];
        for (int k = 0; k < 16; ++k) sum += static_cast<double>(row[k]) * column[k];
        lane.sums[i] = static_cast<float>(sum);
      }
    }
  });
}

namespace {

// What a lane brings to a product of 8-bit numbers, and the fragments of all ("Matrix Fragments for
// mma.m16n8k32", PTX ISA 9.7.14.5.9).
template <class Sum>
struct Lane8 {
  Sum* sums;
  const uint32_t* a;
  const uint32_t* b;
};
template <class Sum>
struct Operands8 {
  uint8_t a[16][32];
  uint8_t b[8][32];  // by columns

  explicit Operands8(void* const* lanes) {
    for (int l = 0; l < kWarp; ++l) {
      const auto& lane = *static_cast<Lane8<Sum>*>(lanes[l]);
      const int group = l / 4, four = l % 4 * 4;
      for (int i = 0; i < 16; ++i) {
        const int row = group + (i / 4 % 2 ? 8 : 0);
        a[row][four + i % 4 + (i < 8 ? 0 : 16)] =
            static_cast<uint8_t>(lane.a[i / 4] >> (i % 4 * 8));
      }
      for (int i = 0; i < 8; ++i) {
        b[group][four + i % 4 + (i < 4 ? 0 : 16)] =
            static_cast<uint8_t>(lane.b[i / 4] >> (i % 4 * 8));
      }
    }
  }
  // body(sum, row of a, column of b) for each.
  template <class Body>
  void for_each(void* const* lanes, const Body& body) const {
    for (int l = 0; l < kWarp; ++l) {
      for (int i = 0; i < 4; ++i) {
        body(static_cast<Lane8<Sum>*>(lanes[l])->sums[i], a[l / 4 + (i < 2 ? 0 : 8)],
             b[l % 4 * 2 + i % 2]);
      }
    }
  }
};

}  // namespace

// A sum as tensor cores are known to make those of fp8 (Hopper's; arXiv:2412.19437, 3.3.2): the
// terms are aligned to the largest and cut off behind 13 bits of it, towards zero, then added.
float sum_of_few_bits(const double* terms, int count) {
  double largest = 0.0, sum = 0.0;
  for (int i = 0; i < count; ++i) {
    if (!std::isfinite(terms[i])) return std::nanf("");
    largest = std::max(largest, std::fabs(terms[i]));
  }
  if (largest == 0.0) return 0.0f;
  const double step = std::ldexp(1.0, std::ilogb(largest) - 13);
  for (int i = 0; i < count; ++i) sum += std::trunc(terms[i] / step);
  return static_cast<float>(sum * step);
}

// Unsigned by signed integers.
void mma_m16n8k32(int32_t* sums, const uint32_t* a, const uint32_t* b, Site site) {
  Lane8<int32_t> mine{sums, a, b};
  warp_collective("mma", site, &mine, [](void* const* lanes) {
    const auto multiply = [](int32_t& total, const uint8_t* row, const uint8_t* column) {
      int64_t sum = total;
      for (int k = 0; k < 32; ++k) sum += row[k] * static_cast<int8_t>(column[k]);
      total = static_cast<int32_t>(sum);  // it wraps around, as on the device
    };
    Operands8<int32_t>(lanes).for_each(lanes, multiply);
  });
}

// e4m3 by e4m3.
void mma_m16n8k32(float* sums, const uint32_t* a, const uint32_t* b, Site site) {
  Lane8<float> mine{sums, a, b};
  warp_collective("mma", site, &mine, [](void* const* lanes) {
    const auto multiply = [](float& total, const uint8_t* row, const uint8_t* column) {
      double terms[33];
      for (int k = 0; k < 32; ++k) {
        terms[k] = static_cast<double>(e4m3_to_float(row[k])) * e4m3_to_float(column[k]);
      }
      terms[32] = total;
      total = sum_of_few_bits(terms, 33);
    };
    Operands8<float>(lanes).for_each(lanes, multiply);
  });
}

}  // namespace bertrt::cuda::emulator
