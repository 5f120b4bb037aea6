// The plan's instructions for one instruction set; included inside its namespace after vec.h. Images are [H, W, C], and
// vectors run along C. See engine.cpp for how they are cut into units.

FD_INLINE f32x16 load16(const float* p) { return *(const f32x16u*)p; }
FD_INLINE void store16(float* p, f32x16 v) { *(f32x16u*)p = v; }

// exp(-x) + 1, finite for any x but NaN.
FD_INLINE f32x16 exp_minus_plus_one(f32x16 x) {
#if defined(FD_AVX512)
  // 2^t as 2^floor(s) 2^(i / 32) 2^r, with s the multiple of 1 / 32 nearest to t and |r| <= 1 / 64: a table in two
  // registers, indexed by the last bits of the shifted s, and a minimax polynomial of 5e-8 relative.
  alignas(64) static const float roots[32] = {
      1.000000000f, 1.021897149f, 1.044273782f, 1.067140401f, 1.090507733f, 1.114386743f, 1.138788635f,
      1.163724859f, 1.189207115f, 1.215247360f, 1.241857812f, 1.269050957f, 1.296839555f, 1.325236643f,
      1.354255547f, 1.383909882f, 1.414213562f, 1.445180807f, 1.476826146f, 1.509164428f, 1.542210825f,
      1.575980845f, 1.610490332f, 1.645755478f, 1.681792831f, 1.718619298f, 1.756252160f, 1.794709075f,
      1.834008086f, 1.874167634f, 1.915206561f, 1.957144124f};
  const f32x16 t = (f32x16)_mm512_range_ps((__m512)(x * -1.44269504088896341f), _mm512_set1_ps(126.0f), 2);
  const f32x16 magic = splat(393216.0f);  // 1.5 * 2^18
  const f32x16 shifted = t + magic, s = shifted - magic, r = t - s;
  const __m512 low = _mm512_load_ps(roots), high = _mm512_load_ps(roots + 16);
  const f32x16 root = (f32x16)_mm512_permutex2var_ps(low, (__m512i)shifted, high);
  const f32x16 power = (root * r) * (r * 0.2402265f + 0.69315734f) + root;
  return (f32x16)_mm512_scalef_ps((__m512)power, (__m512)s) + 1.0f;
#else
  return exp_v(-x) + 1.0f;
#endif
}

FD_INLINE f32x16 sigmoid_v(f32x16 x) { return 1.0f / exp_minus_plus_one(x); }

FD_INLINE f32x16 silu_v(f32x16 x) { return x / exp_minus_plus_one(x); }

FD_INLINE f32x16 load_some(const float* p, int64_t count) {
  if (count >= 16) return load16(p);
  f32x16 v = {};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
}

FD_INLINE void store_some(float* p, f32x16 v, int64_t count) {
  if (count >= 16) return store16(p, v);
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

FD_INLINE float* at(const Work& w, int64_t place, int64_t sample, int64_t size) { return w.arena + place + sample * size; }

FD_INLINE const float* time_of(const Work& w, int64_t sample) { return w.times + w.i.time + sample * w.times_stride; }

// Weights that are wanted next, fetched into the second-level cache while others are used: `lines` cache lines with
// every row of b.
struct Ahead {
  const float* next = nullptr;
  int64_t lines = 0;
};

// acc[m][v] += sum over the taps and k of a[m][tap + k] * b[k][16 v ...]; b runs on from tap to tap.
template <int ROWS, int VECTORS>
FD_INLINE void multiply(const float* const* a, const int64_t* taps, int64_t num_taps, int64_t length, const float* b,
                        int64_t b_stride, Ahead ahead, f32x16 (&acc)[ROWS][VECTORS]) {
  for (int64_t tap = 0; tap < num_taps; ++tap) {
    const float* rows[ROWS];
    for (int m = 0; m < ROWS; ++m) rows[m] = a[m] + taps[tap];
    for (int64_t k = 0; k < length; ++k, b += b_stride) {
      for (int64_t line = 0; line < ahead.lines; ++line, ahead.next += 16) __builtin_prefetch(ahead.next, 0, 2);
      f32x16 column[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) column[v] = load16(b + 16 * v);
#pragma GCC unroll 6
      for (int m = 0; m < ROWS; ++m) {
        const f32x16 value = splat(rows[m][k]);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) acc[m][v] += value * column[v];
      }
    }
  }
}

