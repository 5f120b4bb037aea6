// The kernels for any CPU.
#include "kernels.h"

#define FD_VARIANT generic
#include "variant.inl"
