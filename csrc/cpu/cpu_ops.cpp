// Drivers: they cut each operation into independent pieces for the threads and leave the arithmetic
// to the kernels. No result depends on how the pieces are cut.
#include "cpu/cpu_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/panel_matrix.h"

namespace bertrt::cpu {
namespace {

// Row steps (LayerNorm, embedding) are a few microseconds each: hand them out in groups.
constexpr int64_t kRowGroup = 16;

// From so many tokens on attention fetches ahead.
constexpr int64_t kFetchedTokens = 64;

// Of any kernel.
constexpr int kMostTileRows = 32;
constexpr int kMostPanel = 32;

class CpuOps final : public Ops {
 public:
  CpuOps(const KernelTable& table, ThreadPool& pool) : table_(table), pool_(pool) {}

  std::string name() const override { return table_.isa; }

  std::string linear_kernel(Precision precision) const override {
    const GemmKernel& kernel = gemm(precision);
    return std::string(kernel.name) + "." + std::to_string(kernel.rows) + "x" +
           std::to_string(kernel.panel);
  }

  std::string attention_kernel(Precision precision) const override {
    return attention(precision).name;
  }

  size_t packed_bytes(int64_t inputs, int64_t outputs, Precision precision) const override {
    return PanelShape(gemm(precision), inputs, outputs, precision).bytes();
  }

  std::unique_ptr<Matrix> pack(const WeightBlock* blocks, int count, int64_t inputs,
                               int64_t outputs, Precision precision, void* memory) const override {
    auto matrix =
        std::make_unique<PanelMatrix>(gemm(precision), inputs, outputs, precision, memory);
    for (int b = 0; b < count; ++b) {
      const WeightBlock& block = blocks[b];
      constexpr int64_t kColumns = PanelMatrix::kMostColumns;
      pool_.parallel_for(ceil_div(block.outputs, kColumns), [&](int64_t group, int) {
        matrix->set_columns(block, group * kColumns,
                            std::min(block.outputs, (group + 1) * kColumns));
      });
    }
    return matrix;
  }

  int64_t operand_stride(const Matrix& reader) const override {
    const auto& matrix = static_cast<const PanelMatrix&>(reader);
    return matrix.kernel.convert ? OperandRows::row_stride(matrix) : 0;
  }

  bool makes_operand(const Matrix& reader) const override {
    const GemmKernel& kernel = static_cast<const PanelMatrix&>(reader).kernel;
    return kernel.convert && kernel.by_value;
  }

  void to_operand(ConstRows x, int64_t rows, Operand out) override {
    const OperandRows operand(static_cast<const PanelMatrix&>(*out.reader), out.data);
    for_each_row(rows, [&](int64_t i) { operand.set(i, x.data + i * x.stride); });
  }

