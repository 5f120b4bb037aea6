// `conv3x3` for AVX2.
#include "conv3x3.h"

#include "avx2.h"

#ifdef FD_VARIANT
#include "conv3x3_impl.h"
#endif
