// diffuse and step over a range of work units. Included inside the namespace of one instruction set, after convert.h.
// Passes over a tile read and write the first-level cache; each tensor crosses memory once.

// A whole tile in channels_last order has at most TILE elements, or NOISE_CHUNK rows of TILE_COLS columns.
constexpr int64_t BUFFER = NOISE_CHUNK * TILE_COLS > TILE ? NOISE_CHUNK * TILE_COLS : TILE;
// Noise is made in chunks of 64 from a multiple of 4, so a run may be longer than what is asked for.
constexpr int64_t SLACK = 2 * NOISE_CHUNK;

// Normals of the elements [first, first + count) of a sample, at the returned place in the buffer.
FD_INLINE const float* normals_run(float* buffer, int64_t first, int64_t count, uint64_t id, uint32_t last, uint64_t seed) {
  const int64_t skipped = first % 4;
  const int64_t first_block = first / 4;
  for (int64_t done = 0; done < skipped + count; done += NOISE_CHUNK)
    normals_chunk(buffer + done, (uint32_t)(first_block + done / 4), id, last, seed);
  return buffer + skipped;
}

// Three runs of noise as the columns of rows of three. Reads and writes whole vectors: the buffers reach past the tile.
FD_INLINE void interleave_three(float* out, const float* const runs[3], int64_t count) {
  // Of the 48 results of 16 rows: which lane of the first two runs, then which of those and the third.
  const i32x16 pairs[3] = {{0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5},
                           {21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26},
                           {0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0}};
  const i32x16 all[3] = {{0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15},
                         {0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15},
                         {26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31}};
  for (int64_t r = 0; r < count; r += 16) {
    const f32x16 a = *(const f32x16u*)(runs[0] + r), b = *(const f32x16u*)(runs[1] + r), c = *(const f32x16u*)(runs[2] + r);
    for (int part = 0; part < 3; ++part)
      *(f32x16u*)(out + 3 * r + 16 * part) = __builtin_shuffle(__builtin_shuffle(a, b, pairs[part]), c, all[part]);
  }
}

FD_INLINE void interleave_three(double* out, const float* const runs[3], int64_t count) {
  for (int64_t r = 0; r < count; ++r)
    for (int c = 0; c < 3; ++c) out[3 * r + c] = runs[c][r];
}

// The tile's noise as A, dense in memory order.
template <typename A>
FD_INLINE const A* noise_tile(const Noise& noise, const Shape& shape, const Tile& tile, A* buffer) {
  if (noise.given.data != nullptr) return load_tile(noise.given, tile, buffer);
  alignas(64) float run[TILE + SLACK];
  const uint64_t id = (uint64_t)noise.sample_ids[tile.sample];
  const uint32_t last = (noise.stream << STREAM_SHIFT) | (uint32_t)noise.row[tile.sample * noise.row_stride];
  if (!shape.channels_last) {
    const float* z = normals_run(run, tile.col, tile.cols, id, last, noise.seed);
    for (int64_t i = 0; i < tile.cols; ++i) buffer[i] = (A)z[i];
  } else if (tile.cols == 3) {
    alignas(64) float more[2][TILE + SLACK];
    float* const places[3] = {run, more[0], more[1]};
    const float* z[3];
    for (int64_t c = 0; c < 3; ++c)
      z[c] = normals_run(places[c], (tile.col + c) * shape.rows + tile.row, tile.rows, id, last, noise.seed);
    interleave_three(buffer, z, tile.rows);
  } else {
    for (int64_t c = 0; c < tile.cols; ++c) {
      const float* z = normals_run(run, (tile.col + c) * shape.rows + tile.row, tile.rows, id, last, noise.seed);
      A* to = buffer + c;
      for (int64_t r = 0; r < tile.rows; ++r) to[r * tile.cols] = (A)z[r];
    }
  }
  return buffer;
}

