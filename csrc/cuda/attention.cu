// Attention: where it starts; the kernel for fp32 and for heads of any size; and the probabilities
// written down.
#include "cuda/attention.cuh"

namespace bertrt::cuda {
namespace {

// One pass over the keys, as attention_mma.cu has it, by fused multiply-adds: 64 queries by 64 keys
// a step, of which a thread has 4 x 4, and 64 columns of the head's result a block. A larger head
// has a block for each 64 columns, each of which computes the scores anew.
constexpr int kSide = 64;
constexpr int kThreadsAcross = 16;
constexpr int kPerThread = kSide / kThreadsAcross;
constexpr int kThreads = kThreadsAcross * kThreadsAcross;
// Rows of tiles, in floats: 16 lanes read four values of 16 neighbouring rows in as few turns as
// banks allow.
constexpr int kTileStride = kSide + 4;
constexpr int kTileFloats = kSide * kTileStride;
constexpr int kSharedBytes = 3 * kTileFloats * 4 + static_cast<int>(sizeof(BlockBias));

// Rows in fp32; what is beyond the valid ones becomes zeros.
template <class T>
__device__ __forceinline__ void read_tile(float* tile, const T* rows, int64_t stride,
                                          int valid_rows, int valid_cols) {
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kSide * kSide; i += kThreads) {
    const int row = i / kSide;
    const int col = i % kSide;
    tile[row * kTileStride + col] =
        row < valid_rows && col < valid_cols ? to_float(rows[row * stride + col]) : 0.0f;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2) attention_kernel_fma(AttentionTask<T> task) {
  wait_for_kernels_before();
  const auto block = attention_block<kSide>(task);
  if (block.queries == 0) return;
  if (block.keys == 0) {
    if (blockIdx.z == 0) write_zeros(task, block);
    return;
  }
  const int first_out = static_cast<int>(blockIdx.z) * kSide;
  const int down = static_cast<int>(threadIdx.x) / kThreadsAcross;
  const int across = static_cast<int>(threadIdx.x) % kThreadsAcross;
  float* query_tile = shared_memory<float>();
  float* key_tile = query_tile + kTileFloats;
  float* value_tile = key_tile + kTileFloats;
  // In the loop no register is left for it.
  auto* bias = reinterpret_cast<BlockBias*>(value_tile + kTileFloats);
  if (threadIdx.x == 0) *bias = block_bias<kSide>(task);
  float* weights = key_tile;  // once the scores are there, keys are not read again

  float sums[kPerThread][kPerThread] = {};
  float largest[kPerThread];
  float total[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    largest[i] = kNothing;
    total[i] = 0.0f;
  }

  for (int first = 0; first < block.keys; first += kSide) {
    const int valid_keys = block.keys - first;
    const int64_t skipped = first * task.stride;
    float scores[kPerThread][kPerThread] = {};
    for (int d = 0; d < task.head_dim; d += kSide) {
      const int valid_dims = task.head_dim - d;
      syncthreads();  // everybody has read what stood in the tiles
      if (first == 0 || task.head_dim > kSide) {
        read_tile(query_tile, block.query + d, task.query_stride, block.queries, valid_dims);
      }
      read_tile(key_tile, block.key + skipped + d, task.stride, valid_keys, valid_dims);
      if (d == 0) {
        read_tile(value_tile, block.value + skipped + first_out, task.stride, valid_keys,
                  task.head_dim - first_out);
      }
      syncthreads();
#pragma unroll 2
      for (int k = 0; k < kSide; k += 4) {
        Vector<float> key[kPerThread];
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) {
          key[j] = load_vector(key_tile + (across + kThreadsAcross * j) * kTileStride + k);
        }
#pragma unroll
        for (int i = 0; i < kPerThread; ++i) {
          const Vector<float> query =
              load_vector(query_tile + (down + kThreadsAcross * i) * kTileStride + k);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
#pragma unroll
            for (int j = 0; j < kPerThread; ++j) {
              scores[i][j] = fmaf(query.values[e], key[j].values[e], scores[i][j]);
            }
          }
        }
      }
    }
    syncthreads();  // keys have been read
    if (task.bias) {
      // A thread's queries and keys are equally far apart: there are few distances.
#pragma unroll
      for (int apart = 1 - kPerThread; apart < kPerThread; ++apart) {
        const float more = bias_at(task, *bias, first + across - down + kThreadsAcross * apart);
#pragma unroll
        for (int i = 0; i < kPerThread; ++i) {
          if (i + apart >= 0 && i + apart < kPerThread) scores[i][i + apart] += more;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      float larger = largest[i];
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        const bool there = across + kThreadsAcross * j < valid_keys;
        scores[i][j] = there ? scores[i][j] * task.scale : kNothing;
        larger = fmaxf(larger, scores[i][j]);
      }
      larger = row_max<kThreadsAcross>(larger);
      const float shrink = expf(largest[i] - larger);
      largest[i] = larger;
      total[i] *= shrink;
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        sums[i][j] *= shrink;
        const float weight = expf(scores[i][j] - larger);
        total[i] += weight;
        weights[(down + kThreadsAcross * i) * kTileStride + across + kThreadsAcross * j] = weight;
      }
    }
    syncwarp();  // a row of weights is written and read by half a warp
#pragma unroll 2
    for (int k = 0; k < kSide; k += 4) {
      Vector<float> weight[kPerThread];
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        weight[i] = load_vector(weights + (down + kThreadsAcross * i) * kTileStride + k);
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const Vector<float> value =
            load_vector(value_tile + (k + e) * kTileStride + across * kPerThread);
#pragma unroll
        for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
          for (int j = 0; j < kPerThread; ++j) {
            sums[i][j] = fmaf(weight[i].values[e], value.values[j], sums[i][j]);
          }
        }
      }
    }
  }

