// The elementwise kernels for any CPU.
#include <cstdint>

#include "conv3x3.h"
#include "elementwise.h"
#include "engine.h"
#include "noise_layout.h"
#include "group_norm_act.h"
#include "row_layout.h"


namespace fastdiff {
namespace generic {

#include "vec.h"
#include "convert.h"
#include "elementwise_impl.h"
#include "bound_terms_impl.h"
#include "losses_impl.h"
#include "engine_impl.h"
#include "engine_rest_impl.h"
#include "conv3x3_impl.h"
#include "group_norm_act_impl.h"

}  // namespace generic

extern const Kernels kernels_generic;
const Kernels kernels_generic = {"generic", generic::run_diffuse, generic::run_step, generic::run_dropout, generic::run_losses};

extern const Engine engine_generic;
const Engine engine_generic = {"generic", generic::run_unit};

extern const ConvKernels conv_generic;
const ConvKernels conv_generic = {"generic", generic::run_pack, generic::run_conv_grad};

extern const NormKernels norm_generic;
const NormKernels norm_generic = {"generic", generic::norm_forward, generic::norm_backward};

}  // namespace fastdiff

