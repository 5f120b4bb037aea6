// The plan's instructions over pairs of bfloat16 numbers for AVX-512 with BF16.
#include "instructions.h"

#include "avx512bf16.h"

#ifdef FD_VARIANT
#include "pairs_impl.h"
#endif
