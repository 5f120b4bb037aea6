// The kernels that a plan and its table need, of each instruction set.
#include "kernels.h"

#include "failure.h"
#include "isa.h"

namespace fastdiff {

// PAIRS: the instruction set whose kernels run instructions over pairs of bfloat16 numbers.
#define FD_KERNELS(VARIANT, PAIRS)                                                  \
  namespace PAIRS {                                                                 \
  void run_pairs_unit(const Work&, int64_t threads, int64_t unit, float* scratch);  \
  }                                                                                 \
  namespace VARIANT {                                                               \
  void run_step(const StepArgs&, int64_t first_unit, int64_t last_unit);            \
  void run_instruction_unit(const Work&, int64_t threads, int64_t, float* scratch); \
  static Kernels make() {                                                           \
    Kernels table = {};                                                             \
    table.name = #VARIANT;                                                          \
    table.step = run_step;                                                          \
    table.instruction = run_instruction_unit;                                       \
    table.pairs = PAIRS::run_pairs_unit;                                            \
    return table;                                                                   \
  }                                                                                 \
  }

FD_KERNELS(generic, generic)
#if defined(__x86_64__)
FD_KERNELS(avx2, avx2)
// AVX2 has the same bits there, and the program stays small.
FD_KERNELS(avx512, avx2)
// Of AVX-512 with BF16, and of AMX, the instructions over pairs alone are other ones.
#define FD_PAIRS(VARIANT)                                                          \
  namespace VARIANT {                                                              \
  void run_pairs_unit(const Work&, int64_t threads, int64_t unit, float* scratch); \
  static Kernels make() {                                                          \
    Kernels table = avx512::make();                                                \
    table.name = #VARIANT;                                                         \
    table.pairs = run_pairs_unit;                                                  \
    return table;                                                                  \
  }                                                                                \
  }

FD_PAIRS(avx512bf16)
FD_PAIRS(avx512amx)
#endif

static Kernels choose() {
#if defined(__x86_64__)
  if (chosen_isa() == Isa::AVX512AMX_MODEL)
    fail("FASTDIFF_CPU_ISA=avx512amxmodel is for tests of the Python extension: it is not built here");
  if (chosen_isa() == Isa::AVX512AMX) return avx512amx::make();
  if (chosen_isa() == Isa::AVX512BF16) return avx512bf16::make();
  if (chosen_isa() == Isa::AVX512) return avx512::make();
  if (chosen_isa() == Isa::AVX2) return avx2::make();
#endif
  return generic::make();
}

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

}  // namespace fastdiff