  void linear(const Matrix& weight, const Epilogue& epilogue, ConstRows x, const void* operand,
              int64_t rows, Rows out, Operand instead, const Matrix* next) override {
    const auto& matrix = static_cast<const PanelMatrix&>(weight);
    const GemmKernel& kernel = matrix.kernel;
    const char* a = reinterpret_cast<const char*>(x.data);
    int64_t a_stride = x.stride * static_cast<int64_t>(sizeof(float));
    const char* row_steps = nullptr;
    if (kernel.convert) {
      const OperandRows converted(matrix, const_cast<void*>(operand));
      a = converted.data;
      a_stride = converted.stride;
      row_steps = reinterpret_cast<const char*>(converted.steps(0));
    }
    // A panel stays in the second-level cache while the rows of a block pass over it, so blocks are
    // as tall as the number of threads allows: about four pieces a thread even out their ends.
    const int64_t row_blocks = ceil_div(rows, kernel.row_block);
    const int64_t tiles = ceil_div(row_blocks, kernel.rows / kernel.row_block);
    const int64_t last = epilogue.last_column < 0 ? matrix.outputs : epilogue.last_column;
    const int64_t first_panel = epilogue.first_column / kernel.panel;
    const int64_t panels = ceil_div(last, kernel.panel) - first_panel;
    const int64_t wanted = ceil_div(4 * pool_.threads(), panels);
    const int64_t blocks = std::min(tiles, wanted);
    const int64_t pieces = blocks * panels;
    pool_.parallel_for(pieces, [&](int64_t piece, int worker) {
      const int64_t block = piece / panels;
      const int64_t panel = first_panel + piece % panels;
      const int64_t column = panel * kernel.panel;
      GemmTile tile;
      tile.a_stride = a_stride;
      tile.panel = matrix.panel(panel);
      tile.depth = matrix.shape.groups;
      tile.column_scale = matrix.column_scale.data() + column;
      tile.column_sum = matrix.column_sum.data() + column;
      tile.bias = epilogue.bias ? epilogue.bias + column : nullptr;
      tile.activation = epilogue.activation;
      tile.out_stride = out.stride;
      tile.cols = static_cast<int>(std::min<int64_t>(kernel.panel, last - column));
      const Fetch fetched = piece + 1 < pool_.share(pieces, worker).end
                                ? matrix.fetch(first_panel + (piece + 1) % panels)
                                : first_fetch(next, worker);
      const int64_t begin = tiles * block / blocks;
      const int64_t end = tiles * (block + 1) / blocks;
      int configured = 0;
      for (int64_t i = begin; i < end; ++i) {
        // Tiles of nearly equal height: sixteen rows go as eight and eight, not fourteen and two.
        const int64_t first = row_blocks * i / tiles * kernel.row_block;
        const int64_t after = row_blocks * (i + 1) / tiles * kernel.row_block;
        tile.rows = static_cast<int>(std::min(rows, after) - first);
        if (kernel.configure && tile.rows != configured) kernel.configure(tile.rows);
        configured = tile.rows;
        tile.a = a + first * a_stride;
        tile.next = part_of(fetched, i - begin, end - begin);
        tile.row_steps = row_steps + first * a_stride;
        if (!instead.reader) {
          tile.out = out.data + first * out.stride + column;
          kernel.run(tile);
          continue;
        }
        alignas(64) float result[kMostTileRows * kMostPanel];
        tile.out = result;
        tile.out_stride = kernel.panel;
        kernel.run(tile);
        const OperandRows next(static_cast<const PanelMatrix&>(*instead.reader), instead.data);
        for (int r = 0; r < tile.rows; ++r) {
          next.set_part(first + r, column, result + r * kernel.panel, tile.cols);
        }
      }
      if (kernel.release) kernel.release();
    });
  }

  int64_t attention_scratch(const Attention& attention, int64_t longest) const override {
    return pool_.threads() *
           this->attention(attention.precision).scratch(longest, attention.head_dim) *
           static_cast<int64_t>(sizeof(float));
  }