// `finish(m, v, sum)` is given each vector of the result. Unrolled, so that no sum ever lies in memory.
template <int ROWS, int VECTORS, typename Finish>
FD_INLINE void multiply_exactly(const float* const* a, const int64_t* taps, int64_t num_taps, int64_t length,
                                const float* b, int64_t b_stride, Ahead ahead, const Finish& finish) {
  f32x16 acc[ROWS][VECTORS];
#pragma GCC unroll 6
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) acc[m][v] = (f32x16){};
  multiply<ROWS, VECTORS>(a, taps, num_taps, length, b, b_stride, ahead, acc);
#pragma GCC unroll 6
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) finish(m, v, acc[m][v]);
}

// The same for any number of rows.
template <int VECTORS, typename Finish>
static inline void multiply_rows(int64_t num_rows, const float* const* a, const int64_t* taps, int64_t num_taps,
                                 int64_t length, const float* b, int64_t b_stride, Ahead ahead, const Finish& finish) {
#define FD_ROWS(ROWS)                                                        \
  case ROWS: {                                                               \
    multiply_exactly<ROWS, VECTORS>(a, taps, num_taps, length, b, b_stride, ahead, finish); \
    break;                                                                   \
  }
  switch (num_rows) { FD_ROWS(1) FD_ROWS(2) FD_ROWS(3) FD_ROWS(4) FD_ROWS(5) FD_ROWS(6) default: break; }
#undef FD_ROWS
}

#if defined(FD_AVX512)
constexpr int WIDE = 4;
#else
// Sixteen lanes are two registers or four: one vector of six rows fills them.
constexpr int WIDE = 1;
#endif

// Columns [0, columns) of a panel, in steps of WIDE vectors.
template <typename Finish>
static inline void multiply_panel(int64_t num_rows, const float* const* a, const int64_t* taps, int64_t num_taps,
                                  int64_t length, const float* b, int64_t b_stride, int64_t columns, const Finish& finish,
                                  Ahead ahead = {}) {
  const int64_t vectors = (columns + 15) / 16;
  int64_t v = 0;
  for (; v + WIDE <= vectors; v += WIDE)
    multiply_rows<WIDE>(num_rows, a, taps, num_taps, length, b + 16 * v, b_stride, ahead,
                        [&](int m, int u, f32x16 sum) { finish(m, v + u, sum); });
  // Two at a time keep the multipliers busy where one would wait for its own sums.
  for (; WIDE > 2 && v + 2 <= vectors; v += 2)
    multiply_rows<2>(num_rows, a, taps, num_taps, length, b + 16 * v, b_stride, Ahead{},
                     [&](int m, int u, f32x16 sum) { finish(m, v + u, sum); });
  for (; v < vectors; ++v)
    multiply_rows<1>(num_rows, a, taps, num_taps, length, b + 16 * v, b_stride, Ahead{},
                     [&](int m, int, f32x16 sum) { finish(m, v, sum); });
}

// act(factor * x + offset) of the channels of one pixel.
template <bool NORM, bool ACT>
FD_INLINE void read_channels(const float* from, const float* factors, const float* offsets, int64_t channels, float* to) {
  int64_t c = 0;
  for (; c + 16 <= channels; c += 16) {
    f32x16 v = load16(from + c);
    if (NORM) v = v * load16(factors + c) + load16(offsets + c);
    if (ACT) v = silu_v(v);
    store16(to + c, v);
  }
  if (c < channels) {
    const int64_t count = channels - c;
    f32x16 v = load_some(from + c, count);
    if (NORM) v = v * load_some(factors + c, count) + load_some(offsets + c, count);
    if (ACT) v = silu_v(v);
    store_some(to + c, v, count);
  }
}

