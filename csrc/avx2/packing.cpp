// Packed weights for AVX2.
#include "packing.h"

#include "avx2.h"

#ifdef FD_VARIANT
#include "packing_impl.h"
#endif
