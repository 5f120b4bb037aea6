// The plan's instructions that are not convolutions, and the way in; included after engine_impl.h.

// Moments of a channel: a value near its mean (`pivot`), the mean less that, and the sum of squares about the mean, with
// `before` pixels seen. Those of `pixels` more join them, as the sum of their differences from `from` and of its squares.
// `from` is pivot + mean as it was rounded, so no digits are lost where the mean is many deviations from zero. Chan,
// Golub, LeVeque (1983), eq. 2.1.
template <typename V>
FD_INLINE void merge(V sum, V products, float pixels, float before, V from, V pivot, V& mean, V& squares) {
  const V tile_mean = sum / pixels, difference = tile_mean + (from - pivot) - mean;
  const float share = pixels / (before + pixels);
  squares += products - sum * tile_mean + difference * difference * (before * share);
  mean += difference * share;
}

// Mean and sum of squares about it, per channel, over all pixels.
static void channel_stats(const Work& w, int64_t unit) {
  const Instruction& i = w.i;
  const int64_t panels = panels_of(i.channels), sample = unit / panels, first = unit % panels * PANEL;
  const int64_t last = first + PANEL < i.channels ? first + PANEL : i.channels, pixels = i.height_in * i.width_in;
  const float* source = at(w, i.source, sample, pixels * i.channels);
  float* to = at(w, i.target, sample, 2 * i.channels);
  constexpr int64_t CHUNK = 64, SOME = 4;
  for (int64_t c = first; c < last; c += 16) {
    const int64_t count = last - c, some = pixels < SOME ? pixels : SOME;
    f32x16 pivot = {}, mean = {}, squares = {};
    for (int64_t k = 0; k < some; ++k) pivot += load_some(source + k * i.channels + c, count);
    pivot /= (float)some;
    for (int64_t start = 0; start < pixels; start += CHUNK) {
      const int64_t n = pixels - start < CHUNK ? pixels - start : CHUNK;
      const float* p = source + start * i.channels + c;
      const f32x16 from = pivot + mean;
      f32x16 sum = {}, products = {};
      for (int64_t k = 0; k < n; ++k) {
        const f32x16 d = load_some(p + k * i.channels, count) - from;
        sum += d;
        products += d * d;
      }
      merge(sum, products, (float)n, (float)start, from, pivot, mean, squares);
    }
    store_some(to + c, mean + pivot, count);
    store_some(to + i.channels + c, squares, count);
  }
}

// Factor and offset of each channel: act(norm(x)) is then one multiplication and addition away.
static void norm_factors(const Work& w, int64_t sample) {
  const Instruction& i = w.i;
  const int64_t total = i.channels + i.channels2, size = total / i.groups;
  const double pixels = (double)(i.height_in * i.width_in);
  const float* stats[2] = {at(w, i.stats, sample, 2 * i.channels),
                           i.stats2 < 0 ? nullptr : at(w, i.stats2, sample, 2 * i.channels2)};
  const float *gamma = w.weights + i.weight, *beta = w.weights + i.bias;
  const float* scale = i.time < 0 ? nullptr : time_of(w, sample);
  float* to = at(w, i.target, sample, 2 * total);
  const double epsilon = w.weights[i.epsilon];
  for (int64_t g = 0; g < i.groups; ++g) {
    // Of channels of both sources, in a group that straddles them.
    const auto each = [&](const auto& visit) __attribute__((always_inline)) {
      const int64_t first = g * size, last = first + size, inside = i.channels < last ? i.channels : last;
      const int64_t middle = inside < first ? first : inside;
      for (int64_t c = first; c < middle; ++c) visit(stats[0] + c, i.channels);
      for (int64_t c = middle; c < last; ++c) visit(stats[1] + c - i.channels, i.channels2);
    };
    double total_mean = 0, within = 0, between = 0;
    each([&](const float* s, int64_t count) { total_mean += s[0], within += s[count]; });
    const double mean = total_mean / (double)size;
    each([&](const float* s, int64_t) { between += (s[0] - mean) * (s[0] - mean); });
    const double rstd = 1 / __builtin_sqrt((within / pixels + between) / (double)size + epsilon);
    for (int64_t c = g * size; c < (g + 1) * size; ++c) {
      double factor = rstd * gamma[c], offset = beta[c] - mean * factor;
      if (scale != nullptr) {
        factor *= 1 + (double)scale[c];
        offset = offset * (1 + (double)scale[c]) + scale[total + c];
      }
      to[c] = (float)factor;
      to[total + c] = (float)offset;
    }
  }
}

