// Attention in fp16 and bf16 on tensor cores, in one pass over the keys: a block holds 64 queries
// of one head in registers and reads 64 keys and values at a time, from the sequence's start, while
// the next ones are on their way. Scores live in registers; each block of them is weighed against
// the largest score so far, and what was summed before is scaled down when a larger one comes
// (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao et al.,
// "FlashAttention", 2022).
#include "cuda/attention.cuh"
#include "cuda/tile.cuh"

namespace bertrt::cuda {
namespace {

constexpr int kQueries = 64;  // 16 a warp
constexpr int kKeys = 64;
constexpr int kThreads = kQueries / 16 * kWarp;
constexpr int kRowLanes = 4;  // that hold a row of a fragment of sums
constexpr float kLog2E = 1.44269504f;

template <int kHeadDim>
constexpr int kSharedBytes = (kQueries + 2 * 2 * kKeys) * kHeadDim * 2;

// Blocks that share a multiprocessor, and its registers.
template <int kHeadDim>
constexpr int kBlocks = kHeadDim <= 64 ? 3 : 2;

// An instance with a bias and one without: the bias takes registers, of which another block that
// fits into a multiprocessor would be made.
template <class T, int kHeadDim, bool kBiased>
__global__ void __launch_bounds__(kThreads, kBlocks<kHeadDim>)
    attention_kernel_mma(AttentionTask<T> task) {
  constexpr int kChunks = kHeadDim / 8;
  constexpr int kTileBytes = kKeys * kHeadDim * 2;
  const auto block = attention_block<kQueries>(task);
  if (block.queries == 0) return;
  if (block.keys == 0) return write_zeros(task, block);
  const unsigned lane = lane_index();
  const unsigned warp_row = threadIdx.x / kWarp * 16;
  const bool has_queries = static_cast<int>(warp_row) < block.queries;
  unsigned char* query_tile = shared_memory<unsigned char>();
  unsigned char* stages = query_tile + kQueries * kHeadDim * 2;

  const auto load = [&](int first) {
    if (first < block.keys) {
      unsigned char* stage = stages + first / kKeys % 2 * 2 * kTileBytes;
      const int64_t skipped = first * task.stride;
      load_tile<kKeys, kChunks, kThreads>(stage, block.key + skipped, task.stride,
                                          block.keys - first);
      load_tile<kKeys, kChunks, kThreads>(stage + kTileBytes, block.value + skipped, task.stride,
                                          block.keys - first);
    }
    cp_async_commit();
  };
  load_tile<kQueries, kChunks, kThreads>(query_tile, block.query, task.query_stride, block.queries);
  load(0);

  uint32_t query[kHeadDim / 16][4];
  float sums[kHeadDim / 8][4] = {};
  // Of the two rows that a lane has values of: the largest score so far, times log2(e), and the
  // lane's part of the sum of weights.
  float largest[2] = {kNothing, kNothing};
  float total[2] = {0.0f, 0.0f};
  const float scale = task.scale * kLog2E;

  for (int first = 0; first < block.keys; first += kKeys) {
    cp_async_wait<0>();
    syncthreads();  // everybody's copies are here, and everybody has read the stage before
    load(first + kKeys);
    if (!has_queries) continue;
    const unsigned char* key_tile = stages + first / kKeys % 2 * 2 * kTileBytes;
    const unsigned char* value_tile = key_tile + kTileBytes;
    if (first == 0) {
#pragma unroll
      for (int d = 0; d < kHeadDim / 16; ++d) {
        ldmatrix_x4(query[d], left_row<kChunks>(query_tile, warp_row, 2 * d));
      }
    }

    float scores[kKeys / 8][4] = {};
    if constexpr (kBiased) {
      const BlockBias bias = block_bias<kQueries>(task);
      const int key = first + static_cast<int>(lane % 4 * 2 - warp_row - lane / 4);
      // The second of the two rows is 8 below the first, as far as a fragment is from the next.
#pragma unroll
      for (int j = -1; j < kKeys / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float more = bias_at(task, bias, key + 8 * j + i);
          if (j >= 0) scores[j][i] = more;
          if (j + 1 < kKeys / 8) scores[j + 1][2 + i] = more;
        }
      }
    }
#pragma unroll
    for (int d = 0; d < kHeadDim / 16; ++d) {
#pragma unroll
      for (int j = 0; j < kKeys / 16; ++j) {
        uint32_t key[4];
        ldmatrix_x4(key, right_row<kChunks>(key_tile, 16 * j, 2 * d));
        mma_pair<T>(scores[2 * j], scores[2 * j + 1], query[d], key);
      }
    }

    const int keys_left = block.keys - first - static_cast<int>(lane % 4 * 2);  // from its first
    float larger[2] = {largest[0], largest[1]};
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool there = 8 * j + i % 2 < keys_left;
        scores[j][i] = there ? scores[j][i] * scale : kNothing;
        larger[i / 2] = fmaxf(larger[i / 2], scores[j][i]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      larger[half] = row_max<kRowLanes>(larger[half]);
      const float shrink = fast_exp2(largest[half] - larger[half]);
      largest[half] = larger[half];
      total[half] *= shrink;
#pragma unroll
      for (int j = 0; j < kHeadDim / 8; ++j) {
        sums[j][2 * half] *= shrink;
        sums[j][2 * half + 1] *= shrink;
      }
    }

#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      // Scores of 16 keys stand as a left operand of 16 elements' depth does.
      uint32_t weights[4];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float weight[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          weight[i] = fast_exp2(scores[2 * k + j][i] - largest[i / 2]);
          total[i / 2] += weight[i];
        }
        weights[2 * j] = pack2<T>(weight[0], weight[1]);
        weights[2 * j + 1] = pack2<T>(weight[2], weight[3]);
      }
#pragma unroll
      for (int d = 0; d < kHeadDim / 16; ++d) {
        uint32_t value[4];
        ldmatrix_x4_trans(value, left_row<kChunks>(value_tile, 16 * k, 2 * d));
        mma_pair<T>(sums[2 * d], sums[2 * d + 1], weights, value);
      }
    }
  }
  if (!has_queries) return;

  // The place of the warp's queries takes the result, to be written in whole chunks.
  syncwarp();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float share = 1.0f / row_sum<kRowLanes>(total[half]);
