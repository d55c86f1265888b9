#include "cuda/model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>

#include "core/error.h"
#include "core/fp8.h"
#include "core/int8.h"
#include "cuda/kernel_choice.h"
#include "runtime/weights.h"

namespace bertrt::cuda {
namespace {

// Round to nearest, ties to even; what is out of range becomes infinity.
uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);  // NaN
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

uint16_t to_fp16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return sign | 0x7e00u;   // NaN
  if (bits >= 0x477ff000u) return sign | 0x7c00u;  // 65,520 and more round to infinity
  if (bits < 0x38800000u) {
    // Below 2^-14 steps are of 2^-24: adding 0.5 leaves them in the last bits of the sum, rounded.
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof(magnitude));
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, sizeof(bits));
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  // The exponent's bias goes from 127 to 15, 13 bits of the fraction go.
  bits += 0xc8000000u + 0xfffu + (bits >> 13 & 1u);
  return static_cast<uint16_t>(sign | bits >> 13);
}

// Writes rows for a device through pinned memory, so that no second copy of the weights is made.
class Uploader {
 public:
  explicit Uploader(std::vector<DeviceMemory>& memory) : memory_(memory) {}

  // A block after the other fills the rows that its outputs become.
  ConstDeviceRows matrix(const std::vector<WeightBlock>& blocks, int64_t inputs, int64_t outputs,
                         Element element) {
    const int64_t stride = row_stride(inputs, element);
    auto* staged = static_cast<char*>(stage(outputs * stride * bytes_of(element)));
    for (const WeightBlock& block : blocks) {
      for (int64_t r = 0; r < block.outputs; ++r) {
        const int64_t row = block.columns ? block.columns[r] : block.first_column + r;
        write(weights_of(block, r), inputs, stride, staged + row * stride * bytes_of(element),
              element);
      }
    }
    return {send(outputs * stride * bytes_of(element)), stride, element};
  }

  // The same in 8 bits.
  QuantisedWeights quantised(const std::vector<WeightBlock>& blocks, int64_t inputs,
                             int64_t outputs, EightBits bits) {
    QuantisedWeights made;
    made.bits = bits;
    made.stride = (inputs + 15) / 16 * 16;
    std::vector<float> scale(static_cast<size_t>(outputs + QuantisedWeights::kBeyond));
    std::vector<int32_t> sum(scale.size());
    auto* staged = static_cast<uint8_t*>(stage(outputs * made.stride));
    for (const WeightBlock& block : blocks) {
      for (int64_t r = 0; r < block.outputs; ++r) {
        const int64_t row = block.columns ? block.columns[r] : block.first_column + r;
        uint8_t* to = staged + row * made.stride;
        const auto at = static_cast<size_t>(row);
        std::fill(to + inputs, to + made.stride, uint8_t{0});
        if (bits == EightBits::kFp8) {
          scale[at] = to_fp8(block, r, inputs, to);
        } else {
          auto* integers = reinterpret_cast<int8_t*>(to);
          scale[at] = quantise(block, r, inputs, integers);
          for (int64_t i = 0; i < inputs; ++i) sum[at] += integers[i];
        }
      }
    }
    made.data = static_cast<const uint8_t*>(send(outputs * made.stride));
    made.scale = vector(scale);
    if (bits == EightBits::kInt8) made.sum = vector(sum);
    return made;
  }

  ConstDeviceRows table(const plan::Weight& weight, Element element) {
    const int64_t rows = weight.shape[0], cols = weight.shape[1];
    return matrix({{weight.data, Storage::kFloat32, nullptr, rows, cols, false, nullptr, 0}}, cols,
                  rows, element);
  }

  template <class T>
  const T* vector(const std::vector<T>& values) {
    const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
    std::memcpy(stage(bytes), values.data(), values.size() * sizeof(T));
    return static_cast<const T*>(send(bytes));
  }

 private:
  void* stage(int64_t bytes) {
    if (static_cast<size_t>(bytes) > staging_.bytes()) {
      staging_ = PinnedMemory();
      staging_ = PinnedMemory(static_cast<size_t>(bytes));
    }
    return staging_.data();
  }

  const void* send(int64_t bytes) {
    memory_.emplace_back(static_cast<size_t>(bytes));
    void* data = memory_.back().data();
    check(cudaMemcpyAsync(data, staging_.data(), static_cast<size_t>(bytes), cudaMemcpyHostToDevice,
                          stream_),
          "the copy of a weight");
    stream_.wait();
    return data;
  }

