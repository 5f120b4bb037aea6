// Kernels that are compiled behind this header run on any CPU.
#pragma once

#define FD_VARIANT generic