template <typename A>
static void diffuse_tiles(const DiffuseArgs& args, int64_t first_unit, int64_t last_unit) {
  alignas(64) A x_buffer[BUFFER], z_buffer[BUFFER], x_t_buffer[BUFFER], target_buffer[BUFFER];
  const Tiling tiles = tiling(args.shape);
  for (int64_t unit = first_unit; unit < last_unit; ++unit) {
    const Tile tile = tile_of(args.shape, tiles, unit);
    const A* c = (const A*)args.table + 4 * args.t[tile.sample];
    const A* x = load_tile(args.x0, tile, x_buffer);
    const A* z = noise_tile(args.noise, args.shape, tile, z_buffer);
    const int64_t n = tile.rows * tile.cols;
    // uint8 data: 2 v / (levels - 1) - 1, folded into the coefficients of v and a constant.
    const bool bytes = args.x0.dtype == Dtype::U8;
    const A scale = bytes ? A(2) / A(args.levels - 1) : A(1), shift = bytes ? A(-1) : A(0);
    const A c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3];
    A* x_t = result_tile(args.x_t, tile, x_t_buffer);
    if (args.target.data == nullptr) {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) x_t[i] = c0 * (x[i] * scale + shift) + c1 * z[i];
    } else {
      A* target = result_tile(args.target, tile, target_buffer);
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) {
        const A x0 = x[i] * scale + shift, noise = z[i];
        x_t[i] = c0 * x0 + c1 * noise;
        target[i] = c2 * x0 + c3 * noise;
      }
      if (target == target_buffer) write_tile(args.target, tile, target);
    }
    if (x_t == x_t_buffer) write_tile(args.x_t, tile, x_t);
  }
}

// z *= exp(0.5 * (v * log_max + (1 - v) * log_min)), v = (output + 1) / 2.
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
  for (int64_t i = 0; i < n; ++i)
    z[i] *= __builtin_exp(0.25 * ((log_max - log_min) * output[i] + log_max + log_min));
}

// What a slot adds; a slot whose coefficient is 0 is not read.
template <typename A>
FD_INLINE void add_slot(A* total, const Matrix& slot, const Tile& tile, A coefficient, A* buffer) {
  if (coefficient == A(0)) return;
  const A* values = load_tile(slot, tile, buffer);
  const int64_t n = tile.rows * tile.cols;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) total[i] += coefficient * values[i];
}

template <typename A>
static void step_tiles(const StepArgs& args, int64_t first_unit, int64_t last_unit) {
  alignas(64) A zeros[BUFFER] = {};
  alignas(64) A x_buffer[BUFFER], m_buffer[BUFFER], z_buffer[BUFFER], pred[BUFFER], next[BUFFER], base[BUFFER];
  alignas(64) A slot_buffer[BUFFER];
  const Tiling tiles = tiling(args.shape);
  for (int64_t unit = first_unit; unit < last_unit; ++unit) {
    const Tile tile = tile_of(args.shape, tiles, unit);
    const int64_t n = tile.rows * tile.cols;
    const A* k = (const A*)args.rows + ROW_WIDTH * args.row[tile.sample * args.row_stride];
    const bool has_output = args.model_output.data != nullptr && k[ROW_EVALUATE] != A(0);
    const A* x = load_tile(args.x, tile, x_buffer);
    const A* m = has_output ? load_tile(args.model_output, tile, m_buffer) : zeros;
    const A* z = zeros;
    if (k[ROW_S] != A(0)) {
      z = noise_tile(args.noise, args.shape, tile, z_buffer);
      if (args.variance_output.data != nullptr && has_output) {
        if (z != z_buffer)
          for (int64_t i = 0; i < n; ++i) z_buffer[i] = z[i];
        const A* output = load_tile(args.variance_output, tile, slot_buffer);
        scale_by_variance(z_buffer, output, n, k[ROW_LOG_MIN], k[ROW_LOG_MAX]);
        z = z_buffer;
      }
    }
    {
      const A px = k[ROW_PX], pm = k[ROW_PM], clip = k[ROW_CLIP], cx = k[ROW_CX], cm = k[ROW_CM], c0 = k[ROW_C0], s = k[ROW_S];
      const A* x_pred = px != A(0) ? x : zeros;
      const A* x_next = cx != A(0) ? x : zeros;
      const A* m_pred = pm != A(0) ? m : zeros;
      const A* m_next = cm != A(0) ? m : zeros;
      const A use_pred = c0 != A(0) ? A(1) : A(0);
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) {
        A p = px * x_pred[i] + pm * m_pred[i];
        p = p < -clip ? -clip : p;
        p = p > clip ? clip : p;
        pred[i] = p;
        next[i] = cx * x_next[i] + cm * m_next[i] + s * z[i] + (use_pred != A(0) ? c0 * p : A(0));
      }
    }
    // Where the ring holds p1, p2 and p3; p3's place may be the one that this row's prediction takes.
    const int depth = args.history_depth, slot = (int)k[ROW_SLOT];
    const Matrix* past[3];
    for (int age = 1; age <= depth; ++age) past[age - 1] = &args.history[((slot - age) % depth + depth) % depth];
    if (args.base.data != nullptr) add_slot(next, args.base, tile, k[ROW_CB], slot_buffer);
    for (int age = 0; age < depth; ++age) add_slot(next, *past[age], tile, k[ROW_C1 + age], slot_buffer);
    if (args.base.data != nullptr && k[ROW_SAVE_BASE] != A(0)) {
      const A bx = k[ROW_BX], bm = k[ROW_BM], b0 = k[ROW_B0];
      const A* x_base = bx != A(0) ? x : zeros;
      const A* m_base = bm != A(0) ? m : zeros;
      const A* pred_base = b0 != A(0) ? pred : zeros;
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) base[i] = bx * x_base[i] + bm * m_base[i] + b0 * pred_base[i];
      add_slot(base, args.base, tile, k[ROW_BB], slot_buffer);
      for (int age = 0; age < depth; ++age) add_slot(base, *past[age], tile, k[ROW_B1 + age], slot_buffer);
      write_tile(args.base, tile, base);
    }
    if (depth > 0 && k[ROW_PUSH] != A(0)) write_tile(args.history[slot % depth], tile, pred);
    if (args.pred_out.data != nullptr) write_tile(args.pred_out, tile, pred);
    write_tile(args.out, tile, next);
  }
}

