// `pixels` for AVX-512.
#include "pixels.h"

#include "avx512.h"

#ifdef FD_VARIANT
#include "pixels_impl.h"
#endif
