#include "cpu/isa.h"

#include <cstdint>
#include <cstdlib>

#include "core/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace bertrt::cpu {

namespace portable {
extern const KernelTable kTable;
}
#if defined(__x86_64__)
namespace avx2 {
extern const KernelTable kTable;
}
namespace avx512 {
extern const KernelTable kTable;
}
#endif

namespace {

struct Features {
  bool avx2 = false;    // AVX2 and FMA
  bool avx512 = false;  // AVX-512 F, BW, DQ and VL
};

#if defined(__x86_64__)

// The register state that the operating system saves on a task switch (Intel SDM volume 1, 13.3).
uint64_t enabled_state() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
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
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return features;
  features.avx2 = ymm && fma && (ebx & (1u << 5));
  const uint32_t avx512 = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);  // F, DQ, BW, VL
  features.avx512 = features.avx2 && zmm && (ebx & avx512) == avx512;
  return features;
}

#else

Features detect() { return {}; }

#endif

}  // namespace

std::vector<const KernelTable*> supported_tables() {
  static const Features features = detect();
  std::vector<const KernelTable*> tables;
#if defined(__x86_64__)
  if (features.avx512) tables.push_back(&avx512::kTable);
  if (features.avx2) tables.push_back(&avx2::kTable);
#else
  (void)features;
#endif
  tables.push_back(&portable::kTable);
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