  void attention(const Attention& attention, const PackedBatch& batch, ConstRows qkv,
                 ConstRows first_queries, Rows out, void* scratch) override {
    const bool first_only = first_queries.data != nullptr;
    const AttentionKernel& kernel = this->attention(attention.precision);
    const int64_t hidden = attention.heads * attention.head_dim;
    int64_t longest = 0;
    for (int64_t s = 0; s < batch.seqs; ++s) {
      longest = std::max<int64_t>(longest, batch.cu_seqlens[s + 1] - batch.cu_seqlens[s]);
    }
    const int64_t scratch_size = kernel.scratch(longest, attention.head_dim);
    // One piece is a head of a sequence; with fewer of them than threads want, its query rows are
    // cut too, at the price of packing keys and values once more for each cut.
    const int64_t rows = first_only ? 1 : longest;
    const int64_t cuts = std::clamp<int64_t>(
        ceil_div(2 * pool_.threads(), std::max<int64_t>(1, batch.seqs * attention.heads)), 1,
        std::max<int64_t>(1, ceil_div(rows, 4 * kernel.rows)));
    const int64_t pieces = batch.seqs * attention.heads * cuts;
    // The token and the head that a piece begins with.
    const auto token_of = [&](int64_t piece) {
      const int64_t seq = piece / (attention.heads * cuts);
      const int64_t head = piece / cuts % attention.heads;
      return qkv.data + (batch.cu_seqlens[seq] - batch.cu_seqlens[0]) * qkv.stride +
             head * attention.head_dim;
    };
    pool_.parallel_for(pieces, [&](int64_t piece, int worker) {
      const int64_t seq = piece / (attention.heads * cuts);
      const int64_t head = piece / cuts % attention.heads;
      const int64_t cut = piece % cuts;
      const int64_t first = batch.cu_seqlens[seq] - batch.cu_seqlens[0];
      AttentionTask task;
      task.tokens = batch.keys(seq);
      const int64_t length = batch.length(seq);
      const int64_t queries = first_only ? std::min<int64_t>(1, length) : length;
      task.row_begin = queries * cut / cuts;
      task.row_end = queries * (cut + 1) / cuts;
      if (task.row_begin == task.row_end) return;
      const float* token = token_of(piece);
      task.query = first_only
                       ? first_queries.data + seq * first_queries.stride + head * attention.head_dim
                       : token;
      task.query_stride = first_only ? first_queries.stride : qkv.stride;
      task.key = token + hidden;
      task.value = task.key + hidden;
      task.stride = qkv.stride;
      task.out = out.data + (first_only ? seq : first) * out.stride + head * attention.head_dim;
      task.out_stride = out.stride;
      // Most likely this thread's next piece. What a few tokens need arrives soon enough.
      const int64_t next = piece + 1;
      task.ahead = length >= kFetchedTokens && next < pieces ? token_of(next) - token : 0;
      task.head_dim = attention.head_dim;
      task.scale = attention.scale;
      task.bias = attention.distance_bias_of(head);
      task.scratch = static_cast<float*>(scratch) + worker * scratch_size;
      if (task.tokens == 0) {
        for (int64_t i = task.row_begin; i < task.row_end; ++i) {
          std::fill_n(task.out + i * task.out_stride, task.head_dim, 0.0f);
        }
        return;
      }
      kernel.run(task);
    });
  }

  // Written to be exact rather than fast: in double precision, and the same on every path.
  void attention_weights(const Attention& attention, const PackedBatch& batch, ConstRows qkv,
                         Rows out) override {
    const int64_t hidden = attention.heads * attention.head_dim;
    std::vector<int64_t> begins{0};  // first pair of each sequence
    std::vector<int64_t> seqs;       // of each token
    for (int64_t s = 0; s < batch.seqs; ++s) {
      begins.push_back(begins.back() + batch.length(s) * batch.length(s));
      seqs.insert(seqs.end(), static_cast<size_t>(batch.length(s)), s);
    }
    pool_.parallel_for(batch.tokens(), [&](int64_t token, int) {
      const int64_t seq = seqs[static_cast<size_t>(token)];
      const int64_t first = batch.cu_seqlens[seq] - batch.cu_seqlens[0];
      const int64_t length = batch.length(seq);
      const int64_t keys = batch.keys(seq);
      float* rows =
          out.data + (begins[static_cast<size_t>(seq)] + (token - first) * length) * out.stride;
      std::vector<double> scores(static_cast<size_t>(keys));
      for (int64_t head = 0; head < attention.heads; ++head) {
        const float* query = qkv.data + token * qkv.stride + head * attention.head_dim;
        const float* bias = attention.distance_bias_of(head);
        double largest = -HUGE_VAL;
        for (int64_t j = 0; j < keys; ++j) {
          const float* key =
              qkv.data + (first + j) * qkv.stride + hidden + head * attention.head_dim;
          double score = 0.0;
          for (int64_t d = 0; d < attention.head_dim; ++d) {
            score += static_cast<double>(query[d]) * key[d];
          }
          score *= attention.scale;
          if (bias) score += bias[first + j - token];
          scores[static_cast<size_t>(j)] = score;
          largest = std::max(largest, score);
        }
        double sum = 0.0;
        for (double& score : scores) sum += score = std::exp(score - largest);
        for (int64_t j = 0; j < length; ++j) {
          rows[j * out.stride + head] =
              j < keys ? static_cast<float>(scores[static_cast<size_t>(j)] / sum) : 0.0f;
        }
      }
    });
  }

