// bfloat16 products on AVX-512 BF16: two products a lane and instruction. The other kernels are
// those of avx512/ and avx512_vnni/; isa.cpp puts the table together.
//
// Only intrinsics and our own headers are included here: an inline function of the standard library
// compiled with this folder's flags could be the copy that the linker keeps for everyone.
#include "cpu/avx512/vec.h"
#include "cpu/kernel_table.h"

namespace bertrt::cpu::avx512_bf16 {
using namespace avx512;
namespace {

using Pairs = __m512i;
inline Pairs load_pairs(const char* p) { return _mm512_loadu_si512(p); }
inline F16 add_pairs(F16 sum, const int32_t* x, Pairs w) {
  return {_mm512_dpbf16_ps(sum.v, (__m512bh)_mm512_set1_epi32(*x), (__m512bh)w)};
}
inline void store_bf16(uint16_t* p, F16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(a.v));
}
// Narrowed one after the other and then woven together.
inline void store_bf16_pairs(int32_t* p, F16 first, F16 second) {
  alignas(64) static constexpr uint16_t kWoven[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(second.v, first.v);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi16(_mm512_load_si512(kWoven), both));
}

}  // namespace
}  // namespace bertrt::cpu::avx512_bf16

#define BERTRT_CPU_NAMESPACE avx512_bf16
#include "cpu/generic/bf16.inl.h"

namespace bertrt::cpu::avx512_bf16 {
namespace {

struct MultiplyAddPairsOfBFloat16 {
  using Sum = F16;
  static constexpr int64_t kOperations = 4 * 16;
  __m512bh pairs;
  explicit MultiplyAddPairsOfBFloat16(float x) : pairs((__m512bh)_mm512_set1_ps(x)) {}
  static Sum first(F16 x) { return x; }
  Sum step(Sum sum) const { return {_mm512_dpbf16_ps(sum.v, pairs, pairs)}; }
  static void keep(Sum sum, float* out) { store(out, sum + load(out)); }
};

}  // namespace

extern const AttentionKernel kAttentionBf16;
const AttentionKernel kAttentionBf16 = {"attention_bf16.avx512_bf16", BFloat16Pairs::kRows,
                                        attention_scratch<AttentionBf16>, attention<AttentionBf16>};

extern const GemmKernel kGemmBf16;
const GemmKernel kGemmBf16 = {"gemm_bf16.avx512_bf16",
                              BFloat16Pairs::kRows,
                              kPanel,
                              BFloat16Pairs::kGroup,
                              convert,
                              sizeof(uint16_t),
                              true,
                              Gemm<BFloat16Pairs>::run,
                              peak<MultiplyAddPairsOfBFloat16>};

}  // namespace bertrt::cpu::avx512_bf16
