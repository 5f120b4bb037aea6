// `pixels` for AVX2.
#include "pixels.h"

#include "avx2.h"

#ifdef FD_VARIANT
#include "pixels_impl.h"
#endif
