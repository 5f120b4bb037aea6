// Runs a plan: one evaluation of a network, or that and a row of a coefficient table, again and again.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <optional>
#include <vector>

#include "checks.h"
#include "instructions.h"
#include "parallel.h"
#include "plan_layout.h"
#include "rounding.h"
#include "row_layout.h"
#include "tensors.h"

namespace fastdiff {

void step_cpu(Tensor x, std::optional<Tensor> model_output, Tensor rows, Tensor row, std::optional<Tensor> noise,
              Tensor sample_ids, int64_t seed, bool learned_variance, std::optional<Tensor> base,
              std::optional<Tensor> history, std::optional<Tensor> pred_out, Tensor out);

namespace {

constexpr int64_t ALIGNMENT = 16;
constexpr int64_t MOST_LANES = 4096;

// A plan with its memory. Either all threads share every instruction for the whole batch, or (`lanes` > 0) each lane
// takes parts of the batch through the whole plan by itself.
struct Program {
  const Instruction* instructions;
  int64_t length, batch, threads;
  int64_t part, lanes;
  const float* weights;
  float *arena, *shared, *scratch;
  int64_t per_thread;
  int64_t arena_stride, scratch_stride;  // from a lane to the next
};

const float* floats(const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.is_contiguous(), name, " must be float32 and contiguous");
  return static_cast<const float*>(x.data_ptr());
}

const Instruction* instructions_of(const Tensor& code) {
  STD_TORCH_CHECK(
      code.scalar_type() == ScalarType::Long && code.dim() == 2 && code.is_contiguous() && code.size(1) == PLAN_WIDTH,
      "a plan's code must be int64 [N, ", PLAN_WIDTH, "]");
  return static_cast<const Instruction*>(code.data_ptr());
}

// Floats of scratch that instructions need for a batch at most: what is shared, and what each thread has for itself.
void scratch_sizes(const Instruction* code, int64_t length, int64_t batch, int64_t threads, int64_t& shared,
                   int64_t& per_thread) {
  for (int64_t n = 0; n < length; ++n) {
    shared = std::max(shared, round_up(shared_scratch(code[n], batch, threads), ALIGNMENT));
    per_thread = std::max(per_thread, round_up(thread_scratch(code[n], batch, threads), ALIGNMENT));
  }
}

// Of numbers that are not negative; the largest int64 where it is beyond.
int64_t product(std::initializer_list<int64_t> numbers) {
  int64_t total = 1;
  for (const int64_t number : numbers)
    if (__builtin_mul_overflow(total, number, &total)) return std::numeric_limits<int64_t>::max();
  return total;
}

// The numbers of each instruction must be such as it can run with, before anything is computed from them.
void check_numbers(const Instruction* code, int64_t length, int64_t batch) {
  // Beyond any memory, and far from an overflow of what is computed from it.
  constexpr int64_t MOST = int64_t{1} << 48;
  const auto between = [](int64_t low, int64_t number, int64_t high) { return low <= number && number <= high; };
  const auto name = [](int64_t op) {
    constexpr const char* NAMES[] = {
        "stats", "norm", "conv", "attention", "pool", "repeat", "pixel norm", "memory attention", "linear attention"};
    return 0 <= op && op < PLAN_OPS ? NAMES[op] : "no instruction";
  };
  for (int64_t n = 0; n < length; ++n) {
    const Instruction& i = code[n];
    const int64_t positive[] = {i.channels, i.height_in, i.width_in, i.height, i.width, i.channels_out};
    bool right = between(0, i.op, PLAN_OPS - 1) && between(0, i.algorithm, PLAN_ALGORITHMS - 1) && i.channels2 >= 0 &&
                 i.channels2 <= MOST;
    for (const int64_t number : positive) right = right && between(1, number, MOST);
    right = right && product({batch, std::max(i.height_in, i.height) + 8, std::max(i.width_in, i.width) + 8,
                              std::max(i.channels + i.channels2, i.channels_out) + PANEL}) <= MOST;
    // What follows multiplies only what was found to be small.
    const int64_t total = i.channels + i.channels2;
    const bool one = i.source2 < 0 && i.channels2 == 0, same = i.height == i.height_in && i.width == i.width_in;
    if (right && i.op == PLAN_STATS) right = one;
    if (right && i.op == PLAN_NORM)
      right = between(1, i.groups, total) && total % i.groups == 0 && (i.stats2 < 0) == (i.channels2 == 0);
    if (right && i.op == PLAN_CONV) {
      right = between(1, i.kernel, MOST_KERNEL) && between(1, i.stride, 2) && between(0, i.pad, i.kernel - 1) &&
              (i.source2 < 0) == (i.channels2 == 0) && (i.kernel != 1 || i.stride != 1 || i.upsample || same) &&
              (i.algorithm == PLAN_DIRECT || (i.kernel == 3 && i.stride == 1)) &&
              product({panels_of(i.channels_out) * PANEL, total, MOST_TAPS}) <= MOST;
    }
    if (right && i.op == PLAN_ATTENTION) {
      const int64_t width = attention_width(i);
      right = same && i.heads >= 1 && width % i.heads == 0 && width / i.heads % 16 == 0 && width >= 16 &&
              (i.source2 < 0 ? i.channels == 3 * width && i.channels2 == 0 : i.channels == 2 * width) &&
              product({batch, width, i.height * i.width + PANEL}) <= MOST && i.channels_out == width;
    }
    if (right && i.op == PLAN_PIXEL_NORM) right = one && same && i.channels_out == i.channels;
    if (right && (i.op == PLAN_MEMORY_ATTENTION || i.op == PLAN_LINEAR_ATTENTION)) {
      const int64_t width = i.channels / 3;
      right = one && same && i.channels == 3 * width && between(1, i.heads, width) && width % i.heads == 0 &&
              width / i.heads % 16 == 0 && i.channels_out == width && between(1, i.groups, width / i.heads) &&
              between(0, i.memory, 1 << 20) &&
              product({batch, width, i.height * i.width + i.memory + 2 * PANEL}) <= MOST &&
              product({batch, width, width}) <= MOST;
    }
    if (right && i.op == PLAN_POOL)
      right = one && i.channels_out == i.channels && i.height <= i.height_in / 2 && i.width <= i.width_in / 2;
    if (right && i.op == PLAN_REPEAT)
      right = one && i.channels_out == i.channels && i.height <= 2 * i.height_in && i.width <= 2 * i.width_in;
    STD_TORCH_CHECK(right, "instruction ", n, " of the plan (", name(i.op),
                    ") has numbers that do not fit together: channels ", i.channels, " and ", i.channels2, " of ",
                    i.height_in, " x ", i.width_in, " pixels to ", i.channels_out, " of ", i.height, " x ", i.width,
                    ", kernel ", i.kernel, ", stride ", i.stride, ", pad ", i.pad, ", groups ", i.groups, ", heads ",
                    i.heads);
  }
}

// Every place that the instructions name must lie within its memory: weights, a time's vector, a lane's arena.
void check_code(const Instruction* code, int64_t length, int64_t part, int64_t arena, int64_t weights, int64_t times) {
  const auto inside = [](int64_t place, int64_t count, int64_t room, bool optional) {
    return (optional && place < 0) || (place >= 0 && count >= 0 && count <= room && place <= room - count);
  };
  for (int64_t n = 0; n < length; ++n) {
    const Instruction& i = code[n];
    const int64_t read = i.height_in * i.width_in, total = i.channels + i.channels2;
    const bool memory = i.op == PLAN_MEMORY_ATTENTION || i.op == PLAN_LINEAR_ATTENTION;
    const int64_t width = i.op == PLAN_ATTENTION ? attention_width(i) : i.channels_out;
    const int64_t written = i.op == PLAN_STATS  ? 2 * i.channels
                            : i.op == PLAN_NORM ? 2 * total
                                                : i.height * i.width * width;
    const int64_t taps = i.algorithm == PLAN_DIRECT ? i.kernel * i.kernel : i.algorithm == PLAN_WINOGRAD4 ? 36 : 16;
    const bool conv = i.op == PLAN_CONV, norm = i.op == PLAN_NORM, pixels = i.op == PLAN_PIXEL_NORM;
    const int64_t packed = conv             ? panels_of(i.channels_out) * taps * total * PANEL
                           : norm || pixels ? total
                           : memory         ? 2 * i.memory * width
                                            : 0;
    const bool fits =
        inside(i.source, norm ? 0 : product({part, read, i.channels}), arena, norm) &&
        inside(i.source2, norm ? 0 : product({part, read, i.channels2}), arena, true) &&
        inside(i.target, part * written, arena, false) && inside(i.residual, part * written, arena, true) &&
        inside(i.norm, part * 2 * (i.op == PLAN_ATTENTION ? width : total), arena, true) &&
        inside(i.stats, part * 2 * i.channels, arena, !norm) && inside(i.stats2, part * 2 * i.channels2, arena, true) &&
        inside(i.weight, packed, weights, !conv && !norm && !pixels && i.memory == 0) &&
        inside(i.bias,
               conv   ? i.channels_out
               : norm ? total
                      : 0,
               weights, !conv && !norm) &&
        inside(i.epsilon, 1, weights, !norm) &&
        inside(i.time, norm || pixels ? 2 * total : i.channels_out, times, true);
    STD_TORCH_CHECK(fits, "instruction ", n, " of the plan reaches outside of the arena, the weights or the times");
  }
}

struct Scratch {
  int64_t shared, per_thread, threads, sets;
  int64_t set() const { return shared + threads * per_thread; }
  int64_t total() const { return sets * set() + ALIGNMENT; }
};

// Of all threads, or of the lanes, with one thread each.
Scratch scratch_of(const Tensor& code, int64_t batch, int64_t part, int64_t lanes) {
  STD_TORCH_CHECK(batch >= 1, "a plan runs for at least one sample, got ", batch);
  STD_TORCH_CHECK(0 <= lanes && lanes <= MOST_LANES && (lanes == 0 || part >= 1), "there are 0 to ", MOST_LANES,
                  " lanes, which take parts of at least one sample, got ", lanes, " lanes and parts of ", part);
  const Instruction* instructions = instructions_of(code);
  check_numbers(instructions, code.size(0), batch);
  Scratch s = {0, 0, lanes > 0 ? 1 : static_cast<int64_t>(torch::stable::get_num_threads()),
               std::max<int64_t>(1, lanes)};
  scratch_sizes(instructions, code.size(0), lanes > 0 ? std::min(part, batch) : batch, s.threads, s.shared,
                s.per_thread);
  // The last part may be smaller, and smaller ones may be cut into larger units.
  if (lanes > 0 && batch % part > 0)
    scratch_sizes(instructions, code.size(0), batch % part, s.threads, s.shared, s.per_thread);
  return s;
}

Program program_of(const Tensor& code, const Tensor& weights, const Tensor& arena, const Tensor& scratch, int64_t batch,
                   int64_t part, int64_t lanes, int64_t times_width) {
  const Scratch sizes = scratch_of(code, batch, part, lanes);
  STD_TORCH_CHECK(scratch.numel() >= sizes.total(), "scratch is for fewer threads or samples: ask plan_scratch");
  Program p;
  p.instructions = instructions_of(code);
  p.length = code.size(0);
  p.batch = batch;
  p.threads = sizes.threads;
  p.lanes = lanes;
  p.part = lanes > 0 ? part : batch;
  p.weights = floats("weights", weights);
  p.arena = const_cast<float*>(floats("arena", arena));
  p.per_thread = sizes.per_thread;
  p.scratch_stride = sizes.set();
  p.arena_stride = arena.numel() / sizes.sets;
  check_code(p.instructions, p.length, std::min(p.part, batch), p.arena_stride, weights.numel(), times_width);
  const uintptr_t first = reinterpret_cast<uintptr_t>(floats("scratch", scratch));
  p.shared = reinterpret_cast<float*>((first + 63) / 64 * 64);
  p.scratch = p.shared + sizes.shared;
  return p;
}

// from, to: [count].
void copy_scaled(const float* from, float scale, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = scale * from[i];
}

// The program on x * scale, to out. times: of Work.
void evaluate(const Program& p, const Tensor& x, float scale, int64_t input, int64_t output, const float* times,
              int64_t times_stride, const Tensor& out) {
  const float* from = static_cast<const float*>(x.data_ptr());
  float* to = static_cast<float*>(out.data_ptr());
  const int64_t size_in = x.numel() / p.batch, size_out = out.numel() / p.batch;
  if (p.lanes == 0) {
    copy_scaled(from, scale, x.numel(), p.arena + input);
    for (int64_t n = 0; n < p.length; ++n)
      run_instruction({p.instructions[n], p.batch, p.arena, p.weights, times, times_stride, p.shared, 0}, p.threads,
                      p.scratch, p.per_thread);
    std::memcpy(to, p.arena + output, sizeof(float) * static_cast<size_t>(out.numel()));
    return;
  }
  run_units(ceil_div(p.batch, p.part), p.lanes, [&](int64_t unit, int64_t lane) {
    const int64_t first = unit * p.part, count = first + p.part < p.batch ? p.part : p.batch - first;
    float *arena = p.arena + lane * p.arena_stride, *shared = p.shared + lane * p.scratch_stride;
    copy_scaled(from + first * size_in, scale, count * size_in, arena + input);
    for (int64_t n = 0; n < p.length; ++n)
      run_instruction_alone(
          {p.instructions[n], count, arena, p.weights, times + first * times_stride, times_stride, shared, 0},
          p.scratch + lane * p.scratch_stride);
    std::memcpy(to + first * size_out, arena + output, sizeof(float) * static_cast<size_t>(count * size_out));
  });
}

// What is written lies apart from what is read, and from each other. The instructions are read again while they run.
void check_memory(const std::vector<Extent>& written, const std::vector<Extent>& read) {
  for (size_t i = 0; i < written.size(); ++i) {
    for (size_t j = i + 1; j < written.size(); ++j) check_apart(written[i], written[j]);
    for (const Extent& other : read) check_apart(written[i], other);
  }
}

void check_places(const Program& p, int64_t input, const Tensor& x, int64_t output, const Tensor& out) {
  const int64_t size_in = x.numel() / p.batch, size_out = out.numel() / p.batch, part = std::min(p.part, p.batch);
  STD_TORCH_CHECK(x.size(0) == out.size(0), "the result must have as many samples as x, ", x.size(0), ", got ",
                  out.size(0));
  STD_TORCH_CHECK(0 <= input && input <= p.arena_stride - size_in * part && 0 <= output &&
                      output <= p.arena_stride - size_out * part,
                  "the arena is for fewer samples");
  // The input lies at its place until it is read first, and the result from when it is written last.
  int64_t read = -1, written = -1;
  for (int64_t n = 0; n < p.length; ++n) {
    const Instruction& i = p.instructions[n];
    if (read < 0 && i.op != PLAN_NORM && i.source == input) read = i.height_in * i.width_in * i.channels;
    if (i.target == output) written = i.height * i.width * i.channels_out;
  }
  // A part of a plan may read what an earlier part left.
  STD_TORCH_CHECK(read < 0 || read == size_in, "x must have the size that the plan reads, ", read,
                  " numbers a sample, got ", size_in);
  STD_TORCH_CHECK(written < 0 || written == size_out, "the result must have the size that the plan writes, ", written,
                  " numbers a sample, got ", size_out);
}

// Of times [B or 1, N]: how far apart the samples' vectors lie.
int64_t times_stride_of(const Tensor& times, int64_t dim, int64_t batch) {
  STD_TORCH_CHECK(times.dim() == dim + 2 && (times.size(dim) == 1 || times.size(dim) == batch),
                  "times must hold one vector, or one per sample");
  return times.size(dim) == 1 ? 0 : times.size(dim + 1);
}

}  // namespace

