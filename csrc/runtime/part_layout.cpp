#include "runtime/part_layout.h"

#include <algorithm>

#include "runtime/arena.h"

namespace bertrt {
namespace {

// Rows of a block that one thread takes through a stretch of steps (see PartLayout). Every block
// reads all the weights of the stretch. Where threads share no cache that holds them, all of them
// read from the memory they share, so that the fewest rows, whose arithmetic has to last longer
// than that, grow with the threads: 16 rows balance it for each thread of the two measured, in
// every precision. The most leave several blocks to a thread, which even out how fast cores are.
constexpr int64_t kLeastBlockRowsPerThread = 16;
constexpr int64_t kMostBlockRows = 128;

// Rows this far apart (or a multiple) share their sets of an 8-way, 32 KiB first-level cache.
constexpr int64_t kCacheWay = 4096 / sizeof(float);

}  // namespace

int64_t PartLayout::padded_stride(int64_t cols) {
  int64_t stride = (cols + 15) / 16 * 16;
  if (stride % (kCacheWay / 4) == 0) stride += 16;
  return stride;
}

PartLayout::PartLayout(const Model& model, const Part& part, const Demand& demand, const Ops& ops,
                       int64_t threads, Workspace& workspace)
    : model_(model), part_(part), demand_(demand), ops_(ops) {
  const size_t count = model.values.size();
  all_.values.resize(count);
  all_.operands.resize(count);
  std::vector<int> uses(count, 0);
  std::vector<int> last_use(count, -1);
  for (int i = 0; i < steps(); ++i) {
    if (!demand_.steps[i]) continue;
    const auto use = [&](int value) {
      ++uses[value];
      last_use[value] = i;
    };
    for (const int input : node(i).inputs) use(input);
    if (demand_.makes_queries(node(i))) use(model_.qkv_of(node(i)).inputs[0]);
  }
  for (const auto& [value, data] : part.outputs) {
    all_.values[value] = {data, model_.values[value].cols};
    ++uses[value];
  }
  for (int i = 0; i < steps(); ++i) {
    if (demand_.steps[i]) want_operand(node(i), uses);
  }
  find_stretches(threads);
  find_memory(last_use, workspace);
}

// Whether a row of a step's result needs no more than the same row of its inputs.
bool PartLayout::is_row_by_row(const Node& node) const {
  return (node.matrix || node.op == plan::Op::kLayerNorm) &&
         (model_.values[node.output].rows == plan::RowKind::kTokens ||
          model_.values[node.output].rows == plan::RowKind::kQkv) &&
         !demand_.first_only[node.output];
}

// Has the step before a product write the product's operand, where it can: beside its rows, if it
// has whole rows at hand; or instead of them, if it is a product and nobody else reads them.
void PartLayout::want_operand(const Node& node, const std::vector<int>& uses) {
  if (!node.matrix || demand_.gathers(node, 0) || !ops_.operand_stride(*node.matrix)) return;
  const int value = node.inputs[0];
  bool can = false;
  switch (model_.nodes[model_.values[value].made_by].op) {
    case plan::Op::kEmbedLayerNorm:
    case plan::Op::kLinearAddLayerNorm:
    case plan::Op::kLayerNorm:
      can = true;
      break;
    case plan::Op::kLinear:
      can = uses[value] == 1 && ops_.makes_operand(*node.matrix);
      break;
    default:
      break;
  }
  if (can) all_.operands[value].reader = node.matrix.get();
}

void PartLayout::find_stretches(int64_t threads) {
  const int64_t tokens = part_.batch.tokens();
  int64_t blocks = 1;
  const int64_t least = kLeastBlockRowsPerThread * threads;
  if (tokens >= threads * least) {
    const int64_t most = threads * std::max(kMostBlockRows, 2 * least);
    blocks = threads * ((tokens + most - 1) / most);
  }
  lanes_ = std::min(threads, blocks);
  block_rows_ = (tokens + blocks - 1) / blocks;
  for (int i = 0; i < steps(); ++i) {
    const bool by_rows = blocks > 1 && demand_.steps[i] && is_row_by_row(node(i));
    if (by_rows && !stretches_.empty() && stretches_.back().blocks > 1) {
      stretches_.back().end = i + 1;
    } else if (demand_.steps[i]) {
      stretches_.push_back({i, i + 1, by_rows ? blocks : 1});
    }
  }
}

// Gives every value and operand a place in memory for as long as it lives; one that lives within
// a stretch gets a place in each lane instead, for a block of its rows.
void PartLayout::find_memory(const std::vector<int>& last_use, Workspace& workspace) {
  std::vector<const Stretch*> stretch_of(static_cast<size_t>(steps()), nullptr);
  for (const Stretch& stretch : stretches_) {
    for (int i = stretch.begin; i < stretch.end; ++i) stretch_of[i] = &stretch;
  }
  lane_values_.resize(all_.values.size(), -1);
  lane_operands_.resize(all_.values.size(), -1);
  std::vector<Lifetime> lives, lane_lives;
  std::vector<std::pair<int, bool>> owners, lane_owners;  // value, whether its operand
  int64_t scratch_bytes = 0;
  int64_t lane_scratch_bytes = 0;
  int64_t gathered = 0;
  for (int i = 0; i < steps(); ++i) {
    if (!demand_.steps[i]) continue;
    const Stretch& stretch = *stretch_of[i];
    const int value = node(i).output;
    const int last = last_use[value];
    const auto place = [&](int64_t row_floats, bool operand) {
      if (stretch.blocks > 1 && last < stretch.end) {
        lane_lives.push_back({room(block_rows_, row_floats), i, last, 0});
        lane_owners.emplace_back(value, operand);
      } else {
        // Blocks are at different steps of a stretch at the same time.
        lives.push_back(
            {room(rows(value), row_floats), stretch.begin, stretch_of[last]->end - 1, 0});
        owners.emplace_back(value, operand);
      }
    };
    if (const Matrix* reader = all_.operands[value].reader) {
      place(ops_.operand_stride(*reader) / static_cast<int64_t>(sizeof(float)), true);
    }
    Rows& out = all_.values[value];
    if (!out.stride && !only_operand(node(i))) {
      out.stride = padded_stride(model_.values[value].cols);
      place(out.stride, false);
    }
    if (stretch.blocks > 1) {
      lane_scratch_bytes = std::max(lane_scratch_bytes, scratch_of(node(i), block_rows_));
    } else {
      scratch_bytes = std::max(scratch_bytes, scratch_of(node(i), rows(value)));
    }
    for (const int which : {0, 1}) {
      const int64_t cols = gathered_cols(node(i), which);
      if (cols) gathered = std::max(gathered, room(part_.batch.seqs, padded_stride(cols)));
    }
  }
  // Sizes are multiples of a cache line, and so are the addresses.
  const int64_t arena = assign_offsets(lives);
  const int64_t lane_arena = assign_offsets(lane_lives);
  lane_size_ = lane_arena + lane_scratch_bytes / static_cast<int64_t>(sizeof(float));
  lane_scratch_ = lane_arena;
  auto* memory = static_cast<float*>(workspace.reserve(
      static_cast<size_t>(arena + lanes_ * lane_size_ + 2 * gathered) * sizeof(float) +
      static_cast<size_t>(scratch_bytes)));
  for (size_t i = 0; i < owners.size(); ++i) {
    float* place = memory + lives[i].offset;
    const auto [value, operand] = owners[i];
    if (operand) {
      all_.operands[value].data = place;
    } else {
      all_.values[value].data = place;
    }
  }
  for (size_t i = 0; i < lane_owners.size(); ++i) {
    const auto [value, operand] = lane_owners[i];
    (operand ? lane_operands_ : lane_values_)[value] = lane_lives[i].offset;
  }
  lane_memory_ = memory + arena;
  gathered_[0] = lane_memory_ + lanes_ * lane_size_;
  gathered_[1] = gathered_[0] + gathered;
  all_.scratch = gathered_[1] + gathered;
}

PartLayout::View PartLayout::block_of(const Stretch& stretch, int64_t block, int lane) const {
  const int64_t tokens = part_.batch.tokens();
  const int64_t begin = tokens * block / stretch.blocks;
  const int64_t end = tokens * (block + 1) / stretch.blocks;
  View view = all_;
  view.rows = end - begin;
  float* memory = lane_memory_ + lane * lane_size_;
  view.scratch = memory + lane_scratch_;
  const auto place = [&](int value) {
    Rows& rows = view.values[value];
    Operand& operand = view.operands[value];
    if (lane_values_[value] >= 0) {
      rows.data = memory + lane_values_[value];
    } else if (rows.data) {
      rows.data = all_.values[value].data + begin * rows.stride;
    }
    if (lane_operands_[value] >= 0) {
      operand.data = memory + lane_operands_[value];
    } else if (operand.data) {
      operand.data = static_cast<char*>(all_.operands[value].data) +
                     begin * ops_.operand_stride(*operand.reader);
    }
  };
  for (int i = stretch.begin; i < stretch.end; ++i) {
    if (!demand_.steps[i]) continue;
    place(node(i).output);
    for (const int input : node(i).inputs) place(input);
  }
  return view;
}

int64_t PartLayout::gathered_cols(const Node& node, int which) const {
  if (has_first_queries(node)) {
    const Node& qkv = model_.qkv_of(node);
    if (which == 1) return qkv.queries;
    return demand_.makes_queries(node) ? model_.values[qkv.inputs[0]].cols : 0;
  }
  const bool works_by_row = node.matrix || node.op == plan::Op::kLayerNorm;
  if (!works_by_row || which >= static_cast<int>(node.inputs.size())) return 0;
  return demand_.gathers(node, which) ? model_.values[node.inputs[which]].cols : 0;
}

// Bytes of scratch for so many rows.
int64_t PartLayout::scratch_of(const Node& node, int64_t rows) const {
  if (node.matrix) {
    if (has_operand(node)) return 0;
    return rows * ops_.operand_stride(*node.matrix);
  }
  if (node.op != plan::Op::kAttention) return 0;
  const int64_t queries = demand_.makes_queries(node)
                              ? part_.batch.seqs * ops_.operand_stride(*model_.qkv_of(node).matrix)
                              : 0;
  int64_t longest = 0;
  for (int64_t s = 0; s < part_.batch.seqs; ++s) {
    longest = std::max(longest, part_.batch.length(s));
  }
  return std::max(queries, ops_.attention_scratch(node.attention, longest));
}

}  // namespace bertrt
