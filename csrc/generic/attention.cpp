// `attention` for any CPU.
#include "attention.h"
#include "instructions.h"

#include "generic.h"

#include "attention_training_impl.h"
