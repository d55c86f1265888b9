#include "cpu/isa.h"

#include <cstdint>
#include <cstdlib>

#include "core/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#endif

namespace bertrt::cpu {

namespace portable {
extern const KernelTable kTable;
}
#if defined(__x86_64__)
namespace avx2 {
extern const KernelTable kTable;
}
namespace avx_vnni {
extern const GemmKernel kGemmS8;
extern const AttentionKernel kAttentionS16;
}  // namespace avx_vnni
namespace avx_vnni_evex {
extern const GemmKernel kGemmS8;
extern const AttentionKernel kAttentionS16;
}  // namespace avx_vnni_evex
namespace avx512 {
extern const KernelTable kTable;
}
namespace avx512_vnni {
extern const GemmKernel kGemmS8;
extern const AttentionKernel kAttentionS16;
}  // namespace avx512_vnni
namespace avx512_bf16 {
extern const GemmKernel kGemmBf16;
extern const AttentionKernel kAttentionBf16;
}  // namespace avx512_bf16
namespace amx {
extern const GemmKernel kGemmBf16;
extern const GemmKernel kGemmS8;
}  // namespace amx
namespace amx_emulated {
extern const GemmKernel kGemmBf16;
extern const GemmKernel kGemmS8;
}  // namespace amx_emulated
#elif defined(__aarch64__)
namespace neon {
extern const KernelTable kTable;
}
namespace neon_dotprod {
extern const GemmKernel kGemmS8;
}
namespace neon_i8mm {
extern const GemmKernel kGemmS8;
}
namespace neon_bf16 {
extern const GemmKernel kGemmBf16;
extern const AttentionKernel kAttentionBf16;
}  // namespace neon_bf16
#endif

namespace {

#if defined(__x86_64__)

struct Features {
  bool avx2 = false;  // AVX2 and FMA
  bool avx_vnni = false;
  bool avx512 = false;  // AVX-512 F, BW, DQ and VL
  bool avx512_vnni = false;
  bool avx512_bf16 = false;  // and VNNI
  bool amx = false;          // TILE, BF16 and INT8, and all of the above but AVX-VNNI
};

// The register state that the operating system saves on a task switch (Intel SDM volume 1, 13.3).
uint64_t enabled_state() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Asks Linux, from 5.16 on, to let this process use the tiles of AMX: it refuses them to who has
// not asked, since their state takes 8 KiB of a thread (its documentation, arch/x86/xstate.rst).
// The permission is inherited by threads and forks; asking again does no harm.
bool permit_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM of asm/prctl.h
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Features detect() {
  Features features;
  uint32_t eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return features;
  const bool osxsave = ecx & (1u << 27);
  const bool fma = ecx & (1u << 12);
  if (!osxsave) return features;
  const uint64_t state = enabled_state();
  const bool ymm = (state & 0x06) == 0x06;
  const bool zmm = (state & 0xe6) == 0xe6;
  const bool tmm = (state & 0x60000) == 0x60000;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return features;
  features.avx2 = ymm && fma && (ebx & (1u << 5));
  const uint32_t avx512 = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);  // F, DQ, BW, VL
  features.avx512 = features.avx2 && zmm && (ebx & avx512) == avx512;
  features.avx512_vnni = features.avx512 && (ecx & (1u << 11));
  const uint32_t amx = (1u << 22) | (1u << 24) | (1u << 25);  // BF16, TILE, INT8
  const bool tiles = tmm && (edx & amx) == amx;
  if (!__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) return features;
  features.avx_vnni = features.avx2 && (eax & (1u << 4));
  features.avx512_bf16 = features.avx512_vnni && (eax & (1u << 5));
  features.amx = features.avx512_bf16 && tiles && permit_tiles();
  return features;
}

#elif defined(__aarch64__)

// Beside what every 64-bit Arm has. Each has those before it.
struct Features {
  bool dotprod = false;
  bool i8mm = false;
  bool bf16 = false;
};

#if defined(__APPLE__)
bool has(const char* name) {
  int value = 0;
  size_t size = sizeof(value);
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
#endif

Features detect() {
  Features features;
#if defined(__linux__)
  // HWCAP_ASIMDDP, HWCAP2_I8MM and HWCAP2_BF16 of asm/hwcap.h, which may be older than the CPU.
  const unsigned long first = getauxval(AT_HWCAP);
  const unsigned long second = getauxval(AT_HWCAP2);
  features.dotprod = first & (1ul << 20);
  features.i8mm = second & (1ul << 13);
  features.bf16 = second & (1ul << 14);
#elif defined(__APPLE__)
  features.dotprod = has("hw.optional.arm.FEAT_DotProd");
  features.i8mm = has("hw.optional.arm.FEAT_I8MM");
  features.bf16 = has("hw.optional.arm.FEAT_BF16");
#endif
  features.i8mm = features.i8mm && features.dotprod;
  features.bf16 = features.bf16 && features.i8mm;
  return features;
}

#endif

}  // namespace

std::vector<const KernelTable*> supported_tables() {
  std::vector<const KernelTable*> tables;
#if defined(__x86_64__)
  static const Features features = detect();
  // Baseline first, then upward: each is the one before with some kernels replaced.
  // AVX512-VNNI with VL has the instructions of AVX-VNNI, in another encoding.
  static const KernelTable vnni_256 = [] {
    KernelTable table = avx2::kTable;
    table.isa = "avx_vnni";
    table.gemm_s8 = features.avx_vnni ? avx_vnni::kGemmS8 : avx_vnni_evex::kGemmS8;
    table.attention_s16 =
        features.avx_vnni ? avx_vnni::kAttentionS16 : avx_vnni_evex::kAttentionS16;
    return table;
  }();
  static const KernelTable vnni = [] {
    KernelTable table = avx512::kTable;
    table.isa = "avx512_vnni";
    table.gemm_s8 = avx512_vnni::kGemmS8;
    table.attention_s16 = avx512_vnni::kAttentionS16;
    return table;
  }();
  static const KernelTable bf16 = [] {
    KernelTable table = vnni;
    table.isa = "avx512_bf16";
    table.gemm_bf16 = avx512_bf16::kGemmBf16;
    table.attention_bf16 = avx512_bf16::kAttentionBf16;
    return table;
  }();
  static const KernelTable tiles = [] {
    KernelTable table = bf16;
    table.isa = "amx";
    table.gemm_bf16 = amx::kGemmBf16;
    table.gemm_s8 = amx::kGemmS8;
    return table;
  }();
  static const KernelTable emulated_tiles = [] {
    KernelTable table = bf16;
    table.isa = "amx_emulated";
    table.gemm_bf16 = amx_emulated::kGemmBf16;
    table.gemm_s8 = amx_emulated::kGemmS8;
    return table;
  }();
  if (features.amx) tables.push_back(&tiles);
  if (features.avx512_bf16) tables.push_back(&bf16);
  if (features.avx512_vnni) tables.push_back(&vnni);
  if (features.avx512) tables.push_back(&avx512::kTable);
  if (features.avx_vnni || features.avx512_vnni) tables.push_back(&vnni_256);
  if (features.avx2) tables.push_back(&avx2::kTable);
#elif defined(__aarch64__)
  static const Features features = detect();
  static const KernelTable dotprod = [] {
    KernelTable table = neon::kTable;
    table.isa = "neon_dotprod";
    table.gemm_s8 = neon_dotprod::kGemmS8;
    return table;
  }();
  static const KernelTable i8mm = [] {
    KernelTable table = neon::kTable;
    table.isa = "neon_i8mm";
    table.gemm_s8 = neon_i8mm::kGemmS8;
    return table;
  }();
  static const KernelTable bf16 = [] {
    KernelTable table = i8mm;
    table.isa = "neon_bf16";
    table.gemm_bf16 = neon_bf16::kGemmBf16;
    table.attention_bf16 = neon_bf16::kAttentionBf16;
    return table;
  }();
  if (features.bf16) tables.push_back(&bf16);
  if (features.i8mm) tables.push_back(&i8mm);
  if (features.dotprod) tables.push_back(&dotprod);
  tables.push_back(&neon::kTable);
#endif
  tables.push_back(&portable::kTable);
#if defined(__x86_64__)
  if (features.avx512_bf16) tables.push_back(&emulated_tiles);
#endif
  return tables;
}

const KernelTable& table_by_name(const std::string& name) {
  std::string usable;
  for (const KernelTable* table : supported_tables()) {
    if (name == table->isa) return *table;
    usable += usable.empty() ? "" : ", ";
    usable += table->isa;
  }
  throw DeviceError("instruction set '" + name + "' cannot be used here; usable are: " + usable +
                    " (set by the environment variable BERTRT_ISA; unset it for the best one)");
}

const KernelTable& select_table() {
  const char* forced = std::getenv("BERTRT_ISA");
  if (forced && *forced) return table_by_name(forced);
  return *supported_tables().front();
}

}  // namespace bertrt::cpu
