// `pixels` for any CPU.
#include "pixels.h"

#include "generic.h"

#include "pixels_impl.h"
