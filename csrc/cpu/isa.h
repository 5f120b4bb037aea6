// Which instruction set the kernels are taken from.
#pragma once

namespace fastdiff {

enum class Isa : int { GENERIC, AVX2, AVX512, AVX512BF16, AVX512AMX, AVX512AMX_MODEL };

// The best that this machine runs, or the one that FASTDIFF_CPU_ISA names. Throws std::runtime_error for another name.
Isa chosen_isa();

}  // namespace fastdiff
