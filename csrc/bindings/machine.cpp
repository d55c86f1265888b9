// What this machine is and can do: its instruction sets, and their peaks, measured.
#include <string>
#include <vector>

#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/without_gil.h"
#include "cpu/isa.h"
#include "cpu/peaks.h"
#include "runtime/thread_pool.h"

namespace py = pybind11;

namespace bertrt::bindings {
namespace {

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const cpu::KernelTable* table : cpu::supported_tables()) names.emplace_back(table->isa);
  return names;
}

double present_fp32_peak(int threads) {
  ThreadPool pool(threads);
  const cpu::KernelTable& table = cpu::select_table();
  WithoutGil here;
  return cpu::present_fp32_peak(table, pool);
}

py::dict machine_peaks(int threads) {
  const cpu::KernelTable& table = cpu::select_table();
  cpu::Peaks peaks;
  {
    WithoutGil here;
    ThreadPool pool(threads);
    peaks = cpu::measure_peaks(table, pool);
  }
  py::dict found;
  found["isa"] = table.isa;
  found["fp32"] = peaks.fp32;
  found["bf16"] = peaks.bf16;
  found["int8"] = peaks.int8;
  found["read"] = peaks.read_bytes;
  return found;
}

}  // namespace

void bind_machine(py::module_& module) {
  // Made here, where no thread can fork meanwhile: a child would wait for it for good.
  (void)cpu::supported_tables();
  module.def(
      "supported_isas", &supported_isas,
      "The instruction sets that can run here, best first; behind \"portable\" those that are "
      "for tests alone.");
  module.def(
      "share_cores", &share_cores, py::arg("cores"),
      "How many cores the engines of this process have among them: while several run, each "
      "takes its share of these, however many threads it has. 0, as at first: each has all.");
  module.def("present_fp32_peak", &present_fp32_peak, py::arg("threads"),
             "What machine_peaks()'s fp32 comes to just now, in 30 milliseconds");
  module.def("machine_peaks", &machine_peaks, py::arg("threads"),
             R"(What this machine can do at most on so many threads, measured for about a second.

"isa": the instruction set in use; "fp32", "bf16", "int8": operations a second of the instruction
that its matrix products of that precision use, on registers alone, an addition and a multiplication
being two; "read": bytes a second from memory. Raises bertrt.DeviceError as Engine does.)");
}

}  // namespace bertrt::bindings
