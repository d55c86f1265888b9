#include "cuda/engine.h"

#include <pybind11/stl.h>

#include "bindings/cuda.h"
#include "bindings/inputs.h"
#include "bindings/without_gil.h"

namespace py = pybind11;

namespace bertrt::bindings {
namespace {

// pybind11 holds what engines share.
struct PyModel {
  std::shared_ptr<const cuda::Model> model;
};

class PyEngine {
 public:
  PyEngine(const PyModel& model, bool trace, bool graphs, int64_t part_tokens)
      : engine_(model.model, trace, graphs, part_tokens) {}

  py::dict run(const IntArray& token_ids, const IntArray& token_types, const IntArray& cu_seqlens,
               const std::optional<IntArray>& masked_positions,
               const std::vector<std::string>& outputs, const std::optional<IntArray>& attended) {
    return run_packed(engine_.graph(),
                      {token_ids, token_types, cu_seqlens, masked_positions, attended}, outputs,
                      [this](const PackedBatch& batch, const std::vector<Output>& wanted,
                             const std::function<void()>&) { engine_.run(batch, wanted); });
  }

  const cuda::Device& device() const { return engine_.device(); }
  int64_t part_tokens() const { return engine_.part_tokens(); }
  std::vector<py::tuple> steps() const { return step_tuples(engine_.steps()); }
  py::dict launches() const {
    const cuda::Engine::Launches launches = engine_.launches();
    py::dict found;
    found["parts"] = launches.parts;
    found["captured"] = launches.captured;
    found["by_graph"] = launches.by_graph;
    found["overlap"] = launches.overlap;
    found["no_graphs"] = launches.no_graphs;
    return found;
  }

 private:
  cuda::Engine engine_;
};

}  // namespace

void bind_cuda_engine(py::module_& module) {
  module.attr("VERSION") = BERTRT_VERSION;
  // Each module's own: a process may load the one for GPUs beside the emulator's.
  py::class_<cuda::Device>(module, "Device", py::module_local(),
                           "A GPU: what it is, and what it has.")
      .def_readonly("number", &cuda::Device::number)
      .def_readonly("name", &cuda::Device::name)
      .def_property_readonly("arch", &cuda::Device::arch)
      .def_readonly("multiprocessors", &cuda::Device::multiprocessors)
      .def_readonly("memory", &cuda::Device::memory, "Bytes.");
  module.def("devices", &cuda::devices, R"(The GPUs of this machine.

Raises bertrt.DeviceError that says which of driver and device is missing.)");
  module.def("free_memory", &cuda::free_memory, py::arg("device") = 0,
             "Bytes of a GPU's memory that nobody uses.");
  py::class_<PyModel>(module, "Model", py::module_local(), R"(A plan with its weights on a GPU.

plan, weights, fetch: as for bertrt._native.Model; the weights are copied. precision: "fp32",
"fp16", "bf16", "int8" or "fp8"; a plan that states the precision of its steps runs in "int8" or
"fp8". device: the GPU's number.
Raises bertrt.ModelFormatError for an inconsistent plan and bertrt.DeviceError if the GPU cannot be
used or has too little memory.)")
      .def(py::init([](const py::dict& plan, const py::dict& weights, const std::string& precision,
                       int device, const py::object& fetch) {
             const plan::Plan read = read_plan(plan, weights, fetch);
             std::optional<cuda::EightBits> bits;
             if (precision == "int8") bits = cuda::EightBits::kInt8;
             if (precision == "fp8") bits = cuda::EightBits::kFp8;
             const cuda::Element element = parse_element(bits ? "fp16" : precision);
             const WithoutGil here;
             PyModel model{
                 bits ? std::make_shared<cuda::Model>(cuda::Model::in_8_bits(read, *bits, device))
                      : std::make_shared<cuda::Model>(read, element, device)};
             read.load({});  // what was copied last goes too
             return model;
           }),
           py::arg("plan"), py::arg("weights"), py::arg("precision") = "fp32",
           py::arg("device") = 0, py::arg("fetch") = py::none());
  py::class_<PyEngine>(module, "Engine", py::module_local(), R"(Runs a Model on its GPU.

Engines of one Model share its weights. graphs: whether small parts run by CUDA graphs. part_tokens:
a batch runs in parts of whole sequences of at most so many tokens, or of one; 0: what suits the GPU
and the memory that is free on it.)")
      .def(py::init<const PyModel&, bool, bool, int64_t>(), py::arg("model"),
           py::arg("trace") = false, py::arg("graphs") = true, py::arg("part_tokens") = 0,
           py::keep_alive<1, 2>())
      .def("run", &PyEngine::run, py::arg("token_ids").noconvert(),
           py::arg("token_types").noconvert(), py::arg("cu_seqlens").noconvert(),
           py::arg("masked_positions").none(true), py::arg("outputs"),
           py::arg("attended").none(true) = py::none(),
           R"(As bertrt._native.Engine.run; bertrt.DeviceError where memory does not suffice, after
which the engine runs what does fit.)")
      .def_property_readonly("device", &PyEngine::device)
      .def_property_readonly("part_tokens", &PyEngine::part_tokens)
      .def(
          "launches", &PyEngine::launches,
          R"(How parts of batches were launched since loading: "parts", in all; "by_graph", of them by a
CUDA graph; "captured", the graphs that were made; "overlap", whether a kernel starts while the one
before it ends; "no_graphs", why no graphs are made, or no more, or "".)")
      .def("steps", &PyEngine::steps, "As bertrt._native.Engine.steps; the seconds are the GPU's.");
}

}  // namespace bertrt::bindings
