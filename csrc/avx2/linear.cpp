// `linear` for AVX2.
#include "linear.h"

#include "avx2.h"

#ifdef FD_VARIANT
#include "linear_impl.h"
#endif
