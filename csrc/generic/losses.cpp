// The losses for any CPU.
#include "losses.h"

#include "generic.h"

#include "losses_impl.h"
