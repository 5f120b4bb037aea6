// `group_norm_act` for AVX-512.
#include "group_norm_act.h"

#include "avx512.h"

#ifdef FD_VARIANT
#include "group_norm_act_impl.h"
#endif
