// `dropout` for AVX2.
#include "dropout.h"

#include "avx2.h"

#ifdef FD_VARIANT
#include "dropout_impl.h"
#endif
