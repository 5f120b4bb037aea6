// 3x3 convolutions of training: the plan's Winograd with weights packed at every call, and the gradient of the weights.
#include "conv3x3.h"

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

// Tiles of 4x4 results need fewer products, and more weights to transform: they are for images of 8 pixels and more,
// and for few channels. `channels` are those on both sides, multiplied.
int64_t tile_size(int64_t height, int64_t width, int64_t channels) {
  return (height >= 8 && width >= 8) || channels <= 128 * 128 ? 4 : 2;
}

}  // namespace

ConvWeights weights_of(const Tensor& weight) {
  return {static_cast<const float*>(weight.data_ptr()), weight.stride(0), weight.stride(1), weight.stride(2),
          weight.stride(3)};
}

void conv3x3(const ConvLayer& layer) {
  const int64_t threads = loop_threads(), batch = layer.batch;
  const int64_t rows = layer.channels_in, columns = layer.channels_out;
  const bool transposed = layer.transposed;
  PackArgs pack;
  pack.rows = rows;
  pack.columns = columns;
  pack.row_stride = transposed ? layer.weight.out_stride : layer.weight.in_stride;
  pack.column_stride = transposed ? layer.weight.in_stride : layer.weight.out_stride;
  pack.y_stride = layer.weight.y_stride;
  pack.x_stride = layer.weight.x_stride;
  pack.weight = layer.weight.at;
  if (transposed) {
    // Turned by half a turn.
    pack.weight += 2 * (pack.y_stride + pack.x_stride);
    pack.y_stride = -pack.y_stride;
    pack.x_stride = -pack.x_stride;
  }
  pack.size = tile_size(layer.height, layer.width, rows * columns);

  Instruction i;
  std::memset(&i, 0, sizeof(i));
  i.op = PLAN_CONV;
  i.algorithm = pack.size == 4 ? PLAN_WINOGRAD4 : PLAN_WINOGRAD2;
  i.kernel = 3;
  i.stride = i.pad = 1;
  i.channels = rows;
  i.channels_out = columns;
  i.height = i.height_in = layer.height;
  i.width = i.width_in = layer.width;
  i.source2 = i.residual = i.norm = i.time = i.stats = i.stats2 = -1;
  // Places count from the first of what is read.
  const float *added = layer.residual, *base = added == nullptr ? layer.x : std::min(layer.x, added);
  i.source = layer.x - base;
  i.target = layer.out - base;
  if (added != nullptr) i.residual = added - base;
  const int64_t points = (pack.size + 2) * (pack.size + 2), panels = panels_of(columns);
  i.bias = points * panels * rows * PANEL;
  const int64_t packed = i.bias + round_up(columns + 16, 16);
  const int64_t shared = round_up(shared_scratch(i, batch, threads), 16),
                per_thread = round_up(thread_scratch(i, batch, threads), 16);
  float* memory = workspace(packed + shared + threads * per_thread + 16);
  pack.packed = memory;
  std::fill(memory + i.bias, memory + packed, 0.0f);
  if (layer.bias != nullptr) std::copy(layer.bias, layer.bias + columns, memory + i.bias);
  parallel_for(0, panels * ceil_div(rows, PACK_ROWS), 1,
               [&](int64_t first, int64_t last) { kernels().conv3x3_pack(pack, first, last); });
  const Work work{i, batch, const_cast<float*>(base), memory, nullptr, 0, memory + packed, 0};
  run_instruction(work, threads, memory + packed + shared, per_thread);
}

void conv3x3_weight_grad(ConvGradArgs a) {
  const int64_t threads = loop_threads();
  a.size = tile_size(a.height, a.width, a.channels_in * a.channels_out);
  const int64_t tiles = grad_tiles(a), chunk = std::min(tiles, GRAD_CHUNK), points = grad_points(a);
  const int64_t row_in = grad_row(a.channels_in), row_out = grad_row(a.channels_out);
  const int64_t all_sums = points * round_up(a.channels_out, 16) * row_in, block_sums = points * grad_block_stride();
  a.v = workspace(points * chunk * (row_in + row_out) + (chunk == tiles ? threads * block_sums : all_sums));
  a.z = a.v + points * chunk * row_in;
  a.sums = a.z + points * chunk * row_out;
  const Kernels& variant = kernels();
  const auto run = [&](GradPhase phase) {
    a.phase = phase;
    run_units(grad_units(a), threads, [&](int64_t unit, int64_t worker) {
      ConvGradArgs mine = a;
      if (phase == GRAD_BLOCK) mine.sums += worker * block_sums;
      variant.conv3x3_weight_grad(mine, unit);
    });
  };
  for (a.first = 0; a.first < tiles; a.first += chunk) {
    a.count = std::min(chunk, tiles - a.first);
    run(GRAD_TRANSFORM);
    run(chunk == tiles ? GRAD_BLOCK : GRAD_MULTIPLY);
  }
  if (chunk < tiles) run(GRAD_FINISH);
}

