// Kernels over rows: LayerNorm of a sum of rows, and rows picked by an index.
#include <algorithm>
#include <climits>
#include <type_traits>

#include "core/fp8.h"
#include "cuda/device.cuh"
#include "cuda/kernels.h"
#include "cuda/runtime.h"

namespace bertrt::cuda {
namespace {

// A warp has a row; 128 threads are few enough to spread the rows of one text over the device.
constexpr int kThreads = 128;
constexpr int kRowsOfBlock = kThreads / kWarp;

// Blocks that a multiprocessor is to hold at least: they leave a thread 128 registers, so that a
// long row's reads can all be under way at once.
constexpr int kBlocks = 4;

// The same of a kernel whose threads keep a row, gamma and beta, and what comes of the next row.
template <int kHeld, int kRows, class T>
constexpr int kHeldBlocks = [] {
  constexpr int kRegisters = kHeld * (3 + kRows * static_cast<int>(sizeof(T)) / 4) + 44;
  return kRegisters <= 128 ? 4 : kRegisters <= 168 ? 3 : 2;
}();

// The vector of columns from col on; zeros where there is no row, and beyond its end. kWhole: rows
// are whole vectors.
template <bool kWhole, class T>
__device__ __forceinline__ Vector<T> read_columns(const T* row, int col, int cols) {
  constexpr int kSize = Vector<T>::kSize;
  Vector<T> vector = {};
  if (row && col + (kWhole ? 1 : kSize) <= cols) {
    vector = load_vector(row + col);
  } else if (!kWhole && row) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (col + i < cols) vector.values[i] = row[col + i];
    }
  }
  return vector;
}

template <bool kWhole, class T>
__device__ __forceinline__ void write_columns(T* row, int col, int cols, const Vector<T>& vector) {
  constexpr int kSize = Vector<T>::kSize;
  if (col + (kWhole ? 1 : kSize) <= cols) {
    store_vector(row + col, vector);
  } else if (!kWhole) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (col + i < cols) row[col + i] = vector.values[i];
    }
  }
}

// A row's values without their mean, times `scale`, have a deviation of 1.
struct Moments {
  float mean;
  float scale;
};

// Those of a warp's row, in two passes: the mean, then the mean of squared deviations. A lane has
// every 32nd vector of 16 bytes; for_each(body) calls body(first column, values) for each of its
// vectors. So a sum's order depends on the row's length and element alone.
template <int kSize, class ForEach>
__device__ __forceinline__ Moments moments_of(const LayerNorm& norm, const ForEach& for_each) {
  const int cols = static_cast<int>(norm.hidden);
  float sum = 0.0f;
  for_each([&](int, const float (&values)[kSize]) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) sum += values[i];
  });
  const float mean = warp_sum(sum) / static_cast<float>(cols);

  float squares = 0.0f;
  for_each([&](int col, const float (&values)[kSize]) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float deviation = col + i < cols ? values[i] - mean : 0.0f;
      squares = fmaf(deviation, deviation, squares);
    }
  });
  const float variance = warp_sum(squares) / static_cast<float>(cols);
  return {mean, 1.0f / sqrtf(variance + norm.eps)};
}

// The sum of vectors of one place, in their order.
template <class T, int kRows>
__device__ __forceinline__ void add(const Vector<T> (&vectors)[kRows],
                                    float (&sums)[Vector<T>::kSize]) {
#pragma unroll
  for (int i = 0; i < Vector<T>::kSize; ++i) {
    sums[i] = 0.0f;
#pragma unroll
    for (int r = 0; r < kRows; ++r) sums[i] += to_float(vectors[r].values[i]);
  }
}

// out = norm(sum of rows, in their order; null: none), by one warp. A lane keeps its values in
// registers, kHeld in all; or, if kHeld is 0, reads them again for each pass, which finds them in
// the L1 cache.
template <int kHeld, class T, int kRows>
__device__ __forceinline__ void layer_norm_row(const LayerNorm& norm, const T* const (&rows)[kRows],
                                               T* out) {
  constexpr bool kWhole = kHeld > 0;
  constexpr int kSize = Vector<T>::kSize;
  constexpr int kVectors = kWhole ? kHeld / kSize : 1;
  constexpr int kStep = kWarp * kSize;
  const int cols = static_cast<int>(norm.hidden);
  const int first = static_cast<int>(threadIdx.x) % kWarp * kSize;

  // All are read before the first is used: one latency for all.
  float held[kVectors][kSize];
  const auto read = [&](int col) {
    Vector<T> vectors[kVectors][kRows];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        vectors[v][r] = read_columns<kWhole>(rows[r], col + v * kStep, cols);
      }
    }
