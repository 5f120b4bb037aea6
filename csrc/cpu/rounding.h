// Whole numbers of blocks. Plain data and `static` functions, as in kernels.h.
#pragma once

#include <cstdint>

namespace fastdiff {

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t n, int64_t multiple) { return ceil_div(n, multiple) * multiple; }

}  // namespace fastdiff
