// Drivers: they cut each operation into independent pieces for the threads and leave the arithmetic
// to the kernels. No result depends on how the pieces are cut.
#include "cpu/cpu_ops.h"

#include <algorithm>
#include <cstring>

#include "core/aligned_buffer.h"

namespace bertrt::cpu {
namespace {

// Row steps (LayerNorm, embedding) are a few microseconds each: hand them out in groups.
constexpr int64_t kRowGroup = 16;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Panels of `width` columns, each depth-major: panel p holds columns [p * width, ...), and row k of
// it the `width` weights that input k is multiplied with. The last panel is filled up with zeros.
class PanelMatrix final : public Matrix {
 public:
  PanelMatrix(int64_t matrix_inputs, int64_t matrix_outputs, int64_t panel_width)
      : width(panel_width),
        panels(ceil_div(matrix_outputs, panel_width)),
        buffer(static_cast<size_t>(panels * width * matrix_inputs) * sizeof(float)) {
    inputs = matrix_inputs;
    outputs = matrix_outputs;
  }

  float* panel(int64_t p) const { return buffer.floats() + p * width * inputs; }

  const int64_t width;
  const int64_t panels;
  const AlignedBuffer buffer;
};

class CpuOps final : public Ops {
 public:
  CpuOps(const KernelTable& table, ThreadPool& pool) : table_(table), pool_(pool) {}

  std::string name() const override { return table_.isa; }

  std::string linear_kernel() const override {
    return std::string("gemm_f32.") + table_.isa + "." + std::to_string(table_.gemm_rows) + "x" +
           std::to_string(table_.gemm_panel);
  }

  std::string attention_kernel() const override {
    return std::string("attention_f32.") + table_.isa;
  }

  std::unique_ptr<Matrix> pack(const WeightBlock* blocks, int count, int64_t inputs,
                               int64_t outputs) const override {
    auto matrix = std::make_unique<PanelMatrix>(inputs, outputs, table_.gemm_panel);
    const int64_t width = matrix->width;
    if (outputs % width) {
      float* last = matrix->panel(matrix->panels - 1);
      std::memset(last, 0, static_cast<size_t>(width * inputs) * sizeof(float));
    }
    for (int b = 0; b < count; ++b) {
      const WeightBlock& block = blocks[b];
      pool_.parallel_for(ceil_div(block.outputs, kRowGroup), [&](int64_t group, int) {
        const int64_t end = std::min(block.outputs, (group + 1) * kRowGroup);
        for (int64_t r = group * kRowGroup; r < end; ++r) {
          const int64_t column = block.columns ? block.columns[r] : block.first_column + r;
          float* out = matrix->panel(column / width) + column % width;
          const float* in = block.transposed ? block.data + r : block.data + r * inputs;
          const int64_t step = block.transposed ? block.outputs : 1;
          for (int64_t k = 0; k < inputs; ++k) out[k * width] = in[k * step];
        }
      });
    }
    return matrix;
  }

  void linear(const Matrix& weight, const Epilogue& epilogue, ConstRows x, int64_t rows,
              Rows out) override {
    const auto& matrix = static_cast<const PanelMatrix&>(weight);
    // A panel stays in the second-level cache while the rows of a block pass over it, so blocks are
    // as tall as the number of threads allows: about four pieces a thread even out their ends.
    const int64_t tiles = ceil_div(rows, table_.gemm_rows);
    const int64_t wanted = ceil_div(4 * pool_.threads(), matrix.panels);
    const int64_t blocks = std::min(tiles, wanted);
    pool_.parallel_for(blocks * matrix.panels, [&](int64_t piece, int) {
      const int64_t block = piece / matrix.panels;
      const int64_t panel = piece % matrix.panels;
      const int64_t column = panel * matrix.width;
      GemmTile tile;
      tile.a_stride = x.stride;
      tile.panel = matrix.panel(panel);
      tile.depth = matrix.inputs;
      tile.bias = epilogue.bias ? epilogue.bias + column : nullptr;
      tile.residual_stride = epilogue.residual.stride;
      tile.activation = epilogue.activation;
      tile.out_stride = out.stride;
      tile.cols = static_cast<int>(std::min(matrix.width, matrix.outputs - column));
      const int64_t end = tiles * (block + 1) / blocks;
      for (int64_t i = tiles * block / blocks; i < end; ++i) {
        // Tiles of nearly equal height: sixteen rows go as eight and eight, not fourteen and two.
        const int64_t first = rows * i / tiles;
        tile.rows = static_cast<int>(rows * (i + 1) / tiles - first);
        tile.a = x.data + first * x.stride;
        tile.residual = epilogue.residual.data
                            ? epilogue.residual.data + first * epilogue.residual.stride + column
                            : nullptr;
        tile.out = out.data + first * out.stride + column;
        table_.gemm_f32(tile);
      }
    });
  }

