#include "runtime/engine.h"

#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/inputs.h"
#include "bindings/without_gil.h"

namespace py = pybind11;

namespace bertrt::bindings {
namespace {

// pybind11 holds what engines share.
struct PyModel {
  std::shared_ptr<const Model> model;
};

class PyEngine {
 public:
  PyEngine(const PyModel& model, int threads, bool trace) : engine_(model.model, threads, trace) {}

  py::dict run(const IntArray& token_ids, const IntArray& token_types, const IntArray& cu_seqlens,
               const std::optional<IntArray>& masked_positions,
               const std::vector<std::string>& outputs, const std::optional<IntArray>& attended) {
    return run_packed(engine_.graph(),
                      {token_ids, token_types, cu_seqlens, masked_positions, attended}, outputs,
                      [this](const PackedBatch& batch, const std::vector<Output>& wanted,
                             const std::function<void()>& between_steps) {
                        engine_.run(batch, wanted, between_steps);
                      });
  }

  int threads() const { return engine_.threads(); }
  std::string isa() const { return engine_.device_name(); }

  std::vector<py::tuple> steps() const { return step_tuples(engine_.steps()); }

 private:
  Engine engine_;
};

}  // namespace

void bind_engine(py::module_& module) {
  module.attr("MAX_THREADS") = kMaxThreads;
  py::class_<PyModel>(module, "Model", R"(A plan with its weights packed for this CPU.

plan: the dictionary of plan.json. weights: C-contiguous arrays by weight name, float32, or as the
plan's steps state int8 or uint16 (bfloat16). precision: "fp32", "bf16" or "int8", for the products
of token rows in steps that state none. threads: to pack on. fetch: a function from a list of what
stands in `weights` in the place of arrays, and has their dtype and shape, to the arrays; it is
called step by step, and each array goes when it has been packed. Tables of embeddings and of
distances are not packed: the model goes on reading the arrays. Nobody may write to them. Releases
the GIL but for these calls.
Raises bertrt.ModelFormatError for an inconsistent plan, bertrt.DeviceError if BERTRT_ISA names
an instruction set that cannot be used, and bertrt.OutOfMemoryError.)")
      .def(py::init([](const py::dict& plan, const py::dict& weights, const std::string& precision,
                       int threads, const py::object& fetch) {
             const plan::Plan read = read_plan(plan, weights, fetch);
             const Precision parsed = plan::parse_precision(precision);
             const WithoutGil here;
             PyModel model{std::make_shared<Model>(read, parsed, threads)};
             read.load({});  // what was packed last goes too
             return model;
           }),
           py::arg("plan"), py::arg("weights"), py::arg("precision") = "fp32",
           py::arg("threads") = 1, py::arg("fetch") = py::none());
  py::class_<PyEngine>(module, "Engine", R"(Runs a Model on threads of its own.

Engines of one Model share its packed weights. Where the system gives fewer threads than asked for, the
engine runs on those, and `threads` says how many they are. Raises bertrt.DeviceError for a number of
threads outside 1 to MAX_THREADS.)")
      .def(py::init<const PyModel&, int, bool>(), py::arg("model"), py::arg("threads"),
           py::arg("trace") = false, py::keep_alive<1, 2>())
      .def("run", &PyEngine::run, py::arg("token_ids").noconvert(),
           py::arg("token_types").noconvert(), py::arg("cu_seqlens").noconvert(),
           py::arg("masked_positions").none(true), py::arg("outputs"),
           py::arg("attended").none(true) = py::none(),
           R"(Runs a packed batch and returns float32 arrays (rows, columns) by output name.

token_ids, token_types: int32 (tokens,). cu_seqlens: int32 (sequences + 1,). masked_positions: int32
(sequences, positions) or None. attended: int32 (sequences,), how many tokens of each are attended
to, the rest being padding; None: all. Releases the GIL; may be called from several threads. Between
steps Python's signal handlers run, and an exception of theirs ends the run.
Raises bertrt.InvalidInputError if the batch does not fit the plan, and bertrt.OutOfMemoryError where
memory does not suffice, after which the engine runs what does fit.)")
      .def_property_readonly("threads", &PyEngine::threads)
      .def_property_readonly("isa", &PyEngine::isa)
      .def("steps", &PyEngine::steps,
           R"((name, kernel, seconds, operations, bytes) of every step.

What was done since loading; the numbers are zero unless tracing is on. operations: additions and
multiplications of matrix products. bytes: what has to move at least, a product's packed weights or
the rows that another step reads and writes.)");
}

}  // namespace bertrt::bindings
