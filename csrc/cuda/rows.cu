// Kernels over rows: LayerNorm of a sum of rows, and rows picked by an index.
#include <type_traits>

#include "cuda/device.cuh"
#include "cuda/kernels.h"

namespace bertrt::cuda {
namespace {

// A warp has a row; 128 threads are few enough to spread the rows of one text over the device.
constexpr int kThreads = 128;
constexpr int kRowsOfBlock = kThreads / kWarp;

// Columns [col, col + kSize) of a row, added to `values`; beyond the row nothing is.
template <class T>
__device__ __forceinline__ void add_columns(const T* row, int64_t col, int64_t cols,
                                            float (&values)[Vector<T>::kSize]) {
  constexpr int kSize = Vector<T>::kSize;
  if (col + kSize <= cols) {
    const Vector<T> vector = load_vector(row + col);
#pragma unroll
    for (int i = 0; i < kSize; ++i) values[i] += to_float(vector.values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (col + i < cols) values[i] += to_float(row[col + i]);
    }
  }
}

// The rows that are added before LayerNorm, in this order; null where there is none.
template <class T>
struct Summands {
  const T* rows[3];
};

// out = norm(sum of summands), by one warp, in two passes over the row: the mean, then the mean of
// squared deviations. A lane has every 32nd vector of 16 bytes. It keeps them in registers, kHeld
// values in all; or, if kHeld is 0, reads them again for each pass, which finds them in the L1
// cache. So a sum's order depends on the row's length and element alone.
template <int kHeld, class T>
__device__ __forceinline__ void layer_norm_row(const LayerNorm& norm, const Summands<T>& summands,
                                               T* out) {
  constexpr int kSize = Vector<T>::kSize;
  constexpr int kVectors = kHeld > 0 ? kHeld / kSize : 1;
  const int64_t cols = norm.hidden;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float held[kVectors][kSize];

  const auto read = [&](int64_t col, float (&values)[kSize]) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) values[i] = 0.0f;
#pragma unroll
    for (const T* row : summands.rows) {
      if (row) add_columns(row, col, cols, values);
    }
  };
  const auto for_each = [&](const auto& body) {
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) body((v * kWarp + lane) * kSize, held[v]);
    } else {
      for (int64_t col = lane * kSize; col < cols; col += kWarp * kSize) {
        read(col, held[0]);
        body(col, held[0]);
      }
    }
  };

  if constexpr (kHeld > 0) {
    for_each([&](int64_t col, float (&values)[kSize]) { read(col, values); });
  }
  float sum = 0.0f;
  for_each([&](int64_t, const float (&values)[kSize]) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) sum += values[i];
  });
  const float mean = warp_sum(sum) / static_cast<float>(cols);

  float squares = 0.0f;
  for_each([&](int64_t col, const float (&values)[kSize]) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float deviation = col + i < cols ? values[i] - mean : 0.0f;
      squares = fmaf(deviation, deviation, squares);
    }
  });
  const float variance = warp_sum(squares) / static_cast<float>(cols);
  const float scale = 1.0f / sqrtf(variance + norm.eps);

  for_each([&](int64_t col, const float (&values)[kSize]) {
    float gamma[kSize] = {}, beta[kSize] = {};
#pragma unroll
    for (int i = 0; i < kSize; i += 4) {
      add_columns(norm.gamma, col + i, cols, reinterpret_cast<float (&)[4]>(gamma[i]));
      add_columns(norm.beta, col + i, cols, reinterpret_cast<float (&)[4]>(beta[i]));
    }
    Vector<T> result;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      result.values[i] = from_float<T>(fmaf((values[i] - mean) * scale, gamma[i], beta[i]));
    }
    if (col + kSize <= cols) {
      store_vector(out + col, result);
    } else {
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        if (col + i < cols) out[col + i] = result.values[i];
      }
    }
  });
}

// The row of this warp; where there is none, the warp ends.
__device__ __forceinline__ int64_t row_of_warp() {
  return static_cast<int64_t>(blockIdx.x) * kRowsOfBlock + threadIdx.x / kWarp;
}

template <int kHeld, class T>
__global__ void __launch_bounds__(kThreads)
    layer_norm_kernel(LayerNorm norm, const T* x, int64_t x_stride, const T* residual,
                      int64_t residual_stride, int64_t rows, T* out, int64_t out_stride) {
  const int64_t row = row_of_warp();
  if (row >= rows) return;
  const Summands<T> summands{
      {x + row * x_stride, residual ? residual + row * residual_stride : nullptr, nullptr}};
  layer_norm_row<kHeld>(norm, summands, out + row * out_stride);
}

