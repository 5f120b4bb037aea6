// The plan's instructions over pairs of bfloat16 numbers for AVX2.
#include "instructions.h"

#include "avx2.h"

#ifdef FD_VARIANT
#include "pairs_impl.h"
#endif
