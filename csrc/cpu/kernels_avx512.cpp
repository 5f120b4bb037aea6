// The elementwise kernels for avx512; run only where dispatch.cpp has found it.
#include <cstdint>

#include "elementwise.h"
#include "engine.h"
#include "noise_layout.h"
#include "row_layout.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define FD_AVX512

#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c,prefer-vector-width=512")

namespace fastdiff {
namespace avx512 {

#include "vec.h"
#include "convert.h"
#include "elementwise_impl.h"
#include "engine_impl.h"
#include "engine_rest_impl.h"

}  // namespace avx512

extern const Kernels kernels_avx512;
const Kernels kernels_avx512 = {"avx512", avx512::run_diffuse, avx512::run_step};

extern const Engine engine_avx512;
const Engine engine_avx512 = {"avx512", avx512::run_unit};

}  // namespace fastdiff
#endif
