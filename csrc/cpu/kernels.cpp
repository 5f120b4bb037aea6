// Which instruction set this machine runs.
#include "kernels.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

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
  void run_pixels(const PixelArgs&, int64_t first_unit, int64_t last_unit);         \
  void run_conv3x3_pack(const PackArgs&, int64_t first_unit, int64_t last_unit);    \
  void run_conv3x3_weight_grad(const ConvGradArgs&, int64_t unit);                  \
  void run_linear_weight_grad(const LinearGradArgs&, int64_t, float* scratch);      \
  void run_column_sums(const ColumnSumsArgs&, int64_t part);                        \
  void run_group_norm_act(const NormArgs&, int64_t unit, float* scratch);           \
  void run_group_norm_act_backward(const NormGradArgs&, int64_t, float* scratch);   \
  void run_instruction_unit(const Work&, int64_t threads, int64_t, float* scratch); \
  static const Kernels table = {                                                    \
      .name = #VARIANT,                                                             \
      .diffuse = run_diffuse,                                                       \
      .step = run_step,                                                             \
      .attention = run_attention,                                                   \
      .attention_backward = run_attention_backward,                                 \
      .dropout = run_dropout,                                                       \
      .losses = run_losses,                                                         \
      .pixels = run_pixels,                                                         \
      .conv3x3_pack = run_conv3x3_pack,                                             \
      .conv3x3_weight_grad = run_conv3x3_weight_grad,                               \
      .linear_weight_grad = run_linear_weight_grad,                                 \
      .column_sums = run_column_sums,                                               \
      .group_norm_act = run_group_norm_act,                                         \
      .group_norm_act_backward = run_group_norm_act_backward,                       \
      .instruction = run_instruction_unit,                                          \
  };                                                                                \
  }

FD_KERNELS(generic)
#if defined(__x86_64__)
FD_KERNELS(avx2)
FD_KERNELS(avx512)
#endif

static const Kernels& choose() {
  const char* wanted = std::getenv("FASTDIFF_CPU_ISA");
  const Kernels* available[3];
  int count = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    available[count++] = &avx512::table;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    available[count++] = &avx2::table;
#endif
  available[count++] = &generic::table;
  if (wanted == nullptr || *wanted == '\0') return *available[0];
  for (int i = 0; i < count; ++i)
    if (std::strcmp(available[i]->name, wanted) == 0) return *available[i];
  std::string message = std::string("FASTDIFF_CPU_ISA must be one of those this machine runs:");
  for (int i = 0; i < count; ++i) message += std::string(" ") + available[i]->name;
  throw std::runtime_error(message + ", got " + wanted);
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace fastdiff
