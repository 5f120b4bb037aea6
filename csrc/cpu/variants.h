// Which of a table's variants runs here. Launchers only, as tensors.h.
#pragma once

#include <cstring>

#include "elementwise.h"

namespace fastdiff {

#if defined(__x86_64__)
#define FD_VARIANTS(NAME) {&NAME##_generic, &NAME##_avx2, &NAME##_avx512}
#else
#define FD_VARIANTS(NAME) {&NAME##_generic}
#endif

// The one of the instruction set that `kernels()` has chosen.
template <typename Table, int COUNT>
const Table& variant_of(const Table* const (&all)[COUNT]) {
  for (const Table* one : all)
    if (std::strcmp(one->name, kernels().name) == 0) return *one;
  return *all[0];
}

}  // namespace fastdiff
