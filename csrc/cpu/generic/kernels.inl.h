// The kernel table of one instruction set; the last line of each kernels.cpp.
#pragma once

#include "cpu/generic/attention.inl.h"
#include "cpu/generic/gemm.inl.h"
#include "cpu/generic/rows.inl.h"

#define BERTRT_STRINGIFY(name) #name
#define BERTRT_NAME(name) BERTRT_STRINGIFY(name)

namespace bertrt::cpu::BERTRT_CPU_NAMESPACE {

extern const KernelTable kTable;
const KernelTable kTable = {
    BERTRT_NAME(BERTRT_CPU_NAMESPACE),
    kGemmRows,
    kPanel,
    gemm_f32,
    attention_scratch,
    attention_f32,
    layer_norm_f32,
    embed_f32,
    activation_f32,
};

}  // namespace bertrt::cpu::BERTRT_CPU_NAMESPACE
