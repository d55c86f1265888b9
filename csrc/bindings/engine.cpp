#include "runtime/engine.h"

#include <optional>
#include <set>

#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "core/error.h"
#include "plan/plan.h"

namespace py = pybind11;

namespace bertrt::bindings {
namespace {

// A field of a plan's dictionary, as the C++ type. A field that is missing or of another type is an
// error that names it.
template <class Value>
Value field(const py::dict& dict, const char* name, const std::string& where) {
  if (!dict.contains(name)) throw PlanError("plan: " + where + " has no field '" + name + "'");
  try {
    return dict[name].cast<Value>();
  } catch (const py::cast_error&) {
    throw PlanError("plan: field '" + std::string(name) + "' of " + where + " is " +
                    std::string(py::repr(dict[name])) + ", which has the wrong type");
  }
}

struct Weights {
  py::dict arrays;
  std::set<std::string> mapped;
};

plan::Weight weight(const Weights& weights, const std::string& name) {
  const py::dict& arrays = weights.arrays;
  if (!arrays.contains(name.c_str())) throw PlanError("plan: weight '" + name + "' was not given");
  const py::object object = arrays[name.c_str()];
  if (!py::isinstance<FloatArray>(object)) {
    throw PlanError("plan: weight '" + name + "' is not a C-contiguous float32 array");
  }
  const auto array = py::reinterpret_borrow<FloatArray>(object);
  return {name,
          array.data(),
          {array.shape(), array.shape() + array.ndim()},
          weights.mapped.count(name) != 0};
}

plan::Step step(const py::dict& dict, const Weights& weights) {
  plan::Step step;
  step.name = field<std::string>(dict, "name", "a step");
  const std::string where = "step '" + step.name + "'";
  step.op = plan::parse_op(field<std::string>(dict, "op", where));
  step.inputs = field<std::vector<std::string>>(dict, "inputs", where);
  step.output = field<std::string>(dict, "output", where);
  using Roles = std::map<std::string, std::vector<std::string>>;
  if (dict.contains("weights")) {
    for (const auto& [role, names] : field<Roles>(dict, "weights", where)) {
      for (const std::string& name : names) step.weights[role].push_back(weight(weights, name));
    }
  }
  const auto optional = [&](const char* name, auto& target) {
    using Value = std::decay_t<decltype(target)>;
    if (dict.contains(name)) target = field<Value>(dict, name, where);
  };
  optional("eps", step.eps);
  optional("heads", step.heads);
  optional("head_dim", step.head_dim);
  optional("scale", step.scale);
  optional("transposed", step.transposed);
  if (dict.contains("activation")) {
    step.activation = plan::parse_activation(field<std::string>(dict, "activation", where));
  }
  if (dict.contains("weight_layout")) {
    step.weight_layout = plan::parse_layout(field<std::string>(dict, "weight_layout", where));
  }
  if (dict.contains("bias_layout")) {
    step.bias_layout = plan::parse_layout(field<std::string>(dict, "bias_layout", where));
  }
  return step;
}

plan::Plan read_plan(const py::dict& dict, const Weights& weights) {
  plan::Plan plan;
  plan.version = field<int64_t>(dict, "version", "the plan");
  const auto architecture = field<py::dict>(dict, "architecture", "the plan");
  plan.hidden = field<int64_t>(architecture, "hidden", "the architecture");
  plan.vocab_size = field<int64_t>(architecture, "vocab_size", "the architecture");
  plan.type_vocab_size = field<int64_t>(architecture, "type_vocab_size", "the architecture");
  plan.max_length = field<int64_t>(architecture, "max_length", "the architecture");
  for (const auto& item : field<std::vector<py::dict>>(dict, "steps", "the plan")) {
    plan.steps.push_back(step(item, weights));
  }
  for (const auto& [name, value] : field<py::dict>(dict, "outputs", "the plan")) {
    plan.outputs.emplace_back(py::str(name), py::str(value));
  }
  return plan;
}

// A model, and the arrays that it goes on reading: its embedding tables.
class PyModel {
 public:
  PyModel(const py::dict& plan, const Weights& weights, const std::string& precision, int threads)
      : model(std::make_shared<Model>(read_plan(plan, weights), plan::parse_precision(precision),
                                      threads)),
        tables_(embedding_tables(plan, weights.arrays)) {}

  const std::shared_ptr<const Model> model;

 private:
  static py::list embedding_tables(const py::dict& plan, const py::dict& arrays) {
    py::list tables;
    for (const auto& item : plan["steps"]) {
      if (item["op"].cast<std::string>() != "embed_layer_norm") continue;
      for (const char* role : {"word", "type", "position"}) {
        const py::dict roles = item["weights"];
        if (roles.contains(role)) tables.append(arrays[roles[role][py::int_(0)]]);
      }
    }
    return tables;
  }

  py::list tables_;
};

class PyEngine {
 public:
  PyEngine(const PyModel& model, int threads, bool trace) : engine_(model.model, threads, trace) {}

