// Linear layers of training: the plan's product with weights packed at every call, and the gradients of weights and
// bias.
#include "linear.h"

#include <algorithm>
#include <cstring>

#include "checks.h"
#include "instructions.h"
#include "kernels.h"
#include "layers.h"
#include "parallel.h"
#include "plan_layout.h"
#include "rounding.h"
#include "tensors.h"
#include "threads.h"
#include "workspace.h"

namespace fastdiff {

namespace {

// [N, C], contiguous float32.
float* rows_data(const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 2 && x.scalar_type() == ScalarType::Float && x.is_contiguous(), name,
                  " must be contiguous float32 [N, C], got ", described(x));
  return static_cast<float*>(x.data_ptr());
}

// weight: [columns, rows] by strides; packed: [panels, rows, PANEL], zero behind the last column.
void pack(const float* weight, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride,
          float* packed) {
  constexpr int64_t BLOCK = 16;
  const int64_t blocks = ceil_div(rows, BLOCK);
  parallel_for(0, panels_of(columns) * blocks, 4, [&](int64_t first, int64_t last) {
    for (int64_t unit = first; unit < last; ++unit) {
      const int64_t panel = unit / blocks, from = unit % blocks * BLOCK, to = std::min(rows, from + BLOCK);
      if (column_stride == 1 && (panel + 1) * PANEL <= columns) {
        for (int64_t row = from; row < to; ++row)
          std::copy_n(weight + row * row_stride + panel * PANEL, PANEL, packed + (panel * rows + row) * PANEL);
        continue;
      }
      for (int64_t c = 0; c < PANEL; ++c) {
        const int64_t column = panel * PANEL + c;
        float* place = packed + panel * rows * PANEL + c;
        for (int64_t row = from; row < to; ++row)
          place[row * PANEL] = column < columns ? weight[row * row_stride + column * column_stride] : 0.0f;
      }
    }
  });
}

}  // namespace

void linear(const LinearLayer& layer) {
  const int64_t threads = loop_threads(), columns = layer.channels_out;
  const int64_t channels = layer.channels_in + layer.channels2;
  Instruction i;
  std::memset(&i, 0, sizeof(i));
  i.op = PLAN_CONV;
  i.algorithm = PLAN_DIRECT;
  i.kernel = i.stride = 1;
  i.channels = layer.channels_in;
  i.channels2 = layer.channels2;
  i.channels_out = columns;
  i.height = i.height_in = layer.rows;
  i.width = i.width_in = 1;
  i.source2 = i.residual = i.norm = i.time = i.stats = i.stats2 = -1;
  // Places count from the first of what is read.
  const float* base = layer.x;
  if (layer.x2 != nullptr) base = std::min(base, layer.x2);
  if (layer.residual != nullptr) base = std::min(base, layer.residual);
  i.source = layer.x - base;
  i.target = layer.out - base;
  if (layer.x2 != nullptr) i.source2 = layer.x2 - base;
  if (layer.residual != nullptr) i.residual = layer.residual - base;
  i.bias = panels_of(columns) * channels * PANEL;
  const int64_t packed = i.bias + round_up(columns + 16, 16);
  const int64_t per_thread = round_up(thread_scratch(i, 1, threads), 16);
  float* memory = workspace(packed + threads * per_thread + 16);
  pack(layer.weight, channels, columns, layer.in_stride, layer.out_stride, memory);
  std::fill(memory + i.bias, memory + packed, 0.0f);
  if (layer.bias != nullptr) std::copy(layer.bias, layer.bias + columns, memory + i.bias);
  const Work work{i, 1, const_cast<float*>(base), memory, nullptr, 0, nullptr, 0};
  run_instruction(work, threads, memory + packed, per_thread);
}

void linear_weight_grad(LinearGradArgs a) {
  const int64_t threads = loop_threads();
  // As in conv3x3: the sums of an element are the same whatever the blocks.
  a.block_in = std::min<int64_t>(64, round_up(a.channels_in, 16));
  // The largest that leaves no part, since parts are copied.
  a.block_out = std::min<int64_t>(64, round_up(a.channels_out, 16));
  for (const int64_t block : {128, 192})
    if (a.channels_out % block == 0) a.block_out = block;
  while (linear_units(a) < 2 * threads && a.block_out > 16) a.block_out = round_up(a.block_out / 2, 16);
  const int64_t per_thread = round_up(linear_scratch(a), 16);
  float* memory = workspace(threads * per_thread);
  const Kernels& variant = kernels();
  run_units(linear_units(a), threads,
            [&](int64_t unit, int64_t worker) { variant.linear_weight_grad(a, unit, memory + worker * per_thread); });
}

