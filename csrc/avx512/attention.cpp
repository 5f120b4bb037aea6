// `attention` for AVX-512.
#include "attention.h"
#include "instructions.h"

#include "avx512.h"

#ifdef FD_VARIANT
#include "attention_training_impl.h"
#endif
