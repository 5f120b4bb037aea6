// How instructions are cut into units of work. No unit's arithmetic depends on the batch or the number of threads: an
// element of a result is the same sum in the same order wherever it is computed.
#include "instructions.h"

#include <algorithm>

namespace fastdiff {

constexpr int64_t BLOCK_TILES = 24;

static int64_t channels_in(const Instruction& i) { return i.channels + i.channels2; }

// Floats of one point's transformed input, and of so many columns of its product.
static int64_t transformed(const Instruction& i, int64_t tiles, int64_t columns) {
  return point_stride(tiles, words_of(i, channels_in(i))) + point_stride(tiles, columns);
}

Tiles tiles_of(const Instruction& i, int64_t batch, int64_t threads) {
  Tiles t;
  t.size = i.algorithm == PLAN_WINOGRAD4 ? 4 : 2;
  t.points = (t.size + 2) * (t.size + 2);
  t.per_row = ceil_div(i.width, t.size);
  t.rows = batch * ceil_div(i.height, t.size);
  t.total = t.rows * t.per_row;
  // About 24 tiles, whose transformed input and one panel of products nearly fit the second-level cache; as many blocks
  // for every thread.
  const int64_t wanted = (t.total + BLOCK_TILES / 2) / BLOCK_TILES;
  t.blocks = std::min(t.rows, std::max<int64_t>(1, ceil_div(wanted, threads)) * threads);
  t.block_rows = ceil_div(t.rows, t.blocks);
  t.phased = wanted < 2 * threads && threads > 1;
  return t;
}

Padded padded_of(const Instruction& i) {
  Padded p;
  p.height = (i.height - 1) * i.stride + i.kernel;
  p.width = (i.width - 1) * i.stride + i.kernel;
  p.copied = i.kernel != 1 || i.stride != 1 || i.norm >= 0 || i.act || i.upsample || i.source2 >= 0 || i.pairs;
  p.pointwise = i.kernel == 1 && i.stride == 1 && !i.upsample;
  // Of one image at most, so that small batches have work for all threads.
  p.block = i.height * i.width < 256 ? 24 : 48;
  return p;
}

int64_t panel_groups(const Instruction& i, const Padded& padded, int64_t batch, int64_t threads) {
  const int64_t panels = panels_of(i.channels_out), blocks = ceil_div(batch * i.height * i.width, padded.block);
  // Pointwise a unit takes all panels, so that its pixels are read once, unless threads would have nothing to do.
  return padded.pointwise ? std::min(panels, threads == 1 ? 1 : ceil_div(2 * threads, blocks)) : panels;
}

int64_t num_phases(const Instruction& i, int64_t batch, int64_t threads) {
  if (i.op == PLAN_ATTENTION || i.op == PLAN_MEMORY_ATTENTION || i.op == PLAN_LINEAR_ATTENTION) return 2;
  if (i.op != PLAN_CONV) return 1;
  if (i.algorithm == PLAN_DIRECT) return padded_of(i).pointwise ? 1 : 2;
  return tiles_of(i, batch, threads).phased ? 3 : 1;
}

int64_t num_units(const Instruction& i, int64_t batch, int64_t threads, int64_t phase) {
  switch (i.op) {
    case PLAN_STATS: return batch * panels_of(i.channels);
    case PLAN_NORM: return batch;
    case PLAN_POOL:
    case PLAN_REPEAT:
    case PLAN_PIXEL_NORM: return batch * i.height;
    case PLAN_LINEAR_ATTENTION: return batch * (phase == 0 ? i.heads : ceil_div(i.height * i.width, LINEAR_BLOCK));
    case PLAN_MEMORY_ATTENTION:
    case PLAN_ATTENTION: return batch * i.heads * (phase == 0 ? 1 : ceil_div(i.height * i.width, QUERY_BLOCK));
    default: break;
  }
  if (i.algorithm == PLAN_DIRECT) {
    const Padded p = padded_of(i);
    if (!p.pointwise && phase == 0) return batch * p.height;
    return panel_groups(i, p, batch, threads) * ceil_div(batch * i.height * i.width, p.block);
  }
  const Tiles t = tiles_of(i, batch, threads);
  if (!t.phased) return t.blocks;
  return phase == 1 ? t.points * panels_of(i.channels_out) : t.rows;
}

int64_t shared_scratch(const Instruction& i, int64_t batch, int64_t threads) {
  if (i.op == PLAN_ATTENTION) return batch * i.heads * attention_shared(i);
  if (i.op == PLAN_MEMORY_ATTENTION) return batch * i.heads * memory_head(i);
  if (i.op == PLAN_LINEAR_ATTENTION) return batch * attention_width(i) * (attention_width(i) / i.heads);
  if (i.op != PLAN_CONV) return 0;
  if (i.algorithm == PLAN_DIRECT) {
    const Padded p = padded_of(i);
    return p.pointwise ? 0 : batch * p.height * p.width * words_of(i, channels_in(i));
  }
  const Tiles t = tiles_of(i, batch, threads);
  return t.phased ? t.points * transformed(i, t.total, panels_of(i.channels_out) * PANEL) : 0;
}

int64_t thread_scratch(const Instruction& i, int64_t batch, int64_t threads) {
  if (i.op == PLAN_ATTENTION)
    return QUERY_BLOCK * (panels_of(i.height * i.width) * PANEL + (i.pairs ? attention_width(i) / i.heads : 0));
  if (i.op == PLAN_MEMORY_ATTENTION) return QUERY_BLOCK * panels_of(attention_keys_of(i)) * PANEL;
  if (i.op == PLAN_LINEAR_ATTENTION) return (2 + LINEAR_BLOCK) * (attention_width(i) / i.heads);
  if (i.op == PLAN_PIXEL_NORM) return i.channels;
  if (i.op != PLAN_CONV) return 0;
  if (i.algorithm == PLAN_DIRECT) {
    const Padded p = padded_of(i);
    if (by_dots(i)) return i.channels_out * i.kernel * i.kernel * channels_in(i);
    // Numbers come as floats first: of a pixel, or of a row.
    const int64_t read = i.pairs ? (p.pointwise ? 1 : p.width) * channels_in(i) : 0;
    return read + (p.pointwise && p.copied ? p.block * words_of(i, channels_in(i)) : 0);
  }
  const Tiles t = tiles_of(i, batch, threads);
  const int64_t rows = (t.size + 2) * (t.size * t.per_row + 2) * channels_in(i);
  if (t.phased) return rows;
  return rows + t.points * transformed(i, t.block_rows * t.per_row, PANEL);
}

}  // namespace fastdiff
