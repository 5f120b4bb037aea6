// Packed weights for AVX-512.
#include "packing.h"

#include "avx512.h"

#ifdef FD_VARIANT
#include "packing_impl.h"
#endif
