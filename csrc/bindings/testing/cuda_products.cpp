// Matrix products and attention on a CUDA device, or on the emulator, one by one, for tests.
#include <algorithm>
#include <optional>
#include <type_traits>

#include <pybind11/stl.h>

#include "bindings/cuda.h"
#include "bindings/testing/cuda_kernels.h"
#include "bindings/testing/device_arrays.h"
#include "core/fp8.h"
#include "cuda/hopper/attention.h"
#include "cuda/linear_tiles.h"
#include "plan/plan.h"

namespace py = pybind11;

namespace bertrt::bindings {
namespace {

void require(bool condition, const char* message) {
  if (!condition) throw BatchError(message);
}

cuda::Tiles parse_tiles(const std::string& name) {
  if (name == "small") return cuda::Tiles::kSmall;
  if (name == "medium") return cuda::Tiles::kMedium;
  if (name == "large") return cuda::Tiles::kLarge;
  if (name == "wide") return cuda::Tiles::kWide;
  if (name == "hopper") return cuda::Tiles::kHopper;
  if (name == "hopper blocks") return cuda::Tiles::kHopperBlocks;
  throw BatchError("tiles must be small, medium, large, wide, hopper or hopper blocks, not " +
                   name);
}

// The name of those that products of mma.sync, or of fp32, take.
std::string choose_tiles(const std::string& element, int64_t rows, int64_t outputs, int64_t inputs,
                         int multiprocessors) {
  require(rows >= 0 && outputs > 0 && inputs > 0 && multiprocessors > 0,
          "outputs, inputs and multiprocessors must be above 0, rows not below");
  cuda::Linear product;
  product.inputs = inputs;
  product.outputs = outputs;
  const uint8_t some = 0;
  const bool eight_bits = element == "int8" || element == "fp8";
  if (eight_bits) product.quantised.data = &some;
  if (element == "fp8") product.quantised.bits = cuda::EightBits::kFp8;
  switch (cuda::choose_tiles(product, eight_bits ? cuda::Element::kFp16 : parse_element(element),
                             rows, multiprocessors)) {
    case cuda::Tiles::kSmall:
      return "small";
    case cuda::Tiles::kMedium:
      return "medium";
    case cuda::Tiles::kLarge:
      return "large";
    case cuda::Tiles::kWide:
      return "wide";
    case cuda::Tiles::kHopper:
    case cuda::Tiles::kHopperBlocks:
      break;
  }
  throw BatchError("no product of mma.sync");
}

int multiprocessors() { return cuda::open_device(0).multiprocessors; }

// `into`: wider rows, of which the result becomes the columns from first_column on.
py::array linear(const std::string& element_name, const py::array& x, const py::array& weight,
                 const std::optional<FloatArray>& bias, const std::string& activation,
                 const std::optional<py::array>& residual, const std::optional<py::array>& into,
                 int64_t first_column, bool residual_in_place,
                 const std::optional<std::string>& tiles) {
  const cuda::Element element = parse_element(element_name);
  const DeviceMatrix rows(x, element), weights(weight, element);
  require(rows.cols() == weights.cols(), "x must be (rows, inputs), weight (outputs, inputs)");
  require(!bias || (bias->ndim() == 1 && bias->size() == weights.count()),
          "bias must be (outputs,)");
  std::optional<DeviceArray> on_bias;
  if (bias) on_bias.emplace(*bias);
  const DeviceMatrix out =
      into ? DeviceMatrix(*into, element) : DeviceMatrix(rows.count(), weights.count(), element);
  require(out.count() == rows.count() && first_column >= 0 &&
              first_column + weights.count() <= out.cols(),
          "into must have the result's rows, and its columns from first_column on");
  cuda::DeviceRows result = out.rows();
  result.data = static_cast<char*>(result.data) + first_column * cuda::bytes_of(element);
  std::optional<DeviceMatrix> added;
  cuda::ConstDeviceRows more;
  if (residual) {
    added.emplace(*residual, element);
    require(added->count() == rows.count() && added->cols() == weights.count(),
            "residual must be (rows, outputs)");
    more = added->rows();
  } else if (residual_in_place) {
    more = result;
  }
  const cuda::Linear product{weights.rows(),
                             weights.cols(),
                             weights.count(),
                             on_bias ? on_bias->as<float>() : nullptr,
                             plan::parse_activation(activation),
                             {}};
  if (tiles) {
    cuda::linear_in_tiles(parse_tiles(*tiles), product, rows.rows(), more, rows.count(), result,
                          nullptr);
  } else {
    cuda::linear(product, rows.rows(), more, rows.count(), result, nullptr);
  }
  return out.download();
}

cuda::EightBits parse_bits(const std::string& name) {
  require(name == "int8" || name == "fp8", "bits must be int8 or fp8");
  return name == "int8" ? cuda::EightBits::kInt8 : cuda::EightBits::kFp8;
}

// The codes of the nearest e4m3 numbers, as weights have them.
py::array_t<uint8_t> e4m3_of(const FloatArray& x) {
  py::array_t<uint8_t> codes(x.size());
  std::transform(x.data(), x.data() + x.size(), codes.mutable_data(), to_e4m3);
  return codes;
}

// Rows of fp16 in 8 bits, each with its RowSteps: an array of bytes.
py::array quantise_rows(const py::array& x, const std::string& bits) {
  const DeviceMatrix rows(x, cuda::Element::kFp16);
  const int64_t stride = cuda::quantised_stride(rows.cols());
  const cuda::DeviceMemory out = poisoned_memory(rows.count() * stride);
  cuda::quantise_rows(parse_bits(bits), rows.rows(), rows.count(), rows.cols(),
                      {out.data(), stride}, nullptr);
  cuda::check(cudaDeviceSynchronize(), "a kernel");
  py::array_t<uint8_t> bytes({rows.count(), stride});
  peek(bytes.mutable_data(), out.data(), static_cast<size_t>(bytes.nbytes()));
  return std::move(bytes);
}

// x and what comes of it: fp16. weight: int8, or codes of e4m3, (outputs, inputs); scale:
// (outputs,).
template <class Weight>
py::array linear_8_bits(const py::array& x, const py::array_t<Weight, py::array::c_style>& weight,
                        const FloatArray& scale, const std::optional<FloatArray>& bias,
                        const std::string& activation, const std::optional<py::array>& residual,
                        const std::string& tiles, int64_t first_output) {
  constexpr auto kBits = std::is_signed_v<Weight> ? cuda::EightBits::kInt8 : cuda::EightBits::kFp8;
  const DeviceMatrix rows(x, cuda::Element::kFp16);
  require(weight.ndim() == 2 && weight.shape(1) == rows.cols() && scale.size() == weight.shape(0) &&
              first_output >= 0 && first_output < weight.shape(0),
          "weight must be (outputs, inputs), scale (outputs,)");
  const int64_t outputs = weight.shape(0), inputs = weight.shape(1);
  const int64_t stride = (inputs + 15) / 16 * 16;
  constexpr int64_t kBeyond = cuda::QuantisedWeights::kBeyond;
  py::array_t<Weight> padded({outputs, stride});
  py::array_t<float> scales(outputs + kBeyond);
  py::array_t<int32_t> sums(outputs + kBeyond);
  std::fill_n(padded.mutable_data(), padded.size(), Weight{0});
  std::fill_n(scales.mutable_data(), scales.size(), 0.0f);
  std::fill_n(sums.mutable_data(), sums.size(), 0);
  for (int64_t o = 0; o < outputs; ++o) {
    scales.mutable_data()[o] = scale.data()[o];
    for (int64_t i = 0; i < inputs; ++i) {
      padded.mutable_data()[o * stride + i] = *weight.data(o, i);
      sums.mutable_data()[o] += *weight.data(o, i);
    }
  }
  const DeviceArray on_weight(padded), on_scale(scales), on_sum(sums);
  std::optional<DeviceArray> on_bias;
  if (bias) on_bias.emplace(*bias);
  std::optional<DeviceMatrix> added;
  if (residual) added.emplace(*residual, cuda::Element::kFp16);
  cuda::Linear product;
  product.inputs = inputs;
  product.outputs = outputs - first_output;
  if (on_bias) product.bias = on_bias->as<float>() + first_output;
  product.activation = plan::parse_activation(activation);
  product.quantised = {on_weight.as<uint8_t>() + first_output * stride, stride,
                       on_scale.as<float>() + first_output, on_sum.as<int32_t>() + first_output,
                       kBits};
  const int64_t x_stride = cuda::quantised_stride(inputs);
  const cuda::DeviceMemory quantised = poisoned_memory(rows.count() * x_stride);
  const cuda::QuantisedRows of_x{quantised.data(), x_stride};
  const DeviceMatrix out(rows.count(), product.outputs, cuda::Element::kFp16);
  cuda::quantise_rows(kBits, rows.rows(), rows.count(), inputs, of_x, nullptr);
  cuda::linear_in_tiles(parse_tiles(tiles), product, of_x,
                        added ? cuda::ConstDeviceRows(added->rows()) : cuda::ConstDeviceRows(),
                        rows.count(), out.rows(), nullptr);
  return out.download();
}

// Seconds of what `run` puts into a stream, the mean of so many one after the other behind a first.
template <class Run>
double seconds_of(int64_t repeats, const Run& run) {
  require(repeats > 0, "repeats must be above 0");
  const cuda::OwnedStream stream;
  const cuda::Event begin, end;
  for (int64_t i = 0; i <= repeats; ++i) {
    if (i == 1) begin.record(stream);
    run(static_cast<cudaStream_t>(stream));
  }
  end.record(stream);
  stream.wait();
  return cuda::Event::seconds(begin, end) / static_cast<double>(repeats);
}

// x: fp16, whose way to e4m3 is not counted; weight: codes of e4m3.
double linear_e4m3_seconds(const py::array& x,
                           const py::array_t<uint8_t, py::array::c_style>& weight,
                           const std::optional<std::string>& tiles, int64_t repeats) {
  const DeviceMatrix rows(x, cuda::Element::kFp16);
  require(weight.ndim() == 2 && weight.shape(1) == rows.cols() && rows.cols() % 16 == 0,
          "weight must be (outputs, inputs), inputs a multiple of 16");
  const int64_t outputs = weight.shape(0), inputs = weight.shape(1);
  py::array_t<float> scales(outputs + cuda::QuantisedWeights::kBeyond);
  std::fill_n(scales.mutable_data(), scales.size(), 1.0f);
  const DeviceArray on_weight(weight), on_scale(scales);
  cuda::Linear product;
  product.inputs = inputs;
  product.outputs = outputs;
  product.quantised = {on_weight.as<uint8_t>(), inputs, on_scale.as<float>(), nullptr,
                       cuda::EightBits::kFp8};
  const int64_t stride = cuda::quantised_stride(inputs);
  const cuda::DeviceMemory quantised = poisoned_memory(rows.count() * stride);
  const cuda::QuantisedRows of_x{quantised.data(), stride};
  const DeviceMatrix out(rows.count(), outputs, cuda::Element::kFp16);
  cuda::quantise_rows(cuda::EightBits::kFp8, rows.rows(), rows.count(), inputs, of_x, nullptr);
  cuda::check(cudaDeviceSynchronize(), "a kernel");
  const auto choice =
      tiles ? parse_tiles(*tiles)
            : cuda::choose_tiles(product, cuda::Element::kFp16, rows.count(), multiprocessors());
  return seconds_of(repeats, [&](cudaStream_t stream) {
    cuda::linear_in_tiles(choice, product, of_x, {}, rows.count(), out.rows(), stream);
  });
}

// Of the product alone.
double linear_seconds(const std::string& element_name, const py::array& x, const py::array& weight,
                      const std::optional<std::string>& tiles, int64_t repeats) {
  const cuda::Element element = parse_element(element_name);
  const DeviceMatrix rows(x, element), weights(weight, element);
  require(rows.cols() == weights.cols(), "x must be (rows, inputs), weight (outputs, inputs)");
  const DeviceMatrix out(rows.count(), weights.count(), element);
  const cuda::Linear product{weights.rows(), weights.cols(),    weights.count(),
                             nullptr,        Activation::kNone, {}};
  const auto choice = tiles ? parse_tiles(*tiles)
                            : cuda::choose_tiles(product, element, rows.count(), multiprocessors());
  return seconds_of(repeats, [&](cudaStream_t stream) {
    cuda::linear_in_tiles(choice, product, rows.rows(), {}, rows.count(), out.rows(), stream);
  });
}

// cu_seqlens and the like on the device.
class DeviceSequences {
 public:
  DeviceSequences(const IntArray& cu_seqlens, const std::optional<IntArray>& attended,
                  int64_t tokens)
      : cu_seqlens_(cu_seqlens) {
    const int64_t seqs = cu_seqlens.size() - 1;
    require(seqs >= 0 && cu_seqlens.data()[0] == 0 && cu_seqlens.data()[seqs] == tokens,
            "cu_seqlens must run from 0 to tokens");
    require(!attended || attended->size() == seqs, "attended must be (seqs,)");
    sequences_.seqs = seqs;
    for (int64_t s = 0; s < seqs; ++s) {
      const int64_t length = cu_seqlens.data()[s + 1] - cu_seqlens.data()[s];
      require(length >= 0, "cu_seqlens must not fall");
      require(!attended || (attended->data()[s] >= 0 && attended->data()[s] <= length),
              "attended must be from 0 to the sequence's length");
      sequences_.longest = std::max(sequences_.longest, length);
    }
    if (attended) attended_.emplace(*attended);
    sequences_.cu_seqlens = cu_seqlens_.as<int32_t>();
    sequences_.attended = attended_ ? attended_->as<int32_t>() : nullptr;
  }
  const cuda::Sequences& get() const { return sequences_; }