// Columns of a panel of keys, in whole vectors.
FD_INLINE int64_t keys_of(int64_t keys, int64_t panel) {
  const int64_t left = ceil_div(keys - panel * PANEL, 16) * 16;
  return left < PANEL ? left : PANEL;
}

// k^T of one head in panels of keys, [keys / PANEL][d][PANEL], zero behind the last key as far as vectors reach.
static void attention_keys(const Work& w, int64_t unit) {
  const Instruction& i = w.i;
  const int64_t keys = i.height * i.width, width = attention_width(i), d = width / i.heads;
  const int64_t sample = unit / i.heads, head = unit % i.heads, stride = i.source2 < 0 ? i.channels : width;
  const float* from = i.source2 < 0 ? at(w, i.source, sample, keys * i.channels) + width + head * d
                                    : at(w, i.source2, sample, keys * width) + head * d;
  const float* factors = i.norm < 0 ? nullptr : at(w, i.norm, sample, 2 * width) + head * d;
  float* to = w.shared + unit * panels_of(keys) * PANEL * d;
  for (int64_t panel = 0; panel < panels_of(keys); ++panel)
    for (int64_t k = 0; k < d; ++k) {
      const float factor = factors == nullptr ? 1.0f : factors[k], offset = factors == nullptr ? 0.0f : factors[width + k];
      for (int64_t j = 0; j < keys_of(keys, panel); ++j) {
        const int64_t key = panel * PANEL + j;
        to[(panel * d + k) * PANEL + j] = key < keys ? from[key * stride + k] * factor + offset : 0.0f;
      }
    }
}

// Whole vectors: what lies behind the last key, up to a vector's end, becomes zero.
static void softmax(float* row, int64_t count) {
  const float lowest = -__builtin_inff();
  for (int64_t j = count; j % 16 != 0; ++j) row[j] = lowest;
  f32x16 most = splat(lowest), sums = {};
  for (int64_t j = 0; j < count; j += 16) {
    const f32x16 v = load16(row + j);
    most = select(v > most, v, most);
  }
  float largest = most[0], sum = 0;
  for (int k = 1; k < 16; ++k) largest = most[k] > largest ? most[k] : largest;
  for (int64_t j = 0; j < count; j += 16) {
    const f32x16 v = load16(row + j), e = select(v == lowest, (f32x16){}, exp_v(v - largest));
    sums += e;
    store16(row + j, e);
  }
  for (int k = 0; k < 16; ++k) sum += sums[k];
  const float scale = 1.0f / sum;
  for (int64_t j = 0; j < count; j += 16) store16(row + j, load16(row + j) * scale);
}

