// Which instruction set this machine runs.
#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <string>

#include "failure.h"

namespace fastdiff {

static Isa choose() {
  struct Named {
    const char* name;
    Isa isa;
  };
  const char* wanted = std::getenv("FASTDIFF_CPU_ISA");
  Named available[4];
  int count = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    if (__builtin_cpu_supports("avx512bf16")) available[count++] = {"avx512bf16", Isa::AVX512BF16};
    available[count++] = {"avx512", Isa::AVX512};
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    available[count++] = {"avx2", Isa::AVX2};
#endif
  available[count++] = {"generic", Isa::GENERIC};
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