 private:
  DeviceArray cu_seqlens_;
  std::optional<DeviceArray> attended_;
  cuda::Sequences sequences_;
};

// A shape, and its bias by distance, (heads, 2 * reach - 1), on the device.
class DeviceAttention {
 public:
  DeviceAttention(const DeviceMatrix& qkv, int64_t heads, double scale,
                  const std::optional<FloatArray>& bias, const cuda::Sequences& sequences) {
    require(heads > 0 && qkv.cols() % (3 * heads) == 0,
            "qkv must be (tokens, 3 * heads * head_dim)");
    attention_ = {heads, qkv.cols() / 3 / heads, static_cast<float>(scale)};
    if (!bias) return;
    require(bias->ndim() == 2 && bias->shape(0) == heads && bias->shape(1) % 2 == 1 &&
                sequences.longest <= (bias->shape(1) + 1) / 2,
            "bias must be (heads, 2 * reach - 1) and reach all keys");
    bias_.emplace(*bias);
    attention_.distance_bias = bias_->as<float>() + bias->shape(1) / 2;
    attention_.distance_stride = bias->shape(1);
  }
  const Attention& get() const { return attention_; }

 private:
  std::optional<DeviceArray> bias_;
  Attention attention_;
};

// The attention that layers take, or, named "hopper", that of Hopper's instructions.
auto parse_attention(const std::optional<std::string>& kernel) {
  require(!kernel || *kernel == "hopper", "kernel must be hopper, if given");
  return kernel ? cuda::hopper::attention : cuda::attention;
}

py::array attention(const std::string& element_name, const py::array& qkv,
                    const IntArray& cu_seqlens, int64_t heads, double scale,
                    const std::optional<IntArray>& attended,
                    const std::optional<py::array>& first_queries,
                    const std::optional<FloatArray>& bias,
                    const std::optional<std::string>& kernel) {
  const cuda::Element element = parse_element(element_name);
  const DeviceMatrix rows(qkv, element);
  const DeviceSequences sequences(cu_seqlens, attended, rows.count());
  const DeviceAttention shape(rows, heads, scale, bias, sequences.get());
  std::optional<DeviceMatrix> queries;
  if (first_queries) {
    queries.emplace(*first_queries, element);
    require(queries->count() == sequences.get().seqs && queries->cols() == rows.cols() / 3,
            "first_queries must be (seqs, heads * head_dim)");
  }
  const DeviceMatrix out(queries ? sequences.get().seqs : rows.count(), rows.cols() / 3, element);
  const auto run = parse_attention(kernel);
  run(shape.get(), sequences.get(), rows.rows(),
      queries ? cuda::ConstDeviceRows(queries->rows()) : cuda::ConstDeviceRows(), out.rows(),
      nullptr);
  return out.download();
}

// Seconds of attention alone, as linear_seconds has those of a product.
double attention_seconds(const std::string& element_name, const py::array& qkv,
                         const IntArray& cu_seqlens, int64_t heads, double scale,
                         const std::optional<std::string>& kernel, int64_t repeats) {
  const cuda::Element element = parse_element(element_name);
  const DeviceMatrix rows(qkv, element);
  const DeviceSequences sequences(cu_seqlens, std::nullopt, rows.count());
  const DeviceAttention shape(rows, heads, scale, std::nullopt, sequences.get());
  const DeviceMatrix out(rows.count(), rows.cols() / 3, element);
  const auto run = parse_attention(kernel);
  return seconds_of(repeats, [&](cudaStream_t stream) {
    run(shape.get(), sequences.get(), rows.rows(), {}, out.rows(), stream);
  });
}

py::array attention_weights(const std::string& element_name, const py::array& qkv,
                            const IntArray& cu_seqlens, int64_t heads, double scale,
                            const std::optional<IntArray>& attended,
                            const std::optional<FloatArray>& bias) {
  const DeviceMatrix rows(qkv, parse_element(element_name));
  const DeviceSequences sequences(cu_seqlens, attended, rows.count());
  const DeviceAttention shape(rows, heads, scale, bias, sequences.get());
  const int64_t seqs = sequences.get().seqs;
  py::array_t<int64_t> cu_pairs(seqs + 1);
  cu_pairs.mutable_data()[0] = 0;
  for (int64_t s = 0; s < seqs; ++s) {
    const int64_t length = cu_seqlens.data()[s + 1] - cu_seqlens.data()[s];
    cu_pairs.mutable_data()[s + 1] = cu_pairs.data()[s] + length * length;
  }
  const DeviceArray on_cu_pairs(cu_pairs);
  const DeviceMatrix out(cu_pairs.data()[seqs], heads, cuda::Element::kFp32);
  cuda::attention_weights(shape.get(), sequences.get(), on_cu_pairs.as<int64_t>(), rows.rows(),
                          out.rows(), nullptr);
  return out.download();
}

}  // namespace

void bind_cuda_products(py::module_& kernels) {
  kernels.def("linear", &linear, py::arg("element"), py::arg("x"), py::arg("weight"),
              py::arg("bias") = py::none(), py::arg("activation") = "none",
              py::arg("residual") = py::none(), py::arg("into") = py::none(),
              py::arg("first_column") = 0, py::arg("residual_in_place") = false,
              py::arg("tiles") = py::none());
  kernels.def("choose_tiles", &choose_tiles, py::arg("element"), py::arg("rows"),
              py::arg("outputs"), py::arg("inputs"), py::arg("multiprocessors"));
  kernels.def("quantise_rows", &quantise_rows, py::arg("x"), py::arg("bits") = "int8");
  kernels.def("e4m3_of", &e4m3_of, py::arg("x"));
  const auto bind_8_bits = [&](const char* name, auto function) {
    kernels.def(name, function, py::arg("x"), py::arg("weight"), py::arg("scale"),
                py::arg("bias") = py::none(), py::arg("activation") = "none",
                py::arg("residual") = py::none(), py::arg("tiles") = "small",
                py::arg("first_output") = 0);
  };
  bind_8_bits("linear_s8", &linear_8_bits<int8_t>);
  bind_8_bits("linear_e4m3", &linear_8_bits<uint8_t>);
  kernels.def("linear_seconds", &linear_seconds, py::arg("element"), py::arg("x"),
              py::arg("weight"), py::arg("tiles") = py::none(), py::arg("repeats") = 20);
  kernels.def("linear_e4m3_seconds", &linear_e4m3_seconds, py::arg("x"), py::arg("weight"),
              py::arg("tiles") = py::none(), py::arg("repeats") = 20);
  kernels.def("attention", &attention, py::arg("element"), py::arg("qkv"), py::arg("cu_seqlens"),
              py::arg("heads"), py::arg("scale"), py::arg("attended") = py::none(),
              py::arg("first_queries") = py::none(), py::arg("bias") = py::none(),
              py::arg("kernel") = py::none());
  kernels.def("attention_seconds", &attention_seconds, py::arg("element"), py::arg("qkv"),
              py::arg("cu_seqlens"), py::arg("heads"), py::arg("scale"),
              py::arg("kernel") = py::none(), py::arg("repeats") = 20);
  kernels.def("attention_weights", &attention_weights, py::arg("element"), py::arg("qkv"),
              py::arg("cu_seqlens"), py::arg("heads"), py::arg("scale"),
              py::arg("attended") = py::none(), py::arg("bias") = py::none());
}

}  // namespace bertrt::bindings
