// The plan's instructions for AVX2.
#include "instructions.h"

#include "avx2.h"

#ifdef FD_VARIANT
#include "instructions_impl.h"
#endif
