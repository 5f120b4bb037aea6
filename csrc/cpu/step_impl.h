// The op `step`. Passes over a tile read and write the first-level cache; each tensor crosses memory once.
#pragma once

#include <cstdint>

#include "matrix.h"
#include "noise_impl.h"
#include "row_layout.h"
#include "step.h"
#include "tiles_impl.h"
#include "tiling.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// z *= exp(0.5 * (v * log_max + (1 - v) * log_min)), v = (output + 1) / 2. z, output: [n].
FD_INLINE void scale_by_variance(float* z, const float* output, int64_t n, float log_min, float log_max) {
  const float slope = 0.25f * (log_max - log_min), middle = 0.25f * (log_max + log_min);
  // Whole vectors: the buffers reach past the tile.
  for (int64_t i = 0; i < n; i += 16) {
    alignas(64) float lanes[16] = {};
    const int64_t count = n - i < 16 ? n - i : 16;
    for (int64_t j = 0; j < count; ++j) lanes[j] = output[i + j];
    const f32x16 factor = exp_v(*(const f32x16*)lanes * slope + middle);
    for (int64_t j = 0; j < count; ++j) z[i + j] *= factor[j];
  }
}

FD_INLINE void scale_by_variance(double* z, const double* output, int64_t n, double log_min, double log_max) {
  for (int64_t i = 0; i < n; ++i) z[i] *= __builtin_exp(0.25 * ((log_max - log_min) * output[i] + log_max + log_min));
}

// Where one run of n elements lies, each [n] or nullptr. Results may lie where the row reads: each element is read
// before it is written.
template <typename A>
struct StepRun {
  const A *x, *m, *z, *base, *past[3];
  A *pred, *out, *saved;
};

// A row k [ROW_WIDTH] over a run of n elements, at most BUFFER. What has a coefficient of 0 or is absent is not read:
// `zeros` [n] stands for it.
template <typename A, bool NOISE, bool PAST, bool BASE>
static void combine(const A* k, const StepRun<A>& run, const A* zeros, int64_t n) {
  const auto used = [&](const A* values, int coefficient) {
    return k[coefficient] != A(0) && values != nullptr ? values : zeros;
  };
  const A px = k[ROW_PX], pm = k[ROW_PM], clip = k[ROW_CLIP], cx = k[ROW_CX], cm = k[ROW_CM], c0 = k[ROW_C0];
  const A *x_pred = used(run.x, ROW_PX), *m_pred = used(run.m, ROW_PM);
  const A *x_next = used(run.x, ROW_CX), *m_next = used(run.m, ROW_CM);
  const A s = k[ROW_S], cb = k[ROW_CB], c1 = k[ROW_C1], c2 = k[ROW_C2], c3 = k[ROW_C3];
  const A *base_next = used(run.base, ROW_CB), *p1 = used(run.past[0], ROW_C1), *p2 = used(run.past[1], ROW_C2);
  const A* p3 = used(run.past[2], ROW_C3);
  A *pred = run.pred, *out = run.out, *saved = run.saved;
  const bool use_pred = c0 != A(0);
  if (!BASE || saved == nullptr) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      A p = px * x_pred[i] + pm * m_pred[i];
      p = p < -clip ? -clip : p;
      p = p > clip ? clip : p;
      A next = cx * x_next[i] + cm * m_next[i];
      if (NOISE) next += s * run.z[i];
      next += use_pred ? c0 * p : A(0);
      if (BASE) next += cb * base_next[i];
      if (PAST) {
        next += c1 * p1[i];
        next += c2 * p2[i];
        next += c3 * p3[i];
      }
      pred[i] = p;
      out[i] = next;
    }
    return;
  }
  const A bx = k[ROW_BX], bm = k[ROW_BM], b0 = k[ROW_B0], bb = k[ROW_BB], b1 = k[ROW_B1], b2 = k[ROW_B2],
          b3 = k[ROW_B3];
  const A *x_base = used(run.x, ROW_BX), *m_base = used(run.m, ROW_BM), *base_base = used(run.base, ROW_BB);
  const A *q1 = used(run.past[0], ROW_B1), *q2 = used(run.past[1], ROW_B2), *q3 = used(run.past[2], ROW_B3);
  const bool save_pred = b0 != A(0);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    A p = px * x_pred[i] + pm * m_pred[i];
    p = p < -clip ? -clip : p;
    p = p > clip ? clip : p;
    A next = cx * x_next[i] + cm * m_next[i];
    if (NOISE) next += s * run.z[i];
    next += use_pred ? c0 * p : A(0);
    next += cb * base_next[i];
    A kept = bx * x_base[i] + bm * m_base[i] + (save_pred ? b0 * p : A(0));
    kept += bb * base_base[i];
    if (PAST) {
      next += c1 * p1[i];
      next += c2 * p2[i];
      next += c3 * p3[i];
      kept += b1 * q1[i];
      kept += b2 * q2[i];
      kept += b3 * q3[i];
    }
    pred[i] = p;
    out[i] = next;
    saved[i] = kept;
  }
}

