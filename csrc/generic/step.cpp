// `step` for any CPU.
#include "step.h"

#include "generic.h"

#include "step_impl.h"