Added checked_added(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                    const std::optional<Tensor>& residual, const Tensor& out, int64_t columns,
                    float* (*data)(const char* name, const Tensor& x)) {
  STD_TORCH_CHECK(!bias || (bias->scalar_type() == ScalarType::Float && bias->is_contiguous() && bias->dim() == 1 &&
                            bias->size(0) == columns),
                  "bias must be contiguous float32 [", columns, "]");
  const Extent written = extent_of("out", out);
  check_apart(written, extent_of("x", x));
  check_apart(written, extent_of("weight", weight));
  if (bias) check_apart(written, extent_of("bias", *bias));
  Added added = {bias ? static_cast<const float*>(bias->data_ptr()) : nullptr, nullptr};
  if (residual) {
    check_same_shape("residual", *residual, out);
    added.residual = data("residual", *residual);
    check_apart(written, extent_of("residual", *residual));
  }
  return added;
}

// y = conv(x, weight) + bias + residual; `transposed`: x is the gradient of the result, and y that of the input.
void conv3x3_out_cpu(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> residual,
                     bool transposed, Tensor out) {
  const float *from = channels_last_data("x", x), *to = channels_last_data("out", out);
  const int64_t batch = x.size(0), rows = x.size(1), columns = out.size(1);
  STD_TORCH_CHECK(weight.dim() == 4 && weight.scalar_type() == ScalarType::Float && weight.size(2) == 3 &&
                      weight.size(3) == 3 && weight.size(transposed ? 0 : 1) == rows &&
                      weight.size(transposed ? 1 : 0) == columns,
                  "weight must be float32 [C_out, C_in, 3, 3] with the channels of x and out, got ", described(weight));
  STD_TORCH_CHECK(rows > 0 && columns > 0 && rows % 16 == 0 && columns % 16 == 0,
                  "channels must be multiples of 16, at least 16, got ", rows, " and ", columns);
  STD_TORCH_CHECK(out.size(0) == batch && out.size(2) == x.size(2) && out.size(3) == x.size(3),
                  "out must have x's batch and size, those of ", described(x), ", got ", described(out));
  const Added added = checked_added(x, weight, bias, residual, out, columns, channels_last_data);
  if (x.numel() == 0) return;
  ConvLayer layer;
  layer.x = from;
  layer.batch = batch;
  layer.height = x.size(2);
  layer.width = x.size(3);
  layer.channels_in = rows;
  layer.channels_out = columns;
  layer.weight = weights_of(weight);
  layer.bias = added.bias;
  layer.residual = added.residual;
  layer.transposed = transposed;
  layer.out = const_cast<float*>(to);
  conv3x3(layer);
}

void conv3x3_weight_grad_cpu(Tensor x, Tensor grad, Tensor out) {
  ConvGradArgs a;
  a.x = channels_last_data("x", x);
  a.dy = channels_last_data("grad", grad);
  a.batch = x.size(0);
  a.channels_in = x.size(1);
  a.channels_out = grad.size(1);
  a.height = x.size(2);
  a.width = x.size(3);
  STD_TORCH_CHECK(grad.size(0) == a.batch && grad.size(2) == a.height && grad.size(3) == a.width,
                  "grad must have x's batch and size, those of ", described(x), ", got ", described(grad));
  STD_TORCH_CHECK(a.channels_in > 0 && a.channels_out > 0, "there must be at least one channel, got ", a.channels_in,
                  " and ", a.channels_out);
  a.dweight = channels_last_data("out", out);
  STD_TORCH_CHECK(out.size(0) == a.channels_out && out.size(1) == a.channels_in && out.size(2) == 3 && out.size(3) == 3,
                  "out must be [C_out, C_in, 3, 3], got ", described(out));
  check_apart(extent_of("out", out), extent_of("x", x));
  check_apart(extent_of("out", out), extent_of("grad", grad));
  conv3x3_weight_grad(a);
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("conv3x3_out", TORCH_BOX(&conv3x3_out_cpu));
  m.impl("conv3x3_weight_grad", TORCH_BOX(&conv3x3_weight_grad_cpu));
}

}  // namespace fastdiff
