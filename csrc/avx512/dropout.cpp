// `dropout` for AVX-512.
#include "dropout.h"

#include "avx512.h"

#ifdef FD_VARIANT
#include "dropout_impl.h"
#endif
