// The ops that run a plan.
#include <cstdint>
#include <optional>
#include <vector>

#include "checks.h"
#include "plan.h"
#include "plan_layout.h"
#include "pool.h"
#include "row_layout.h"
#include "step_call.h"
#include "tensors.h"
#include "threads.h"

namespace fastdiff {

namespace {

float* floats(const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.is_contiguous(), name, " must be float32 and contiguous");
  return static_cast<float*>(x.data_ptr());
}

int64_t num_threads() { return static_cast<int64_t>(torch::stable::get_num_threads()); }

float* floats_of(const std::optional<Tensor>& x) { return x ? static_cast<float*>(x->data_ptr()) : nullptr; }

Code code_of(const Tensor& code) {
  STD_TORCH_CHECK(
      code.scalar_type() == ScalarType::Long && code.dim() == 2 && code.is_contiguous() && code.size(1) == PLAN_WIDTH,
      "a plan's code must be int64 [N, ", PLAN_WIDTH, "]");
  return {static_cast<const Instruction*>(code.data_ptr()), code.size(0)};
}

Program program_from(const Tensor& code, const Tensor& weights, const Tensor& arena, const Tensor& scratch,
                     int64_t batch, int64_t part, int64_t lanes, int64_t times_width) {
  return program_of(code_of(code), {floats("weights", weights), weights.numel()},
                    {floats("arena", arena), arena.numel()}, {floats("scratch", scratch), scratch.numel()}, batch, part,
                    lanes, num_threads(), times_width);
}

Ends ends_of(int64_t input, const Tensor& x, int64_t output, const Tensor& out) {
  STD_TORCH_CHECK(x.size(0) == out.size(0), "the result must have as many samples as x, ", x.size(0), ", got ",
                  out.size(0));
  return {input, x.numel() / x.size(0), output, out.numel() / x.size(0)};
}

// What is written lies apart from what is read, and from each other. The instructions are read again while they run.
void check_memory(const std::vector<Extent>& written, const std::vector<Extent>& read) {
  for (size_t i = 0; i < written.size(); ++i) {
    for (size_t j = i + 1; j < written.size(); ++j) check_apart(written[i], written[j]);
    for (const Extent& other : read) check_apart(written[i], other);
  }
}

// Of times [B or 1, N]: how far apart the samples' vectors lie.
int64_t times_stride_of(const Tensor& times, int64_t dim, int64_t batch) {
  STD_TORCH_CHECK(times.dim() == dim + 2 && (times.size(dim) == 1 || times.size(dim) == batch),
                  "times must hold one vector, or one per sample");
  return times.size(dim) == 1 ? 0 : times.size(dim + 1);
}

}  // namespace

int64_t plan_scratch_cpu(Tensor code, int64_t batch, int64_t part, int64_t lanes) {
  return scratch_of(code_of(code), batch, part, lanes, num_threads()).total();
}

void plan_forward_cpu(Tensor x, Tensor code, Tensor weights, Tensor times, int64_t input, int64_t output, Tensor arena,
                      Tensor scratch, int64_t part, int64_t lanes, Tensor out) {
  const float* from = channels_last_data("x", x);
  float* to = channels_last_data("out", out);
  STD_TORCH_CHECK(times.dim() == 2, "times must be [1 or B, N], got ", described(times));
  const Program p = program_from(code, weights, arena, scratch, x.size(0), part, lanes, times.size(1));
  const Ends ends = ends_of(input, x, output, out);
  check_ends(p, ends);
  check_memory({extent_of("arena", arena), extent_of("scratch", scratch), extent_of("the result", out)},
               {extent_of("x", x), extent_of("weights", weights), extent_of("times", times), extent_of("code", code)});
  const Pool::Use use(pool_of_this_thread(num_threads()));
  evaluate(p, ends, from, 1.0f, floats("times", times), times_stride_of(times, 0, x.size(0)), to);
}

void plan_sample_cpu(Tensor x, Tensor code, Tensor weights, Tensor times, int64_t input, int64_t output, Tensor arena,
                     Tensor scratch, int64_t part, int64_t lanes, Tensor model_output, Tensor rows, Tensor row_numbers,
                     int64_t first_row, int64_t last_row, int64_t first_time, Tensor sample_ids, int64_t seed,
                     bool learned_variance, std::optional<Tensor> base, std::optional<Tensor> history,
                     std::optional<Tensor> pred_out) {
  channels_last_data("x", x);
  channels_last_data("model_output", model_output);
  STD_TORCH_CHECK(times.dim() == 3, "times must be [rows, 1 or B, N], got ", described(times));
  const Program p = program_from(code, weights, arena, scratch, x.size(0), part, lanes, times.size(2));
  const Ends ends = ends_of(input, x, output, model_output);
  check_ends(p, ends);
  std::vector<Extent> written = {extent_of("arena", arena), extent_of("scratch", scratch),
                                 extent_of("the model's output", model_output), extent_of("x", x)};
  if (base) written.push_back(extent_of("base", *base));
  if (history) written.push_back(extent_of("history", *history));
  if (pred_out) written.push_back(extent_of("pred_out", *pred_out));
  check_memory(written,
               {extent_of("weights", weights), extent_of("times", times), extent_of("code", code),
                extent_of("rows", rows), extent_of("row_numbers", row_numbers), extent_of("sample_ids", sample_ids)});
  const float* table = floats("rows", rows);
  STD_TORCH_CHECK(rows.dim() == 2 && rows.size(1) == ROW_WIDTH && 0 <= first_row && first_row <= last_row &&
                      last_row <= rows.size(0) && row_numbers.dim() == 1 && row_numbers.size(0) == rows.size(0),
                  "rows and their numbers must be as many, and first_row to last_row among them");
  STD_TORCH_CHECK(0 <= first_time && first_time <= first_row && last_row - first_time <= times.size(0),
                  "times must hold those of the rows from first_row to last_row");
  if (first_row == last_row) return;
  const int64_t* numbers = index_data("row_numbers", row_numbers, rows.size(0), false);
  check_index("row_numbers", row_numbers, rows.size(0));
  // What each row is given besides its coefficients is the same for all.
  step_call(x, model_output, rows, torch::stable::narrow(row_numbers, 0, first_row, 1), std::nullopt, sample_ids, seed,
            learned_variance, base, history, pred_out, x);
  const Pool::Use use(pool_of_this_thread(num_threads()));
  run_rows(p, ends,
           {.x = floats_of(x),
            .model_output = floats_of(model_output),
            .base = floats_of(base),
            .pred_out = floats_of(pred_out),
            .history = floats_of(history),
            .history_depth = history ? history->size(0) : 0,
            .history_stride = history ? history->stride(0) : 0,
            .pixels = x.size(2) * x.size(3),
            .channels = x.size(1),
            .channels_out = model_output.size(1),
            .learned_variance = learned_variance,
            .table = table,
            .numbers = numbers,
            .first = first_row,
            .last = last_row,
            .times = floats("times", times),
            .first_time = first_time,
            .times_row = times.size(1) * times.size(2),
            .times_stride = times_stride_of(times, 1, x.size(0)),
            .sample_ids = static_cast<const int64_t*>(sample_ids.data_ptr()),
            .seed = static_cast<uint64_t>(seed)});
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("plan_scratch", TORCH_BOX(&plan_scratch_cpu));
  m.impl("plan_forward", TORCH_BOX(&plan_forward_cpu));
  m.impl("plan_sample", TORCH_BOX(&plan_sample_cpu));
}

}  // namespace fastdiff
