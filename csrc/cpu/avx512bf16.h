// Kernels that are compiled behind this header need AVX-512 as in avx512.h, and its BF16: kernels.cpp looks for it.
// Headers that variants share go before it.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c,prefer-vector-width=512")
#define FD_AVX512
#define FD_AVX512BF16
#define FD_VARIANT avx512bf16
#endif
