// What the elementwise kernels are given, and the table of their variants. Plain data only: the variants are compiled
// for several instruction sets, and nothing they share may hold inline code that the linker could pick from one of them.
#pragma once

#include <cstdint>

namespace fastdiff {

enum class Dtype : int { F32, BF16, F16, F64, U8 };

// Element (sample b, row r, column c) lies at data + b * sample_stride + r * row_stride + c, counted in elements.
// Rows and columns follow memory: contiguous samples are one row, channels_last samples are H*W rows of C columns.
struct Matrix {
  void* data = nullptr;
  Dtype dtype = Dtype::F32;
  int64_t sample_stride = 0;
  int64_t row_stride = 0;
};

struct Shape {
  int64_t batch, rows, cols;
  bool channels_last;
};

// Noise of the contract (given.data == nullptr), or given.
struct Noise {
  Matrix given;
  uint64_t seed;
  uint32_t stream;
  const int64_t* sample_ids;
  const int64_t* row;
  int64_t row_stride;  // 0: one row for all samples, 1: one each
};

struct DiffuseArgs {
  Shape shape;
  Matrix x0, x_t, target;  // target.data == nullptr: not wanted
  Noise noise;
  const int64_t* t;
  const void* table;  // [T, 4], float, or double when x0 is
  int levels;
};

struct StepArgs {
  Shape shape;
  Matrix x, out;
  Matrix model_output, variance_output;  // variance_output.data == nullptr: the variance is not learned
  Matrix base, pred_out;                 // data == nullptr: absent
  Matrix history[3];
  int history_depth;
  Noise noise;
  const int64_t* row;
  int64_t row_stride;
  const void* rows;  // [R, ROW_WIDTH], float, or double when x is
};

// One row that draws no noise, over float32 tensors that are all dense and of one layout; nullptr where absent.
struct DenseStep {
  float *x, *model_output, *out, *pred_out, *base, *history;
  int history_depth;
  int64_t numel;
  const float* rows;
  int64_t row;
};
void step_dense(const DenseStep& call);

// y = x * scale where the element's word is at most last_kept, else 0. Elements count in memory order.
struct DropoutArgs {
  Matrix x, y;
  int64_t numel;
  uint64_t seed;
  uint32_t stream, last_kept;
  double scale;
};
constexpr int64_t DROPOUT_UNIT = 4096;

// Losses of each sample, and the gradient of the network's output. Samples are dense and alike; a unit is `tile` elements
// of one of them, all halves and images counted alike.
struct LossArgs {
  Matrix output, target, x0, x_t;  // target.data == nullptr: no squared error; x0.data == nullptr: no bound
  Matrix gradient;                 // data == nullptr: the sums are wanted
  int64_t per_sample, tile;
  bool learned;      // the output has a second half, which says the variance
  int64_t channels;  // of a half where both alternate pixel by pixel (channels_last), tile a multiple of it; else 0
  bool discrete, detach_mean;
  double clip, levels;  // clip 0: none
  const int64_t* t;
  const void* table;                        // [T, 6], float, or double when output is
  const void *grad_mse, *grad_bound;        // [B], the same; nullptr: none
  double* sums;                             // [units, 3]: squares, nats, squared error of the predicted x_0
};

// A work unit is one tile of one sample; its result depends on the sample alone, not on the batch it is in.
int64_t num_units(const Shape& shape);

struct Kernels {
  const char* name;
  void (*diffuse)(const DiffuseArgs&, int64_t first_unit, int64_t last_unit);
  void (*step)(const StepArgs&, int64_t first_unit, int64_t last_unit);
  void (*dropout)(const DropoutArgs&, int64_t first_unit, int64_t last_unit);
  void (*losses)(const LossArgs&, int64_t first_unit, int64_t last_unit);
};

extern const Kernels kernels_generic, kernels_avx2, kernels_avx512;

// The best variant this machine runs, or the one that FASTDIFF_CPU_ISA names.
const Kernels& kernels();

// Tiles: at most this many elements of one sample, which keeps all buffers of a unit in the first-level cache.
constexpr int64_t TILE = 1024;
constexpr int64_t TILE_COLS = 64;
constexpr int64_t NOISE_CHUNK = 64;

struct Tiling {
  int64_t tile_rows, tile_cols, row_tiles, col_tiles;
};

Tiling tiling(const Shape& shape);

}  // namespace fastdiff
