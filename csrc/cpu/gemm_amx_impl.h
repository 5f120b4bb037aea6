// Products of a few rows of pairs with a panel of columns (gemm_impl.h has the shapes), on the tiles of AMX.
//
// The columns of packed weights lie as a tile takes them: a word has both numbers of a pair, and the words of a row
// follow each other. So packed weights are those of AVX512-BF16.
#pragma once

#include <cstdint>

#include "amx_impl.h"
#include "factors_impl.h"
#include "rounding.h"
#include "vec_impl.h"

#if defined(FD_AMX)

namespace fastdiff::FD_VARIANT {

template <int N> struct Number {
  static constexpr int VALUE = N;
};

// body(Number<0>), body(Number<1>), ...
template <int COUNT, typename Body>
FD_INLINE void for_each_number(const Body& body) {
  if constexpr (COUNT > 0) {
    for_each_number<COUNT - 1>(body);
    body(Number<COUNT - 1>{});
  }
}

// As load_some, of words.
FD_INLINE f32x16 load_words(const float* p, int64_t count) {
  if (count >= TILE_WORDS) return load16(p);
  f32x16 v = {};
  __builtin_memcpy(&v, p, sizeof(word) * (size_t)count);
  return v;
}

// `tile_rows` rows of the left side, and the distance from each to the next where it is the same one.
struct TileSource {
  const float* const* rows;
  int64_t stride;
  bool even;
};

static inline TileSource tile_source(const float* const* rows) {
  TileSource source = {rows, TILE_WORDS, true};
  if (tile_rows > 1) source.stride = rows[1] - rows[0];
  for (int m = 2; m < tile_rows; ++m) source.even = source.even && rows[m] - rows[m - 1] == source.stride;
  return source;
}

// To a tile: `count` words of each row from its place `from` on, and zeros behind them. copy: room for a tile.
template <int TILE>
FD_INLINE void load_rows(const TileSource& source, int64_t from, int64_t count, float* copy) {
  if (source.even && count == TILE_WORDS) return load_tile<TILE>(source.rows[0] + from, source.stride);
  for (int m = 0; m < tile_rows; ++m) store16(copy + m * TILE_WORDS, load_words(source.rows[m] + from, count));
  load_tile<TILE>(copy, TILE_WORDS);
}

// The same of `count` rows of sixteen columns, and rows of zeros below them.
template <int TILE>
FD_INLINE void load_columns(const float* b, int64_t b_stride, int64_t count, float* copy) {
  if (count == TILE_ROWS) return load_tile<TILE>(b, b_stride);
  for (int64_t k = 0; k < TILE_ROWS; ++k)
    store16(copy + k * TILE_WORDS, k < count ? load16(b + k * b_stride) : (f32x16){});
  load_tile<TILE>(copy, TILE_WORDS);
}

// Sums of a tile, and of the four that a block has at most.
constexpr int TILE = TILE_ROWS * TILE_WORDS, BLOCK_SUMS = 4 * TILE;

// DOWN tiles of rows and ACROSS of columns. sums: [DOWN, ACROSS, TILE_ROWS, TILE_WORDS], `tile_rows` of each written.
template <int DOWN, int ACROSS>
static __attribute__((noinline)) void multiply_block(const TileSource* sources, const int64_t* taps, int64_t num_taps,
                                                     int64_t length, const float* b, int64_t b_stride, Ahead ahead,
                                                     float* sums) {
  alignas(64) float copy[TILE];
  for_each_number<DOWN * ACROSS>([](auto n) { zero_tile<n.VALUE>(); });
  for (int64_t tap = 0; tap < num_taps; ++tap)
    for (int64_t k = 0; k < length; k += TILE_WORDS) {
      const int64_t count = length - k < TILE_WORDS ? length - k : TILE_WORDS;
      for (int64_t line = 0; line < ahead.lines * count; ++line, ahead.next += 16) __builtin_prefetch(ahead.next, 0, 2);
      for_each_number<DOWN>(
          [&](auto n) { load_rows<FIRST_ROWS_TILE + n.VALUE>(sources[n.VALUE], taps[tap] + k, count, copy); });
      for_each_number<ACROSS>([&](auto v) {
        constexpr int COLUMNS = FIRST_COLUMNS_TILE + v.VALUE % 2;
        load_columns<COLUMNS>(b + TILE_WORDS * v.VALUE, b_stride, count, copy);
        for_each_number<DOWN>(
            [&](auto n) { multiply_tiles<n.VALUE * ACROSS + v.VALUE, FIRST_ROWS_TILE + n.VALUE, COLUMNS>(); });
      });
      b += count * b_stride;
    }
  for_each_number<DOWN * ACROSS>([&](auto n) { store_tile<n.VALUE>(sums + TILE * n.VALUE, TILE_WORDS); });
}

// As multiply_panel. More than sixteen rows are two tiles of the same number of rows, one of which may be in both.
template <typename Finish>
static inline void multiply_panel_by_tiles(int64_t num_rows, const float* const* a, const int64_t* taps,
                                           int64_t num_taps, int64_t length, const float* b, int64_t b_stride,
                                           int64_t columns, const Finish& finish, Ahead ahead) {
  const bool two = num_rows > TILE_ROWS;
  const int64_t rows = two ? (num_rows + 1) / 2 : num_rows, second = num_rows - rows;
  if (tile_rows != rows) configure_tiles((int)rows);
  const TileSource sources[2] = {tile_source(a), tile_source(a + second)};
  alignas(64) float sums[BLOCK_SUMS];
  for (int64_t v = 0, vectors = ceil_div(columns, TILE_WORDS), across; v < vectors; v += across, ahead = {}) {
    across = vectors - v >= 4 && !two ? 4 : vectors - v >= 2 && two ? 2 : 1;
    const auto multiply = two ? (across == 2 ? multiply_block<2, 2> : multiply_block<2, 1>)
                              : (across == 4 ? multiply_block<1, 4> : multiply_block<1, 1>);
    multiply(sources, taps, num_taps, length, b + TILE_WORDS * v, b_stride, ahead, sums);
    for (int64_t r = 0; r < num_rows; ++r) {
      const float* from = r < rows ? sums + TILE_WORDS * r : sums + across * TILE + TILE_WORDS * (r - second);
      for (int64_t u = 0; u < across; ++u) finish((int)r, v + u, load16(from + TILE * u));
    }
  }
}

}  // namespace fastdiff::FD_VARIANT

#endif
