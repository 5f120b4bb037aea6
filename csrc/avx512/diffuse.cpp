// `diffuse` for AVX-512.
#include "diffuse.h"

#include "avx512.h"

#ifdef FD_VARIANT
#include "diffuse_impl.h"
#endif
