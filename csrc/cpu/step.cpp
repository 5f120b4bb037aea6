// The op `step`.
#include "step.h"

#include <cstdint>
#include <optional>

#include "checks.h"
#include "matrix.h"
#include "noise_layout.h"
#include "row.h"
#include "row_layout.h"
#include "step_call.h"
#include "tensors.h"
#include "tiling.h"

namespace fastdiff {

namespace {

void check_slot(const char* name, const Tensor& slot, const Tensor& x, bool channels_last) {
  check_same_shape(name, slot, x);
  STD_TORCH_CHECK(slot.scalar_type() == x.scalar_type() && is_dense(slot, channels_last), name,
                  " must have the state's type and memory format, dense: expected that of ", described(x), ", got ",
                  described(slot));
}

void check_history(const Tensor& history, const Tensor& x, bool channels_last) {
  bool fits = history.dim() == x.dim() + 1 && history.size(0) >= 1 && history.size(0) <= 3 &&
              history.scalar_type() == x.scalar_type();
  for (int64_t i = 0; fits && i < x.dim(); ++i) fits = history.size(i + 1) == x.size(i);
  STD_TORCH_CHECK(fits, "history must be [1 to 3, *x.shape] of the state's type, for ", described(x), ", got ",
                  described(history));
  STD_TORCH_CHECK(is_dense(history, channels_last, 1) && (history.size(0) == 1 || history.stride(0) >= x.numel()),
                  "history's slots must each lie densely in the state's memory format and apart, got ",
                  described(history));
}

}  // namespace

StepCall step_call(const Tensor& x, const std::optional<Tensor>& model_output, const Tensor& rows, const Tensor& row,
                   const std::optional<Tensor>& noise, const Tensor& sample_ids, int64_t seed, bool learned_variance,
                   const std::optional<Tensor>& base, const std::optional<Tensor>& history,
                   const std::optional<Tensor>& pred_out, const Tensor& out) {
  STD_TORCH_CHECK(x.dim() >= 2, "x must be [B, C, ...], got ", described(x));
  check_floating("x", x);
  const int64_t batch = x.size(0), channels = x.size(1);
  const bool is_double = x.scalar_type() == ScalarType::Double;
  index_data("sample_ids", sample_ids, batch, false);
  index_data("row", row, batch, true);
  check_table("rows", rows, x, ROW_WIDTH);
  check_index("row", row, rows.size(0));
  const bool channels_last = is_channels_last(x);
  const Tensor state = in_layout(x, channels_last);
  StepCall call;
  StepArgs& args = call.args;
  args.shape = shape_of(state, channels_last);
  args.x = matrix_of(state, channels_last);
  check_slot("out", out, x, channels_last);
  args.out = matrix_of(out, channels_last);
  std::optional<Tensor> output, given;
  if (model_output) {
    const bool doubled = model_output->dim() >= 2 && model_output->size(1) != channels;
    check_image("the model's output", *model_output, x, doubled || learned_variance ? 2 * channels : channels);
    output = in_layout(*model_output, channels_last);
    args.model_output = matrix_of(*output, channels_last);
    if (learned_variance) args.variance_output = matrix_of(*output, channels_last, channels);
  }
  STD_TORCH_CHECK(model_output || !learned_variance, "a learned variance needs the model's output");
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
    check_history(*history, x, channels_last);
    args.history_depth = static_cast<int>(history->size(0));
    for (int i = 0; i < args.history_depth; ++i) {
      args.history[i] = matrix_of(state, channels_last);
      args.history[i].data = static_cast<char*>(history->data_ptr()) +
                             i * history->stride(0) * static_cast<int64_t>(history->element_size());
    }
  }
  if (noise) {
    check_same_shape("noise", *noise, x);
    given = in_layout(*noise, channels_last);
  }
  const std::optional<Tensor> written[] = {out, pred_out, base, history};
  const std::optional<Tensor> read[] = {state, output, given, rows, row, sample_ids};
  constexpr const char *WRITTEN[] = {"out", "pred_out", "base", "history"},
                       *READ[] = {"x", "the model's output", "noise", "rows", "row", "sample_ids"};
  for (int i = 0; i < 4; ++i) {
    if (!written[i]) continue;
    const Extent place = extent_of(WRITTEN[i], *written[i]);
    for (int j = i + 1; j < 4; ++j)
      if (written[j]) check_apart(place, extent_of(WRITTEN[j], *written[j]));
    for (int j = 0; j < 6; ++j)
      if (read[j]) check_apart(place, extent_of(READ[j], *read[j]), j < 3);
  }
  for (int64_t i = 0; i < row.size(0); ++i) {
    const int64_t number = static_cast<const int64_t*>(row.data_ptr())[i];
    const auto check = [&](const auto* table) {
      check_row(table + ROW_WIDTH * number, number, model_output.has_value(), base.has_value(), args.history_depth);
    };
    is_double ? check(static_cast<const double*>(rows.data_ptr())) : check(static_cast<const float*>(rows.data_ptr()));
  }
  args.noise = noise_of(given, sample_ids, row, seed, STREAM_SAMPLING, channels_last);
  args.row = static_cast<const int64_t*>(row.data_ptr());
  args.row_stride = stride_of(row);
  args.rows = rows.data_ptr();
  call.copies = {state, output, given};
  return call;
}

void step_cpu(Tensor x, std::optional<Tensor> model_output, Tensor rows, Tensor row, std::optional<Tensor> noise,
              Tensor sample_ids, int64_t seed, bool learned_variance, std::optional<Tensor> base,
              std::optional<Tensor> history, std::optional<Tensor> pred_out, Tensor out) {
  launch_step(
      step_call(x, model_output, rows, row, noise, sample_ids, seed, learned_variance, base, history, pred_out, out)
          .args);
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) { m.impl("step", TORCH_BOX(&step_cpu)); }

}  // namespace fastdiff
