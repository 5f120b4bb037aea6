// `linear` for any CPU.
#include "linear.h"

#include "generic.h"

#include "linear_impl.h"