#pragma unroll
    for (int v = 0; v < kVectors; ++v) add(vectors[v], held[v]);
  };
  const auto for_each_vector = [&](const auto& body) {
    if constexpr (kWhole) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) body(first + v * kStep, held[v]);
    } else {
      for (int col = first; col < cols; col += kStep) {
        read(col);
        body(col, held[0]);
      }
    }
  };

  if constexpr (kWhole) read(first);
  const Moments of_row = moments_of<kSize>(norm, for_each_vector);
  for_each_vector([&](int col, const float (&values)[kSize]) {
    Vector<T> result;
#pragma unroll
    for (int i = 0; i < kSize; i += Vector<float>::kSize) {
      const Vector<float> gamma = read_columns<kWhole>(norm.gamma, col + i, cols);
      const Vector<float> beta = read_columns<kWhole>(norm.beta, col + i, cols);
#pragma unroll
      for (int j = 0; j < Vector<float>::kSize; ++j) {
        result.values[i + j] = from_float<T>(
            fmaf((values[i + j] - of_row.mean) * of_row.scale, gamma.values[j], beta.values[j]));
      }
    }
    write_columns<kWhole>(out, col, cols, result);
  });
}

// The row of this warp; where there is none, the warp ends.
__device__ __forceinline__ int64_t row_of_warp() {
  return static_cast<int64_t>(blockIdx.x) * kRowsOfBlock + threadIdx.x / kWarp;
}

// A warp has every so many rows: gamma and beta are read once, ahead of the wait for the kernels
// before, and a row is on its way while the one before is computed. kRows: with a residual, 2.
template <int kHeld, int kRows, class T>
__global__ void __launch_bounds__(kThreads, kHeldBlocks<kHeld, kRows, T>)
    layer_norm_held_kernel(LayerNorm norm, const T* x, int64_t x_stride, const T* residual,
                           int64_t residual_stride, RowCount rows, T* out, int64_t out_stride) {
  constexpr int kSize = Vector<T>::kSize;
  constexpr int kVectors = kHeld / kSize;
  constexpr int kStep = kWarp * kSize;
  constexpr int kFour = Vector<float>::kSize;
  const int cols = static_cast<int>(norm.hidden);
  const int first = static_cast<int>(threadIdx.x) % kWarp * kSize;
  Vector<float> gamma[kVectors][kSize / kFour], beta[kVectors][kSize / kFour];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
#pragma unroll
    for (int i = 0; i < kSize / kFour; ++i) {
      gamma[v][i] = read_columns<true>(norm.gamma, first + v * kStep + i * kFour, cols);
      beta[v][i] = read_columns<true>(norm.beta, first + v * kStep + i * kFour, cols);
    }
  }
  wait_for_kernels_before();
  const int64_t end = count_of(rows);
  Vector<T> coming[kVectors][kRows];
  const auto begin = [&](int64_t row) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      coming[v][0] = read_columns<true>(x + row * x_stride, first + v * kStep, cols);
      if constexpr (kRows > 1) {
        coming[v][1] =
            read_columns<true>(residual + row * residual_stride, first + v * kStep, cols);
      }
    }
  };
  int64_t row = row_of_warp();
  if (row < end) begin(row);
  while (row < end) {
    float held[kVectors][kSize];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) add(coming[v], held[v]);
    const int64_t next = row + static_cast<int64_t>(gridDim.x) * kRowsOfBlock;
    if (next < end) begin(next);
    const Moments of_row = moments_of<kSize>(norm, [&](const auto& body) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) body(first + v * kStep, held[v]);
    });
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      Vector<T> result;
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        result.values[i] = from_float<T>(fmaf((held[v][i] - of_row.mean) * of_row.scale,
                                              gamma[v][i / kFour].values[i % kFour],
                                              beta[v][i / kFour].values[i % kFour]));
      }
      write_columns<true>(out + row * out_stride, first + v * kStep, cols, result);
    }
    row = next;
  }
}

// Rows that are not held.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    layer_norm_kernel(LayerNorm norm, const T* x, int64_t x_stride, const T* residual,
                      int64_t residual_stride, RowCount rows, T* out, int64_t out_stride) {
  const int64_t row = row_of_warp();
  wait_for_kernels_before();
  if (row >= count_of(rows)) return;
  const T* const rows_of_sum[] = {x + row * x_stride,
                                  residual ? residual + row * residual_stride : nullptr};
  layer_norm_row<0>(norm, rows_of_sum, out + row * out_stride);
}

