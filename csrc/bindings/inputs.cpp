#include "bindings/inputs.h"

#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <type_traits>

#include <pybind11/stl.h>

#include "bindings/without_gil.h"
#include "core/error.h"

namespace py = pybind11;

namespace bertrt::bindings {
namespace {

// A field of a plan's dictionary, as the C++ type. A field that is missing or of another type is an
// error that names it.
template <class Value>
Value field(const py::dict& dict, const char* name, const std::string& where) {
  if (!dict.contains(name)) throw PlanError("plan: " + where + " has no field '" + name + "'");
  const py::object object = dict[name];
  // JSON's own types, as bertrt/plan/check.py takes them: true is no number, 1 no float.
  const bool good = std::is_same_v<Value, double>        ? PyFloat_CheckExact(object.ptr())
                    : std::is_same_v<Value, int64_t>     ? PyLong_CheckExact(object.ptr())
                    : std::is_same_v<Value, bool>        ? PyBool_Check(object.ptr())
                    : std::is_same_v<Value, std::string> ? PyUnicode_Check(object.ptr())
                                                         : true;
  try {
    if (good) return object.cast<Value>();
  } catch (const py::cast_error&) {
  }
  throw PlanError("plan: field '" + std::string(name) + "' of " + where + " is " +
                  std::string(py::repr(object)) + ", which has the wrong type");
}

// A key or a value of a dictionary that names something.
std::string name_in(py::handle object, const std::string& where) {
  try {
    if (PyUnicode_Check(object.ptr())) return object.cast<std::string>();
  } catch (const py::cast_error&) {  // half a surrogate pair
  }
  throw PlanError("plan: " + where + " has " + std::string(py::repr(object)) + ", expected a name");
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
    const WithGil here;
    // Whoever asked to be told of their end may run Python code.
    or_stay([&] {
      for (PyObject* array : arrays) Py_DECREF(array);
    });
  }

 private:
  static constexpr size_t kBytes = size_t{16} << 20;

  // Throws nothing: it is a deleter's.
  void add(PyObject* array, size_t bytes) {
    try {
      const std::lock_guard<std::mutex> lock(mutex_);
      arrays_.push_back(array);
      bytes_ += bytes;
      if (bytes_ < kBytes && !PyGILState_Check()) return;
    } catch (const std::bad_alloc&) {  // no room to remember it in
      const WithGil here;
      or_stay([&] { Py_DECREF(array); });
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
  // Nor has it e4m3.
  if (dtype.equal(py::dtype::of<uint8_t>())) return Storage::kFp8;
  return std::nullopt;
}

bool is_plain(const py::array& array) { return (array.flags() & py::array::c_style) != 0; }

plan::Weight weight(const Source& source, const std::string& name) {
  const py::dict& arrays = source.arrays;
  const py::str key(name);  // as long as it is: a name may hold a zero
  if (!arrays.contains(key)) throw PlanError("plan: weight '" + name + "' was not given");
  const py::object object = arrays[key];
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
    throw PlanError(
        "plan: weight '" + name +
        "' is not a C-contiguous array of float32, uint16 (bfloat16), int8 or uint8 (e4m3)");
  }
  weight.storage = *storage;
  return weight;
}

void fetch(const py::object& fetch, const std::shared_ptr<Returns>& returns,
           const std::vector<const plan::Weight*>& weights) {
  const WithGil here;
  returns->give_back();  // what is read next may have the memory
  if (weights.empty()) return;
  py::list wanted;
  for (const plan::Weight* weight : weights) {
    wanted.append(py::reinterpret_borrow<py::object>(
        static_cast<PyObject*>(const_cast<void*>(weight->identity))));
  }
  const py::sequence found = call(fetch, wanted);
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
  for (const auto& [role, names] : field<Roles>(dict, "weights", where)) {
    std::vector<plan::Weight>& arrays = step.weights[role];
    for (const std::string& name : names) arrays.push_back(weight(source, name));
  }
  for (const auto& entry : dict) {
    const std::string name = name_in(entry.first, where);
    const bool common =
        name == "op" || name == "name" || name == "inputs" || name == "output" || name == "weights";
    if (!common) step.fields.insert(name);
  }
  const auto optional = [&](const char* name, auto& target) {
    using Value = std::decay_t<decltype(target)>;
    if (dict.contains(name)) target = field<Value>(dict, name, where);
  };
  optional("eps", step.eps);
  optional("heads", step.heads);
  optional("head_dim", step.head_dim);
  optional("scale", step.scale);
  optional("mask", step.mask);
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

// A table: pybind11's cast would make one of a list of pairs, and say what it cannot in words of
// Python's.
template <>
py::dict field<py::dict>(const py::dict& dict, const char* name, const std::string& where) {
  const py::object object =
      dict.contains(name) ? py::object(dict[name]) : py::reinterpret_borrow<py::object>(Py_None);
  if (!py::isinstance<py::dict>(object)) {
    throw PlanError("plan: field '" + std::string(name) + "' of " + where + " is no table");
  }
  return py::reinterpret_borrow<py::dict>(object);
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
    plan.outputs.emplace_back(name_in(name, "outputs"), name_in(value, "outputs"));
  }
  plan.load = [fetcher, returns = source.returns](const auto& weights) {
    fetch(fetcher, returns, weights);
  };
  return plan;
}

namespace {

FloatArray new_array(int64_t rows, int64_t cols) {
  try {
    return FloatArray({rows, cols});
  } catch (const py::error_already_set&) {  // of numpy: no memory, or more than can be counted
    throw std::bad_alloc();
  }
}

}  // namespace

py::dict run_packed(const Graph& graph, const BatchArrays& arrays,
                    const std::vector<std::string>& outputs, const Runner& run) {
  const PackedBatch batch = read_batch(arrays);
  graph.check(batch, outputs);
  py::dict results;
  std::vector<Output> destinations;
  for (const std::string& name : outputs) {
    const py::str key(name);
    if (results.contains(key)) continue;
    const int value = graph.output_value(name);
    FloatArray array = new_array(graph.rows(value, batch), graph.values[value].cols);
    destinations.push_back({name, array.mutable_data()});
    results[key] = std::move(array);
  }
  {
    WithoutGil here;
    run(batch, destinations, [&here] { here.check_signals(); });
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
    } catch (const std::bad_alloc&) {
      raise("OutOfMemoryError",
            "the memory of this machine does not suffice for so large a model, "
            "or so large a batch: nothing of it was kept");
    } catch (const std::length_error&) {  // a std::vector of more than can be
      raise("OutOfMemoryError", "no machine has the memory for so large a model or batch");
    }
  });
}

}  // namespace bertrt::bindings