// The same, by the loop for what the row uses.
template <typename A>
FD_INLINE void combine_run(const A* k, const StepRun<A>& run, const A* zeros, int64_t n) {
  using Combine = void (*)(const A*, const StepRun<A>&, const A*, int64_t);
  static constexpr Combine variants[8] = {combine<A, false, false, false>, combine<A, true, false, false>,
                                          combine<A, false, true, false>,  combine<A, true, true, false>,
                                          combine<A, false, false, true>,  combine<A, true, false, true>,
                                          combine<A, false, true, true>,   combine<A, true, true, true>};
  const bool save = run.saved != nullptr;
  bool past = false;
  for (int i = 0; i < 3; ++i) past |= k[ROW_C1 + i] != A(0) || (save && k[ROW_B1 + i] != A(0));
  variants[(k[ROW_S] != A(0)) + 2 * past + 4 * (save || k[ROW_CB] != A(0))](k, run, zeros, n);
}

// The slot of the prediction of `age` rows ago, nullptr beyond the ring. The oldest one's may be the slot that a
// prediction is pushed to.
FD_INLINE const Matrix* past_slot(const StepArgs& args, int slot, int age) {
  const int depth = args.history_depth;
  return age > depth ? nullptr : &args.history[((slot - age) % depth + depth) % depth];
}

// Whether the batch lies in memory as one run of A.
template <typename A>
FD_INLINE bool is_dense(const Matrix& m, const Shape& shape) {
  return m.data == nullptr || (m.dtype == dtype_of<A>() && (shape.rows == 1 || m.row_stride == shape.cols) &&
                               m.sample_stride == shape.rows * shape.cols);
}

// Whether a call is the same row over one stretch of memory, with no noise to make.
template <typename A>
FD_INLINE bool is_flat(const StepArgs& args, const A* k) {
  if (args.row_stride != 0 && args.shape.batch != 1) return false;
  if (k[ROW_S] != A(0) && (args.noise.given.data == nullptr || args.variance_output.data != nullptr)) return false;
  const Matrix* used[] = {&args.x, &args.out, &args.model_output, &args.base, &args.pred_out, &args.noise.given};
  for (const Matrix* m : used)
    if (!is_dense<A>(*m, args.shape)) return false;
  return true;
}

// A row k over one stretch of memory, cut into equal shares whatever the tiles: each element is computed alone.
template <typename A>
static void step_flat(const StepArgs& args, const A* k, int64_t first_unit, int64_t last_unit) {
  // With slices of a tile all that a row touches stays in the first-level cache.
  alignas(64) A zeros[TILE] = {};
  alignas(64) A unused[TILE];
  const int64_t total = args.shape.batch * args.shape.rows * args.shape.cols, units = num_units(args.shape);
  const auto begin = [&](int64_t unit) { return unit == units ? total : total / units * unit / 16 * 16; };
  const int slot = (int)k[ROW_SLOT];
  const bool push = args.history_depth > 0 && k[ROW_PUSH] != A(0);
  const bool has_output = args.model_output.data != nullptr && k[ROW_EVALUATE] != A(0);
  const auto at = [](const Matrix* m, int64_t i) {
    return m == nullptr || m->data == nullptr ? nullptr : (A*)m->data + i;
  };
  for (int64_t i = begin(first_unit), end = begin(last_unit); i < end; i += TILE) {
    const int64_t n = end - i < TILE ? end - i : TILE;
    A* pushed = push ? at(&args.history[slot % args.history_depth], i) : nullptr;
    StepRun<A> run = {at(&args.x, i),
                      has_output ? at(&args.model_output, i) : zeros,
                      at(&args.noise.given, i),
                      at(&args.base, i),
                      {},
                      at(&args.pred_out, i),
                      at(&args.out, i),
                      nullptr};
    for (int age = 1; age <= 3; ++age) run.past[age - 1] = at(past_slot(args, slot, age), i);
    const bool both = run.pred != nullptr && pushed != nullptr;
    if (run.pred == nullptr) run.pred = pushed != nullptr ? pushed : unused;
    if (k[ROW_SAVE_BASE] != A(0)) run.saved = at(&args.base, i);
    combine_run(k, run, zeros, n);
    if (both) __builtin_memcpy(pushed, run.pred, n * sizeof(A));
  }
}

