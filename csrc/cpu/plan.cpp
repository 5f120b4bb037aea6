// Runs a plan: one evaluation of a network, or that and a row of a coefficient table, again and again.
#include "plan_layout.h"

#include <cstring>
#include <vector>

#include "engine.h"
#include "row_layout.h"
#include "run.h"

namespace fastdiff {

void step_cpu(Tensor x, std::optional<Tensor> model_output, Tensor rows, Tensor row, std::optional<Tensor> noise,
              Tensor sample_ids, int64_t seed, bool learned_variance, std::optional<Tensor> base,
              std::optional<Tensor> history, std::optional<Tensor> pred_out, Tensor out);

namespace {

constexpr int64_t ALIGNMENT = 16;

struct Program {
  const Instruction* instructions;
  int64_t length, batch, threads;
  const float* weights;
  float *arena, *shared, *scratch;
  int64_t per_thread;
};

const float* floats(const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.is_contiguous(), name, " must be float32 and contiguous");
  return static_cast<const float*>(x.data_ptr());
}

int64_t round_up(int64_t n) { return ceil_div(n, ALIGNMENT) * ALIGNMENT; }

const Instruction* instructions_of(const Tensor& code) {
  STD_TORCH_CHECK(code.scalar_type() == ScalarType::Long && code.dim() == 2 && code.is_contiguous() &&
                      code.size(1) == PLAN_WIDTH,
                  "a plan's code must be int64 [N, ", PLAN_WIDTH, "]");
  return static_cast<const Instruction*>(code.data_ptr());
}

// Floats of scratch: what the instructions share, then each thread's own.
void scratch_sizes(const Instruction* code, int64_t length, int64_t batch, int64_t threads, int64_t& shared, int64_t& own) {
  shared = own = 0;
  for (int64_t n = 0; n < length; ++n) {
    const int64_t a = shared_scratch(code[n], batch, threads), b = thread_scratch(code[n], batch, threads);
    shared = a > shared ? a : shared;
    own = b > own ? b : own;
  }
  shared = round_up(shared);
  own = round_up(own);
}

Program program_of(const Tensor& code, const Tensor& weights, const Tensor& arena, const Tensor& scratch, int64_t batch) {
  Program p;
  p.instructions = instructions_of(code);
  p.length = code.size(0);
  p.batch = batch;
  p.threads = torch::stable::get_num_threads();
  p.weights = floats("weights", weights);
  p.arena = const_cast<float*>(floats("arena", arena));
  int64_t shared;
  scratch_sizes(p.instructions, p.length, batch, p.threads, shared, p.per_thread);
  STD_TORCH_CHECK(scratch.numel() >= shared + p.threads * p.per_thread + ALIGNMENT,
                  "scratch is for fewer threads or samples: ask plan_scratch");
  const uintptr_t first = reinterpret_cast<uintptr_t>(floats("scratch", scratch));
  p.shared = reinterpret_cast<float*>((first + 63) / 64 * 64);
  p.scratch = p.shared + shared;
  return p;
}

// x * scale into the arena at `input`; then the program.
void evaluate(const Program& p, const Tensor& x, float scale, int64_t input, const float* times, int64_t times_stride) {
  const float* from = static_cast<const float*>(x.data_ptr());
  for (int64_t i = 0; i < x.numel(); ++i) p.arena[input + i] = scale * from[i];
  for (int64_t n = 0; n < p.length; ++n) run_instruction({p.instructions[n], p.batch, p.arena, p.weights, times, times_stride, p.shared, 0}, p.threads, p.scratch,
                    p.per_thread);
}

void check_image(const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4 && x.scalar_type() == ScalarType::Float && in_layout(x, true).data_ptr() == x.data_ptr(),
                  name, " must be float32 [B, C, H, W], channels_last");
}

void check_places(const Tensor& arena, int64_t input, const Tensor& x, int64_t output, const Tensor& out) {
  STD_TORCH_CHECK(input >= 0 && input + x.numel() <= arena.numel() && output >= 0 && output + out.numel() <= arena.numel(),
                  "the arena is for fewer samples");
}

// Of times [B or 1, N]: how far apart the samples' vectors lie.
int64_t times_stride_of(const Tensor& times, int64_t dim, int64_t batch) {
  STD_TORCH_CHECK(times.dim() == dim + 2 && (times.size(dim) == 1 || times.size(dim) == batch),
                  "times must hold one vector, or one per sample");
  return times.size(dim) == 1 ? 0 : times.size(dim + 1);
}

}  // namespace

int64_t plan_scratch_cpu(Tensor code, int64_t batch) {
  const int64_t threads = torch::stable::get_num_threads();
  int64_t shared, own;
  scratch_sizes(instructions_of(code), code.size(0), batch, threads, shared, own);
  return shared + threads * own + ALIGNMENT;
}

void plan_forward_cpu(Tensor x, Tensor code, Tensor weights, Tensor times, int64_t input, int64_t output, Tensor arena,
                      Tensor scratch, Tensor out) {
  check_image("x", x);
  check_image("out", out);
  check_places(arena, input, x, output, out);
  const Program p = program_of(code, weights, arena, scratch, x.size(0));
  evaluate(p, x, 1.0f, input, floats("times", times), times_stride_of(times, 0, x.size(0)));
  std::memcpy(out.data_ptr(), p.arena + output, sizeof(float) * static_cast<size_t>(out.numel()));
}

void plan_sample_cpu(Tensor x, Tensor code, Tensor weights, Tensor times, int64_t input, int64_t output, Tensor arena,
                     Tensor scratch, Tensor model_output, Tensor rows, Tensor row_numbers, int64_t first_row,
                     int64_t last_row, int64_t first_time, Tensor sample_ids, int64_t seed, bool learned_variance, std::optional<Tensor> base,
                     std::optional<Tensor> history, std::optional<Tensor> pred_out) {
  check_image("x", x);
  check_image("model_output", model_output);
  check_places(arena, input, x, output, model_output);
  const float* table = floats("rows", rows);
  STD_TORCH_CHECK(rows.dim() == 2 && rows.size(1) == ROW_WIDTH && 0 <= first_row && first_row <= last_row &&
                      last_row <= rows.size(0) && row_numbers.size(0) == rows.size(0),
                  "rows and their numbers must be as many, and first_row to last_row among them");
  STD_TORCH_CHECK(times.dim() == 3 && first_time <= first_row && last_row - first_time <= times.size(0),
                  "times must hold those of the rows from first_row to last_row");
  const Program p = program_of(code, weights, arena, scratch, x.size(0));
  const int64_t stride = times_stride_of(times, 1, x.size(0)), per_row = times.size(1) * times.size(2);
  for (int64_t r = first_row; r < last_row; ++r) {
    const float* row = table + r * ROW_WIDTH;
    const bool evaluates = row[ROW_EVALUATE] != 0.0f;
    if (evaluates) {
      evaluate(p, x, row[ROW_CI], input, floats("times", times) + (r - first_time) * per_row, stride);
      std::memcpy(model_output.data_ptr(), p.arena + output, sizeof(float) * static_cast<size_t>(model_output.numel()));
    }
    step_cpu(x, model_output, rows, torch::stable::narrow(row_numbers, 0, r, 1), std::nullopt, sample_ids, seed,
             learned_variance, base, history, pred_out, x);
  }
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("plan_scratch", TORCH_BOX(&plan_scratch_cpu));
  m.impl("plan_forward", TORCH_BOX(&plan_forward_cpu));
  m.impl("plan_sample", TORCH_BOX(&plan_sample_cpu));
}

}  // namespace fastdiff