  // The weights of an output where they lie: `step` apart, in float32 or bfloat16.
  struct Weights {
    const char* first;
    int64_t step;
    Storage storage;

    float operator[](int64_t i) const {
      if (storage == Storage::kFloat32) return reinterpret_cast<const float*>(first)[i * step];
      const uint32_t bits =
          static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(first)[i * step]) << 16;
      float value;
      std::memcpy(&value, &bits, sizeof(value));
      return value;
    }
  };

  static Weights weights_of(const WeightBlock& block, int64_t output) {
    const int64_t bytes = block.storage == Storage::kFloat32    ? 4
                          : block.storage == Storage::kBfloat16 ? 2
                                                                : 1;
    return {static_cast<const char*>(block.data) +
                output * (block.transposed ? 1 : block.inputs) * bytes,
            block.transposed ? block.outputs : 1, block.storage};
  }

  // Writes the weights of an output as integers; what a step of theirs is worth.
  static float quantise(const WeightBlock& block, int64_t output, int64_t count, int8_t* out) {
    const Weights weights = weights_of(block, output);
    if (block.storage == Storage::kInt8) {
      for (int64_t i = 0; i < count; ++i) {
        out[i] = reinterpret_cast<const int8_t*>(weights.first)[i * weights.step];
      }
      return block.scales[output];
    }
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; ++i) largest = std::max(largest, magnitude_bits(weights[i]));
    const WeightSteps steps(largest);
    for (int64_t i = 0; i < count; ++i) {
      out[i] = to_step(steps.finite() ? weights[i] * steps.inverse : 0.0f);
    }
    return steps.scale;
  }

  // Writes them in e4m3; what they are worth. NaN where one is not finite, as for a row of values.
  static float to_fp8(const WeightBlock& block, int64_t output, int64_t count, uint8_t* out) {
    const Weights weights = weights_of(block, output);
    if (block.storage == Storage::kFp8) {
      for (int64_t i = 0; i < count; ++i) {
        out[i] = reinterpret_cast<const uint8_t*>(weights.first)[i * weights.step];
      }
      return block.scales[output];
    }
    float largest = 0.0f;
    for (int64_t i = 0; i < count; ++i) {
      if (!std::isfinite(weights[i])) return std::numeric_limits<float>::quiet_NaN();
      largest = std::max(largest, std::fabs(weights[i]));
    }
    const E4m3Scale worth(largest);
    for (int64_t i = 0; i < count; ++i) out[i] = to_e4m3(weights[i] * worth.inverse);
    return worth.scale;
  }

  // A row, and zeros up to the next.
  static void write(const Weights& source, int64_t count, int64_t stride, char* out,
                    Element element) {
    const auto fill = [&](auto* row, auto convert) {
      for (int64_t i = 0; i < count; ++i) row[i] = convert(source[i]);
      for (int64_t i = count; i < stride; ++i) row[i] = convert(0.0f);
    };
    switch (element) {
      case Element::kFp32:
        return fill(reinterpret_cast<float*>(out), [](float value) { return value; });
      case Element::kFp16:
        return fill(reinterpret_cast<uint16_t*>(out), to_fp16);
      case Element::kBf16:
        return fill(reinterpret_cast<uint16_t*>(out), to_bf16);
    }
  }

  std::vector<DeviceMemory>& memory_;
  PinnedMemory staging_;
  OwnedStream stream_;
};

void require_fp8(const Device& device) {
  if (device.major > 8 || (device.major == 8 && device.minor >= 9)) return;
  throw DeviceError(
      "cuda:" + std::to_string(device.number) + " is a " + device.name + " (" + device.arch() +
      "), which has no fp8: that needs sm_89 or later (Ada, Hopper); use int8 or fp16");
}

// The element as kernels' names end.
const char* suffix(Element element) {
  switch (element) {
    case Element::kFp32:
      return "fp32";
    case Element::kFp16:
      return "fp16";
    case Element::kBf16:
      return "bf16";
  }
  return "";
}

}  // namespace