// y = x weight^T + bias + residual; `transposed`: x is the gradient of the result, and y = x weight that of the input.
void linear_out_cpu(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> residual,
                    bool transposed, Tensor out) {
  const float *from = rows_data("x", x), *to = rows_data("out", out);
  const int64_t rows = x.size(1), columns = out.size(1);
  STD_TORCH_CHECK(weight.dim() == 2 && weight.scalar_type() == ScalarType::Float &&
                      weight.size(transposed ? 0 : 1) == rows && weight.size(transposed ? 1 : 0) == columns,
                  "weight must be float32 [C_out, C_in] with the channels of x and out, got ", described(weight));
  STD_TORCH_CHECK(rows > 0 && columns > 0, "there must be at least one channel, got ", rows, " and ", columns);
  STD_TORCH_CHECK(out.size(0) == x.size(0), "out must have x's rows, those of ", described(x), ", got ",
                  described(out));
  const Added added = checked_added(x, weight, bias, residual, out, columns, rows_data);
  if (x.numel() == 0) return;
  LinearLayer layer;
  layer.x = from;
  layer.rows = x.size(0);
  layer.channels_in = rows;
  layer.channels_out = columns;
  layer.weight = static_cast<const float*>(weight.data_ptr());
  layer.in_stride = weight.stride(transposed ? 0 : 1);
  layer.out_stride = weight.stride(transposed ? 1 : 0);
  layer.bias = added.bias;
  layer.residual = added.residual;
  layer.out = const_cast<float*>(to);
  linear(layer);
}

void linear_weight_grad_cpu(Tensor x, Tensor grad, Tensor out) {
  LinearGradArgs a;
  a.x = rows_data("x", x);
  a.dy = rows_data("grad", grad);
  a.dweight = rows_data("out", out);
  a.rows = x.size(0);
  a.channels_in = x.size(1);
  a.channels_out = grad.size(1);
  STD_TORCH_CHECK(grad.size(0) == a.rows, "grad must have x's rows, those of ", described(x), ", got ",
                  described(grad));
  STD_TORCH_CHECK(a.channels_in > 0 && a.channels_out > 0, "there must be at least one channel, got ", a.channels_in,
                  " and ", a.channels_out);
  STD_TORCH_CHECK(out.size(0) == a.channels_out && out.size(1) == a.channels_in, "out must be [C_out, C_in], got ",
                  described(out));
  check_apart(extent_of("out", out), extent_of("x", x));
  check_apart(extent_of("out", out), extent_of("grad", grad));
  a.dweight_stride = a.channels_in;
  linear_weight_grad(a);
}

void column_sums(const float* x, int64_t rows, int64_t columns, float* out) {
  if (columns == 0) return;
  const int64_t parts = ceil_div(rows, SUM_ROWS);
  const ColumnSumsArgs a = {x, rows, columns, workspace(parts * columns)};
  const Kernels& variant = kernels();
  // About 16,000 values for each thread at least.
  parallel_for(0, parts, std::max<int64_t>(1, 16384 / (SUM_ROWS * columns)), [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) variant.column_sums(a, part);
  });
  std::fill(out, out + columns, 0.0f);
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t c = 0; c < columns; ++c) out[c] += a.sums[part * columns + c];
}

void column_sums_out_cpu(Tensor x, Tensor out) {
  const float* from = rows_data("x", x);
  const int64_t columns = x.size(1);
  STD_TORCH_CHECK(
      out.dim() == 1 && out.size(0) == columns && out.scalar_type() == ScalarType::Float && out.is_contiguous(),
      "out must be contiguous float32 [", columns, "], got ", described(out));
  check_apart(extent_of("out", out), extent_of("x", x));
  column_sums(from, x.size(0), columns, static_cast<float*>(out.data_ptr()));
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("linear_out", TORCH_BOX(&linear_out_cpu));
  m.impl("linear_weight_grad", TORCH_BOX(&linear_weight_grad_cpu));
  m.impl("column_sums_out", TORCH_BOX(&column_sums_out_cpu));
}

}  // namespace fastdiff
