#include "bindings/inputs.h"

#include <map>
#include <memory>
#include <mutex>

#include <pybind11/stl.h>

#include "core/error.h"

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

// Gives arrays that nobody reads any more back to Python. Without the GIL, several at a time:
// whoever has it may keep it for milliseconds.
class Returns {
 public:
  Returns() = default;
  Returns(const Returns&) = delete;
  Returns& operator=(const Returns&) = delete;
  ~Returns() { give_back(); }

  // Takes over an owned reference.
  std::shared_ptr<const void> own(PyObject* array, size_t bytes,
                                  const std::shared_ptr<Returns>& self) {
    return {array, [self, bytes](const void* pointer) {
              self->add(static_cast<PyObject*>(const_cast<void*>(pointer)), bytes);
            }};
  }

  void give_back() {
    std::vector<PyObject*> arrays;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      arrays.swap(arrays_);
      bytes_ = 0;
    }
    if (arrays.empty()) return;
    const py::gil_scoped_acquire acquire;
    for (PyObject* array : arrays) Py_DECREF(array);
  }

 private:
  static constexpr size_t kBytes = size_t{16} << 20;

  void add(PyObject* array, size_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      arrays_.push_back(array);
      bytes_ += bytes;
      if (bytes_ < kBytes && !PyGILState_Check()) return;
    }
    give_back();
  }

  std::mutex mutex_;
  std::vector<PyObject*> arrays_;
  size_t bytes_ = 0;
};

struct Source {
  const py::dict& arrays;
  const py::object& fetch;
  std::shared_ptr<Returns> returns = std::make_shared<Returns>();
};

// The dtype that an array has, or will have when it has been fetched.
std::optional<Storage> storage_of(const py::dtype& dtype) {
  if (dtype.equal(py::dtype::of<float>())) return Storage::kFloat32;
  // numpy has no bfloat16: its bits come as uint16.
  if (dtype.equal(py::dtype::of<uint16_t>())) return Storage::kBfloat16;
  if (dtype.equal(py::dtype::of<int8_t>())) return Storage::kInt8;
  return std::nullopt;
}

bool is_plain(const py::array& array) { return (array.flags() & py::array::c_style) != 0; }

plan::Weight weight(const Source& source, const std::string& name) {
  const py::dict& arrays = source.arrays;
  if (!arrays.contains(name.c_str())) throw PlanError("plan: weight '" + name + "' was not given");
  const py::object object = arrays[name.c_str()];
  plan::Weight weight;
  weight.name = name;
  weight.identity = object.ptr();
  std::optional<Storage> storage;
  if (py::isinstance<py::array>(object)) {
    const auto array = py::reinterpret_borrow<py::array>(object);
    if (is_plain(array)) storage = storage_of(array.dtype());
    weight.shape.assign(array.shape(), array.shape() + array.ndim());
    weight.data = array.data();
    weight.owner = source.returns->own(py::object(object).release().ptr(),
                                       static_cast<size_t>(array.nbytes()), source.returns);
  } else if (!source.fetch.is_none() && py::hasattr(object, "dtype")) {
    storage = storage_of(py::dtype::from_args(object.attr("dtype")));
    weight.shape = object.attr("shape").cast<std::vector<int64_t>>();
  }
  if (!storage) {
    throw PlanError("plan: weight '" + name +
                    "' is not a C-contiguous array of float32, uint16 (bfloat16) or int8");
  }
  weight.storage = *storage;
  return weight;
}

void fetch(const py::object& fetch, const std::shared_ptr<Returns>& returns,
           const std::vector<const plan::Weight*>& weights) {
  const py::gil_scoped_acquire acquire;
  returns->give_back();  // what is read next may have the memory
  if (weights.empty()) return;
  py::list wanted;
  for (const plan::Weight* weight : weights) {
    wanted.append(py::reinterpret_borrow<py::object>(
        static_cast<PyObject*>(const_cast<void*>(weight->identity))));
  }
  const py::sequence found = fetch(wanted);
  for (size_t i = 0; i < weights.size(); ++i) {
    const plan::Weight& weight = *weights[i];
    py::object object = found[i];
    const auto array = py::reinterpret_borrow<py::array>(object);
    if (!py::isinstance<py::array>(object) || !is_plain(array) ||
        storage_of(array.dtype()) != weight.storage ||
        weight.shape != std::vector<int64_t>(array.shape(), array.shape() + array.ndim())) {
      throw PlanError("plan: weight '" + weight.name + "' was read as another array");
    }
    weight.data = array.data();
    const auto bytes = static_cast<size_t>(array.nbytes());
    weight.owner = returns->own(object.release().ptr(), bytes, returns);
  }
}

