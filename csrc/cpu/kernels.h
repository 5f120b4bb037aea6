// All kernels of one instruction set, and which are in use. Plain data only, here and in what it includes: the variants
// are compiled for several instruction sets, and nothing they share may hold inline code that the linker could pick
// from one of them.
#pragma once

#include <cstdint>

namespace fastdiff {

struct AttentionArgs;
struct AttentionGradArgs;
struct ColumnSumsArgs;
struct ConvGradArgs;
struct DiffuseArgs;
struct DropoutArgs;
struct LinearGradArgs;
struct LossArgs;
struct NormArgs;
struct NormGradArgs;
struct PackArgs;
struct PackedLayerArgs;
struct PixelArgs;
struct SquaresArgs;
struct StepArgs;
struct UpdateArgs;
struct Work;

// Each takes units of work: a range of them, or one with `scratch` to work in.
struct Kernels {
  const char* name;
  void (*diffuse)(const DiffuseArgs&, int64_t first_unit, int64_t last_unit);
  void (*step)(const StepArgs&, int64_t first_unit, int64_t last_unit);
  void (*attention)(const AttentionArgs&, int64_t unit, float* scratch);
  void (*attention_backward)(const AttentionGradArgs&, int64_t unit, float* scratch);
  void (*dropout)(const DropoutArgs&, int64_t first_unit, int64_t last_unit);
  void (*losses)(const LossArgs&, int64_t first_unit, int64_t last_unit);
  void (*packing)(const PackedLayerArgs&, int64_t first_unit, int64_t last_unit);
  void (*pixels)(const PixelArgs&, int64_t first_unit, int64_t last_unit);
  void (*update)(const UpdateArgs&, int64_t first_piece, int64_t last_piece);
  void (*squares)(const SquaresArgs&, int64_t first_piece, int64_t last_piece);
  void (*conv3x3_pack)(const PackArgs&, int64_t first_unit, int64_t last_unit);
  void (*conv3x3_weight_grad)(const ConvGradArgs&, int64_t unit);
  void (*linear_weight_grad)(const LinearGradArgs&, int64_t unit, float* scratch);
  void (*column_sums)(const ColumnSumsArgs&, int64_t part);
  void (*group_norm_act)(const NormArgs&, int64_t unit, float* scratch);
  void (*group_norm_act_backward)(const NormGradArgs&, int64_t unit, float* scratch);
  void (*instruction)(const Work&, int64_t threads, int64_t unit, float* scratch);
  // The same of an instruction over pairs of bfloat16 numbers.
  void (*pairs)(const Work&, int64_t threads, int64_t unit, float* scratch);
};

// The best variant this machine runs, or the one that FASTDIFF_CPU_ISA names.
const Kernels& kernels();

}  // namespace fastdiff
