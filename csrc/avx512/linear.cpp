// `linear` for AVX-512.
#include "linear.h"

#include "avx512.h"

#ifdef FD_VARIANT
#include "linear_impl.h"
#endif
