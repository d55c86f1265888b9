// The kernel table of one instruction set; the last line of each kernels.cpp.
#pragma once

#include "cpu/generic/attention.inl.h"
#include "cpu/generic/gemm.inl.h"
#include "cpu/generic/peak.inl.h"
#include "cpu/generic/rows.inl.h"

#define BERTRT_STRINGIFY(name) #name
#define BERTRT_NAME(name) BERTRT_STRINGIFY(name)

namespace bertrt::cpu::BERTRT_CPU_NAMESPACE {
namespace {

void activation_f32(Activation activation, float* x, int64_t count) {
  activate<gelu_erf_f32>(activation, x, count, 1, count);
}

}  // namespace

extern const KernelTable kTable;
const KernelTable kTable = {
    BERTRT_NAME(BERTRT_CPU_NAMESPACE),
    {"gemm_f32." BERTRT_NAME(BERTRT_CPU_NAMESPACE), Float32::kRows, kPanel, Float32::kGroup,
     nullptr, sizeof(float), true, Gemm<Float32>::run, peak<MultiplyAdd>},
    {"gemm_bf16." BERTRT_NAME(BERTRT_CPU_NAMESPACE), BFloat16::kRows, kPanel, BFloat16::kGroup,
     convert_bf16, sizeof(float), true, Gemm<BFloat16>::run, peak<MultiplyAdd>},
    {"gemm_s8." BERTRT_NAME(BERTRT_CPU_NAMESPACE), Int8::kRows, kPanel, Int8::kGroup, convert_s8,
     sizeof(int16_t), false, Gemm<Int8>::run, peak<MultiplyAddPairs>},
    {"attention_f32." BERTRT_NAME(BERTRT_CPU_NAMESPACE), Float32::kRows,
     attention_scratch<AttentionF32>, attention<AttentionF32>},
    {"attention_f32." BERTRT_NAME(BERTRT_CPU_NAMESPACE), Float32::kRows,
     attention_scratch<AttentionF32>, attention<AttentionF32>},
    {"attention_s16." BERTRT_NAME(BERTRT_CPU_NAMESPACE), Int16::kRows,
     attention_scratch<AttentionS16<Int16>>, attention<AttentionS16<Int16>>},
    layer_norm_f32,
    embed_f32,
    activation_f32,
    read_f32,
};

}  // namespace bertrt::cpu::BERTRT_CPU_NAMESPACE
