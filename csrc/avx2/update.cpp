// `update` for AVX2.
#include "update.h"

#include "avx2.h"

#ifdef FD_VARIANT
#include "update_impl.h"
#endif
