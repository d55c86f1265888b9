// Products by wgmma: what their descriptors name, when they are computed, and who waits for them.
#include <algorithm>
#include <numeric>

#include "emulator/hopper_model.h"

namespace bertrt::cuda::hopper::emulator {
namespace {

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

}  // namespace

void wgmma_fence() { here().fenced = true; }

void wgmma_commit() { ++here().group; }

void fence_for_wgmma() { ++here().fences; }

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

}  // namespace bertrt::cuda::hopper::emulator