#pragma unroll
    for (int j = 0; j < kHeadDim / 8; ++j) {
      const unsigned offset = chunk_offset<kChunks>(warp_row + lane / 4 + 8 * half, j);
      *reinterpret_cast<uint32_t*>(query_tile + offset + lane % 4 * 4) =
          pack2<T>(sums[j][2 * half] * share, sums[j][2 * half + 1] * share);
    }
  }
  syncwarp();
#pragma unroll
  for (unsigned i = lane; i < 16 * kChunks; i += kWarp) {
    const unsigned row = warp_row + i / kChunks;
    const unsigned chunk = i % kChunks;
    if (static_cast<int>(row) >= block.queries) break;
    store_vector(
        block.out + row * task.out_stride + chunk * 8,
        load_vector(reinterpret_cast<const T*>(query_tile + chunk_offset<kChunks>(row, chunk))));
  }
}

template <class T, int kHeadDim>
void run(AttentionTask<T> task, int64_t seqs, int64_t longest, int64_t heads, Stream stream) {
  task.query_blocks = static_cast<int>((longest + kQueries - 1) / kQueries);
  const dim3 grid(static_cast<unsigned>(seqs * task.query_blocks), static_cast<unsigned>(heads));
  launch(task.bias ? attention_kernel_mma<T, kHeadDim, true>
                   : attention_kernel_mma<T, kHeadDim, false>,
         grid, kThreads, kSharedBytes<kHeadDim>, stream, task);
}

}  // namespace

bool has_attention_mma(int64_t head_dim) {
  switch (head_dim) {
    case 32:
    case 64:
    case 80:
    case 96:
    case 128:
      return true;
    default:
      return false;
  }
}

template <class T>
void attention_mma(const AttentionTask<T>& task, int64_t seqs, int64_t longest, int64_t heads,
                   Stream stream) {
  switch (task.head_dim) {
    case 32:
      return run<T, 32>(task, seqs, longest, heads, stream);
    case 64:
      return run<T, 64>(task, seqs, longest, heads, stream);
    case 80:
      return run<T, 80>(task, seqs, longest, heads, stream);
    case 96:
      return run<T, 96>(task, seqs, longest, heads, stream);
    case 128:
      return run<T, 128>(task, seqs, longest, heads, stream);
    default:
      return;
  }
}

template void attention_mma<Fp16>(const AttentionTask<Fp16>&, int64_t, int64_t, int64_t, Stream);
template void attention_mma<Bf16>(const AttentionTask<Bf16>&, int64_t, int64_t, int64_t, Stream);

}  // namespace bertrt::cuda
