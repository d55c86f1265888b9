#include "bindings/bindings.h"
#include "core/error.h"

namespace py = pybind11;

PYBIND11_MODULE(_native, module) {
  module.doc() = "The compiled part of bertrt: plan execution on the CPU. Use bertrt.Engine.";

  py::register_exception_translator([](std::exception_ptr pointer) {
    const auto raise = [](const char* type, const char* message) {
      const py::object cls = py::module_::import("bertrt.errors").attr(type);
      PyErr_SetString(cls.ptr(), message);
    };
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const bertrt::PlanError& error) {
      raise("ModelFormatError", error.what());
    } catch (const bertrt::BatchError& error) {
      raise("InvalidInputError", error.what());
    } catch (const bertrt::DeviceError& error) {
      raise("DeviceError", error.what());
    }
  });

  bertrt::bindings::bind_engine(module);
  bertrt::bindings::bind_kernels(module);
}