Model::Model(const plan::CheckedPlan& checked, Element element_, std::optional<EightBits> bits,
             int device_number)
    : Graph(checked), device(open_device(device_number)), element(element_) {
  const auto lowered = bits == EightBits::kFp8 ? Precision::kFp8 : Precision::kInt8;
  if (bits == EightBits::kFp8) require_fp8(device);
  const Kernels kernels = chosen_kernels();
  Uploader uploader(weights_);
  // Of each matrix, in each form that a step wants, what a product has of it.
  std::map<std::tuple<MatrixIdentity, Element, bool>, Linear> matrices;
  const bool stated =
      std::any_of(checked.steps.begin(), checked.steps.end(),
                  [](const plan::CheckedStep& bound) { return bound.step->precision.has_value(); });
  std::map<const void*, const float*> biases;  // by distance, on the device, by identity
  nodes.reserve(steps.size());
  for (const plan::CheckedStep& bound : checked.steps) {
    const plan::Step& step = *bound.step;
    nodes.emplace_back(steps[nodes.size()]);
    Node& node = nodes.back();
    node.element = node.head ? Element::kFp32 : element;
    const bool in_8_bits =
        bits && (stated ? step.precision == lowered : !node.head) && !bound.matrix.empty();
    const auto refuse = [&](const std::string& why) {
      throw PlanError("plan: step '" + step.name + "' states " + why);
    };
    if (stated && !bits) refuse("its precision; on a GPU such plans run in int8 or fp8 only");
    if (bits && step.precision && step.precision != lowered &&
        (step.precision == Precision::kInt8 || step.precision == Precision::kFp8)) {
      refuse("another 8 bits than the plan is to run in");
    }
    if (in_8_bits && node.head) {
      refuse("int8 or fp8, and is a head's: heads are in fp32 on a GPU");
    }
    Linear* matrix = nullptr;
    if (!bound.matrix.empty()) {
      matrix = &matrices[{matrix_identity(bound), node.element, in_8_bits}];
    }
    load_weights(*checked.plan, step, matrix && matrix->outputs);
    if (bound.gamma) {
      node.norm = {uploader.vector(vector_of(*bound.gamma)),
                   uploader.vector(vector_of(*bound.beta)), static_cast<float>(step.eps),
                   bound.result.cols};
    }
    switch (step.op) {
      case plan::Op::kEmbedLayerNorm:
        node.embedding.word = uploader.table(*bound.word, node.element);
        if (bound.type) node.embedding.type = uploader.table(*bound.type, node.element);
        node.embedding.position = uploader.table(*bound.position, node.element);
        node.kernel = std::string("embed_layer_norm_") + suffix(node.element);
        break;
      case plan::Op::kQkvLinear:
      case plan::Op::kLinearAddLayerNorm:
      case plan::Op::kLinear: {
        const LinearWeights weights(bound);
        if (!matrix->outputs) {
          matrix->inputs = bound.matrix_inputs;
          matrix->outputs = bound.matrix_outputs;
          if (in_8_bits) {
            matrix->quantised =
                uploader.quantised(weights.blocks, matrix->inputs, matrix->outputs, *bits);
          } else {
            matrix->weight =
                uploader.matrix(weights.blocks, matrix->inputs, matrix->outputs, node.element);
          }
        }
        node.linear = *matrix;
        if (!weights.bias.empty()) node.linear.bias = uploader.vector(weights.bias);
        node.linear.activation = step.activation;
        node.linear.hopper =
            hopper_takes_linear(kernels, node.element, in_8_bits ? bits : std::nullopt);
        node.kernel = in_8_bits ? quantised_linear_kernel(*bits, node.linear.hopper)
                                : linear_kernel(node.element, node.linear.hopper);
        break;
      }
      case plan::Op::kAttention:
      case plan::Op::kAttentionWeights:
        node.element = element;
        node.attention = {step.heads, step.head_dim, static_cast<float>(step.scale)};
        if (bound.distances) {
          const float* begin = bound.distances->floats();
          const int64_t heads = bound.distances->shape[0], stride = bound.distances->shape[1];
          const float*& uploaded = biases[bound.distances->identity];
          if (!uploaded)
            uploaded = uploader.vector(std::vector<float>(begin, begin + heads * stride));
          node.attention.distance_stride = stride;
          node.attention.distance_bias = uploaded + stride / 2;
        }
        node.hopper = step.op == plan::Op::kAttention &&
                      hopper_takes_attention(kernels, node.attention, element);
        node.kernel = step.op == plan::Op::kAttentionWeights
                          ? std::string("attention_weights_") + suffix(element)
                          : attention_kernel(element, step.head_dim, node.hopper);
        break;
      case plan::Op::kLayerNorm:
        node.kernel = std::string("layer_norm_") + suffix(node.element);
        break;
      case plan::Op::kFirstToken:
      case plan::Op::kGatherPositions:
        node.kernel = "gather_rows";
        break;
    }
    release_weights(step);
  }
}

}  // namespace bertrt::cuda
