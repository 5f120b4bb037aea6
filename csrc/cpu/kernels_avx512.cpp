// The kernels for AVX-512 (F, DQ, BW, VL). They run only where kernels.cpp has found it.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define FD_AVX512
#define FD_VARIANT avx512
#include "variant.inl"
#endif
