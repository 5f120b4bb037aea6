// The elementwise kernels for avx512; run only where dispatch.cpp has found it.
#include <cstdint>

#include "conv3x3.h"
#include "elementwise.h"
#include "engine.h"
#include "noise_layout.h"
#include "group_norm_act.h"
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
#include "bound_terms_impl.h"
#include "losses_impl.h"
#include "engine_impl.h"
#include "engine_rest_impl.h"
#include "conv3x3_impl.h"
#include "group_norm_act_impl.h"

}  // namespace avx512

extern const Kernels kernels_avx512;
const Kernels kernels_avx512 = {"avx512", avx512::run_diffuse, avx512::run_step, avx512::run_dropout, avx512::run_losses};

extern const Engine engine_avx512;
const Engine engine_avx512 = {"avx512", avx512::run_unit};

extern const ConvKernels conv_avx512;
const ConvKernels conv_avx512 = {"avx512", avx512::run_pack, avx512::run_conv_grad};

extern const NormKernels norm_avx512;
const NormKernels norm_avx512 = {"avx512", avx512::norm_forward, avx512::norm_backward};

}  // namespace fastdiff
#endif
