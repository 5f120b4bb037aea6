// `update` for any CPU.
#include "update.h"

#include "generic.h"

#include "update_impl.h"