// Each sample's own row, tile by tile.
template <typename A>
static void step_tiles(const StepArgs& args, int64_t first_unit, int64_t last_unit) {
  alignas(64) A zeros[BUFFER] = {};
  alignas(64) A x_buffer[BUFFER], m_buffer[BUFFER], z_buffer[BUFFER], pred_buffer[BUFFER], out_buffer[BUFFER];
  alignas(64) A base_buffer[BUFFER], past_buffer[3][BUFFER], variance_buffer[BUFFER];
  const Tiling tiles = tiling(args.shape);
  for (int64_t unit = first_unit; unit < last_unit; ++unit) {
    const Tile tile = tile_of(args.shape, tiles, unit);
    const int64_t n = tile.rows * tile.cols;
    const A* k = (const A*)args.rows + ROW_WIDTH * args.row[tile.sample * args.row_stride];
    const bool has_output = args.model_output.data != nullptr && k[ROW_EVALUATE] != A(0);
    StepRun<A> run = {};
    run.x = load_tile(args.x, tile, x_buffer);
    run.m = has_output ? load_tile(args.model_output, tile, m_buffer) : zeros;
    if (k[ROW_S] != A(0)) {
      run.z = noise_tile(args.noise, args.shape, tile, z_buffer);
      if (args.variance_output.data != nullptr && has_output) {
        if (run.z != z_buffer)
          for (int64_t i = 0; i < n; ++i) z_buffer[i] = run.z[i];
        const A* output = load_tile(args.variance_output, tile, variance_buffer);
        scale_by_variance(z_buffer, output, n, k[ROW_LOG_MIN], k[ROW_LOG_MAX]);
        run.z = z_buffer;
      }
    }
    const int slot = (int)k[ROW_SLOT];
    const bool push = args.history_depth > 0 && k[ROW_PUSH] != A(0);
    const bool save = args.base.data != nullptr && k[ROW_SAVE_BASE] != A(0);
    const bool reads_base = args.base.data != nullptr && (k[ROW_CB] != A(0) || (save && k[ROW_BB] != A(0)));
    if (reads_base) run.base = load_tile(args.base, tile, base_buffer);
    for (int i = 0; i < 3; ++i) {
      const Matrix* past = past_slot(args, slot, i + 1);
      if (past == nullptr)
        run.past[i] = zeros;
      else if (k[ROW_C1 + i] != A(0) || (save && k[ROW_B1 + i] != A(0)))
        run.past[i] = load_tile(*past, tile, past_buffer[i]);
    }
    // The prediction is computed where it is wanted, and copied to a second such place.
    const Matrix* pushed = push ? &args.history[slot % args.history_depth] : nullptr;
    const Matrix* first = args.pred_out.data != nullptr ? &args.pred_out : pushed;
    run.pred = first != nullptr ? result_tile(*first, tile, pred_buffer) : pred_buffer;
    run.out = result_tile(args.out, tile, out_buffer);
    if (save) run.saved = result_tile(args.base, tile, base_buffer);
    combine_run(k, run, zeros, n);
    if (first != nullptr && run.pred == pred_buffer) write_tile(*first, tile, run.pred);
    if (pushed != nullptr && pushed != first) write_tile(*pushed, tile, run.pred);
    if (save && run.saved == base_buffer) write_tile(args.base, tile, run.saved);
    if (run.out == out_buffer) write_tile(args.out, tile, run.out);
  }
}

// As one stretch of memory where that is possible, else tile by tile.
template <typename A>
static void step_units(const StepArgs& args, int64_t first_unit, int64_t last_unit) {
  const A* k = (const A*)args.rows + ROW_WIDTH * args.row[0];
  if (is_flat(args, k))
    step_flat(args, k, first_unit, last_unit);
  else
    step_tiles<A>(args, first_unit, last_unit);
}

void run_step(const StepArgs& args, int64_t first_unit, int64_t last_unit) {
#ifndef FASTDIFF_FLOAT32_ONLY
  if (args.x.dtype == Dtype::F64) return step_units<double>(args, first_unit, last_unit);
#endif
  step_units<float>(args, first_unit, last_unit);
}

}  // namespace fastdiff::FD_VARIANT
