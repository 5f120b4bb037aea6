// Packed weights for any CPU.
#include "packing.h"

#include "generic.h"

#include "packing_impl.h"
