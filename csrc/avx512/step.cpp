// `step` for AVX-512.
#include "step.h"

#include "avx512.h"

#ifdef FD_VARIANT
#include "step_impl.h"
#endif
