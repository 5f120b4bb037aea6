// `conv3x3` for AVX-512.
#include "conv3x3.h"

#include "avx512.h"

#ifdef FD_VARIANT
#include "conv3x3_impl.h"
#endif
