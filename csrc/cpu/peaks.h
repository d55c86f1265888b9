// What this machine can do at most, measured.
#pragma once

#include "cpu/kernel_table.h"
#include "runtime/thread_pool.h"

namespace bertrt::cpu {

// Per second, all threads together; an addition and a multiplication are two operations.
struct Peaks {
  double fp32;
  double bf16;
  double int8;
  double read_bytes;  // from memory
};

// Measures for about a second what the instructions of the table's matrix products reach on
// registers alone, and how fast memory is read: the best of several short runs, since whatever else
// the machine does can only slow a run down.
Peaks measure_peaks(const KernelTable& table, ThreadPool& pool);

// What Peaks::fp32 comes to just now, from a single short run: less than the peak if something else
// has a part of the machine.
double present_fp32_peak(const KernelTable& table, ThreadPool& pool);

}  // namespace bertrt::cpu
