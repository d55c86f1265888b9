// int8 products on AVX-512 VNNI: four products a lane and instruction. The other kernels are those
// of avx512/; isa.cpp puts the table together.
//
// Only intrinsics and our own headers are included here: an inline function of the standard library
// compiled with this folder's flags could be the copy that the linker keeps for everyone.
#include "cpu/avx512/vec.h"
#include "cpu/kernel_table.h"

namespace bertrt::cpu::avx512_vnni {
using namespace avx512;
namespace {

constexpr int kPairRows = kGemmRows;

struct Fours {
  __m512i v;
};
inline Fours load_fours(const char* p) { return {_mm512_loadu_si512(p)}; }
inline Fours repeat_fours(float x) { return {_mm512_castps_si512(_mm512_set1_ps(x))}; }
inline I16 add_fours(I16 sum, const int32_t* x, Fours w) {
  return {_mm512_dpbusd_epi32(sum.v, _mm512_set1_epi32(*x), w.v)};
}
inline I16 add_same(I16 sum, Fours fours) { return {_mm512_dpbusd_epi32(sum.v, fours.v, fours.v)}; }
inline I16 add_pairs(I16 sum, const int32_t* x, PairsI16 w) {
  // In assembly, as add_in_place() of avx512/vec.h.
  asm("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sum.v) : "v"(w.v), "m"(*x));
  return sum;
}
inline I16 multiply_int(const int32_t* p, int32_t by) {
  return {_mm512_mullo_epi32(_mm512_loadu_si512(p), _mm512_set1_epi32(by))};
}
// Narrowing in a register: Zen 4 takes a hundred cycles to do it on the way to memory.
inline void store_u8(uint8_t* p, I16 q) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(q.v));
}

}  // namespace
}  // namespace bertrt::cpu::avx512_vnni

#define BERTRT_CPU_NAMESPACE avx512_vnni
#include "cpu/generic/vnni.inl.h"
