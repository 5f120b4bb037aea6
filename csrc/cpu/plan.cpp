// Runs a plan: one evaluation of a network, or that and a row of a coefficient table, again and again.
#include "plan.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>

#include "chunks.h"
#include "failure.h"
#include "instructions.h"
#include "noise_layout.h"
#include "parallel.h"
#include "plan_layout.h"
#include "rounding.h"
#include "row.h"
#include "row_layout.h"

namespace fastdiff {

namespace {

constexpr int64_t ALIGNMENT = 16;
constexpr int64_t MOST_LANES = 4096;

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
                 between(0, i.pairs, i.op == PLAN_CONV || i.op == PLAN_ATTENTION) && i.channels2 <= MOST;
    for (const int64_t number : positive) right = right && between(1, number, MOST);
    right = right && product({batch, std::max(i.height_in, i.height) + 8, std::max(i.width_in, i.width) + 8,
                              std::max(i.channels + i.channels2, i.channels_out) + PANEL}) <= MOST;
    // What follows multiplies only what was found to be small.
    const int64_t total = i.channels + i.channels2;
    const bool one = i.source2 < 0 && i.channels2 == 0, same = i.height == i.height_in && i.width == i.width_in;
    if (right && i.op == PLAN_STATS) right = one;
    if (right && i.op == PLAN_NORM)
      right = between(1, i.groups, total) && total % i.groups == 0 && (i.stats2 < 0) == (i.channels2 == 0) &&
              between(0, i.memory, 1);
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
    if (right && i.op == PLAN_PIXEL_NORM)
      right = one && same && i.channels_out == i.channels && between(0, i.memory, PIXEL_NORMS - 1) &&
              (i.memory == PIXEL_NORM_FACTORS) == (i.norm >= 0) && (i.memory == PIXEL_NORM_LENGTH || i.time < 0);
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
    FD_CHECK(right, "instruction ", n, " of the plan (", name(i.op),
             ") has numbers that do not fit together: channels ", i.channels, " and ", i.channels2, " of ", i.height_in,
             " x ", i.width_in, " pixels to ", i.channels_out, " of ", i.height, " x ", i.width, ", kernel ", i.kernel,
             ", stride ", i.stride, ", pad ", i.pad, ", groups ", i.groups, ", heads ", i.heads);
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
    const bool conv = i.op == PLAN_CONV, norm = i.op == PLAN_NORM;
    const bool pixels = i.op == PLAN_PIXEL_NORM && i.memory != PIXEL_NORM_FACTORS;
    const bool layer = i.op == PLAN_PIXEL_NORM && i.memory == PIXEL_NORM_LAYER;
    // Numbers that an instruction does not have were not looked at.
    const int64_t taps = !conv                           ? 0
                         : i.algorithm == PLAN_DIRECT    ? i.kernel * i.kernel
                         : i.algorithm == PLAN_WINOGRAD4 ? 36
                                                         : 16;
    const int64_t packed = conv             ? panels_of(i.channels_out) * taps * words_of(i, total) * PANEL
                           : norm || pixels ? total
                           : memory         ? 2 * i.memory * width
                                            : 0;
    const bool fits =
        inside(i.source, norm ? 0 : product({part, read, i.channels}), arena, norm) &&
        inside(i.source2, norm ? 0 : product({part, read, i.channels2}), arena, true) &&
        inside(i.target, part * written, arena, false) && inside(i.residual, part * written, arena, true) &&
        inside(i.norm, part * 2 * (i.op == PLAN_ATTENTION ? width : total), arena, true) &&
        inside(i.stats, part * 2 * i.channels, arena, !norm) && inside(i.stats2, part * 2 * i.channels2, arena, true) &&
        inside(i.weight, packed, weights, !conv && !norm && !pixels && (!memory || i.memory == 0)) &&
        inside(i.bias,
               conv            ? i.channels_out
               : norm || layer ? total
                               : 0,
               weights, !conv && !norm && !layer) &&
        inside(i.epsilon, norm && i.memory == 1 ? 3 : 1, weights, !norm && !layer) &&
        inside(i.time, norm || pixels ? 2 * total : i.channels_out, times, true);
    FD_CHECK(fits, "instruction ", n, " of the plan reaches outside of the arena, the weights or the times");
  }
}

// The input and the result of a part must lie in a lane's arena, and be what the instructions read and write.
void check_ends(const Instruction* code, int64_t length, int64_t part, int64_t arena, const Ends& ends) {
  FD_CHECK(ends.size_in >= 0 && ends.size_out >= 0 && 0 <= ends.input &&
               ends.input <= arena - product({ends.size_in, part}) && 0 <= ends.output &&
               ends.output <= arena - product({ends.size_out, part}),
           "the arena is for fewer samples");
  // The input lies at its place until it is read first, and the result from when it is written last.
  int64_t read = -1, written = -1;
  for (int64_t n = 0; n < length; ++n) {
    const Instruction& i = code[n];
    if (read < 0 && i.op != PLAN_NORM && i.source == ends.input) read = i.height_in * i.width_in * i.channels;
    if (i.target == ends.output) written = i.height * i.width * i.channels_out;
  }
  // A part of a plan may read what an earlier part left.
  FD_CHECK(read < 0 || read == ends.size_in, "x must have the size that the plan reads, ", read,
           " numbers a sample, got ", ends.size_in);
  FD_CHECK(written < 0 || written == ends.size_out, "the result must have the size that the plan writes, ", written,
           " numbers a sample, got ", ends.size_out);
}

// from, to: [count].
void copy_scaled(const float* from, float scale, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = scale * from[i];
}

}  // namespace

