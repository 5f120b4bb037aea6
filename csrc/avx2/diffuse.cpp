// `diffuse` for AVX2.
#include "diffuse.h"

#include "avx2.h"

#ifdef FD_VARIANT
#include "diffuse_impl.h"
#endif