#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const float whole = row_sum<kThreadsAcross>(total[i]);
    const int row = down + kThreadsAcross * i;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const int col = first_out + across * kPerThread + j;
      if (row < block.queries && col < task.head_dim) {
        block.out[row * task.out_stride + col] = from_float<T>(sums[i][j] / whole);
      }
    }
  }
}

template <class T>
void attention_fma(AttentionTask<T> task, int64_t seqs, int64_t longest, int64_t heads,
                   Stream stream) {
  task.query_blocks = static_cast<int>((longest + kSide - 1) / kSide);
  const dim3 grid(static_cast<unsigned>(seqs * task.query_blocks), static_cast<unsigned>(heads),
                  static_cast<unsigned>((task.head_dim + kSide - 1) / kSide));
  launch(attention_kernel_fma<T>, grid, kThreads, kSharedBytes, stream, task);
}

template <class T>
void run_attention(const Attention& attention, const Sequences& sequences, ConstDeviceRows qkv,
                   ConstDeviceRows first_queries, DeviceRows out, Stream stream) {
  const auto task = attention_task<T>(attention, sequences, qkv, first_queries, out);
  const int64_t longest = first_queries.data ? 1 : sequences.longest;
  if constexpr (sizeof(T) == 2) {
    if (has_attention_mma(attention.head_dim)) {
      return attention_mma(task, sequences.seqs, longest, attention.heads, stream);
    }
  }
  attention_fma(task, sequences.seqs, longest, attention.heads, stream);
}

constexpr int kWeightsWarps = 4;

