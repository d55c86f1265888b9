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
#include "cpu/generic/attention.inl.h"
#include "cpu/generic/peak.inl.h"

namespace bertrt::cpu::avx512_bf16 {
namespace {

struct BFloat16Pairs {
  using Input = int32_t;  // two bfloat16
  using Sum = F16;
  using Weights = __m512i;
  static constexpr int kRows = kGemmRows;
  static constexpr int kGroup = 2;
  static constexpr bool kExact = false;
  static constexpr int64_t kBlock = kDepthBlockBf16 / 2;
  static constexpr int64_t kVector = 16 * 2 * sizeof(uint16_t);
  static Sum none() { return zero(); }
  static Weights load_weights(const char* p) { return _mm512_loadu_si512(p); }
  static Sum step(Sum sum, const Input* x, Weights w) {
    return {_mm512_dpbf16_ps(sum.v, (__m512bh)_mm512_set1_epi32(*x), (__m512bh)w)};
  }
  static F16 value(Sum sum, const GemmTile&, int, int) { return sum; }
  static F16 gelu_erf(F16 x) { return gelu_erf_short(x); }
};

void convert(const float* x, int64_t depth, void* out, RowSteps*) {
  uint16_t* row = static_cast<uint16_t*>(out);
  for_each_vector(x, depth, [&](int64_t i, F16 v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + i), (__m256i)_mm512_cvtneps_pbh(v.v));
  });
}

struct AttentionBf16 {
  using Product = BFloat16Pairs;

  static constexpr float kExpUnits = kLog2E;
  static constexpr float kLargestWeight = 1.0f;
  static F16 exp(F16 x) { return exp2_short<0>(x); }
  static float row_limit(int64_t) { return 1.0f; }
  static float row(const float* x, int64_t count, float, void* out) {
    convert(x, count, out, nullptr);
    return 1.0f;
  }
  static void values(const float* x, int cols, int64_t stride, int64_t tokens, void* out,
                     int64_t step, float*) {
    // Two tokens, narrowed one after the other and then woven together.
    alignas(64) static constexpr uint16_t kWoven[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                        21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                        11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i woven = _mm512_load_si512(kWoven);
    int32_t* units = static_cast<int32_t*>(out);
    for (int64_t t = 0; t < tokens; t += 2) {
      const F16 first = load_first(x + t * stride, cols);
      const F16 second = t + 1 < tokens ? load_first(x + (t + 1) * stride, cols) : zero();
      const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(second.v, first.v);
      _mm512_storeu_si512(units + t / 2 * step, _mm512_permutexvar_epi16(woven, both));
    }
  }
  static F16 weights(F16 e, void* row, int64_t i) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<uint16_t*>(row) + i),
                        (__m256i)_mm512_cvtneps_pbh(e.v));
    return e;
  }
  static F16 score(F16 sum, float, const float*) { return sum; }
  static F16 context(F16 sum, const float*) { return sum; }
};

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