  void embed(const Embedding& embedding, const PackedBatch& batch, Rows out,
             Operand also) override {
    with_operand(also, [&](const auto& finish) {
      pool_.parallel_for(batch.seqs, [&](int64_t seq, int) {
        const int32_t begin = batch.cu_seqlens[seq];
        for (int32_t token = begin; token < batch.cu_seqlens[seq + 1]; ++token) {
          const int32_t i = token - batch.cu_seqlens[0];
          float* row = out.data + i * out.stride;
          table_.embed_f32(embedding, batch.token_ids[i], batch.token_types[i], token - begin, row);
          finish(i, row);
        }
      });
    });
  }

  void layer_norm(const LayerNorm& norm, ConstRows x, ConstRows residual, int64_t rows, Rows out,
                  Operand also) override {
    with_operand(also, [&](const auto& finish) {
      for_each_row(rows, [&](int64_t i) {
        float* row = out.data + i * out.stride;
        table_.layer_norm_f32(norm, x.data + i * x.stride,
                              residual.data ? residual.data + i * residual.stride : nullptr, row);
        finish(i, row);
      });
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
  template <class Body>
  void for_each_row(int64_t rows, const Body& body) {
    const int64_t height = std::clamp<int64_t>(ceil_div(rows, pool_.threads()), 1, kRowGroup);
    pool_.parallel_for(ceil_div(rows, height), [&](int64_t group, int) {
      const int64_t end = std::min(rows, (group + 1) * height);
      for (int64_t i = group * height; i < end; ++i) body(i);
    });
  }

  // Calls body with what is to be done with a row, while it is in the first-level cache.
  template <class Body>
  static void with_operand(Operand also, const Body& body) {
    if (also.reader) {
      const OperandRows operand(static_cast<const PanelMatrix&>(*also.reader), also.data);
      body([&](int64_t i, const float* row) { operand.set(i, row); });
    } else {
      body([](int64_t, const float*) {});
    }
  }

  // The panel of the next product that a worker is likely to begin with.
  Fetch first_fetch(const Matrix* next, int worker) const {
    if (!next) return {};
    const auto& matrix = static_cast<const PanelMatrix&>(*next);
    return matrix.fetch(pool_.share(matrix.shape.panels, worker).begin);
  }

  // Part i of n.
  static Fetch part_of(Fetch fetch, int64_t i, int64_t n) {
    const int64_t begin = fetch.bytes * i / n;
    return {static_cast<const char*>(fetch.from) + begin, fetch.bytes * (i + 1) / n - begin};
  }

  const GemmKernel& gemm(Precision precision) const {
    switch (precision) {
      case Precision::kBf16:
        return table_.gemm_bf16;
      case Precision::kInt8:
        return table_.gemm_s8;
      default:
        return table_.gemm_f32;
    }
  }

  const AttentionKernel& attention(Precision precision) const {
    switch (precision) {
      case Precision::kBf16:
        return table_.attention_bf16;
      case Precision::kInt8:
        return table_.attention_s16;
      default:
        return table_.attention_f32;
    }
  }

  const KernelTable& table_;
  ThreadPool& pool_;
};

}  // namespace

std::unique_ptr<Ops> make_ops(const KernelTable& table, ThreadPool& pool) {
  return std::make_unique<CpuOps>(table, pool);
}

}  // namespace bertrt::cpu