template <int kHeld, class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    embed_layer_norm_kernel(LayerNorm norm, EmbeddingTables tables, const int32_t* ids,
                            const int32_t* types, const int32_t* positions, RowCount rows, T* out,
                            int64_t out_stride) {
  const int64_t row = row_of_warp();
  wait_for_kernels_before();
  if (row >= count_of(rows)) return;
  const auto look_up = [row](const ConstDeviceRows& table, const int32_t* index) {
    const T* data = static_cast<const T*>(table.data);
    return data ? data + index[row] * table.stride : nullptr;
  };
  const T* const rows_of_sum[] = {look_up(tables.word, ids), look_up(tables.type, types),
                                  look_up(tables.position, positions)};
  layer_norm_row<kHeld>(norm, rows_of_sum, out + row * out_stride);
}

// kWhole: rows are whole vectors.
template <bool kWhole, EightBits kBits>
__global__ void __launch_bounds__(kThreads, kBlocks)
    quantise_kernel(const Fp16* x, int64_t x_stride, RowCount rows, int cols, QuantisedRows out) {
  constexpr int kSize = Vector<Fp16>::kSize;
  constexpr int kStep = kWarp * kSize;
  const int64_t row = row_of_warp();
  wait_for_kernels_before();
  if (row >= count_of(rows)) return;
  x += row * x_stride;
  auto* to = static_cast<uint8_t*>(out.data) + row * out.stride;
  const int first = static_cast<int>(threadIdx.x) % kWarp * kSize;

  // The zeros beyond a row's end are among the values in any case, or make no magnitude larger.
  float lowest = 0.0f, highest = 0.0f, poison = 0.0f;
  for (int col = first; col < cols; col += kStep) {
    const Vector<Fp16> vector = read_columns<kWhole>(x, col, cols);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float value = to_float(vector.values[i]);
      lowest = fminf(lowest, value);
      highest = fmaxf(highest, value);
      poison += multiply(value, 0.0f);
    }
  }
  lowest = -warp_max(-lowest);
  highest = warp_max(highest);
  float step, inverse;
  int32_t zero = 0;
  if constexpr (kBits == EightBits::kFp8) {
    const E4m3Scale worth(fmaxf(-lowest, highest));
    step = worth.scale;
    inverse = worth.inverse;
  } else {
    const float range = highest - lowest;
    step = range / 255.0f;
    constexpr float kSmallestNormal = 1.17549435e-38f;
    if (step < kSmallestNormal) step = 0.0f;
    inverse = step > 0.0f ? 255.0f / range : 0.0f;
    const float offset = multiply(-lowest, inverse) + 0.5f;
    zero = static_cast<int32_t>(offset > 0.0f && offset < 256.0f ? offset : 0.0f);
  }
  const float scale = step + warp_sum(poison);
  if (first == 0) {
    *reinterpret_cast<RowSteps*>(to + out.stride - kStepsBytes) = {scale, zero};
  }

  for (int col = first; col < cols; col += kStep) {
    const Vector<Fp16> vector = read_columns<kWhole>(x, col, cols);
    uint32_t fours[2] = {};
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float steps = multiply(to_float(vector.values[i]), inverse);
      uint32_t q;
      if constexpr (kBits == EightBits::kFp8) {
        q = to_e4m3(steps);
      } else {
        const int32_t whole = to_nearest_int(steps) + zero;
        q = static_cast<uint32_t>(whole < 0 ? 0 : whole > 255 ? 255 : whole);
      }
      fours[i / 4] |= q << (i % 4 * 8);
    }
    if (kWhole || col + kSize <= cols) {
      *reinterpret_cast<uint32_t*>(to + col) = fours[0];
      *reinterpret_cast<uint32_t*>(to + col + 4) = fours[1];
    } else {
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        if (col + i < cols) to[col + i] = static_cast<uint8_t>(fours[i / 4] >> (i % 4 * 8));
      }
    }
  }
}

