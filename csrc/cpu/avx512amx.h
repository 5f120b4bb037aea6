// Kernels that are compiled behind this header need AVX-512 with BF16 as in avx512bf16.h, and the tiles of AMX with
// products of bfloat16 numbers (amx_impl.h): isa.cpp looks for both. Headers that variants share go before it.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c,prefer-vector-width=512")
#define FD_AVX512
#define FD_AVX512BF16
#define FD_AMX
#define FD_VARIANT avx512amx
#endif
