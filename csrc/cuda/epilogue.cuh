// What becomes of a product's sums: bias, activation and residual, before the only rounding.
#pragma once

#include "cuda/linear.cuh"

namespace bertrt::cuda {

__device__ __forceinline__ float gelu_erf(float x) {
  return 0.5f * x * (1.0f + erff(x * 0.70710678f));
}

__device__ __forceinline__ float gelu_tanh(float x) {
  return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
}

template <int kCount>
__device__ __forceinline__ void activate(Activation activation, float (&values)[kCount]) {
  switch (activation) {
    case Activation::kNone:
      break;
    case Activation::kRelu:
#pragma unroll
      for (float& v : values) v = v <= 0.0f ? 0.0f : v;  // what is no number stays
      break;
    case Activation::kGeluErf:
#pragma unroll
      for (float& v : values) v = gelu_erf(v);
      break;
    case Activation::kGeluTanh:
#pragma unroll
      for (float& v : values) v = gelu_tanh(v);
      break;
    case Activation::kTanh:
#pragma unroll
      for (float& v : values) v = tanhf(v);
      break;
  }
}

// Behind all else: how many of a tile's rows there are.
constexpr int kRowsThereBytes = 16;

// What a kernel needs that lays its sums out where its tiles of inputs were.
constexpr int shared_bytes(int inputs, int sums) {
  return (inputs > sums ? inputs : sums) + kRowsThereBytes;
}

// 16 bytes of a row of the result.
template <class T>
__device__ __forceinline__ void write(T* out, const float (&values)[Vector<T>::kSize]) {
  if constexpr (sizeof(T) == 4) {
    store_vector(out, Vector<float>{values[0], values[1], values[2], values[3]});
  } else {
    Vector<uint32_t> pairs;
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs.values[i] = pack2<T>(values[2 * i], values[2 * i + 1]);
    store_vector(reinterpret_cast<uint32_t*>(out), pairs);
  }
}

// Makes kCount values of the result, of which `left` are there, from their sums with the bias:
// activation and residual before the only rounding.
template <int kCount, class T, class In>
__device__ __forceinline__ void finish_values(const Product<T, In>& p, int64_t row, int column,
                                              int left, float (&values)[kCount]) {
  activate(p.activation, values);
  T* out = p.out + row * p.out_stride + column;
  const T* residual = p.residual ? p.residual + row * p.residual_stride + column : nullptr;
  if (p.vectors && left >= kCount) {
    if (residual) {
      const Vector<T> more = load_vector(residual);
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] += to_float(more.values[i]);
    }
    write(out, values);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i >= left) break;
      if (residual) values[i] += to_float(residual[i]);
      out[i] = from_float<T>(values[i]);
    }
  }
}

// Makes kRows rows of a block's tile of the result from their sums, which stand in shared memory,
// behind a barrier; the first `rows` of them are there. A thread writes 16 bytes at a time, below
// each other: all that is done to a value is there once in the program, not once for each of a
// thread's many values.
template <class Tile, unsigned kRows = Tile::kRows, class T, class In>
__device__ __forceinline__ void finish(const Product<T, In>& p, const Corner& corner, int rows,
                                       const float* sums) {
  constexpr int kCount = Vector<T>::kSize;
  constexpr unsigned kAcross = Tile::kColumns / kCount;
  static_assert(Tile::kThreads % kAcross == 0);
  const unsigned tile_column = threadIdx.x % kAcross * kCount;
  const int column = corner.column + static_cast<int>(tile_column);
  const int left = p.outputs - column;
  float bias[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) bias[i] = p.bias && i < left ? p.bias[column + i] : 0.0f;
#pragma unroll 1
  for (unsigned tile_row = threadIdx.x / kAcross; tile_row < kRows;
       tile_row += Tile::kThreads / kAcross) {
    const int64_t row = corner.row + tile_row;
    if (static_cast<int>(tile_row) >= rows || left <= 0) break;
    float values[kCount];
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const Vector<float> four = load_vector(sums + tile_row * Tile::kSumsStride + tile_column + i);
#pragma unroll
      for (int e = 0; e < 4; ++e) values[i + e] = four.values[e] + bias[i + e];
    }
    finish_values(p, row, column, left, values);
  }
}

}  // namespace bertrt::cuda
