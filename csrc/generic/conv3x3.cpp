// `conv3x3` for any CPU.
#include "conv3x3.h"

#include "generic.h"

#include "conv3x3_impl.h"
