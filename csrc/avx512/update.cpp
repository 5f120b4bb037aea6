// `update` for AVX-512.
#include "update.h"

#include "avx512.h"

#ifdef FD_VARIANT
#include "update_impl.h"
#endif
