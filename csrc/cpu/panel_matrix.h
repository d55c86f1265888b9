// Matrices in the layout that the products' kernels read, and rows in theirs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/ops.h"
#include "cpu/kernel_table.h"

namespace bertrt::cpu {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t round_up(int64_t n, int64_t to) { return ceil_div(n, to) * to; }

// How the panels of a matrix lie in memory.
struct PanelShape {
  PanelShape(const GemmKernel& kernel, int64_t inputs, int64_t outputs, Precision precision)
      : panels(ceil_div(outputs, kernel.panel)),
        groups(round_up(ceil_div(inputs, kernel.group), kernel.group_block)),
        panel_bytes(groups * kernel.group * kernel.panel * value_bytes(precision)) {}

  size_t bytes() const { return static_cast<size_t>(panels * panel_bytes); }

  int64_t panels;
  int64_t groups;
  int64_t panel_bytes;

 private:
  static int64_t value_bytes(Precision precision) {
    return precision == Precision::kFp32 ? 4 : precision == Precision::kBf16 ? 2 : 1;
  }
};

// A matrix in the panels that a GemmKernel reads. The last panel is filled up with zeros.
class PanelMatrix final : public Matrix {
 public:
  // In PanelShape::bytes() at `memory`.
  PanelMatrix(const GemmKernel& gemm, int64_t matrix_inputs, int64_t matrix_outputs,
              Precision matrix_precision, void* memory);

  char* panel(int64_t p) const { return data + p * shape.panel_bytes; }

  Fetch fetch(int64_t p) const {
    return p < shape.panels ? Fetch{panel(p), shape.panel_bytes} : Fetch{};
  }

  static constexpr int64_t kMostColumns = 16;

  // Puts the weights of the outputs [first, last) of a block, kMostColumns at most, into their
  // columns.
  void set_columns(const WeightBlock& block, int64_t first, int64_t last);

  const GemmKernel& kernel;
  const PanelShape shape;
  char* const data;
  std::vector<float> column_scale;
  std::vector<int32_t> column_sum;

 private:
  template <class T, class Value, class Convert>
  void set(const WeightBlock& block, int64_t first, int64_t last, const Convert& convert);
};

// The memory of an Operand: rows as the matrix's kernel converts them, each with how it was
// quantised at its end.
struct OperandRows {
  OperandRows(const PanelMatrix& matrix, void* memory)
      : reader(matrix), stride(row_stride(matrix)), data(static_cast<char*>(memory)) {}

  // A multiple of a cache line, and not of 1,024 (see padded_stride in runtime/part_layout.h).
  static int64_t row_stride(const PanelMatrix& matrix) {
    int64_t bytes = round_up(matrix.inputs, 16) * matrix.kernel.row_bytes;
    if (!matrix.kernel.by_value) bytes += sizeof(RowSteps);
    bytes = round_up(bytes, 64);
    return bytes % 1024 ? bytes : bytes + 64;
  }

  RowSteps* steps(int64_t row) const {
    return reinterpret_cast<RowSteps*>(data + (row + 1) * stride) - 1;
  }

  void set(int64_t row, const float* x) const {
    reader.kernel.convert(x, reader.inputs, data + row * stride,
                          reader.kernel.by_value ? nullptr : steps(row));
  }

  // Columns from `column` on, if the kernel converts by value.
  void set_part(int64_t row, int64_t column, const float* x, int64_t count) const {
    reader.kernel.convert(x, count, data + row * stride + column * reader.kernel.row_bytes,
                          nullptr);
  }

  const PanelMatrix& reader;
  const int64_t stride;
  char* const data;
};

}  // namespace bertrt::cpu
