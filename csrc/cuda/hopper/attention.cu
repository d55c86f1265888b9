// Attention of 16-bit elements by Hopper's own instructions, in one pass over a text's keys: one
// warpgroup copies 64 keys and values at a time to a ring of stages, two multiply, each 64 queries.
// Queries, weights and sums live in registers; scores are never written. While a block's scores
// become weights, the tensor cores multiply those of the block before with its values, and what
// the other warpgroup has.
//
// Keys and values come by cp.async, not by TMA: what is beyond the text's end becomes zeros by the
// copy itself. A box of TMA reads on into the next text, and a weight of zero times its infinity
// would be no number: a text's bits would depend on its neighbours.
//
// A text's keys come 64 at a time from its first on, whatever stands around it and whoever computes
// it: its bits do not depend on the batch. They are not the bits of attention_mma.cu.
#include "cuda/hopper/attention.h"

#include <algorithm>
#include <climits>

#include "cuda/attention.cuh"
#include "cuda/hopper/attention_layout.h"
#include "cuda/hopper/register_operand.cuh"
#include "cuda/tile.cuh"

namespace bertrt::cuda::hopper {
namespace {

constexpr int kWarpgroup = 128;
constexpr int kConsumers = 2;
constexpr int kThreads = (kConsumers + 1) * kWarpgroup;
constexpr int kRowLanes = 4;  // that hold a row of sums
constexpr float kLog2E = 1.44269504f;

// Copies run ahead of the products by so many stages, of which the last kUnderWay may be under way.
// A warpgroup holds two stages while it waits for the next of its own, of which every other one is
// where there are two streams: what is published by then must reach four further than the first.
constexpr int kStages = 8;
constexpr int kUnderWay = 3;
static_assert(kStages >= kUnderWay + 5);

template <int kHeadDim>
struct Sizes {
  static constexpr int kRowBytes = kHeadDim * 2;
  static constexpr int kChunks = kRowBytes / 16;
  static constexpr int kTileBytes = kTileKeys * kRowBytes;
  static constexpr int kStageBytes = 2 * kTileBytes;
  static constexpr int kBarriersAt = kStages * kStageBytes;
  static constexpr int kSharedBytes =
      kBarriersAt + 2 * kStages * static_cast<int>(sizeof(Barrier)) + kSwizzleBytes;
};

struct Ring {
  unsigned char* stages;
  Barrier* full;
  Barrier* empty;
};

// An item, of a text.
struct Work {
  Item at;
  int64_t begin;  // the text's first row
  int left;       // queries from the item's first on
  int keys;
};
template <class T>
__device__ __forceinline__ Work work_of(const AttentionTask<T>& task, const Items& items,
                                        unsigned item) {
  Work work;
  work.at = item_place(items, item);
  work.begin = task.cu_seqlens[work.at.seq];
  const int length = static_cast<int>(task.cu_seqlens[work.at.seq + 1] - work.begin);
  work.left = (task.first_only ? 1 : length) - work.at.first;
  work.keys = task.attended ? task.attended[work.at.seq] : length;
  return work;
}

// Starts the copies of this thread, of a warpgroup's, to a tile; what is beyond valid_rows, one at
// least, becomes zeros.
template <int kChunks, class T>
__device__ __forceinline__ void copy_tile(unsigned char* tile, const T* rows, int64_t stride,
                                          int valid_rows) {
#pragma unroll
  for (unsigned first = 0; first < kTileKeys * kChunks; first += kWarpgroup) {
    const unsigned i = first + threadIdx.x % kWarpgroup;
    const unsigned row = i / kChunks, chunk = i % kChunks;
    const bool there = static_cast<int>(row) < valid_rows;
    const T* from = rows + (there ? row * static_cast<unsigned>(stride) : 0) + chunk * 8;
    cp_async16(tile + head_swizzled(kChunks * 16, row, chunk), from, there);
  }
}

// What the warpgroup does that copies: keys and values of each item, in the order of its blocks of
// keys, its streams by turns.
template <class T, int kHeadDim>
__device__ __forceinline__ void copy(const AttentionTask<T>& task, const Ring& ring,
                                     const Items& items, unsigned count) {
  using S = Sizes<kHeadDim>;
  unsigned turn = 0, published = 0;
  const auto publish = [&] {
    fence_for_wgmma();
    barrier_arrive(ring.full + ring_place(published, kStages).stage);
    ++published;
  };
  for (unsigned round = 0; round * gridDim.x < count; ++round) {
    const unsigned item = item_of(blockIdx.x, round, gridDim.x);
    if (item >= count) continue;
    const Work work = work_of(task, items, item);
    const int streams = share_of(0, work.left, work.at.head, static_cast<int>(items.heads)).streams;
    if (streams == 0) continue;
    const int64_t column = static_cast<int64_t>(work.at.head) * kHeadDim;
    const T* key = task.key + work.begin * task.stride + column;
    const T* value = task.value + work.begin * task.stride + column;
    for (int first = 0; first < work.keys; first += kTileKeys) {
      for (int stream = 0; stream < streams; ++stream, ++turn) {
        const RingPlace place = ring_place(turn, kStages);
        unsigned char* stage = ring.stages + place.stage * S::kStageBytes;
        const int64_t skipped = first * task.stride + stream * kHeadDim;
        barrier_wait(ring.empty + place.stage, place.empty);
        copy_tile<S::kChunks>(stage, key + skipped, task.stride, work.keys - first);
        copy_tile<S::kChunks>(stage + S::kTileBytes, value + skipped, task.stride,
                              work.keys - first);
        cp_async_commit();
        if (turn >= kUnderWay) {
          cp_async_wait<kUnderWay>();
          publish();
        }
      }
    }
  }
  cp_async_wait<0>();
  while (published < turn) publish();
}

// Four lanes that share a row have four words of it each: lane l words[i] becomes lane i's
// words[l]. So chunks of 16 bytes, a lane each, become each lane's part of all, as operands and
// sums have them; and back.
__device__ __forceinline__ void exchange(uint32_t (&words)[4], Site site = Site::current()) {
#pragma unroll
  for (int mask = 1; mask <= 2; mask *= 2) {
    const bool upper = (lane_index() & static_cast<unsigned>(mask)) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & mask) != 0) continue;
      const uint32_t theirs = shuffle_xor(upper ? words[i] : words[i | mask], mask, site);
      (upper ? words[i] : words[i | mask]) = theirs;
    }
  }
}