// What a convolution reads of one pixel: both sources, normalised and activated.
FD_INLINE void read_pixel(const Work& w, int64_t sample, int64_t y, int64_t x, float* to) {
  const Instruction& i = w.i;
  const int64_t pixels = i.height_in * i.width_in, total = i.channels + i.channels2;
  const float* factors = i.norm >= 0 ? at(w, i.norm, sample, 2 * total) : nullptr;
  const int64_t places[2] = {i.source, i.source2}, counts[2] = {i.channels, i.channels2};
  for (int part = 0; part < 2 && places[part] >= 0; ++part) {
    const float* from = at(w, places[part], sample, pixels * counts[part]) + (y * i.width_in + x) * counts[part];
    if (factors == nullptr)
      i.act ? read_channels<false, true>(from, nullptr, nullptr, counts[part], to)
            : read_channels<false, false>(from, nullptr, nullptr, counts[part], to);
    else
      i.act ? read_channels<true, true>(from, factors, factors + total, counts[part], to)
            : read_channels<true, false>(from, factors, factors + total, counts[part], to);
    to += counts[part];
    if (factors != nullptr) factors += counts[part];
  }
}

// Row y of the padded input: pixels [-pad, width - pad) of row y, zero outside of the image.
FD_INLINE void read_row(const Work& w, int64_t sample, int64_t y, int64_t width, float* to) {
  const Instruction& i = w.i;
  const int64_t channels = i.channels + i.channels2, scale = i.upsample ? 2 : 1;
  const bool inside = y >= 0 && y < i.height_in * scale;
  for (int64_t p = 0; p < width; ++p, to += channels) {
    const int64_t x = p - i.pad;
    if (!inside || x < 0 || x >= i.width_in * scale)
      for (int64_t c = 0; c < channels; ++c) to[c] = 0.0f;
    else if (i.upsample && x % 2 == 1)
      for (int64_t c = 0; c < channels; ++c) to[c] = to[c - channels];
    else
      read_pixel(w, sample, y / scale, x / scale, to);
  }
}

// Where the results of one sample go, and what is added to them.
struct Writer {
  float* target;
  const float *bias, *time, *residual;
  int64_t channels;

  inline __attribute__((always_inline)) void write(int64_t pixel, int64_t c, f32x16 v) const {
    const int64_t place = pixel * channels + c, count = channels - c;
    if (count >= 16) {
      v += load16(bias + c);
      if (time != nullptr) v += load16(time + c);
      if (residual != nullptr) v += load16(residual + place);
      return store16(target + place, v);
    }
    v += load_some(bias + c, count);
    if (time != nullptr) v += load_some(time + c, count);
    if (residual != nullptr) v += load_some(residual + place, count);
    store_some(target + place, v, count);
  }
};

FD_INLINE Writer writer_of(const Work& w, int64_t sample) {
  const Instruction& i = w.i;
  const int64_t size = i.height * i.width * i.channels_out;
  return {at(w, i.target, sample, size), w.weights + i.bias, i.time < 0 ? nullptr : time_of(w, sample),
          i.residual < 0 ? nullptr : at(w, i.residual, sample, size), i.channels_out};
}

