// The kernels of each instruction set.
#include "kernels.h"

#include "isa.h"

namespace fastdiff {

// From the files of the folder of that name: what each instruction set has, and a table of it.
#define FD_KERNELS(VARIANT)                                                         \
  namespace VARIANT {                                                               \
  void run_diffuse(const DiffuseArgs&, int64_t first_unit, int64_t last_unit);      \
  void run_step(const StepArgs&, int64_t first_unit, int64_t last_unit);            \
  void run_attention(const AttentionArgs&, int64_t unit, float* scratch);           \
  void run_attention_backward(const AttentionGradArgs&, int64_t, float* scratch);   \
  void run_dropout(const DropoutArgs&, int64_t first_unit, int64_t last_unit);      \
  void run_losses(const LossArgs&, int64_t first_unit, int64_t last_unit);          \
  void run_packing(const PackedLayerArgs&, int64_t first_unit, int64_t last_unit);  \
  void run_pixels(const PixelArgs&, int64_t first_unit, int64_t last_unit);         \
  void run_update(const UpdateArgs&, int64_t first_piece, int64_t last_piece);      \
  void run_squares(const SquaresArgs&, int64_t first_piece, int64_t last_piece);    \
  void run_conv3x3_pack(const PackArgs&, int64_t first_unit, int64_t last_unit);    \
  void run_conv3x3_weight_grad(const ConvGradArgs&, int64_t unit);                  \
  void run_linear_weight_grad(const LinearGradArgs&, int64_t, float* scratch);      \
  void run_column_sums(const ColumnSumsArgs&, int64_t part);                        \
  void run_group_norm_act(const NormArgs&, int64_t unit, float* scratch);           \
  void run_group_norm_act_backward(const NormGradArgs&, int64_t, float* scratch);   \
  void run_instruction_unit(const Work&, int64_t threads, int64_t, float* scratch); \
  void run_pairs_unit(const Work&, int64_t threads, int64_t unit, float* scratch);  \
  static const Kernels table = {                                                    \
      .name = #VARIANT,                                                             \
      .diffuse = run_diffuse,                                                       \
      .step = run_step,                                                             \
      .attention = run_attention,                                                   \
      .attention_backward = run_attention_backward,                                 \
      .dropout = run_dropout,                                                       \
      .losses = run_losses,                                                         \
      .packing = run_packing,                                                       \
      .pixels = run_pixels,                                                         \
      .update = run_update,                                                         \
      .squares = run_squares,                                                       \
      .conv3x3_pack = run_conv3x3_pack,                                             \
      .conv3x3_weight_grad = run_conv3x3_weight_grad,                               \
      .linear_weight_grad = run_linear_weight_grad,                                 \
      .column_sums = run_column_sums,                                               \
      .group_norm_act = run_group_norm_act,                                         \
      .group_norm_act_backward = run_group_norm_act_backward,                       \
      .instruction = run_instruction_unit,                                          \
      .pairs = run_pairs_unit,                                                      \
  };                                                                                \
  }

FD_KERNELS(generic)
#if defined(__x86_64__)
FD_KERNELS(avx2)
FD_KERNELS(avx512)
// Of AVX-512 with BF16, and of AMX, the instructions over pairs alone are other ones.
#define FD_PAIRS(VARIANT)                                                          \
  namespace VARIANT {                                                              \
  void run_pairs_unit(const Work&, int64_t threads, int64_t unit, float* scratch); \
  static const Kernels& table() {                                                  \
    static const Kernels chosen = [] {                                             \
      Kernels k = avx512::table;                                                   \
      k.name = #VARIANT;                                                           \
      k.pairs = run_pairs_unit;                                                    \
      return k;                                                                    \
    }();                                                                           \
    return chosen;                                                                 \
  }                                                                                \
  }

FD_PAIRS(avx512bf16)
FD_PAIRS(avx512amx)
FD_PAIRS(avx512amxmodel)
#endif

const Kernels& kernels() {
#if defined(__x86_64__)
  if (chosen_isa() == Isa::AVX512AMX_MODEL) return avx512amxmodel::table();
  if (chosen_isa() == Isa::AVX512AMX) return avx512amx::table();
  if (chosen_isa() == Isa::AVX512BF16) return avx512bf16::table();
  if (chosen_isa() == Isa::AVX512) return avx512::table;
  if (chosen_isa() == Isa::AVX2) return avx2::table;
#endif
  return generic::table;
}

}  // namespace fastdiff