// A warpgroup's work in an item, and where this thread's two rows of it are, eight rows apart.
template <int kHeadDim>
struct Part {
  static constexpr int kVectors = kHeadDim / 8 / kRowLanes;  // of a row, a lane's
  Work work;
  Share share;
  uint32_t words[2][kVectors][4];  // queries as they stand in memory

  __device__ __forceinline__ static int row(int half) {
    return static_cast<int>(threadIdx.x % kWarpgroup / kWarp * 16 + lane_index() / kRowLanes) +
           8 * half;
  }
  __device__ __forceinline__ static int column(int v) {
    return (v * kRowLanes + static_cast<int>(lane_index() % kRowLanes)) * 8;
  }
  template <class T>
  __device__ __forceinline__ int64_t first_row(const AttentionTask<T>& task) const {
    return (task.first_only ? work.at.seq : work.begin + work.at.first) + share.skipped;
  }
  __device__ __forceinline__ int64_t first_column() const {
    return static_cast<int64_t>(work.at.head + share.stream) * kHeadDim;
  }

  // Starts to read the queries: they are there when they are first used.
  template <class T>
  __device__ __forceinline__ void begin(const AttentionTask<T>& task, const Items& items,
                                        unsigned item) {
    work = work_of(task, items, item);
    const int group = static_cast<int>(threadIdx.x) / kWarpgroup;
    share = share_of(group, work.left, work.at.head, static_cast<int>(items.heads));
    const T* query = task.query + first_row(task) * task.query_stride + first_column();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool there = row(half) < share.queries && work.keys > 0;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        Vector<uint32_t> vector = {};
        if (there) {
          vector = load_vector(
              reinterpret_cast<const uint32_t*>(query + row(half) * task.query_stride + column(v)));
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) words[half][v][i] = vector.values[i];
      }
    }
  }

  // Writes rows of the result, of which a lane has 16 bytes at a time.
  template <class T>
  __device__ __forceinline__ void write(const AttentionTask<T>& task,
                                        const uint32_t (&result)[2][kVectors][4]) const {
    T* out = task.out + first_row(task) * task.out_stride + first_column();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row(half) >= share.queries) continue;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const auto& four = result[half][v];
        store_vector(reinterpret_cast<uint32_t*>(out + row(half) * task.out_stride + column(v)),
                     Vector<uint32_t>{four[0], four[1], four[2], four[3]});
      }
    }
  }
};

// Turns a block's scores into weights against the largest score so far, and tells by how much what
// was summed before shrinks. Of the two rows that a lane has values of: the largest score so far,
// and the lane's part of the sum of weights. `scale` is above zero.
struct Softmax {
  float largest[2] = {kNothing, kNothing};
  float total[2] = {0.0f, 0.0f};

