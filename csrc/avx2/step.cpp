// `step` for AVX2.
#include "step.h"

#include "avx2.h"

#ifdef FD_VARIANT
#include "step_impl.h"
#endif
