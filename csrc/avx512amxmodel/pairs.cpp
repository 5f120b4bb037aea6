// The plan's instructions over pairs of bfloat16 numbers for a model of AMX.
#include "instructions.h"

#include "avx512amxmodel.h"

#ifdef FD_VARIANT
#include "pairs_impl.h"
#endif