// Of the 64 elements from `first`, those that are kept hold `scale`, the others 0.
FD_INLINE void dropout_factors(const DropoutArgs& args, int64_t first, float* out) {
  u32x16 c[4];
  words_chunk(c, (uint32_t)(first / 4), 0, args.stream << STREAM_SHIFT, args.seed);
  const u32x16 last = args.last_kept - (u32x16){};
  const f32x16 scale = splat((float)args.scale), none = {};
  store_blocks(out, select(c[0] <= last, scale, none), select(c[1] <= last, scale, none),
               select(c[2] <= last, scale, none), select(c[3] <= last, scale, none));
}

template <typename A>
static void dropout_units(const DropoutArgs& args, int64_t first_unit, int64_t last_unit) {
  const int64_t end = last_unit * DROPOUT_UNIT < args.numel ? last_unit * DROPOUT_UNIT : args.numel;
  alignas(64) float factors[NOISE_CHUNK];
  alignas(64) A values[NOISE_CHUNK];
  for (int64_t first = first_unit * DROPOUT_UNIT; first < end; first += NOISE_CHUNK) {
    const int64_t n = end - first < NOISE_CHUNK ? end - first : NOISE_CHUNK;
    dropout_factors(args, first, factors);
    load_run(values, args.x, first, n);
    // What is dropped is 0, whatever it was.
    for (int64_t i = 0; i < n; ++i) values[i] = factors[i] != 0.0f ? values[i] * (A)args.scale : A(0);
    store_run(values, args.y, first, n);
  }
}

static void run_dropout(const DropoutArgs& args, int64_t first_unit, int64_t last_unit) {
  if (args.x.dtype == Dtype::F64)
    dropout_units<double>(args, first_unit, last_unit);
  else
    dropout_units<float>(args, first_unit, last_unit);
}

static void run_diffuse(const DiffuseArgs& args, int64_t first_unit, int64_t last_unit) {
  if (args.x0.dtype == Dtype::F64)
    diffuse_tiles<double>(args, first_unit, last_unit);
  else
    diffuse_tiles<float>(args, first_unit, last_unit);
}

static void run_step(const StepArgs& args, int64_t first_unit, int64_t last_unit) {
  if (args.x.dtype == Dtype::F64)
    step_tiles<double>(args, first_unit, last_unit);
  else
    step_tiles<float>(args, first_unit, last_unit);
}
