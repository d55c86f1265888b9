#include "bindings/testing/kernels.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <optional>
#include <thread>
#include <vector>

#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/without_gil.h"
#include "core/aligned_buffer.h"
#include "core/error.h"
#include "core/float_mode.h"
#include "cpu/cpu_ops.h"
#include "cpu/isa.h"
#include "plan/plan.h"
#include "reference/reference.h"

namespace py = pybind11;

namespace bertrt::bindings {
namespace {

constexpr const char* kReference = "reference";

void require(bool condition, const char* message) {
  if (!condition) throw BatchError(message);
}

const float* data_or_null(const std::optional<FloatArray>& array) {
  return array ? array->data() : nullptr;
}

FloatArray linear(const std::string& isa, const FloatArray& x, const FloatArray& weight,
                  const std::optional<FloatArray>& bias, const std::string& activation_name,
                  int threads, const std::string& precision) {
  require(x.ndim() == 2 && weight.ndim() == 2 && x.shape(1) == weight.shape(1),
          "x must be (rows, inputs) and weight (outputs, inputs)");
  const int64_t rows = x.shape(0), inputs = x.shape(1), outputs = weight.shape(0);
  require(!bias || (bias->ndim() == 1 && bias->shape(0) == outputs), "bias must be (outputs,)");
  const Activation activation = plan::parse_activation(activation_name);
  FloatArray out({rows, outputs});
  if (isa == kReference) {
    reference::linear(x.data(), weight.data(), data_or_null(bias), activation, rows, inputs,
                      outputs, out.mutable_data());
    return out;
  }
  const FloatMode mode;
  ThreadPool pool(threads);
  const auto ops = cpu::make_ops(cpu::table_by_name(isa), pool);
  const WeightBlock block{weight.data(), Storage::kFloat32, nullptr, outputs, inputs,
                          false,         nullptr,           0};
  const Precision parsed = plan::parse_precision(precision);
  if (parsed == Precision::kFp8) throw PlanError("plan: a CPU has no fp8");
  const AlignedBuffer packed(ops->packed_bytes(inputs, outputs, parsed));
  const auto matrix = ops->pack(&block, 1, inputs, outputs, parsed, packed.data());
  const AlignedBuffer operand(static_cast<size_t>(rows * ops->operand_stride(*matrix)));
  if (operand.data()) ops->to_operand({x.data(), inputs}, rows, {matrix.get(), operand.data()});
  Epilogue epilogue;
  epilogue.bias = data_or_null(bias);
  epilogue.activation = activation;
  ops->linear(*matrix, epilogue, {x.data(), inputs}, operand.data(), rows,
              {out.mutable_data(), outputs}, {}, nullptr);
  return out;
}

FloatArray attention(const std::string& isa, const FloatArray& qkv, const IntArray& cu_seqlens,
                     int64_t heads, double scale, int threads, const std::string& precision,
                     const std::optional<FloatArray>& bias) {
  require(qkv.ndim() == 2 && heads > 0 && qkv.shape(1) % (3 * heads) == 0,
          "qkv must be (tokens, 3 * heads * head_dim)");
  const int64_t seqs = cu_seqlens.size() - 1;
  require(seqs >= 0 && cu_seqlens.data()[0] == 0 && cu_seqlens.data()[seqs] == qkv.shape(0),
          "cu_seqlens must run from 0 to tokens");
  for (int64_t s = 0; s < seqs; ++s) {
    require(cu_seqlens.data()[s] <= cu_seqlens.data()[s + 1], "cu_seqlens must not fall");
  }
  require(!bias || (bias->ndim() == 2 && bias->shape(0) == heads && bias->shape(1) % 2 == 1),
          "bias must be (heads, 2 * reach - 1)");
  const int64_t reach = bias ? (bias->shape(1) + 1) / 2 : 0;
  for (int64_t s = 0; bias && s < seqs; ++s) {
    require(cu_seqlens.data()[s + 1] - cu_seqlens.data()[s] <= reach, "bias must reach all keys");
  }
  const int64_t hidden = qkv.shape(1) / 3;
  FloatArray out({int64_t{qkv.shape(0)}, hidden});
  if (isa == kReference) {
    for (int64_t s = 0; s < seqs; ++s) {
      const int64_t first = cu_seqlens.data()[s];
      reference::attention(qkv.data() + first * 3 * hidden, cu_seqlens.data()[s + 1] - first, heads,
                           hidden / heads, scale, data_or_null(bias), reach,
                           out.mutable_data() + first * hidden);
    }
    return out;
  }
  const FloatMode mode;
  ThreadPool pool(threads);
  const auto ops = cpu::make_ops(cpu::table_by_name(isa), pool);
  const Attention shape{heads,
                        hidden / heads,
                        static_cast<float>(scale),
                        plan::parse_precision(precision),
                        bias ? bias->data() + reach - 1 : nullptr,
                        2 * reach - 1};
  PackedBatch batch;
  batch.cu_seqlens = cu_seqlens.data();
  batch.seqs = seqs;
  const AlignedBuffer scratch(static_cast<size_t>(ops->attention_scratch(shape, qkv.shape(0))));
  ops->attention(shape, batch, {qkv.data(), 3 * hidden}, {}, {out.mutable_data(), hidden},
                 scratch.data());
  return out;
}

FloatArray layer_norm(const std::string& isa, const FloatArray& x, const FloatArray& gamma,
                      const FloatArray& beta, double eps,
                      const std::optional<FloatArray>& residual) {
  require(x.ndim() == 2 && gamma.ndim() == 1 && beta.ndim() == 1 && gamma.shape(0) == x.shape(1) &&
              beta.shape(0) == x.shape(1),
          "x must be (rows, hidden), gamma and beta (hidden,)");
  require(!residual || (residual->ndim() == 2 && residual->shape(0) == x.shape(0) &&
                        residual->shape(1) == x.shape(1)),
          "residual must have the shape of x");
  const int64_t rows = x.shape(0), hidden = x.shape(1);
  FloatArray out({rows, hidden});
  if (isa == kReference) {
    reference::layer_norm(x.data(), data_or_null(residual), gamma.data(), beta.data(), eps, rows,
                          hidden, out.mutable_data());
    return out;
  }
  const FloatMode mode;
  const LayerNorm norm{gamma.data(), beta.data(), eps, hidden};
  const cpu::KernelTable& table = cpu::table_by_name(isa);
  for (int64_t r = 0; r < rows; ++r) {
    table.layer_norm_f32(norm, x.data() + r * hidden,
                         residual ? residual->data() + r * hidden : nullptr,
                         out.mutable_data() + r * hidden);
  }
  return out;
}

FloatArray activation(const std::string& isa, const std::string& name, const FloatArray& x) {
  require(x.ndim() == 1, "x must have one axis");
  const Activation kind = plan::parse_activation(name);
  FloatArray out(x.shape(0));
  std::memcpy(out.mutable_data(), x.data(), static_cast<size_t>(x.nbytes()));
  if (isa == kReference) {
    for (int64_t i = 0; i < x.size(); ++i) {
      out.mutable_data()[i] = reference::activate(kind, x.data()[i]);
    }
  } else {
    const FloatMode mode;
    cpu::table_by_name(isa).activation_f32(kind, out.mutable_data(), x.size());
  }
  return out;
}

// Each thread of a loop waits for the others, and so takes one index.
std::vector<unsigned> float_modes(int threads) {
  ThreadPool pool(threads);
  std::vector<unsigned> modes(static_cast<size_t>(pool.threads()));
  std::atomic<int> missing{pool.threads()};
  const WithoutGil here;
  pool.parallel_for(pool.threads(), [&](int64_t, int worker) {
    modes[static_cast<size_t>(worker)] = FloatMode::present();
    --missing;
    while (missing > 0) std::this_thread::yield();
  });
  return modes;
}

// Runs a loop whose indices wait until `wanted` of them have begun, each on a thread of its own, or
// so many seconds have passed. How many did.
int threads_at_once(ThreadPool& pool, int wanted, double seconds) {
  const WithoutGil here;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  std::atomic<int> begun{0};
  std::atomic<bool> late{false};
  const ThreadPool::Call call(pool);
  pool.parallel_for(wanted, [&](int64_t, int) {
    if (late) return;
    ++begun;
    while (begun < wanted && !late) {
      std::this_thread::yield();
      late = late || std::chrono::steady_clock::now() > deadline;
    }
  });
  return begun;
}

}  // namespace

void bind_kernels(py::module_& module) {
  auto kernels = module.def_submodule(
      "kernels", "Single kernels by instruction set; isa \"reference\" is the double oracle.");
  kernels.def("linear", &linear, py::arg("isa"), py::arg("x"), py::arg("weight"),
              py::arg("bias") = py::none(), py::arg("activation") = "none", py::arg("threads") = 1,
              py::arg("precision") = "fp32");
  kernels.def("attention", &attention, py::arg("isa"), py::arg("qkv"), py::arg("cu_seqlens"),
              py::arg("heads"), py::arg("scale"), py::arg("threads") = 1,
              py::arg("precision") = "fp32", py::arg("bias") = py::none());
  kernels.def("layer_norm", &layer_norm, py::arg("isa"), py::arg("x"), py::arg("gamma"),
              py::arg("beta"), py::arg("eps"), py::arg("residual") = py::none());
  py::class_<ThreadPool>(kernels, "ThreadPool", py::module_local(), "As an engine has it.")
      .def(py::init<int>(), py::arg("threads"))
      .def_property_readonly("threads", [](const ThreadPool& pool) { return pool.threads(); })
      .def("threads_at_once", &threads_at_once, py::arg("wanted"), py::arg("seconds"),
           "How many threads a loop gets at once, at most so many, waiting for so long.");
  kernels.def("activation", &activation, py::arg("isa"), py::arg("name"), py::arg("x"));
  kernels.def("float_modes", &float_modes, py::arg("threads"));
}

}  // namespace bertrt::bindings
