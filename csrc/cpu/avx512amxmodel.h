// What avx512amx.h has, with a model of the tiles in plain code in place of AMX: for tests on AVX-512 without it. It is
// taken where FASTDIFF_CPU_ISA names it, and nowhere else. Headers that variants share go before it.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define FD_AVX512
#define FD_AMX
#define FD_AMX_MODEL
#define FD_VARIANT avx512amxmodel
#endif
