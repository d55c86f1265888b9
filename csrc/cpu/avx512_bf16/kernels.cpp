// bfloat16 products on AVX-512 BF16: two products a lane and instruction. The other kernels are
// those of avx512/ and avx512_vnni/; isa.cpp puts the table together.
//
// Only intrinsics and our own headers are included here: an inline function of the standard library
// compiled with this folder's flags could be the copy that the linker keeps for everyone.
#include "cpu/avx512/vec.h"
#include "cpu/kernel_table.h"

namespace bertrt::cpu::avx512_bf16 {
using namespace avx512;
}

#define BERTRT_CPU_NAMESPACE avx512_bf16
#include "cpu/generic/gemm.inl.h"

namespace bertrt::cpu::avx512_bf16 {
namespace {

struct BFloat16Pairs {
  using Input = int32_t;  // two bfloat16
  using Sum = F16;
  using Weights = __m512i;
  static constexpr int kRows = kGemmRows;
  static constexpr int kGroup = 2;
  static constexpr int64_t kBlock = kDepthBlock / 2;
  static constexpr int64_t kVector = 16 * 2 * sizeof(uint16_t);
  static Sum none() { return zero(); }
  static Weights load_weights(const char* p) { return _mm512_loadu_si512(p); }
  static Sum step(Sum sum, const Input* x, Weights w) {
    return {_mm512_dpbf16_ps(sum.v, (__m512bh)_mm512_set1_epi32(*x), (__m512bh)w)};
  }
  static F16 value(Sum sum, const GemmTile&, int, int) { return sum; }
};

void convert(const float* x, int64_t depth, void* out, RowSteps*) {
  uint16_t* row = static_cast<uint16_t*>(out);
  for_each_vector(x, depth, [&](int64_t i, F16 v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + i), (__m256i)_mm512_cvtneps_pbh(v.v));
  });
}

}  // namespace

extern const GemmKernel kGemmBf16;
const GemmKernel kGemmBf16 = {
    "gemm_bf16.avx512_bf16", BFloat16Pairs::kRows,    kPanel, BFloat16Pairs::kGroup, convert,
    sizeof(uint16_t),        Gemm<BFloat16Pairs>::run};

}  // namespace bertrt::cpu::avx512_bf16
