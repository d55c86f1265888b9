// Which instruction sets this CPU and operating system can run, and which one is in use.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernel_table.h"

namespace bertrt::cpu {

// The kernel tables that can run here, best first: "portable" always, and behind it "amx_emulated",
// whose tile instructions are written out for tests, where its other kernels can run.
std::vector<const KernelTable*> supported_tables();

// The table named by the environment variable BERTRT_ISA, or the best one. Throws DeviceError if
// the variable names a set that is unknown, not built in, or not usable on this machine.
const KernelTable& select_table();

// The table of that name. Throws DeviceError as above.
const KernelTable& table_by_name(const std::string& name);

}  // namespace bertrt::cpu