  __device__ __forceinline__ void weigh(float (&scores)[32], int keys_left, float scale,
                                        float (&shrink)[2]) {
    if (keys_left < kTileKeys) {
      const int left = keys_left - static_cast<int>(lane_index() % kRowLanes * 2);
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        if (i / 4 * 8 + i % 2 >= left) scores[i] = kNothing;
      }
    }
    float larger[2] = {largest[0], largest[1]};
#pragma unroll
    for (int i = 0; i < 32; ++i) larger[i / 2 % 2] = fmaxf(larger[i / 2 % 2], scores[i]);
    float scaled[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      larger[half] = row_max<kRowLanes>(larger[half]);
      scaled[half] = multiply(larger[half], scale);
      shrink[half] = fast_exp2(multiply(largest[half], scale) - scaled[half]);
      largest[half] = larger[half];
      total[half] *= shrink[half];
    }
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      scores[i] = fast_exp2(fmaf(scores[i], scale, -scaled[i / 2 % 2]));
      total[i / 2 % 2] += scores[i];
    }
  }
};

// What a warpgroup does that multiplies.
template <class T, int kHeadDim>
__device__ __forceinline__ void multiply_items(const AttentionTask<T>& task, const Ring& ring,
                                               const Items& items, unsigned count) {
  using S = Sizes<kHeadDim>;
  constexpr int kVectors = Part<kHeadDim>::kVectors;
  const float scale = task.scale * kLog2E;
  unsigned turn = 0;  // the next stage that comes
  const auto wait_for = [&](unsigned of_turn) {
    const RingPlace place = ring_place(of_turn, kStages);
    barrier_wait(ring.full + place.stage, place.full);
  };
  const auto release = [&](unsigned of_turn) {
    if (lane_index() == 0) barrier_arrive(ring.empty + ring_place(of_turn, kStages).stage);
  };
  // Stages of the other warpgroup's keys are let go when they have come, not before: a stage's
  // phase has one arrival of each warp.
  const auto skip_to = [&](unsigned end) {
    for (; turn < end; ++turn) {
      wait_for(turn);
      release(turn);
    }
  };
  const auto tile = [&](unsigned of_turn) {
    return shared_address(ring.stages) +
           static_cast<uint32_t>(ring_place(of_turn, kStages).stage * S::kStageBytes);
  };

  Part<kHeadDim> next;
  // The first item of this block from a round on: its queries are read while the one before is
  // computed.
  const auto find = [&](unsigned& round) {
    for (; round * gridDim.x < count; ++round) {
      const unsigned item = item_of(blockIdx.x, round, gridDim.x);
      if (item >= count) continue;
      next.begin(task, items, item);
      if (next.share.streams > 0) return true;
    }
    return false;
  };
  unsigned round = 0;
  for (bool more = find(round); more;) {
    const Part<kHeadDim> part = next;
    const auto streams = static_cast<unsigned>(part.share.streams);
    const int blocks = (part.work.keys + kTileKeys - 1) / kTileKeys;
    const unsigned first = turn + static_cast<unsigned>(part.share.stream);
    const unsigned end = turn + static_cast<unsigned>(blocks) * streams;
    if (part.share.queries <= 0 || blocks == 0) {
      const uint32_t zeros[2][kVectors][4] = {};
      part.write(task, zeros);
      ++round;
      more = find(round);
      skip_to(end);
      continue;
    }

    uint32_t query[kHeadDim / 16][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) words[i] = part.words[half][v][i];
        exchange(words);
#pragma unroll
        for (int i = 0; i < 4; ++i) query[v * 2 + i / 2][i % 2 * 2 + half] = words[i];
      }
    }
    ++round;
    more = find(round);

    float scores[32], sums[kHeadDim / 2];
    uint32_t weights[kTileKeys / 16][4];
    float shrink[2];
    Softmax softmax;
    const auto begin_scores = [&](unsigned of_turn) {
#pragma unroll
      for (int k = 0; k < kHeadDim / 16; ++k) {
        const uint64_t keys =
            head_descriptor(S::kRowBytes, tile(of_turn) + static_cast<uint32_t>(k) * 32);
        wgmma_of_registers<T, false>(scores, query[k], keys, k > 0);
      }
      wgmma_commit();
    };
    const auto begin_sums = [&](unsigned of_turn, bool add) {
#pragma unroll
      for (int k = 0; k < kTileKeys / 16; ++k) {
        const uint64_t values =
            head_descriptor(S::kRowBytes, tile(of_turn) + S::kTileBytes +
                                              static_cast<uint32_t>(k) * 16 * S::kRowBytes);
        wgmma_of_registers<T, true>(sums, weights[k], values, add || k > 0);
      }
      wgmma_commit();
    };
    const auto pack = [&] {
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        weights[i / 4][i % 4] = pack2<T>(scores[2 * i], scores[2 * i + 1]);
      }
    };

    const auto wait_for_block = [&](int block) {
      if (block >= blocks) return;
      skip_to(first + static_cast<unsigned>(block) * streams);
      wait_for(turn);
    };
    wait_for_block(0);
    wgmma_fence();
    begin_scores(turn);
    wgmma_wait<0>(scores);
    softmax.weigh(scores, part.work.keys, scale, shrink);
    pack();
    unsigned before = turn++;
    wait_for_block(1);
    for (int block = 1; block < blocks; ++block) {
      wgmma_fence();
      begin_scores(turn);
      begin_sums(before, block > 1);
      wgmma_wait<1>(scores);
      softmax.weigh(scores, part.work.keys - block * kTileKeys, scale, shrink);
      compute_here(scores);
      const unsigned now = turn++;
      // Here, since ptxas moves the wait for the sums up to the last branch, and with it ahead of
      // the weights that are to be computed meanwhile.
      wait_for_block(block + 1);
      wgmma_wait<0>(sums);
      release(before);
#pragma unroll
      for (int i = 0; i < kHeadDim / 2; ++i) sums[i] *= shrink[i / 2 % 2];
      pack();
      before = now;
    }
    wgmma_fence();
    begin_sums(before, blocks > 1);
    wgmma_wait<0>(sums);
    release(before);
    skip_to(end);

    uint32_t result[2][kVectors][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float share = 1.0f / row_sum<kRowLanes>(softmax.total[half]);
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = (v * 4 + i) * 4 + half * 2;
          result[half][v][i] = pack2<T>(sums[at] * share, sums[at + 1] * share);
        }
        exchange(result[half][v]);
      }
    }
    part.write(task, result);
  }
}

