// The losses for AVX-512.
#include "losses.h"

#include "avx512.h"

#ifdef FD_VARIANT
#include "losses_impl.h"
#endif
