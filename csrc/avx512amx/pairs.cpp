// The plan's instructions over pairs of bfloat16 numbers for AMX.
#include "instructions.h"

#include "avx512amx.h"

#ifdef FD_VARIANT
#include "pairs_impl.h"
#endif
