#include "cuda/part.h"

#include <algorithm>

#include "cuda/hopper/attention.h"

namespace bertrt::cuda {
namespace {

DeviceRows columns_from(DeviceRows rows, int64_t first) {
  return {static_cast<char*>(rows.data) + first * bytes_of(rows.element), rows.stride,
          rows.element};
}

bool works_by_row(plan::Op op) {
  switch (op) {
    case plan::Op::kQkvLinear:
    case plan::Op::kLinear:
    case plan::Op::kLinearAddLayerNorm:
    case plan::Op::kLayerNorm:
      return true;
    default:
      return false;
  }
}

// A product for queries, keys and values without the queries.
Linear keys_and_values(const Model::Node& qkv) {
  Linear linear = qkv.linear;
  if (QuantisedWeights& weights = linear.quantised) {
    weights.data += qkv.queries * weights.stride;
    weights.scale += qkv.queries;
    if (weights.sum) weights.sum += qkv.queries;
  } else {
    linear.weight.data = static_cast<const char*>(linear.weight.data) +
                         qkv.queries * linear.weight.stride * bytes_of(linear.weight.element);
  }
  if (linear.bias) linear.bias += qkv.queries;
  linear.outputs -= qkv.queries;
  return linear;
}

}  // namespace

Part::Part(const Model& model, const std::vector<int>& wanted, const Shape& shape)
    : model_(model),
      shape_(shape),
      demand_(model, wanted),
      inputs_(shape),
      values_(model.values.size()),
      own_(model.nodes.size()) {
  place(wanted);
}

Element Part::element_of(int value) const {
  const Node& node = model_.nodes[model_.values[value].made_by];
  return node.op == plan::Op::kAttentionWeights ? Element::kFp32 : node.element;
}

bool Part::has_first_queries(const Node& node) const {
  return node.op == plan::Op::kAttention && demand_.first_only[node.output];
}

// Rows that live from step `first` to step `last`.
Part::Place Part::new_place(int64_t rows, int64_t stride, Element element, int first, int last) {
  lifetimes_.push_back({aligned(room(rows, stride) * bytes_of(element)), first, last, 0});
  return {static_cast<int>(lifetimes_.size()) - 1, -1, stride, element};
}
// Likewise, with the stride that kernels ask for.
Part::Place Part::new_rows(int64_t rows, int64_t cols, Element element, int first, int last) {
  return new_place(rows, row_stride(cols, element), element, first, last);
}

// The rows of a product as 8-bit numbers, if it is one of those.
Part::Place Part::new_quantised_rows(int64_t rows, const Linear& linear, int step) {
  if (!linear.quantised) return {};
  return new_place(rows, quantised_stride(linear.inputs) / bytes_of(Element::kFp32), Element::kFp32,
                   step, step);
}

// Gives everything its place.
void Part::place(const std::vector<int>& wanted) {
  for (const int value : wanted) {
    const int64_t cols = model_.values[value].cols;
    const int64_t returned =
        returned_.add(room(rows(value), cols) * static_cast<int64_t>(sizeof(float)));
    const bool in_place = element_of(value) == Element::kFp32 &&
                          row_stride(cols, Element::kFp32) == cols && !values_[value];
    if (in_place) values_[value] = {-1, returned, cols, Element::kFp32};
    results_.push_back({value, returned, in_place});
  }
  std::vector<int> last_use(values_.size(), -1);
  for (int i = 0; i < steps(); ++i) {
    if (!demand_.steps[i]) continue;
    const Node& node = model_.nodes[i];
    for (const int input : node.inputs) last_use[input] = i;
    if (demand_.makes_queries(node)) last_use[model_.qkv_of(node).inputs[0]] = i;
  }
  for (int i = 0; i < steps(); ++i) {
    if (!demand_.steps[i]) continue;
    const Node& node = model_.nodes[i];
    const int64_t count = rows(node.output);
    if (!values_[node.output]) {
      values_[node.output] =
          new_rows(count, model_.values[node.output].cols, element_of(node.output), i,
                   std::max(i, last_use[node.output]));
    }
    for (int which = 0; which < static_cast<int>(node.inputs.size()); ++which) {
      const int value = node.inputs[which];
      if (!works_by_row(node.op)) continue;
      if (!demand_.gathers(node, which) && element_of(value) == node.element) continue;
      own_[i].inputs[which] = new_rows(count, model_.values[value].cols, node.element, i, i);
    }
    own_[i].quantised = new_quantised_rows(count, node.linear, i);
    if (has_first_queries(node)) {
      const Node& qkv = model_.qkv_of(node);
      own_[i].queries = new_rows(count, qkv.queries, node.element, i, i);
      if (demand_.makes_queries(node)) {
        own_[i].inputs[0] = new_rows(count, qkv.linear.inputs, node.element, i, i);
        own_[i].quantised = new_quantised_rows(count, qkv.linear, i);
      }
    }
  }
  total_ = assign_offsets(lifetimes_);
}

void Part::enqueue(const PartMemory& memory, Stream stream, const std::vector<Event>* events) {
  memory_ = &memory;
  inputs_.on_device(memory.device);
  check(cudaMemcpyAsync(memory.device.data(), memory.inputs.data(),
                        static_cast<size_t>(inputs_.bytes()), cudaMemcpyHostToDevice, stream),
        "the copy of a batch");
  // The first kernel comes after a copy, and waits for it as a whole.
  Stream own(stream, false);
  for (int i = 0; i < steps(); ++i) {
    if (!demand_.steps[i]) continue;
    const auto before = 2 * static_cast<size_t>(i);
    if (events) (*events)[before].record(stream);
    run(i, own);
    if (events) (*events)[before + 1].record(stream);
    own = stream;
    make_results_of(model_.nodes[i].output, own);
  }
  if (returned_.bytes() == 0) return;
  check(cudaMemcpyAsync(memory.outputs.data(), memory.results.data(),
                        static_cast<size_t>(returned_.bytes()), cudaMemcpyDeviceToHost, stream),
        "the copy of the results");
}

DeviceRows Part::at(const Place& place) const {
  void* const data = place.lifetime >= 0
                         ? memory_->device.at(inputs_.bytes() + lifetimes_[place.lifetime].offset)
                         : memory_->results.at(place.returned);
  return {data, place.stride, place.element};
}

// An input of a node that works row by row: the rows of the node's output, of its element.
ConstDeviceRows Part::input(int step, int which, Stream stream) const {
  const Node& node = model_.nodes[step];
  const int value = node.inputs[which];
  const Place& own = own_[step].inputs[which];
  if (!own) return at(values_[value]);
  gather_rows(at(values_[value]), demand_.gathers(node, which) ? first_rows_of(value) : nullptr,
              count(node.output), model_.values[value].cols, at(own), stream);
  return at(own);
}

// A product of a step's.
void Part::multiply(int step, const Linear& product, ConstDeviceRows x, ConstDeviceRows residual,
                    RowCount rows, DeviceRows out, Stream stream) const {
  if (!product.quantised) return linear(product, x, residual, rows, out, stream);
  const QuantisedRows quantised{at(own_[step].quantised).data, quantised_stride(product.inputs)};
  quantise_rows(product.quantised.bits, x, rows, product.inputs, quantised, stream);
  linear(product, quantised, residual, rows, out, stream);
}

// The rows of the sequences' first tokens in a value.
const int32_t* Part::first_rows_of(int value) const {
  return demand_.first_only[value] ? inputs_.first_rows() : inputs_.first_tokens();
}

// The queries of the sequences' first tokens, a row a sequence.
ConstDeviceRows Part::first_queries(int step, Stream stream) const {
  const Node& node = model_.nodes[step];
  const Node& qkv = model_.qkv_of(node);
  const Own& own = own_[step];
  const int made_of = demand_.makes_queries(node) ? qkv.inputs[0] : node.inputs[0];
  const Place& place = demand_.makes_queries(node) ? own.inputs[0] : own.queries;
  const int64_t cols = demand_.makes_queries(node) ? qkv.linear.inputs : qkv.queries;
  const RowCount seqs = inputs_.count(plan::RowKind::kSeqs);
  gather_rows(at(values_[made_of]), first_rows_of(made_of), seqs, cols, at(place), stream);
  if (demand_.makes_queries(node)) {
    Linear queries = qkv.linear;
    queries.outputs = qkv.queries;
    multiply(step, queries, at(place), {}, seqs, at(own.queries), stream);
  }
  return at(own.queries);
}

void Part::run(int step, Stream stream) const {
  const Node& node = model_.nodes[step];
  const RowCount count = this->count(node.output);
  if (count.most == 0) return;
  const DeviceRows out = at(values_[node.output]);
  switch (node.op) {
    case plan::Op::kEmbedLayerNorm:
      embed_layer_norm(node.embedding, node.norm, inputs_.ids(), inputs_.types(),
                       inputs_.positions(), count, out, stream);
      return;
    case plan::Op::kQkvLinear:
      if (demand_.keys_only[node.output]) {
        multiply(step, keys_and_values(node), input(step, 0, stream), {}, count,
                 columns_from(out, node.queries), stream);
        return;
      }
      multiply(step, node.linear, input(step, 0, stream), {}, count, out, stream);
      return;
    case plan::Op::kLinear:
      multiply(step, node.linear, input(step, 0, stream), {}, count, out, stream);
      return;
    case plan::Op::kLinearAddLayerNorm: {
      const ConstDeviceRows x = input(step, 0, stream);
      multiply(step, node.linear, x, input(step, 1, stream), count, out, stream);
      layer_norm(node.norm, out, {}, count, out, stream);
      return;
    }
    case plan::Op::kLayerNorm:
      layer_norm(node.norm, input(step, 0, stream), {}, count, out, stream);
      return;
    case plan::Op::kAttention: {
      const ConstDeviceRows queries =
          has_first_queries(node) ? first_queries(step, stream) : ConstDeviceRows{};
      (node.hopper ? hopper::attention : attention)(
          node.attention, inputs_.sequences(), at(values_[node.inputs[0]]), queries, out, stream);
      return;
    }
    case plan::Op::kAttentionWeights:
      attention_weights(node.attention, inputs_.sequences(), inputs_.cu_pairs(),
                        at(values_[node.inputs[0]]), out, stream);
      return;
    case plan::Op::kFirstToken:
      gather_rows(at(values_[node.inputs[0]]), first_rows_of(node.inputs[0]), count,
                  model_.values[node.output].cols, out, stream);
      return;
    case plan::Op::kGatherPositions:
      gather_rows(at(values_[node.inputs[0]]), inputs_.masked(), count,
                  model_.values[node.output].cols, out, stream);
      return;
  }
}

// Has a value that the caller wants stand among what is returned.
void Part::make_results_of(int value, Stream stream) const {
  for (const Result& result : results_) {
    if (result.value != value || result.in_place) continue;
    const int64_t cols = model_.values[value].cols;
    gather_rows(at(values_[value]), nullptr, count(value), cols,
                at({-1, result.returned, cols, Element::kFp32}), stream);
  }
}

void Part::count_work(const PackedBatch& batch, std::vector<Spent>& spent) const {
  const Shape there(batch);
  for (int i = 0; i < steps(); ++i) {
    if (!demand_.steps[i]) continue;
    const Node& node = model_.nodes[i];
    Spent& total = spent[i];
    const int64_t count = there.rows(row_kind(node.output));
    const int64_t row_bytes = model_.values[node.output].cols * bytes_of(element_of(node.output));
    const auto count_product = [&](const Linear& linear) {
      total.operations += 2 * count * linear.inputs * linear.outputs;
      total.bytes +=
          linear.inputs * linear.outputs * (linear.quantised ? 1 : bytes_of(linear.weight.element));
    };
    if (node.linear.outputs) {
      const bool keys = demand_.keys_only[node.output];
      count_product(keys ? keys_and_values(node) : node.linear);
      continue;
    }
    if (demand_.makes_queries(node)) {
      const Node& qkv = model_.qkv_of(node);
      Linear queries = qkv.linear;
      queries.outputs = qkv.queries;
      count_product(queries);
    }
    switch (node.op) {
      case plan::Op::kAttention:
      case plan::Op::kAttentionWeights: {
        const int64_t pairs = has_first_queries(node) ? there.tokens : there.pairs;
        // Scores; and, unless they are what is wanted, the weighted sum of the values.
        const int64_t products = node.op == plan::Op::kAttention ? 2 : 1;
        total.operations += 2 * products * pairs * node.attention.heads * node.attention.head_dim;
        break;
      }
      case plan::Op::kEmbedLayerNorm:
        total.bytes += (node.embedding.type.data ? 4 : 3) * count * row_bytes;
        break;
      default:
        total.bytes += 2 * count * row_bytes;
    }
  }
}

}  // namespace bertrt::cuda