  py::dict run(const IntArray& token_ids, const IntArray& token_types, const IntArray& cu_seqlens,
               const std::optional<IntArray>& masked_positions,
               const std::vector<std::string>& outputs, const std::optional<IntArray>& attended) {
    PackedBatch batch;
    batch.token_ids = token_ids.data();
    batch.token_types = token_types.data();
    batch.cu_seqlens = cu_seqlens.data();
    batch.seqs = cu_seqlens.size() - 1;
    if (token_ids.ndim() != 1 || token_types.ndim() != 1 || cu_seqlens.ndim() != 1 ||
        batch.seqs < 1) {
      throw BatchError(
          "token_ids, token_types and cu_seqlens must have one axis, and cu_seqlens "
          "at least two values");
    }
    if (batch.cu_seqlens[batch.seqs] != token_ids.size() ||
        token_types.size() != token_ids.size()) {
      throw BatchError("cu_seqlens ends at " + std::to_string(batch.cu_seqlens[batch.seqs]) +
                       ", but there are " + std::to_string(token_ids.size()) + " token ids and " +
                       std::to_string(token_types.size()) + " token types");
    }
    if (masked_positions) {
      if (masked_positions->ndim() != 2 || masked_positions->shape(0) != batch.seqs) {
        throw BatchError("masked_positions must have shape (sequences, positions)");
      }
      batch.masked_positions = masked_positions->data();
      batch.masked_per_seq = masked_positions->shape(1);
    }
    if (attended) {
      if (attended->ndim() != 1 || attended->size() != batch.seqs) {
        throw BatchError("attended must have shape (sequences,)");
      }
      batch.attended = attended->data();
    }

    py::dict results;
    std::vector<Output> destinations;
    for (const std::string& name : outputs) {
      if (results.contains(name.c_str())) continue;
      FloatArray array({engine_.output_rows(name, batch), engine_.output_cols(name)});
      destinations.push_back({name, array.mutable_data()});
      results[name.c_str()] = std::move(array);
    }
    {
      py::gil_scoped_release release;
      engine_.run(batch, destinations);
    }
    return results;
  }

  int threads() const { return engine_.threads(); }
  std::string isa() const { return engine_.device_name(); }

  std::vector<py::tuple> steps() const {
    std::vector<py::tuple> steps;
    for (const StepTrace& s : engine_.steps()) {
      steps.push_back(py::make_tuple(s.name, s.kernel, s.seconds, s.operations, s.bytes));
    }
    return steps;
  }

 private:
  Engine engine_;
};

}  // namespace

void bind_engine(py::module_& module) {
  module.attr("MAX_THREADS") = kMaxThreads;
  py::class_<PyModel>(module, "Model", R"(A plan with its weights packed for this CPU.

plan: the dictionary of plan.json. weights: float32 C-contiguous arrays by weight name. precision:
"fp32", "bf16" or "int8", for the products of token rows. threads: to pack on. mapped: names of
weights that are views of files mapped into memory for reading, and nothing else: their pages are
handed back to the system when they have been packed.
Raises bertrt.ModelFormatError for an inconsistent plan and bertrt.DeviceError if BERTRT_ISA names
an instruction set that cannot be used.)")
      .def(py::init([](const py::dict& plan, py::dict weights, const std::string& precision,
                       int threads, std::set<std::string> mapped) {
             return std::make_unique<PyModel>(plan, Weights{std::move(weights), std::move(mapped)},
                                              precision, threads);
           }),
           py::arg("plan"), py::arg("weights"), py::arg("precision") = "fp32",
           py::arg("threads") = 1, py::arg("mapped") = std::set<std::string>());
  py::class_<PyEngine>(module, "Engine", R"(Runs a Model on threads of its own.

Engines of one Model share its packed weights. Raises bertrt.DeviceError for a number of threads
that cannot be had.)")
      .def(py::init<const PyModel&, int, bool>(), py::arg("model"), py::arg("threads"),
           py::arg("trace") = false, py::keep_alive<1, 2>())
      .def("run", &PyEngine::run, py::arg("token_ids").noconvert(),
           py::arg("token_types").noconvert(), py::arg("cu_seqlens").noconvert(),
           py::arg("masked_positions").none(true), py::arg("outputs"),
           py::arg("attended").none(true) = py::none(),
           R"(Runs a packed batch and returns float32 arrays (rows, columns) by output name.

token_ids, token_types: int32 (tokens,). cu_seqlens: int32 (sequences + 1,). masked_positions: int32
(sequences, positions) or None. attended: int32 (sequences,), how many tokens of each are attended
to, the rest being padding; None: all. Releases the GIL; may be called from several threads.
Raises bertrt.InvalidInputError if the batch does not fit the plan.)")
      .def_property_readonly("threads", &PyEngine::threads)
      .def_property_readonly("isa", &PyEngine::isa)
      .def("steps", &PyEngine::steps,
           R"((name, kernel, seconds, operations, bytes) of every step.

What was done since loading; the numbers are zero unless tracing is on. operations: additions and
multiplications of matrix products. bytes: what has to move at least, a product's packed weights or
the rows that another step reads and writes.)");
}

}  // namespace bertrt::bindings