// A block for each query, a warp for each of its heads in turn. The scores stand in the result
// until they are turned into probabilities, by the lane that wrote them.
template <class T>
__global__ void __launch_bounds__(kWeightsWarps* kWarp)
    attention_weights_kernel(AttentionTask<T> task, const int64_t* cu_pairs, int heads, float* out,
                             int64_t out_stride) {
  wait_for_kernels_before();
  const int seq = static_cast<int>(blockIdx.x) / task.query_blocks;
  const int query_index = static_cast<int>(blockIdx.x) % task.query_blocks;
  const int64_t begin = task.cu_seqlens[seq];
  const int length = static_cast<int>(task.cu_seqlens[seq + 1] - begin);
  if (query_index >= length) return;
  const int keys = task.attended ? task.attended[seq] : length;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t first_pair = cu_pairs[seq] + static_cast<int64_t>(query_index) * length;
  for (int head = static_cast<int>(threadIdx.x) / kWarp; head < heads; head += kWeightsWarps) {
    const int64_t column = static_cast<int64_t>(head) * task.head_dim;
    const T* query = task.query + (begin + query_index) * task.query_stride + column;
    const T* key = task.key + begin * task.stride + column;
    float* weights = out + first_pair * out_stride + head;
    const float* bias = task.bias ? task.bias + head * task.bias_stride - query_index : nullptr;
    float largest = kNothing;
    for (int k = lane; k < keys; k += kWarp) {
      float score = 0.0f;
      for (int d = 0; d < task.head_dim; ++d) {
        score = fmaf(to_float(query[d]), to_float(key[k * task.stride + d]), score);
      }
      score *= task.scale;
      if (bias) score += bias[k];
      weights[k * out_stride] = score;
      largest = fmaxf(largest, score);
    }
    largest = warp_max(largest);
    float total = 0.0f;
    for (int k = lane; k < keys; k += kWarp) {
      const float weight = expf(weights[k * out_stride] - largest);
      weights[k * out_stride] = weight;
      total += weight;
    }
    total = warp_sum(total);
    for (int k = lane; k < length; k += kWarp) {
      weights[k * out_stride] = k < keys ? weights[k * out_stride] / total : 0.0f;
    }
  }
}

template <class T>
void run_attention_weights(const Attention& attention, const Sequences& sequences,
                           const int64_t* cu_pairs, ConstDeviceRows qkv, DeviceRows out,
                           Stream stream) {
  AttentionTask<T> task = attention_task<T>(attention, sequences, qkv);
  task.query_blocks = static_cast<int>(sequences.longest);
  launch(attention_weights_kernel<T>,
         dim3(static_cast<unsigned>(sequences.seqs * sequences.longest)), kWeightsWarps * kWarp, 0,
         stream, task, cu_pairs, static_cast<int>(attention.heads), static_cast<float*>(out.data),
         out.stride);
}

}  // namespace

void attention(const Attention& attention, const Sequences& sequences, ConstDeviceRows qkv,
               ConstDeviceRows first_queries, DeviceRows out, Stream stream) {
  if (sequences.seqs == 0 || (sequences.longest == 0 && !first_queries.data)) return;
  switch (out.element) {
    case Element::kFp32:
      return run_attention<float>(attention, sequences, qkv, first_queries, out, stream);
    case Element::kFp16:
      return run_attention<Fp16>(attention, sequences, qkv, first_queries, out, stream);
    case Element::kBf16:
      return run_attention<Bf16>(attention, sequences, qkv, first_queries, out, stream);
  }
}

void attention_weights(const Attention& attention, const Sequences& sequences,
                       const int64_t* cu_pairs, ConstDeviceRows qkv, DeviceRows out,
                       Stream stream) {
  if (sequences.seqs == 0 || sequences.longest == 0) return;
  switch (qkv.element) {
    case Element::kFp32:
      return run_attention_weights<float>(attention, sequences, cu_pairs, qkv, out, stream);
    case Element::kFp16:
      return run_attention_weights<Fp16>(attention, sequences, cu_pairs, qkv, out, stream);
    case Element::kBf16:
      return run_attention_weights<Bf16>(attention, sequences, cu_pairs, qkv, out, stream);
  }
}

const char* attention_kernel(Element element, int64_t head_dim, bool hopper) {
  const bool mma = has_attention_mma(head_dim);
  switch (element) {
    case Element::kFp32:
      return "attention_fp32.fma";
    case Element::kFp16:
      return hopper ? "attention_fp16.wgmma" : mma ? "attention_fp16.mma" : "attention_fp16.fma";
    case Element::kBf16:
      return hopper ? "attention_bf16.wgmma" : mma ? "attention_bf16.mma" : "attention_bf16.fma";
  }
  return "";
}

}  // namespace bertrt::cuda
