#include "cpu/panel_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/int8.h"

namespace bertrt::cpu {
namespace {

// Inputs that are converted at a time: those of a group of columns stay in the first-level cache,
// with the places in the panel where they go. A multiple of every kernel's group.
constexpr int64_t kDepth = 64;

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

// The nearest bfloat16, ties to even.
uint16_t to_bf16(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>(std::isnan(x) ? bits >> 16 | 0x40 : nearest);
}

// Weights of output `row` from input `k` on, `count` of them: where they lie, or in `room`.
template <class T>
const T* weights_of(const WeightBlock& block, int64_t row, int64_t k, int64_t count, T* room) {
  const T* data = static_cast<const T*>(block.data);
  if (!block.transposed) return data + row * block.inputs + k;
  for (int64_t i = 0; i < count; ++i) room[i] = data[(k + i) * block.outputs + row];
  return room;
}

// How a column of float32 becomes int8.
WeightSteps steps_of(const WeightBlock& block, int64_t row) {
  uint32_t largest = 0;
  float room[kDepth];
  for (int64_t k = 0; k < block.inputs; k += kDepth) {
    const int64_t count = std::min(kDepth, block.inputs - k);
    const float* weights = weights_of(block, row, k, count, room);
    for (int64_t i = 0; i < count; ++i) largest = std::max(largest, magnitude_bits(weights[i]));
  }
  return WeightSteps(largest);
}

// Writes columns of `count` units each to where they begin in their panel, a line of which is
// `panel` units long.
template <class Unit>
void place_units(const char* const* from, char* const* to, int64_t columns, int64_t count,
                 int64_t panel) {
  const auto put = [&](int64_t j, int64_t k, char* at) {
    std::memcpy(at, from[j] + k * sizeof(Unit), sizeof(Unit));
  };
  bool side_by_side = columns == PanelMatrix::kMostColumns;
  for (int64_t j = 1; j < columns; ++j) {
    side_by_side = side_by_side && to[j] == to[0] + j * sizeof(Unit);
  }
  if (side_by_side) {
    for (int64_t k = 0; k < count; ++k) {
      char* line = to[0] + k * panel * sizeof(Unit);
      for (int64_t j = 0; j < PanelMatrix::kMostColumns; ++j) put(j, k, line + j * sizeof(Unit));
    }
    return;
  }
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t k = 0; k < count; ++k) put(j, k, to[j] + k * panel * sizeof(Unit));
  }
}

}  // namespace

PanelMatrix::PanelMatrix(const GemmKernel& gemm, int64_t matrix_inputs, int64_t matrix_outputs,
                         Precision matrix_precision, void* memory)
    : kernel(gemm),
      shape(gemm, matrix_inputs, matrix_outputs, matrix_precision),
      data(static_cast<char*>(memory)) {
  inputs = matrix_inputs;
  outputs = matrix_outputs;
  precision = matrix_precision;
  // Where there is nothing to fill up, columns write everything.
  if (shape.panels * kernel.panel != outputs || shape.groups * kernel.group != inputs) {
    std::memset(memory, 0, shape.bytes());
  }
  if (precision == Precision::kInt8) {
    column_scale.resize(static_cast<size_t>(shape.panels * kernel.panel));
    column_sum.resize(static_cast<size_t>(shape.panels * kernel.panel));
  }
}

// `convert` makes values of the panel's of weights of type T, (j, weights, count, room), and says
// where they are.
template <class T, class Value, class Convert>
void PanelMatrix::set(const WeightBlock& block, int64_t first, int64_t last,
                      const Convert& convert) {
  const int64_t unit = sizeof(Value) * kernel.group;
  T weights[kMostColumns][kDepth];
  Value values[kMostColumns][kDepth];
  const char* from[kMostColumns];
  char* to[kMostColumns];
  for (int64_t k = 0; k < inputs; k += kDepth) {
    const int64_t count = std::min(kDepth, inputs - k);
    if (count < kDepth) std::memset(values, 0, sizeof(values));  // a group may end beyond
    for (int64_t row = first; row < last; ++row) {
      const int64_t j = row - first;
      const int64_t column = block.columns ? block.columns[row] : block.first_column + row;
      const T* found = weights_of(block, row, k, count, weights[j]);
      from[j] = reinterpret_cast<const char*>(convert(j, found, count, values[j]));
      to[j] = panel(column / kernel.panel) +
              (k / kernel.group * kernel.panel + column % kernel.panel) * unit;
    }
    const auto place = unit == 8   ? place_units<uint64_t>
                       : unit == 4 ? place_units<uint32_t>
                       : unit == 2 ? place_units<uint16_t>
                                   : place_units<uint8_t>;
    place(from, to, last - first, ceil_div(count, kernel.group), kernel.panel);
  }
}

void PanelMatrix::set_columns(const WeightBlock& block, int64_t first, int64_t last) {
  switch (precision) {
    case Precision::kFp32:  // whose groups have one input
      return set<float, float>(
          block, first, last,
          [](int64_t, const float* from, int64_t, const float*) { return from; });
    case Precision::kBf16:
      if (block.storage == Storage::kBfloat16) {
        return set<uint16_t, uint16_t>(
            block, first, last, [](int64_t, const uint16_t* from, int64_t count, uint16_t* values) {
              return std::copy_n(from, count, values) - count;
            });
      }
      return set<float, uint16_t>(
          block, first, last, [](int64_t, const float* from, int64_t count, uint16_t* values) {
            return std::transform(from, from + count, values, to_bf16) - count;
          });
    case Precision::kInt8:
    case Precision::kFp8:  // no CPU's
      break;
  }
  WeightSteps scales[kMostColumns];
  int32_t sums[kMostColumns] = {};
  const auto add = [&](int64_t j, const int8_t* values, int64_t count) {
    for (int64_t i = 0; i < count; ++i) sums[j] += values[i];
    return values;
  };
  if (block.storage == Storage::kInt8) {
    for (int64_t row = first; row < last; ++row) scales[row - first].scale = block.scales[row];
    set<int8_t, int8_t>(block, first, last,
                        [&](int64_t j, const int8_t* from, int64_t count, int8_t* values) {
                          std::copy_n(from, count, values);
                          return add(j, values, count);
                        });
  } else {
    for (int64_t row = first; row < last; ++row) scales[row - first] = steps_of(block, row);
    set<float, int8_t>(block, first, last,
                       [&](int64_t j, const float* from, int64_t count, int8_t* values) {
                         const bool finite = scales[j].finite();
                         const float inverse = scales[j].inverse;
                         for (int64_t i = 0; i < count; ++i) {
                           values[i] = to_step(finite ? from[i] * inverse : 0.0f);
                         }
                         return add(j, values, count);
                       });
  }
  for (int64_t row = first; row < last; ++row) {
    const auto column =
        static_cast<size_t>(block.columns ? block.columns[row] : block.first_column + row);
    column_scale[column] = scales[row - first].scale;
    column_sum[column] = sums[row - first];
  }
}

}  // namespace bertrt::cpu