template <class T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1)
    attention_wgmma(AttentionTask<T> task, Items items, unsigned count) {
  using S = Sizes<kHeadDim>;
  unsigned char* shared = shared_memory<unsigned char>();
  shared += (kSwizzleBytes - shared_address(shared) % kSwizzleBytes) % kSwizzleBytes;
  auto* full = reinterpret_cast<Barrier*>(shared + S::kBarriersAt);
  const Ring ring = {shared, full, full + kStages};
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(ring.full + s, kWarpgroup);
      barrier_init(ring.empty + s, kConsumers * kWarpgroup / kWarp);  // a lane of each warp
    }
    barrier_init_done();
  }
  syncthreads();
  wait_for_kernels_before();
  if (threadIdx.x / kWarpgroup == kConsumers) {
    copy<T, kHeadDim>(task, ring, items, count);
  } else {
    multiply_items<T, kHeadDim>(task, ring, items, count);
  }
}

template <class T, int kHeadDim>
void run(const AttentionTask<T>& task, int64_t seqs, int64_t longest, int64_t heads,
         Stream stream) {
  const Items items = items_of(heads, longest);
  const int64_t count = seqs * items_of_text(items);
  const int64_t blocks = std::min<int64_t>(count, multiprocessors());
  if (count + blocks > INT_MAX) {
    throw DeviceError("Hopper's attention takes 2^31 blocks of queries at most, not " +
                      std::to_string(count));
  }
  launch(attention_wgmma<T, kHeadDim>, dim3(static_cast<unsigned>(blocks)), kThreads,
         Sizes<kHeadDim>::kSharedBytes, stream, task, items, static_cast<unsigned>(count));
}

template <class T>
void run(const Attention& attention, const Sequences& sequences, ConstDeviceRows qkv,
         ConstDeviceRows first_queries, DeviceRows out, Stream stream) {
  const auto task = attention_task<T>(attention, sequences, qkv, first_queries, out);
  const int64_t longest = first_queries.data ? 1 : sequences.longest;
  if (attention.head_dim == 64) {
    run<T, 64>(task, sequences.seqs, longest, attention.heads, stream);
  } else {
    run<T, 32>(task, sequences.seqs, longest, attention.heads, stream);
  }
}

}  // namespace

void attention(const Attention& attention, const Sequences& sequences, ConstDeviceRows qkv,
               ConstDeviceRows first_queries, DeviceRows out, Stream stream) {
  if (!hopper_attention_fits(attention, out.element)) {
    throw DeviceError(
        "Hopper's attention needs a GPU of compute capability 9.0, fp16 or bf16, heads of 32 or 64 "
        "and no bias by distance");
  }
  if (sequences.seqs == 0 || (sequences.longest == 0 && !first_queries.data)) return;
  if (out.element == Element::kFp16) {
    run<Fp16>(attention, sequences, qkv, first_queries, out, stream);
  } else {
    run<Bf16>(attention, sequences, qkv, first_queries, out, stream);
  }
}

}  // namespace bertrt::cuda::hopper

namespace bertrt::cuda {

bool hopper_attention_fits(const Attention& attention, Element element) {
  return element != Element::kFp32 && (attention.head_dim == 32 || attention.head_dim == 64) &&
         attention.scale > 0.0f && !attention.distance_bias && hopper::available();
}

}  // namespace bertrt::cuda
