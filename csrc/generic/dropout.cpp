// `dropout` for any CPU.
#include "dropout.h"

#include "generic.h"

#include "dropout_impl.h"
