// `group_norm_act` for AVX2.
#include "group_norm_act.h"

#include "avx2.h"

#ifdef FD_VARIANT
#include "group_norm_act_impl.h"
#endif
