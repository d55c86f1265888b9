// What the attention kernels share.
#pragma once

#include "cuda/device.cuh"
#include "cuda/kernels.h"

namespace bertrt::cuda {

template <class T>
struct AttentionTask {
  const T* query;  // of the first token (or sequence, if first_only), first head; so key, value
  const T* key;
  const T* value;
  int64_t query_stride;
  int64_t stride;  // of key and value
  T* out;
  int64_t out_stride;
  const int32_t* cu_seqlens;
  const int32_t* attended;
  int query_blocks;  // of the longest sequence
  int head_dim;
  float scale;
  const float* bias;  // of the first head at distance 0, or null; see Attention
  int64_t bias_stride;
  float bias_units;  // of products, in one of bias: 1 / scale
  bool first_only;   // query and out have a row a sequence, of its first token
};

// With first_queries, query and out have a row a sequence; see attention().
template <class T>
AttentionTask<T> attention_task(const Attention& attention, const Sequences& sequences,
                                ConstDeviceRows qkv, ConstDeviceRows first_queries = {},
                                DeviceRows out = {}) {
  const int64_t hidden = attention.heads * attention.head_dim;
  AttentionTask<T> task = {};
  task.query = static_cast<const T*>(qkv.data);
  task.key = task.query + hidden;
  task.value = task.key + hidden;
  task.query_stride = qkv.stride;
  task.stride = qkv.stride;
  if (first_queries.data) {
    task.first_only = true;
    task.query = static_cast<const T*>(first_queries.data);
    task.query_stride = first_queries.stride;
  }
  task.out = static_cast<T*>(out.data);
  task.out_stride = out.stride;
  task.cu_seqlens = sequences.cu_seqlens;
  task.attended = sequences.attended;
  task.head_dim = static_cast<int>(attention.head_dim);
  task.scale = attention.scale;
  task.bias = attention.distance_bias;
  task.bias_stride = attention.distance_stride;
  task.bias_units = 1.0f / attention.scale;
  return task;
}

// The queries of one block: some of one sequence, one head.
template <class T>
struct AttentionBlock {
  const T* query;  // of its first query; likewise out
  const T* key;    // of the sequence's first token
  const T* value;
  T* out;
  int queries;  // 0: none are left
  int keys;
};

// Blocks are numbered by sequence, then by query, in x, and by head in y.
template <int kQueries, class T>
__device__ __forceinline__ AttentionBlock<T> attention_block(const AttentionTask<T>& task) {
  const int seq = static_cast<int>(blockIdx.x) / task.query_blocks;
  const int first = static_cast<int>(blockIdx.x) % task.query_blocks * kQueries;
  const int64_t begin = task.cu_seqlens[seq];
  const int length = static_cast<int>(task.cu_seqlens[seq + 1] - begin);
  const int64_t row = task.first_only ? seq : begin + first;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * task.head_dim;
  const int left = (task.first_only ? 1 : length) - first;
  AttentionBlock<T> block;
  block.query = task.query + row * task.query_stride + column;
  block.key = task.key + begin * task.stride + column;
  block.value = task.value + begin * task.stride + column;
  block.out = task.out + row * task.out_stride + column;
  block.queries = left < 0 ? 0 : left < kQueries ? left : kQueries;
  block.keys = task.attended ? task.attended[seq] : length;
  return block;
}

// Where a block's queries stand among the distances of its head; of a task with a bias.
struct BlockBias {
  const float* head;  // at distance 0
  int first_query;    // its number in the sequence
};

template <int kQueries, class T>
__device__ __forceinline__ BlockBias block_bias(const AttentionTask<T>& task) {
  return {task.bias + blockIdx.y * task.bias_stride,
          static_cast<int>(blockIdx.x) % task.query_blocks * kQueries};
}

// What is added to a sum of products, in units of a product, for a key so far from a block's first
// query. Distances that no two tokens have belong to queries or keys that are not there: any value
// will do.
template <class T>
__device__ __forceinline__ float bias_at(const AttentionTask<T>& task, const BlockBias& block,
                                         int key) {
  const int farthest = static_cast<int>(task.bias_stride / 2);
  const int distance = key - block.first_query;
  const int there = distance < -farthest ? -farthest : distance > farthest ? farthest : distance;
  return block.head[there] * task.bias_units;
}

// What queries without keys give.
template <class T>
__device__ __forceinline__ void write_zeros(const AttentionTask<T>& task,
                                            const AttentionBlock<T>& block) {
  for (int i = static_cast<int>(threadIdx.x); i < block.queries * task.head_dim;
       i += static_cast<int>(blockDim.x)) {
    block.out[i / task.head_dim * task.out_stride + i % task.head_dim] = from_float<T>(0.0f);
  }
}

// Over kLanes neighbouring lanes, a power of two, that share a row; each gets the same bits.
template <int kLanes>
__device__ __forceinline__ float row_max(float value, Site site = Site::current()) {
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) {
    value = fmaxf(value, shuffle_xor(value, mask, site));
  }
  return value;
}
template <int kLanes>
__device__ __forceinline__ float row_sum(float value, Site site = Site::current()) {
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask, site);
  return value;
}

constexpr float kNothing = -HUGE_VALF;  // the score of a key that is not there

// Attention on tensor cores, for the head sizes that it is made for. Whether head_dim is one.
bool has_attention_mma(int64_t head_dim);
template <class T>
void attention_mma(const AttentionTask<T>& task, int64_t seqs, int64_t longest, int64_t heads,
                   Stream stream);

}  // namespace bertrt::cuda