template <int U>
FD_INLINE float sum_of(const f32x16 (&vectors)[U]) {
  f32x16 v = vectors[0];
  for (int j = 1; j < U; ++j) v += vectors[j];
  v += __builtin_shuffle(v, (i32x16){8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
  v += __builtin_shuffle(v, (i32x16){4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11});
  v += __builtin_shuffle(v, (i32x16){2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13});
  return v[0] + v[1];
}

// Pixels [first, last) of a convolution to OUTPUTS channels; `weights` is [outputs, taps, channels].
template <int OUTPUTS>
static void multiply_dots(const Work& w, const Padded& padded, const int64_t* taps, const float* weights, int64_t first,
                          int64_t last) {
  const Instruction& i = w.i;
  const int64_t channels = i.channels + i.channels2, pixels = i.height * i.width, num_taps = i.kernel * i.kernel;
  for (int64_t p = first; p < last; ++p) {
    const int64_t sample = p / pixels, y = p % pixels / i.width, x = p % i.width;
    const float* from = w.shared + ((sample * padded.height + y * i.stride) * padded.width + x * i.stride) * channels;
    const float* by = weights;
    f32x16 sums[OUTPUTS] = {};
    for (int64_t tap = 0; tap < num_taps; ++tap)
      for (int64_t c = 0; c < channels; c += 16, by += 16) {
        const f32x16 v = load16(from + taps[tap] + c);
        for (int o = 0; o < OUTPUTS; ++o) sums[o] += v * load16(by + o * num_taps * channels);
      }
    f32x16 result = {};
    for (int o = 0; o < OUTPUTS; ++o) result[o] = sum_of<1>({sums[o]});
    writer_of(w, sample).write(p % pixels, 0, result);
  }
}

static void direct_dots(const Work& w, const Padded& padded, const int64_t* taps, int64_t first, int64_t last,
                        float* weights) {
  const int64_t rows = w.i.kernel * w.i.kernel * (w.i.channels + w.i.channels2);
  for (int64_t o = 0; o < w.i.channels_out; ++o)
    for (int64_t row = 0; row < rows; ++row) weights[o * rows + row] = w.weights[w.i.weight + row * PANEL + o];
  switch (w.i.channels_out) {
    case 1: return multiply_dots<1>(w, padded, taps, weights, first, last);
    case 2: return multiply_dots<2>(w, padded, taps, weights, first, last);
    case 3: return multiply_dots<3>(w, padded, taps, weights, first, last);
    default: return multiply_dots<4>(w, padded, taps, weights, first, last);
  }
}

static void direct_multiply(const Work& w, int64_t unit, float* scratch) {
  const Instruction& i = w.i;
  const Padded padded = padded_of(i);
  const int64_t channels = i.channels + i.channels2, pixels = i.height * i.width, all = w.batch * pixels;
  const int64_t blocks = ceil_div(all, padded.block), panels = panels_of(i.channels_out);
  // Pointwise: all panels of a block of pixels, which is read once. Else one panel, whose weights are read once.
  const int64_t block = padded.pointwise ? unit : unit % blocks, first = block * padded.block;
  const int64_t last = first + padded.block < all ? first + padded.block : all;
  const float* input = w.shared;
  if (padded.pointwise) {
    input = padded.copied ? scratch - first * channels : w.arena + i.source;
    for (int64_t p = first; padded.copied && p < last; ++p)
      read_pixel(w, p / pixels, p % pixels / i.width, p % i.width, scratch + (p - first) * channels);
  }
  int64_t taps[9];
  for (int64_t ky = 0; ky < i.kernel; ++ky)
    for (int64_t kx = 0; kx < i.kernel; ++kx) taps[ky * i.kernel + kx] = (ky * padded.width + kx) * channels;
  if (by_dots(i)) return direct_dots(w, padded, taps, first, last, scratch);
  const int64_t first_panel = padded.pointwise ? 0 : unit / blocks, last_panel = padded.pointwise ? panels : first_panel + 1;
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    const float* packed = w.weights + i.weight + panel * i.kernel * i.kernel * channels * PANEL;
    const int64_t columns = i.channels_out - panel * PANEL < PANEL ? i.channels_out - panel * PANEL : PANEL;
    for (int64_t p = first; p < last; p += GEMM_ROWS) {
      const int64_t rows = last - p < GEMM_ROWS ? last - p : GEMM_ROWS;
      const float* a[GEMM_ROWS];
      Writer writers[GEMM_ROWS];
      for (int64_t m = 0; m < rows; ++m) {
        const int64_t sample = (p + m) / pixels, y = (p + m) % pixels / i.width, x = (p + m) % i.width;
        writers[m] = writer_of(w, sample);
        a[m] = padded.pointwise
                   ? input + (p + m) * channels
                   : input + ((sample * padded.height + y * i.stride) * padded.width + x * i.stride) * channels;
      }
      multiply_panel(rows, a, taps, i.kernel * i.kernel, channels, packed, PANEL, columns,
                     [&](int m, int64_t v, f32x16 sum) {
                       writers[m].write((p + m) % pixels, panel * PANEL + 16 * v, sum);
                     });
    }
  }
}

// B^T d: one dimension of the input's transform, for six values (four for tiles of two).
FD_INLINE void winograd_in(f32x16 (&d)[6]) {
  const f32x16 a = d[4] - 4.0f * d[2], b = d[3] - 4.0f * d[1], c = d[4] - d[2], e = 2.0f * (d[3] - d[1]);
  const f32x16 first = 4.0f * d[0] - 5.0f * d[2] + d[4], last = 4.0f * d[1] - 5.0f * d[3] + d[5];
  d[0] = first, d[1] = a + b, d[2] = a - b, d[3] = c + e, d[4] = c - e, d[5] = last;
}

FD_INLINE void winograd_in(f32x16 (&d)[4]) {
  const f32x16 a = d[0] - d[2], b = d[1] + d[2], c = d[2] - d[1], e = d[1] - d[3];
  d[0] = a, d[1] = b, d[2] = c, d[3] = e;
}

// A^T m: six products to four results, or four to two, in the first places.
FD_INLINE void winograd_out(f32x16 (&m)[6]) {
  const f32x16 a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
  m[0] = m[0] + a + c, m[1] = b + 2.0f * e, m[2] = a + 4.0f * c, m[3] = b + 8.0f * e + m[5];
}

FD_INLINE void winograd_out(f32x16 (&m)[4]) {
  const f32x16 a = m[0] + m[1] + m[2], b = m[1] - m[2] - m[3];
  m[0] = a, m[1] = b;
}

// Transform rows [first, last) of tiles into V [points][tiles][C], whose first tile is that of row `origin`.
template <int SIZE>
static void winograd_read(const Work& w, const Tiles& t, int64_t first, int64_t last, int64_t origin, int64_t tiles,
                          float* v, float* rows) {
  constexpr int SPAN = SIZE + 2;
  const Instruction& i = w.i;
  const int64_t channels = i.channels + i.channels2, width = SIZE * t.per_row + 2, per_image = ceil_div(i.height, SIZE);
  for (int64_t row = first; row < last; ++row) {
    const int64_t sample = row / per_image, top = row % per_image * SIZE - i.pad;
    // Within an image the last two rows of the tiles above are the first two of these.
    const bool follows = row > first && row % per_image != 0;
    if (follows) __builtin_memcpy(rows, rows + SIZE * width * channels, sizeof(float) * 2 * width * channels);
    for (int64_t y = follows ? 2 : 0; y < SPAN; ++y) read_row(w, sample, top + y, width, rows + y * width * channels);
    for (int64_t x = 0; x < t.per_row; ++x) {
      const int64_t tile = (row - origin) * t.per_row + x;
      for (int64_t c = 0; c < channels; c += 16) {
        f32x16 d[SPAN][SPAN];
        for (int k = 0; k < SPAN; ++k) {
          f32x16 column[SPAN];
#pragma GCC unroll 6
          for (int y = 0; y < SPAN; ++y) column[y] = load16(rows + (y * width + x * SIZE + k) * channels + c);
          winograd_in(column);
#pragma GCC unroll 6
          for (int y = 0; y < SPAN; ++y) d[y][k] = column[y];
        }
        for (int y = 0; y < SPAN; ++y) {
          winograd_in(d[y]);
#pragma GCC unroll 6
          for (int k = 0; k < SPAN; ++k) store16(v + (y * SPAN + k) * point_stride(tiles, channels) + tile * channels + c, d[y][k]);
        }
      }
    }
  }
}

// M[point] = V[point] U[point] for one panel of columns; m is where the panel's columns of M begin, `width` apart.
// The panel `distance` further on is fetched meanwhile.
FD_INLINE void winograd_multiply(const Work& w, int64_t point, int64_t panel, int64_t tiles, const float* v, float* m,
                                 int64_t width, int64_t distance) {
  const Instruction& i = w.i;
  const int64_t channels = i.channels + i.channels2, panels = panels_of(i.channels_out), none = 0;
  const float* packed = w.weights + i.weight + (point * panels + panel) * channels * PANEL;
  const float* from = v + point * point_stride(tiles, channels);
  float* to = m + point * point_stride(tiles, width);
  const int64_t columns = i.channels_out - panel * PANEL < PANEL ? i.channels_out - panel * PANEL : PANEL;
  // Spread over the first groups of rows: PANEL / 16 lines are a row of the panel.
  const int64_t groups = ceil_div(tiles, GEMM_ROWS), lines = groups >= 4 ? 1 : groups >= 2 ? 2 : 4;
  const float* next = packed + distance * channels * PANEL;
  for (int64_t t = 0, left = PANEL / 16; t < tiles; t += GEMM_ROWS, left -= lines) {
    const int64_t rows = tiles - t < GEMM_ROWS ? tiles - t : GEMM_ROWS;
    const Ahead ahead = {next + (PANEL - 16 * left) * channels, left > 0 ? lines : 0};
    const float* a[GEMM_ROWS];
    for (int64_t r = 0; r < rows; ++r) a[r] = from + (t + r) * channels;
    multiply_panel(rows, a, &none, 1, channels, packed, PANEL, columns, [&](int r, int64_t u, f32x16 sum) {
      store16(to + (t + r) * width + 16 * u, sum);
    }, ahead);
  }
}

template <int SIZE>
static void winograd_write(const Work& w, const Tiles& t, int64_t first, int64_t last, int64_t origin, int64_t tiles,
                           const float* m, int64_t width, int64_t first_channel, int64_t last_channel) {
  constexpr int SPAN = SIZE + 2;
  const Instruction& i = w.i;
  const int64_t per_image = ceil_div(i.height, SIZE);
  for (int64_t row = first; row < last; ++row) {
    const int64_t top = row % per_image * SIZE;
    const Writer writer = writer_of(w, row / per_image);
    for (int64_t x = 0; x < t.per_row; ++x) {
      const int64_t tile = (row - origin) * t.per_row + x;
      for (int64_t c = first_channel; c < last_channel; c += 16) {
        f32x16 d[SIZE][SPAN];
        for (int k = 0; k < SPAN; ++k) {
          f32x16 column[SPAN];
#pragma GCC unroll 6
          for (int y = 0; y < SPAN; ++y) column[y] = load16(m + (y * SPAN + k) * point_stride(tiles, width) + tile * width + c - first_channel);
          winograd_out(column);
#pragma GCC unroll 4
          for (int y = 0; y < SIZE; ++y) d[y][k] = column[y];
        }
        for (int64_t y = 0; y < SIZE && top + y < i.height; ++y) {
          winograd_out(d[y]);
          for (int64_t k = 0; k < SIZE && x * SIZE + k < i.width; ++k)
            writer.write((top + y) * i.width + x * SIZE + k, c, d[y][k]);
        }
      }
    }
  }
}

template <int SIZE>
static void winograd(const Work& w, int64_t threads, int64_t unit, float* scratch) {
  const Tiles t = tiles_of(w.i, w.batch, threads);
  const int64_t channels = w.i.channels + w.i.channels2, panels = panels_of(w.i.channels_out);
  if (t.phased) {
    float *v = w.shared, *m = w.shared + t.points * point_stride(t.total, channels);
    const int64_t width = panels * PANEL;
    if (w.phase == 0) winograd_read<SIZE>(w, t, unit, unit + 1, 0, t.total, v, scratch);
    if (w.phase == 1)
      winograd_multiply(w, unit / panels, unit % panels, t.total, v, m + unit % panels * PANEL, width, threads);
    if (w.phase == 2) winograd_write<SIZE>(w, t, unit, unit + 1, 0, t.total, m, width, 0, w.i.channels_out);
    return;
  }
  const int64_t first = unit * t.rows / t.blocks, last = (unit + 1) * t.rows / t.blocks;
  const int64_t tiles = (last - first) * t.per_row;
  float* v = scratch + (SIZE + 2) * (SIZE * t.per_row + 2) * channels;
  float* m = v + t.points * point_stride(tiles, channels);
  winograd_read<SIZE>(w, t, first, last, first, tiles, v, scratch);
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t begin = panel * PANEL, end = begin + PANEL < w.i.channels_out ? begin + PANEL : w.i.channels_out;
    for (int64_t point = 0; point < t.points; ++point) winograd_multiply(w, point, panel, tiles, v, m, PANEL, panels);
    winograd_write<SIZE>(w, t, first, last, first, tiles, m, PANEL, begin, end);
  }
}