plan::Step step(const py::dict& dict, const Source& source) {
  plan::Step step;
  step.name = field<std::string>(dict, "name", "a step");
  const std::string where = "step '" + step.name + "'";
  step.op = plan::parse_op(field<std::string>(dict, "op", where));
  step.inputs = field<std::vector<std::string>>(dict, "inputs", where);
  step.output = field<std::string>(dict, "output", where);
  using Roles = std::map<std::string, std::vector<std::string>>;
  if (dict.contains("weights")) {
    for (const auto& [role, names] : field<Roles>(dict, "weights", where)) {
      for (const std::string& name : names) step.weights[role].push_back(weight(source, name));
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
  if (dict.contains("precision")) {
    step.precision = plan::parse_precision(field<std::string>(dict, "precision", where));
  }
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

PackedBatch read_batch(const BatchArrays& arrays) {
  const auto& [token_ids, token_types, cu_seqlens, masked_positions, attended] = arrays;
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
  if (batch.cu_seqlens[batch.seqs] != token_ids.size() || token_types.size() != token_ids.size()) {
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
  return batch;
}

}  // namespace

plan::Plan read_plan(const py::dict& dict, const py::dict& arrays, const py::object& fetcher) {
  const Source source{arrays, fetcher};
  plan::Plan plan;
  plan.version = field<int64_t>(dict, "version", "the plan");
  const auto architecture = field<py::dict>(dict, "architecture", "the plan");
  plan.hidden = field<int64_t>(architecture, "hidden", "the architecture");
  plan.vocab_size = field<int64_t>(architecture, "vocab_size", "the architecture");
  plan.type_vocab_size = field<int64_t>(architecture, "type_vocab_size", "the architecture");
  plan.max_length = field<int64_t>(architecture, "max_length", "the architecture");
  for (const auto& item : field<std::vector<py::dict>>(dict, "steps", "the plan")) {
    plan.steps.push_back(step(item, source));
  }
  for (const auto& [name, value] : field<py::dict>(dict, "outputs", "the plan")) {
    plan.outputs.emplace_back(py::str(name), py::str(value));
  }
  plan.load = [fetcher, returns = source.returns](const auto& weights) {
    fetch(fetcher, returns, weights);
  };
  return plan;
}

py::dict run_packed(const Graph& graph, const BatchArrays& arrays,
                    const std::vector<std::string>& outputs, const Runner& run) {
  const PackedBatch batch = read_batch(arrays);
  py::dict results;
  std::vector<Output> destinations;
  for (const std::string& name : outputs) {
    if (results.contains(name.c_str())) continue;
    const int value = graph.output_value(name);
    FloatArray array({graph.rows(value, batch), graph.values[value].cols});
    destinations.push_back({name, array.mutable_data()});
    results[name.c_str()] = std::move(array);
  }
  {
    py::gil_scoped_release release;
    run(batch, destinations);
  }
  return results;
}

std::vector<py::tuple> step_tuples(const std::vector<StepTrace>& steps) {
  std::vector<py::tuple> tuples;
  for (const StepTrace& s : steps) {
    tuples.push_back(py::make_tuple(s.name, s.kernel, s.seconds, s.operations, s.bytes));
  }
  return tuples;
}

void translate_errors() {
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    const auto raise = [](const char* type, const char* message) {
      const py::object cls = py::module_::import("bertrt.errors").attr(type);
      PyErr_SetString(cls.ptr(), message);
    };
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const PlanError& error) {
      raise("ModelFormatError", error.what());
    } catch (const BatchError& error) {
      raise("InvalidInputError", error.what());
    } catch (const DeviceError& error) {
      raise("DeviceError", error.what());
    }
  });
}

}  // namespace bertrt::bindings
