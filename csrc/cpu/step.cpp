// The op `step`, and its rows over plain addresses.
#include "step.h"

#include <cstdint>
#include <optional>

#include "kernels.h"
#include "matrix.h"
#include "noise_layout.h"
#include "row_layout.h"
#include "tensors.h"
#include "tiling.h"

namespace fastdiff {

static void check_slot(const char* name, const Tensor& slot, const Tensor& x, bool channels_last) {
  const bool dense = in_layout(slot, channels_last).data_ptr() == slot.data_ptr();
  STD_TORCH_CHECK(dense && slot.scalar_type() == x.scalar_type() && slot.numel() == x.numel(), name,
                  " must have the state's shape, type and memory format");
}

void step_cpu(Tensor x, std::optional<Tensor> model_output, Tensor rows, Tensor row, std::optional<Tensor> noise,
              Tensor sample_ids, int64_t seed, bool learned_variance, std::optional<Tensor> base,
              std::optional<Tensor> history, std::optional<Tensor> pred_out, Tensor out) {
  const int64_t batch = x.size(0), channels = x.size(1);
  const bool is_double = x.scalar_type() == ScalarType::Double;
  index_data("sample_ids", sample_ids, batch, false);
  index_data("row", row, batch, true);
  STD_TORCH_CHECK(rows.is_contiguous() && rows.dim() == 2 && rows.size(1) == ROW_WIDTH &&
                      rows.scalar_type() == (is_double ? ScalarType::Double : ScalarType::Float),
                  "rows must be contiguous [R, ", ROW_WIDTH, "] of the arithmetic's type");
  check_index("row", row, rows.size(0));
  const bool channels_last = is_channels_last(x);
  const Tensor state = in_layout(x, channels_last);
  StepArgs args;
  args.shape = shape_of(state, channels_last);
  args.x = matrix_of(state, channels_last);
  check_slot("out", out, x, channels_last);
  args.out = matrix_of(out, channels_last);
  std::optional<Tensor> output, given;
  if (model_output) {
    output = in_layout(*model_output, channels_last);
    args.model_output = matrix_of(*output, channels_last);
    STD_TORCH_CHECK(output->size(1) == channels || output->size(1) == 2 * channels,
                    "the model's output must have C or 2C channels");
    if (learned_variance) {
      STD_TORCH_CHECK(output->size(1) == 2 * channels, "a learned variance needs 2C output channels");
      args.variance_output = matrix_of(*output, channels_last, channels);
    }
  }
  if (base) {
    check_slot("base", *base, x, channels_last);
    args.base = matrix_of(*base, channels_last);
  }
  if (pred_out) {
    check_slot("pred_out", *pred_out, x, channels_last);
    args.pred_out = matrix_of(*pred_out, channels_last);
  }
  args.history_depth = 0;
  if (history) {
    args.history_depth = static_cast<int>(history->size(0));
    STD_TORCH_CHECK(1 <= args.history_depth && args.history_depth <= 3 && history->scalar_type() == x.scalar_type() &&
                        history->numel() == args.history_depth * x.numel(),
                    "history must be [1 to 3, *x.shape] of the state's type");
    for (int i = 0; i < args.history_depth; ++i) {
      args.history[i] = matrix_of(state, channels_last);
      args.history[i].data = static_cast<char*>(history->data_ptr()) +
                             i * history->stride(0) * static_cast<int64_t>(history->element_size());
    }
  }
  if (noise) given = in_layout(*noise, channels_last);
  args.noise = noise_of(given, sample_ids, row, seed, STREAM_SAMPLING, channels_last);
  args.row = static_cast<const int64_t*>(row.data_ptr());
  args.row_stride = stride_of(row);
  args.rows = rows.data_ptr();
  const Kernels& variant = kernels();
  torch::stable::parallel_for(0, num_units(args.shape), GRAIN,
                              [&](int64_t first, int64_t last) { variant.step(args, first, last); });
}

void step_dense(const DenseStep& call) {
  STD_TORCH_CHECK(call.rows[ROW_WIDTH * call.row + ROW_S] == 0, "a row that draws noise is not for step_dense");
  int64_t one_row = call.row;
  StepArgs args;
  args.shape = {1, 1, call.numel, false};
  const auto place = [&](void* data) { return Matrix{data, Dtype::F32, call.numel, 0}; };
  args.x = place(call.x);
  args.out = place(call.out);
  args.model_output = place(call.model_output);
  args.base = place(call.base);
  args.pred_out = place(call.pred_out);
  args.history_depth = call.history == nullptr ? 0 : call.history_depth;
  for (int i = 0; i < args.history_depth; ++i) args.history[i] = place(call.history + i * call.numel);
  args.noise = {};
  args.row = &one_row;
  args.row_stride = 0;
  args.rows = call.rows;
  const Kernels& variant = kernels();
  torch::stable::parallel_for(0, num_units(args.shape), GRAIN,
                              [&](int64_t first, int64_t last) { variant.step(args, first, last); });
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) { m.impl("step", TORCH_BOX(&step_cpu)); }

}  // namespace fastdiff
