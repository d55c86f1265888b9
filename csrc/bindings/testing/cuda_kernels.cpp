#include "bindings/testing/cuda_kernels.h"

#include <optional>

#include <pybind11/stl.h>

#include "bindings/cuda.h"
#include "bindings/testing/device_arrays.h"

namespace py = pybind11;

namespace bertrt::bindings {
namespace {

// gamma and beta on the device.
class DeviceNorm {
 public:
  DeviceNorm(const FloatArray& gamma, const FloatArray& beta, double eps)
      : gamma_(gamma), beta_(beta) {
    if (gamma.ndim() != 1 || beta.ndim() != 1 || gamma.size() != beta.size()) {
      throw BatchError("gamma and beta must be (hidden,)");
    }
    norm_ = {gamma_.as<float>(), beta_.as<float>(), static_cast<float>(eps), gamma.size()};
  }
  const LayerNorm& norm() const { return norm_; }

 private:
  DeviceArray gamma_, beta_;
  LayerNorm norm_;
};

void require_columns(const DeviceMatrix& x, int64_t cols, const char* message) {
  if (x.cols() != cols) throw BatchError(message);
}

py::array layer_norm(const std::string& element_name, const py::array& x, const FloatArray& gamma,
                     const FloatArray& beta, double eps, const std::optional<py::array>& residual,
                     bool in_place) {
  const cuda::Element element = parse_element(element_name);
  const DeviceMatrix rows(x, element);
  const DeviceNorm norm(gamma, beta, eps);
  require_columns(rows, norm.norm().hidden, "x must have hidden columns");
  std::optional<DeviceMatrix> added;
  if (residual) {
    added.emplace(*residual, element);
    require_columns(*added, rows.cols(), "residual must have the shape of x");
  }
  std::optional<DeviceMatrix> apart;
  if (!in_place) apart.emplace(rows.count(), rows.cols(), element);
  const DeviceMatrix& out = in_place ? rows : *apart;
  cuda::layer_norm(norm.norm(), rows.rows(),
                   added ? cuda::ConstDeviceRows(added->rows()) : cuda::ConstDeviceRows(),
                   rows.count(), out.rows(), nullptr);
  return out.download();
}

py::array embed_layer_norm(const std::string& element_name, const py::array& word,
                           const std::optional<py::array>& type, const py::array& position,
                           const FloatArray& gamma, const FloatArray& beta, double eps,
                           const IntArray& ids, const IntArray& types, const IntArray& positions) {
  const cuda::Element element = parse_element(element_name);
  const DeviceMatrix words(word, element), places(position, element);
  std::optional<DeviceMatrix> kinds;
  if (type) kinds.emplace(*type, element);
  const DeviceNorm norm(gamma, beta, eps);
  require_columns(words, norm.norm().hidden, "word must have hidden columns");
  require_columns(places, norm.norm().hidden, "position must have hidden columns");
  if (ids.size() != types.size() || ids.size() != positions.size()) {
    throw BatchError("ids, types and positions must be of one length");
  }
  const DeviceArray on_ids(ids), on_types(types), on_positions(positions);
  const DeviceMatrix out(ids.size(), norm.norm().hidden, element);
  const cuda::EmbeddingTables tables{
      words.rows(), kinds ? cuda::ConstDeviceRows(kinds->rows()) : cuda::ConstDeviceRows(),
      places.rows()};
  cuda::embed_layer_norm(tables, norm.norm(), on_ids.as<int32_t>(), on_types.as<int32_t>(),
                         on_positions.as<int32_t>(), ids.size(), out.rows(), nullptr);
  return out.download();
}

py::array gather_rows(const std::string& element_name, const py::array& x,
                      const std::optional<IntArray>& index, const std::string& out_element,
                      std::optional<int64_t> stride) {
  const DeviceMatrix rows(x, parse_element(element_name));
  const cuda::Element element = parse_element(out_element);
  std::optional<DeviceArray> on_index;
  if (index) on_index.emplace(*index);
  const DeviceMatrix out(index ? index->size() : rows.count(), rows.cols(), element,
                         stride.value_or(cuda::row_stride(rows.cols(), element)));
  cuda::gather_rows(rows.rows(), on_index ? on_index->as<int32_t>() : nullptr, out.count(),
                    out.cols(), out.rows(), nullptr);
  return out.download();
}

}  // namespace

void bind_cuda_kernels(py::module_& module) {
  auto kernels = module.def_submodule(
      "kernels",
      "Single CUDA kernels. element: fp32 (arrays of float32), fp16 or bf16 (their bits, uint16).");
  kernels.def("layer_norm", &layer_norm, py::arg("element"), py::arg("x"), py::arg("gamma"),
              py::arg("beta"), py::arg("eps"), py::arg("residual") = py::none(),
              py::arg("in_place") = false);
  kernels.def("embed_layer_norm", &embed_layer_norm, py::arg("element"), py::arg("word"),
              py::arg("type").none(true), py::arg("position"), py::arg("gamma"), py::arg("beta"),
              py::arg("eps"), py::arg("ids"), py::arg("types"), py::arg("positions"));
  kernels.def("gather_rows", &gather_rows, py::arg("element"), py::arg("x"),
              py::arg("index") = py::none(), py::arg("out_element") = "fp32",
              py::arg("stride") = py::none());
  bind_cuda_products(kernels);
}

}  // namespace bertrt::bindings
