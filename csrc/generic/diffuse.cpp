// `diffuse` for any CPU.
#include "diffuse.h"

#include "generic.h"

#include "diffuse_impl.h"
