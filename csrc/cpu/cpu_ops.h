// The fused operations on the CPU.
#pragma once

#include <memory>

#include "core/ops.h"
#include "cpu/kernel_table.h"
#include "runtime/thread_pool.h"

namespace bertrt::cpu {

// Runs the kernels of `table` on the threads of `pool`, which must outlive it.
std::unique_ptr<Ops> make_ops(const KernelTable& table, ThreadPool& pool);

}  // namespace bertrt::cpu
