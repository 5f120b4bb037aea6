// The plan's instructions for AVX-512 with BF16.
#include "instructions.h"

#include "avx512bf16.h"

#ifdef FD_VARIANT
#include "instructions_impl.h"
#endif
