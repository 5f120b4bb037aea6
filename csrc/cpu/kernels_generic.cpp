// The elementwise kernels for any CPU.
#include <cstdint>

#include "elementwise.h"
#include "engine.h"
#include "noise_layout.h"
#include "row_layout.h"


namespace fastdiff {
namespace generic {

#include "vec.h"
#include "convert.h"
#include "elementwise_impl.h"
#include "engine_impl.h"
#include "engine_rest_impl.h"

}  // namespace generic

extern const Kernels kernels_generic;
const Kernels kernels_generic = {"generic", generic::run_diffuse, generic::run_step};

extern const Engine engine_generic;
const Engine engine_generic = {"generic", generic::run_unit};

}  // namespace fastdiff