  int64_t attention_scratch(const Attention& attention, int64_t longest) const override {
    return pool_.threads() * table_.attention_scratch(longest, attention.head_dim) *
           static_cast<int64_t>(sizeof(float));
  }

  void attention(const Attention& attention, const PackedBatch& batch, ConstRows qkv, Rows out,
                 void* scratch) override {
    const int64_t hidden = attention.heads * attention.head_dim;
    int64_t longest = 0;
    for (int64_t s = 0; s < batch.seqs; ++s) {
      longest = std::max<int64_t>(longest, batch.cu_seqlens[s + 1] - batch.cu_seqlens[s]);
    }
    const int64_t scratch_size = table_.attention_scratch(longest, attention.head_dim);
    // One piece is a head of a sequence; with fewer of them than threads want, its query rows are
    // cut too, at the price of packing keys and values once more for each cut.
    const int64_t cuts = std::clamp<int64_t>(
        ceil_div(2 * pool_.threads(), std::max<int64_t>(1, batch.seqs * attention.heads)), 1,
        std::max<int64_t>(1, ceil_div(longest, 4 * table_.gemm_rows)));
    pool_.parallel_for(batch.seqs * attention.heads * cuts, [&](int64_t piece, int worker) {
      const int64_t seq = piece / (attention.heads * cuts);
      const int64_t head = piece / cuts % attention.heads;
      const int64_t cut = piece % cuts;
      const int64_t first = batch.cu_seqlens[seq] - batch.cu_seqlens[0];
      AttentionTask task;
      task.tokens = batch.cu_seqlens[seq + 1] - batch.cu_seqlens[seq];
      task.row_begin = task.tokens * cut / cuts;
      task.row_end = task.tokens * (cut + 1) / cuts;
      if (task.row_begin == task.row_end) return;
      task.query = qkv.data + first * qkv.stride + head * attention.head_dim;
      task.key = task.query + hidden;
      task.value = task.key + hidden;
      task.stride = qkv.stride;
      task.out = out.data + first * out.stride + head * attention.head_dim;
      task.out_stride = out.stride;
      task.head_dim = attention.head_dim;
      task.scale = attention.scale;
      task.scratch = static_cast<float*>(scratch) + worker * scratch_size;
      table_.attention_f32(task);
    });
  }

  void embed(const Embedding& embedding, const PackedBatch& batch, Rows out) override {
    pool_.parallel_for(batch.seqs, [&](int64_t seq, int) {
      const int32_t begin = batch.cu_seqlens[seq];
      for (int32_t token = begin; token < batch.cu_seqlens[seq + 1]; ++token) {
        const int32_t i = token - batch.cu_seqlens[0];
        table_.embed_f32(embedding, batch.token_ids[i], batch.token_types[i], token - begin,
                         out.data + i * out.stride);
      }
    });
  }

  void layer_norm(const LayerNorm& norm, ConstRows x, int64_t rows, Rows out) override {
    pool_.parallel_for(ceil_div(rows, kRowGroup), [&](int64_t group, int) {
      const int64_t end = std::min(rows, (group + 1) * kRowGroup);
      for (int64_t i = group * kRowGroup; i < end; ++i) {
        table_.layer_norm_f32(norm, x.data + i * x.stride, out.data + i * out.stride);
      }
    });
  }

  void gather_rows(ConstRows x, const int32_t* index, int64_t rows, int64_t cols,
                   Rows out) override {
    const size_t bytes = static_cast<size_t>(cols) * sizeof(float);
    for (int64_t i = 0; i < rows; ++i) {
      float* row = out.data + i * out.stride;
      if (index[i] < 0) {
        std::memset(row, 0, bytes);
      } else {
        std::memcpy(row, x.data + index[i] * x.stride, bytes);
      }
    }
  }

 private:
  const KernelTable& table_;
  ThreadPool& pool_;
};

}  // namespace

std::unique_ptr<Ops> make_ops(const KernelTable& table, ThreadPool& pool) {
  return std::make_unique<CpuOps>(table, pool);
}

}  // namespace bertrt::cpu
