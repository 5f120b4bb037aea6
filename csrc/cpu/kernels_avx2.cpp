// The elementwise kernels for avx2; run only where dispatch.cpp has found it.
#include <cstdint>

#include "conv3x3.h"
#include "elementwise.h"
#include "engine.h"
#include "noise_layout.h"
#include "group_norm_act.h"
#include "row_layout.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define FD_AVX2

#pragma GCC target("avx2,fma,f16c")

namespace fastdiff {
namespace avx2 {

#include "vec.h"
#include "convert.h"
#include "elementwise_impl.h"
#include "bound_terms_impl.h"
#include "losses_impl.h"
#include "engine_impl.h"
#include "engine_rest_impl.h"
#include "conv3x3_impl.h"
#include "group_norm_act_impl.h"

}  // namespace avx2

extern const Kernels kernels_avx2;
const Kernels kernels_avx2 = {"avx2", avx2::run_diffuse, avx2::run_step, avx2::run_dropout, avx2::run_losses};

extern const Engine engine_avx2;
const Engine engine_avx2 = {"avx2", avx2::run_unit};

extern const ConvKernels conv_avx2;
const ConvKernels conv_avx2 = {"avx2", avx2::run_pack, avx2::run_conv_grad};

extern const NormKernels norm_avx2;
const NormKernels norm_avx2 = {"avx2", avx2::norm_forward, avx2::norm_backward};

}  // namespace fastdiff
#endif
