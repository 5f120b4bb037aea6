// Kernels that are compiled behind this header need AVX2 with FMA and F16C: kernels.cpp looks for all three. Headers
// that variants share go before it.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC target("avx2,fma,f16c")
#define FD_AVX2
#define FD_VARIANT avx2
#endif
