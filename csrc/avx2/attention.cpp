// `attention` for AVX2.
#include "attention.h"
#include "instructions.h"

#include "avx2.h"

#ifdef FD_VARIANT
#include "attention_training_impl.h"
#endif
