// The plan's instructions for any CPU.
#include "instructions.h"

#include "generic.h"

#include "instructions_impl.h"
