// `group_norm_act` for any CPU.
#include "group_norm_act.h"

#include "generic.h"

#include "group_norm_act_impl.h"
