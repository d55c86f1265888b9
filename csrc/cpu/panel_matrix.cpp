#include "cpu/panel_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace bertrt::cpu {
namespace {

// The nearest bfloat16, ties to even.
uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (std::isnan(x)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
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

void PanelMatrix::set_column(int64_t column, const WeightBlock& block, int64_t row) {
  char* p = panel(column / kernel.panel);
  const int64_t in_panel = column % kernel.panel;
  const int64_t first = block.transposed ? row : row * inputs;
  const int64_t step = block.transposed ? block.outputs : 1;
  const auto place = [&](int64_t k) {
    return (k / kernel.group * kernel.panel + in_panel) * kernel.group + k % kernel.group;
  };
  const auto weight = [&](int64_t k) {
    return static_cast<const float*>(block.data)[first + k * step];
  };
  switch (precision) {
    case Precision::kFp32:
      for (int64_t k = 0; k < inputs; ++k) reinterpret_cast<float*>(p)[place(k)] = weight(k);
      return;
    case Precision::kBf16:
      for (int64_t k = 0; k < inputs; ++k) {
        reinterpret_cast<uint16_t*>(p)[place(k)] =
            block.storage == Storage::kBfloat16
                ? static_cast<const uint16_t*>(block.data)[first + k * step]
                : to_bf16(weight(k));
      }
      return;
    case Precision::kInt8: {
      auto* steps = reinterpret_cast<int8_t*>(p);
      float scale = 0.0f;
      if (block.storage == Storage::kInt8) {
        for (int64_t k = 0; k < inputs; ++k) {
          steps[place(k)] = static_cast<const int8_t*>(block.data)[first + k * step];
        }
        scale = block.scales[row];
      } else {
        // bertrt/plan/quantized.py does the same for weights that are stored in int8.
        float limit = 0.0f;
        bool finite = true;
        for (int64_t k = 0; k < inputs; ++k) {
          limit = std::max(limit, std::fabs(weight(k)));
          finite = finite && std::isfinite(weight(k));
        }
        // As for a row, see quantise(): nothing plausible may come of a weight that is not
        // finite.
        if (!finite) {
          column_scale[static_cast<size_t>(column)] = std::numeric_limits<float>::quiet_NaN();
          return;
        }
        // An output so small that its inverse is infinite is zero.
        float inverse = limit > 0.0f ? 127.0f / limit : 0.0f;
        if (!std::isfinite(inverse)) inverse = 0.0f;
        for (int64_t k = 0; k < inputs; ++k) {
          steps[place(k)] = static_cast<int8_t>(std::nearbyint(weight(k) * inverse));
        }
        scale = limit / 127.0f;
      }
      int32_t sum = 0;
      for (int64_t k = 0; k < inputs; ++k) sum += steps[place(k)];
      column_scale[static_cast<size_t>(column)] = scale;
      column_sum[static_cast<size_t>(column)] = sum;
      return;
    }
  }
}

}  // namespace bertrt::cpu
