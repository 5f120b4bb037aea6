// The plan's instructions for AVX-512.
#include "instructions.h"

#include "avx512.h"

#ifdef FD_VARIANT
#include "instructions_impl.h"
#endif