template <int kHeld, class T>
__global__ void __launch_bounds__(kThreads)
    embed_layer_norm_kernel(LayerNorm norm, EmbeddingTables tables, const int32_t* ids,
                            const int32_t* types, const int32_t* positions, int64_t rows, T* out,
                            int64_t out_stride) {
  const int64_t row = row_of_warp();
  if (row >= rows) return;
  const auto look_up = [row](const ConstDeviceRows& table, const int32_t* index) {
    const T* data = static_cast<const T*>(table.data);
    return data ? data + index[row] * table.stride : nullptr;
  };
  const Summands<T> summands{{look_up(tables.word, ids), look_up(tables.type, types),
                              look_up(tables.position, positions)}};
  layer_norm_row<kHeld>(norm, summands, out + row * out_stride);
}

template <class To, class T>
__global__ void __launch_bounds__(kThreads)
    gather_rows_kernel(const T* x, int64_t x_stride, const int32_t* index, int64_t cols, To* out,
                       int64_t out_stride) {
  const int64_t row = blockIdx.x;
  const int64_t from = index ? index[row] : row;
  for (int64_t col = threadIdx.x; col < cols; col += kThreads) {
    To value{};
    if (from >= 0) {
      const T read = x[from * x_stride + col];
      if constexpr (std::is_same_v<To, T>) {
        value = read;
      } else {
        value = to_float(read);
      }
    }
    out[row * out_stride + col] = value;
  }
}

// Calls body with a value of an element's type.
template <class Body>
void with_type(Element element, const Body& body) {
  switch (element) {
    case Element::kFp32:
      return body(float());
    case Element::kFp16:
      return body(Fp16());
    case Element::kBf16:
      return body(Bf16());
  }
}

// Calls body with how many values a lane holds: as many as BERT base's rows take (768 of 32 lanes),
// or BERT large's (1,024); longer rows are not held.
template <class Body>
void with_held(int64_t cols, const Body& body) {
  if (cols <= 24 * kWarp) return body(std::integral_constant<int, 24>());
  if (cols <= 32 * kWarp) return body(std::integral_constant<int, 32>());
  return body(std::integral_constant<int, 0>());
}

dim3 blocks_of(int64_t rows) {
  return dim3(static_cast<unsigned>((rows + kRowsOfBlock - 1) / kRowsOfBlock));
}

}  // namespace

void layer_norm(const LayerNorm& norm, ConstDeviceRows x, ConstDeviceRows residual, int64_t rows,
                DeviceRows out, Stream stream) {
  if (rows == 0) return;
  with_type(x.element, [&](auto type) {
    using T = decltype(type);
    with_held(norm.hidden, [&](auto held) {
      launch(layer_norm_kernel<held, T>, blocks_of(rows), kThreads, 0, stream, norm,
             static_cast<const T*>(x.data), x.stride, static_cast<const T*>(residual.data),
             residual.stride, rows, static_cast<T*>(out.data), out.stride);
    });
  });
}

void embed_layer_norm(const EmbeddingTables& tables, const LayerNorm& norm, const int32_t* ids,
                      const int32_t* types, const int32_t* positions, int64_t tokens,
                      DeviceRows out, Stream stream) {
  if (tokens == 0) return;
  with_type(out.element, [&](auto type) {
    using T = decltype(type);
    with_held(norm.hidden, [&](auto held) {
      launch(embed_layer_norm_kernel<held, T>, blocks_of(tokens), kThreads, 0, stream, norm, tables,
             ids, types, positions, tokens, static_cast<T*>(out.data), out.stride);
    });
  });
}

void gather_rows(ConstDeviceRows x, const int32_t* index, int64_t rows, int64_t cols,
                 DeviceRows out, Stream stream) {
  if (rows == 0) return;
  with_type(x.element, [&](auto type) {
    using T = decltype(type);
    const auto start = [&](auto* to) {
      using To = std::remove_pointer_t<decltype(to)>;
      launch(gather_rows_kernel<To, T>, dim3(static_cast<unsigned>(rows)), kThreads, 0, stream,
             static_cast<const T*>(x.data), x.stride, index, cols, to, out.stride);
    };
    if (out.element == x.element) {
      start(static_cast<T*>(out.data));
    } else {
      start(static_cast<float*>(out.data));
    }
  });
}

}  // namespace bertrt::cuda