int64_t Scratch::total() const { return sets * set() + ALIGNMENT; }

Scratch scratch_of(const Code& code, int64_t batch, int64_t part, int64_t lanes, int64_t threads) {
  FD_CHECK(batch >= 1, "a plan runs for at least one sample, got ", batch);
  FD_CHECK(0 <= lanes && lanes <= MOST_LANES && (lanes == 0 || part >= 1), "there are 0 to ", MOST_LANES,
           " lanes, which take parts of at least one sample, got ", lanes, " lanes and parts of ", part);
  check_numbers(code.instructions, code.length, batch);
  Scratch s = {0, 0, lanes > 0 ? 1 : threads, std::max<int64_t>(1, lanes)};
  scratch_sizes(code.instructions, code.length, lanes > 0 ? std::min(part, batch) : batch, s.threads, s.shared,
                s.per_thread);
  // The last part may be smaller, and smaller ones may be cut into larger units.
  if (lanes > 0 && batch % part > 0)
    scratch_sizes(code.instructions, code.length, batch % part, s.threads, s.shared, s.per_thread);
  return s;
}

Program program_of(const Code& code, ConstFloats weights, Floats arena, Floats scratch, int64_t batch, int64_t part,
                   int64_t lanes, int64_t threads, int64_t times_width) {
  const Scratch sizes = scratch_of(code, batch, part, lanes, threads);
  FD_CHECK(scratch.count >= sizes.total(), "scratch is for fewer threads or samples: ask plan_scratch");
  Program p;
  p.instructions = code.instructions;
  p.length = code.length;
  p.batch = batch;
  p.threads = sizes.threads;
  p.lanes = lanes;
  p.part = lanes > 0 ? part : batch;
  p.weights = weights.data;
  p.arena = arena.data;
  p.per_thread = sizes.per_thread;
  p.scratch_stride = sizes.set();
  p.arena_stride = arena.count / sizes.sets;
  check_code(p.instructions, p.length, std::min(p.part, batch), p.arena_stride, weights.count, times_width);
  const uintptr_t first = reinterpret_cast<uintptr_t>(scratch.data);
  p.shared = reinterpret_cast<float*>((first + 63) / 64 * 64);
  p.scratch = p.shared + sizes.shared;
  return p;
}

void check_ends(const Program& p, const Ends& ends) {
  check_ends(p.instructions, p.length, std::min(p.part, p.batch), p.arena_stride, ends);
}

void check_plan(const Code& code, int64_t part, int64_t arena, int64_t weights, int64_t times_width, const Ends& ends) {
  check_numbers(code.instructions, code.length, part);
  check_code(code.instructions, code.length, part, arena, weights, times_width);
  check_ends(code.instructions, code.length, part, arena, ends);
}

void evaluate(const Program& p, const Ends& ends, const float* x, float scale, const float* times, int64_t times_stride,
              float* out) {
  if (p.lanes == 0) {
    copy_scaled(x, scale, p.batch * ends.size_in, p.arena + ends.input);
    for (int64_t n = 0; n < p.length; ++n)
      run_instruction({p.instructions[n], p.batch, p.arena, p.weights, times, times_stride, p.shared, 0}, p.threads,
                      p.scratch, p.per_thread);
    std::memcpy(out, p.arena + ends.output, sizeof(float) * static_cast<size_t>(p.batch * ends.size_out));
    return;
  }
  run_units(ceil_div(p.batch, p.part), p.lanes, [&](int64_t unit, int64_t lane) {
    const int64_t first = unit * p.part, count = first + p.part < p.batch ? p.part : p.batch - first;
    float *arena = p.arena + lane * p.arena_stride, *shared = p.shared + lane * p.scratch_stride;
    copy_scaled(x + first * ends.size_in, scale, count * ends.size_in, arena + ends.input);
    for (int64_t n = 0; n < p.length; ++n)
      run_instruction_alone(
          {p.instructions[n], count, arena, p.weights, times + first * times_stride, times_stride, shared, 0},
          p.scratch + lane * p.scratch_stride);
    std::memcpy(out + first * ends.size_out, arena + ends.output,
                sizeof(float) * static_cast<size_t>(count * ends.size_out));
  });
}

void run_rows(const Program& p, const Ends& ends, const Rows& rows) {
  for (int64_t r = rows.first; r < rows.last; ++r)
    check_row(rows.table + ROW_WIDTH * rows.numbers[r], rows.numbers[r], true, rows.base != nullptr,
              rows.history_depth);
  const Chunk state = {.x = rows.x,
                       .model_output = rows.model_output,
                       .base = rows.base,
                       .history = rows.history,
                       .pred_out = rows.pred_out,
                       .input = nullptr,
                       .rows = rows.table,
                       .sample_ids = rows.sample_ids,
                       .history_depth = rows.history_depth,
                       .history_stride = rows.history_stride,
                       .row = rows.first,
                       .samples = p.batch,
                       .pixels = rows.pixels,
                       .channels = rows.channels,
                       .channels_out = rows.channels_out,
                       .copies = 1,
                       .learned_variance = rows.learned_variance,
                       .seed = rows.seed};
  StepArgs args = args_of(state);
  for (int64_t r = rows.first; r < rows.last; ++r) {
    const float* row = rows.table + ROW_WIDTH * r;
    if (row[ROW_EVALUATE] != 0.0f)
      evaluate(p, ends, rows.x, row[ROW_CI], rows.times + (r - rows.first_time) * rows.times_row, rows.times_stride,
               rows.model_output);
    args.row = args.noise.row = rows.numbers + r;
    launch_step(args);
  }
}

}  // namespace fastdiff