int64_t plan_scratch_cpu(Tensor code, int64_t batch, int64_t part, int64_t lanes) {
  return scratch_of(code, batch, part, lanes).total();
}

void plan_forward_cpu(Tensor x, Tensor code, Tensor weights, Tensor times, int64_t input, int64_t output, Tensor arena,
                      Tensor scratch, int64_t part, int64_t lanes, Tensor out) {
  channels_last_data("x", x);
  channels_last_data("out", out);
  STD_TORCH_CHECK(times.dim() == 2, "times must be [1 or B, N], got ", described(times));
  const Program p = program_of(code, weights, arena, scratch, x.size(0), part, lanes, times.size(1));
  check_places(p, input, x, output, out);
  check_memory({extent_of("arena", arena), extent_of("scratch", scratch), extent_of("the result", out)},
               {extent_of("x", x), extent_of("weights", weights), extent_of("times", times), extent_of("code", code)});
  evaluate(p, x, 1.0f, input, output, floats("times", times), times_stride_of(times, 0, x.size(0)), out);
}

void plan_sample_cpu(Tensor x, Tensor code, Tensor weights, Tensor times, int64_t input, int64_t output, Tensor arena,
                     Tensor scratch, int64_t part, int64_t lanes, Tensor model_output, Tensor rows, Tensor row_numbers,
                     int64_t first_row, int64_t last_row, int64_t first_time, Tensor sample_ids, int64_t seed,
                     bool learned_variance, std::optional<Tensor> base, std::optional<Tensor> history,
                     std::optional<Tensor> pred_out) {
  channels_last_data("x", x);
  channels_last_data("model_output", model_output);
  STD_TORCH_CHECK(times.dim() == 3, "times must be [rows, 1 or B, N], got ", described(times));
  const Program p = program_of(code, weights, arena, scratch, x.size(0), part, lanes, times.size(2));
  check_places(p, input, x, output, model_output);
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
  const int64_t stride = times_stride_of(times, 1, x.size(0)), per_row = times.size(1) * times.size(2);
  for (int64_t r = first_row; r < last_row; ++r) {
    const float* row = table + r * ROW_WIDTH;
    if (row[ROW_EVALUATE] != 0.0f)
      evaluate(p, x, row[ROW_CI], input, output, floats("times", times) + (r - first_time) * per_row, stride,
               model_output);
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
