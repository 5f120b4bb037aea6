// Which instruction set this machine runs.
#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <string>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "failure.h"

namespace fastdiff {

#if defined(__x86_64__)
// Whether the processor has tiles and their products of bfloat16 numbers, and the system lets this process use them,
// which wants to be asked, once for all threads. Older compilers know no name for such a processor.
static bool has_tiles() {
#if defined(__linux__)
  constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24;
  unsigned eax, ebx, ecx, edx;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & AMX_BF16) == 0 || (edx & AMX_TILE) == 0)
    return false;
  constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
  return false;
#endif
}
#endif

static Isa choose() {
  struct Named {
    const char* name;
    Isa isa;
  };
  const char* wanted = std::getenv("FASTDIFF_CPU_ISA");
  Named available[6];
  int count = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool wide = false;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    wide = true;
    if (__builtin_cpu_supports("avx512bf16")) {
      if (has_tiles()) available[count++] = {"avx512amx", Isa::AVX512AMX};
      available[count++] = {"avx512bf16", Isa::AVX512BF16};
    }
    available[count++] = {"avx512", Isa::AVX512};
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    available[count++] = {"avx2", Isa::AVX2};
#endif
  available[count++] = {"generic", Isa::GENERIC};
#if defined(__x86_64__)
  // Behind what any machine runs, so that it is never the first.
  if (wide) available[count++] = {"avx512amxmodel", Isa::AVX512AMX_MODEL};
#endif
  if (wanted == nullptr || *wanted == '\0') return available[0].isa;
  std::string names;
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(available[i].name, wanted) == 0) return available[i].isa;
    names += std::string(" ") + available[i].name;
  }
  fail("FASTDIFF_CPU_ISA must be one of those this machine runs:", names, ", got ", wanted);
}

Isa chosen_isa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace fastdiff
