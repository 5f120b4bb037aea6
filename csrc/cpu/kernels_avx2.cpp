// The kernels for AVX2 with FMA and F16C. They run only where kernels.cpp has found all three.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#pragma GCC target("avx2,fma,f16c")
#define FD_AVX2
#define FD_VARIANT avx2
#include "variant.inl"
#endif
