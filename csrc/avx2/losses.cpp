// The losses for AVX2.
#include "losses.h"

#include "avx2.h"

#ifdef FD_VARIANT
#include "losses_impl.h"
#endif
