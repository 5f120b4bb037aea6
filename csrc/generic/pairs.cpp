// The plan's instructions over pairs of bfloat16 numbers for any CPU.
#include "instructions.h"

#include "generic.h"

#include "pairs_impl.h"