// Rows of softmax(q k^T) v, plus the residual; q comes scaled.
static void attention_queries(const Work& w, int64_t unit, float* scores) {
  const Instruction& i = w.i;
  const int64_t keys = i.height * i.width, width = attention_width(i), d = width / i.heads;
  const int64_t blocks = ceil_div(keys, QUERY_BLOCK), panels = panels_of(keys), stride = panels * PANEL, none = 0;
  const int64_t pair = unit / blocks, sample = pair / i.heads, head = pair % i.heads;
  const int64_t first = unit % blocks * QUERY_BLOCK, count = keys - first < QUERY_BLOCK ? keys - first : QUERY_BLOCK;
  const float* qkv = at(w, i.source, sample, keys * i.channels);
  const float* packed = w.shared + pair * panels * PANEL * d;
  float* to = at(w, i.target, sample, keys * width) + first * width + head * d;
  const float* residual = i.residual < 0 ? nullptr : at(w, i.residual, sample, keys * width) + first * width + head * d;
  const float* a[GEMM_ROWS];
  for (int64_t q = 0; q < count; q += GEMM_ROWS) {
    const int64_t rows = count - q < GEMM_ROWS ? count - q : GEMM_ROWS;
    for (int64_t m = 0; m < rows; ++m) a[m] = qkv + (first + q + m) * i.channels + head * d;
    for (int64_t panel = 0; panel < panels; ++panel)
      multiply_panel(rows, a, &none, 1, d, packed + panel * d * PANEL, PANEL, keys_of(keys, panel), [&](int m, int64_t v, f32x16 sum) {
        store16(scores + (q + m) * stride + panel * PANEL + 16 * v, sum);
      });
    for (int64_t m = 0; m < rows; ++m) softmax(scores + (q + m) * stride, keys);
    for (int64_t m = 0; m < rows; ++m) a[m] = scores + (q + m) * stride;
    for (int64_t c = 0; c < d; c += PANEL)
      multiply_panel(rows, a, &none, 1, keys, qkv + attention_values(i) + head * d + c, i.channels,
                     d - c < PANEL ? d - c : PANEL, [&](int m, int64_t v, f32x16 sum) {
                       const int64_t place = (q + m) * width + c + 16 * v;
                       store16(to + place, residual == nullptr ? sum : sum + load16(residual + place));
                     });
  }
}

// A row of the mean of 2x2 pixels, or of each pixel twice, behind norm and activation. One source.
static void resample_row(const Work& w, int64_t unit, bool down) {
  const Instruction& i = w.i;
  const int64_t sample = unit / i.height, y = unit % i.height;
  float* to = at(w, i.target, sample, i.height * i.width * i.channels) + y * i.width * i.channels;
  for (int64_t x = 0; x < i.width; ++x, to += i.channels) {
    if (!down) {
      read_pixel(w, sample, y / 2, x / 2, to);
      continue;
    }
    for (int64_t c = 0; c < i.channels; ++c) to[c] = 0.0f;
    for (int64_t k = 0; k < 4; ++k) {
      const float* from = at(w, i.source, sample, i.height_in * i.width_in * i.channels) +
                          ((2 * y + k / 2) * i.width_in + 2 * x + k % 2) * i.channels;
      const float* factors = i.norm >= 0 ? at(w, i.norm, sample, 2 * i.channels) : nullptr;
      for (int64_t c = 0; c < i.channels; c += 16) {
        const int64_t count = i.channels - c;
        f32x16 v = load_some(from + c, count);
        if (factors != nullptr) v = v * load_some(factors + c, count) + load_some(factors + i.channels + c, count);
        if (i.act) v = silu_v(v);
        store_some(to + c, load_some(to + c, count) + 0.25f * v, count);
      }
    }
  }
}

static void run_unit(const Work& w, int64_t threads, int64_t unit, float* scratch) {
  const Instruction& i = w.i;
  switch (i.op) {
    case PLAN_STATS: return channel_stats(w, unit);
    case PLAN_NORM: return norm_factors(w, unit);
    case PLAN_POOL: return resample_row(w, unit, true);
    case PLAN_REPEAT: return resample_row(w, unit, false);
    case PLAN_ATTENTION: return w.phase == 0 ? attention_keys(w, unit) : attention_queries(w, unit, scratch);
    default: break;
  }
  if (i.algorithm == PLAN_WINOGRAD4) return winograd<4>(w, threads, unit, scratch);
  if (i.algorithm == PLAN_WINOGRAD2) return winograd<2>(w, threads, unit, scratch);
  const Padded padded = padded_of(i);
  if (padded.copied && !padded.pointwise && w.phase == 0)
    return read_row(w, unit / padded.height, unit % padded.height - i.pad, padded.width,
                    w.shared + unit * padded.width * (i.channels + i.channels2));
  direct_multiply(w, unit, scratch);
}
