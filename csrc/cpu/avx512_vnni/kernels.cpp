// int8 products on AVX-512 VNNI: four products a lane and instruction. The other kernels are those
// of avx512/; isa.cpp puts the table together.
//
// Only intrinsics and our own headers are included here: an inline function of the standard library
// compiled with this folder's flags could be the copy that the linker keeps for everyone.
#include "cpu/avx512/vec.h"
#include "cpu/kernel_table.h"

namespace bertrt::cpu::avx512_vnni {
using namespace avx512;
}

#define BERTRT_CPU_NAMESPACE avx512_vnni
#include "cpu/generic/attention.inl.h"
#include "cpu/generic/peak.inl.h"

namespace bertrt::cpu::avx512_vnni {
namespace {

// VPDPBUSD multiplies unsigned by signed: rows are kept with their zero point, which adds so many
// times the sum of a column's weights to each of its sums, and that is taken off again.
struct Int8Vnni {
  using Input = int32_t;  // four unsigned 8-bit integers
  using Sum = I16;
  using Weights = __m512i;
  static constexpr int kRows = kGemmRows;
  static constexpr int kGroup = 4;
  static constexpr bool kExact = true;
  static constexpr int64_t kVector = 16 * 4;
  static Sum none() { return zero_int(); }
  static Weights load_weights(const char* p) { return _mm512_loadu_si512(p); }
  static Sum step(Sum sum, const Input* x, Weights w) {
    return {_mm512_dpbusd_epi32(sum.v, _mm512_set1_epi32(*x), w)};
  }
  static F16 value(Sum sum, const GemmTile& tile, int row, int column) {
    const __m512i weights = _mm512_loadu_si512(tile.column_sum + column);
    const __m512i excess = _mm512_mullo_epi32(weights, _mm512_set1_epi32(tile.row_steps[row].zero));
    return dequantise({_mm512_sub_epi32(sum.v, excess)}, tile, row, column);
  }
};

struct Int16Vnni : Int16 {
  static constexpr int kRows = kGemmRows;
  static Sum step(Sum sum, const Input* x, Weights w) {
    // In assembly, as add_in_place() of avx512/vec.h.
    asm("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sum.v) : "v"(w.v), "m"(*x));
    return sum;
  }
};

void convert_u8(const float* x, int64_t depth, void* out, RowSteps* steps) {
  uint8_t* row = static_cast<uint8_t*>(out);
  // Narrowing in a register: Zen 4 takes a hundred cycles to do it on the way to memory.
  *steps = quantise(x, depth, [&](int64_t i, I16 q, I16) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(row + i), _mm512_cvtepi32_epi8(q.v));
  });
}

struct MultiplyAddFours {
  using Sum = I16;
  static constexpr int64_t kOperations = 8 * 16;
  __m512i fours;
  explicit MultiplyAddFours(float x) : fours(_mm512_castps_si512(_mm512_set1_ps(x))) {}
  static Sum first(F16 x) { return to_nearest_int(x); }
  Sum step(Sum sum) const { return {_mm512_dpbusd_epi32(sum.v, fours, fours)}; }
  static void keep(Sum sum, float* out) { store(out, to_float(sum) + load(out)); }
};

}  // namespace

extern const AttentionKernel kAttentionS16;
const AttentionKernel kAttentionS16 = {"attention_s16.avx512_vnni", Int16Vnni::kRows,
                                       attention_scratch<AttentionS16<Int16Vnni>>,
                                       attention<AttentionS16<Int16Vnni>>};

extern const GemmKernel kGemmS8;
const GemmKernel kGemmS8 = {"gemm_s8.avx512_vnni",
                            Int8Vnni::kRows,
                            kPanel,
                            Int8Vnni::kGroup,
                            convert_u8,
                            sizeof(uint8_t),
                            false,
                            Gemm<Int8Vnni>::run,
                            peak<MultiplyAddFours>};

}  // namespace bertrt::cpu::avx512_vnni
