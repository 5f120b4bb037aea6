// Which instruction set this machine runs.
#include "kernels.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace fastdiff {

static const Kernels& choose() {
  const char* wanted = std::getenv("FASTDIFF_CPU_ISA");
  const Kernels* available[3];
  int count = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    available[count++] = &avx512::table;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    available[count++] = &avx2::table;
#endif
  available[count++] = &generic::table;
  if (wanted == nullptr || *wanted == '\0') return *available[0];
  for (int i = 0; i < count; ++i)
    if (std::strcmp(available[i]->name, wanted) == 0) return *available[i];
  std::string message = std::string("FASTDIFF_CPU_ISA must be one of those this machine runs:");
  for (int i = 0; i < count; ++i) message += std::string(" ") + available[i]->name;
  throw std::runtime_error(message + ", got " + wanted);
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace fastdiff