template <class To, class T>
__global__ void __launch_bounds__(kThreads)
    gather_rows_kernel(const T* x, int64_t x_stride, const int32_t* index, RowCount rows,
                       int64_t cols, To* out, int64_t out_stride) {
  const int64_t row = blockIdx.x;
  wait_for_kernels_before();
  if (row >= count_of(rows)) return;
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

__global__ void compiled_to_wait_kernel(int32_t* answer) {
  if (threadIdx.x == 0) *answer = compiled_to_wait();
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

// Calls body with how many values of a row a lane holds: as many as BERT base's take (768 of 32
// lanes), or BERT large's (1,024). Rows that are longer, or not whole vectors, are not held.
template <class T, class Body>
void with_held(int64_t cols, const Body& body) {
  const bool whole = cols % Vector<T>::kSize == 0;
  if (whole && cols <= 24 * kWarp) return body(std::integral_constant<int, 24>());
  if (whole && cols <= 32 * kWarp) return body(std::integral_constant<int, 32>());
  return body(std::integral_constant<int, 0>());
}

dim3 blocks_of(int64_t rows) {
  return dim3(static_cast<unsigned>((rows + kRowsOfBlock - 1) / kRowsOfBlock));
}

}  // namespace

// All kernels are compiled for sm_90a, and but for it for what does not wait: one tells of all, by
// running.
bool kernels_wait() {
  const DeviceMemory answer(sizeof(int32_t));
  const OwnedStream stream;
  launch(compiled_to_wait_kernel, dim3(1), kWarp, 0, stream, static_cast<int32_t*>(answer.data()));
  int32_t found = 0;
  check(cudaMemcpyAsync(&found, answer.data(), sizeof(found), cudaMemcpyDeviceToHost, stream),
        "a kernel's answer");
  stream.wait();
  return found != 0;
}

void layer_norm(const LayerNorm& norm, ConstDeviceRows x, ConstDeviceRows residual, RowCount rows,
                DeviceRows out, Stream stream) {
  if (rows.most == 0) return;
  with_type(x.element, [&](auto type) {
    using T = decltype(type);
    const auto start = [&](auto kernel, int64_t blocks) {
      const int64_t needed = (rows.most + kRowsOfBlock - 1) / kRowsOfBlock;
      launch(kernel, dim3(static_cast<unsigned>(std::min(needed, blocks))), kThreads, 0, stream,
             norm, static_cast<const T*>(x.data), x.stride, static_cast<const T*>(residual.data),
             residual.stride, rows, static_cast<T*>(out.data), out.stride);
    };
    const auto start_held = [&](auto held, auto rows_of_sum) {
      constexpr int kHeld = decltype(held)::value, kRows = decltype(rows_of_sum)::value;
      start(layer_norm_held_kernel<kHeld, kRows, T>,
            int64_t{multiprocessors()} * kHeldBlocks<kHeld, kRows, T>);
    };
    using std::integral_constant;
    with_held<T>(norm.hidden, [&](auto held) {
      constexpr int kHeld = decltype(held)::value;
      if constexpr (kHeld == 0) {
        start(layer_norm_kernel<T>, INT_MAX);
      } else if (residual.data) {
        // A sum's bits do not depend on how much is held: one kernel does for all.
        start_held(integral_constant<int, 32>(), integral_constant<int, 2>());
      } else if (norm.hidden <= 16 * kWarp) {
        start_held(integral_constant<int, 16>(), integral_constant<int, 1>());
      } else {
        start_held(held, integral_constant<int, 1>());
      }
    });
  });
}

void quantise_rows(EightBits bits, ConstDeviceRows x, RowCount rows, int64_t cols,
                   QuantisedRows out, Stream stream) {
  if (rows.most == 0) return;
  const auto start = [&](auto kernel) {
    launch(kernel, blocks_of(rows.most), kThreads, 0, stream, static_cast<const Fp16*>(x.data),
           x.stride, rows, static_cast<int>(cols), out);
  };
  const bool whole = cols % Vector<Fp16>::kSize == 0;
  if (bits == EightBits::kInt8) {
    start(whole ? quantise_kernel<true, EightBits::kInt8>
                : quantise_kernel<false, EightBits::kInt8>);
  } else {
    start(whole ? quantise_kernel<true, EightBits::kFp8> : quantise_kernel<false, EightBits::kFp8>);
  }
}

void embed_layer_norm(const EmbeddingTables& tables, const LayerNorm& norm, const int32_t* ids,
                      const int32_t* types, const int32_t* positions, RowCount tokens,
                      DeviceRows out, Stream stream) {
  if (tokens.most == 0) return;
  with_type(out.element, [&](auto type) {
    using T = decltype(type);
    with_held<T>(norm.hidden, [&](auto held) {
      launch(embed_layer_norm_kernel<held, T>, blocks_of(tokens.most), kThreads, 0, stream, norm,
             tables, ids, types, positions, tokens, static_cast<T*>(out.data), out.stride);
    });
  });
}

void gather_rows(ConstDeviceRows x, const int32_t* index, RowCount rows, int64_t cols,
                 DeviceRows out, Stream stream) {
  if (rows.most == 0) return;
  with_type(x.element, [&](auto type) {
    using T = decltype(type);
    const auto start = [&](auto* to) {
      using To = std::remove_pointer_t<decltype(to)>;
      launch(gather_rows_kernel<To, T>, dim3(static_cast<unsigned>(rows.most)), kThreads, 0, stream,
             static_cast<const T*>(x.data), x.stride, index, rows, cols, to, out.stride);
    };
    if (out.element == x.element) {
      start(static_cast<T*>(out.data));
    } else {
      start(static_cast<float*>(out.data));
    }
  });
}

}  // namespace bertrt::cuda
