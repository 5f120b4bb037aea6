// The elementwise kernels for any CPU.
#include <cstdint>

#include "elementwise.h"
#include "noise_layout.h"
#include "row_layout.h"


namespace fastdiff {
namespace generic {

#include "vec.h"
#include "convert.h"
#include "elementwise_impl.h"

}  // namespace generic

extern const Kernels kernels_generic;
const Kernels kernels_generic = {"generic", generic::run_diffuse, generic::run_step};

}  // namespace fastdiff

