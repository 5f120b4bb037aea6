// The tiles of AMX, eight registers of up to 16 rows of 16 words, and their products: the instructions themselves, or
// with FD_AMX_MODEL what Intel's manual says of them in plain code.
//
// Tiles 0 to 3 hold sums, 4 and 5 rows that are multiplied, 6 and 7 columns. Words are floats in the former and pairs
// of bfloat16 numbers in the others, strides count words. Inline assembly, since a compiler's own functions do not say
// that they read and write memory.
//
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, LDTILECFG and TDPBF16PS.
#pragma once

#include <cstdint>

#include "factors_impl.h"
#include "vec_impl.h"

#if defined(FD_AMX)

namespace fastdiff::FD_VARIANT {

constexpr int TILE_ROWS = 16, TILE_WORDS = 16;
constexpr int FIRST_ROWS_TILE = 4, FIRST_COLUMNS_TILE = 6;

// Rows of sums that this thread's tiles are configured for; 0: they are not.
static thread_local int tile_rows = 0;

#if defined(FD_AMX_MODEL)

struct TileModel {
  int rows;
  alignas(64) word words[TILE_ROWS][TILE_WORDS];
};
static thread_local TileModel tile_models[8];

static inline void configure_tiles(int rows) {
  tile_rows = rows;
  for (int tile = 0; tile < 8; ++tile) tile_models[tile] = {tile < FIRST_COLUMNS_TILE ? rows : TILE_ROWS, {}};
}

static inline void release_tiles() { tile_rows = 0; }

template <int TILE> static inline void zero_tile() { __builtin_memset(tile_models[TILE].words, 0, 1024); }

template <int TILE>
static inline void load_tile(const float* from, int64_t stride) {
  TileModel& tile = tile_models[TILE];
  zero_tile<TILE>();
  for (int m = 0; m < tile.rows; ++m) __builtin_memcpy(tile.words[m], from + m * stride, 64);
}

template <int TILE>
static inline void store_tile(float* to, int64_t stride) {
  const TileModel& tile = tile_models[TILE];
  for (int m = 0; m < tile.rows; ++m) __builtin_memcpy(to + m * stride, tile.words[m], 64);
}

// Zero, of the same sign, where a number is subnormal.
FD_INLINE f32x16 flushed(f32x16 v) {
  constexpr float LEAST = 0x1p-126f;
  return select(abs_v(v) < LEAST, (f32x16)((u32x16)v & 0x80000000u), v);
}

FD_INLINE f32x16 lower_half(u32x16 pairs) { return flushed((f32x16)(pairs << 16)); }
FD_INLINE f32x16 upper_half(u32x16 pairs) { return flushed((f32x16)(pairs & 0xFFFF0000u)); }

// Lower halves and upper ones have sums of their own, each rounded at every product; both together go to the former
// sum. What would be subnormal is zero, before and after each step.
template <int SUMS, int ROWS, int COLUMNS>
static inline void multiply_tiles() {
  TileModel &to = tile_models[SUMS], &a = tile_models[ROWS], &b = tile_models[COLUMNS];
  for (int m = 0; m < to.rows; ++m) {
    f32x16 lower = {}, upper = {};
    for (int k = 0; k < TILE_WORDS; ++k) {
      const u32x16 pair = (u32x16){} + a.words[m][k], columns = *(const u32x16u*)b.words[k];
      lower = flushed(multiply_add(lower_half(pair), lower_half(columns), lower));
      upper = flushed(multiply_add(upper_half(pair), upper_half(columns), upper));
    }
    u32x16u* sums = (u32x16u*)to.words[m];
    *sums = (u32x16)flushed(flushed((f32x16)*sums) + flushed(lower + upper));
  }
}

#else

static inline void configure_tiles(int rows) {
  tile_rows = rows;
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } shapes = {1, 0, {}, {}, {}};
  for (int tile = 0; tile < 8; ++tile) {
    shapes.row_bytes[tile] = 4 * TILE_WORDS;
    shapes.rows[tile] = (uint8_t)(tile < FIRST_COLUMNS_TILE ? rows : TILE_ROWS);
  }
  static_assert(sizeof(shapes) == 64);
  asm volatile("ldtilecfg %0" : : "m"(shapes) : "memory");
}

static inline void release_tiles() {
  if (tile_rows != 0) asm volatile("tilerelease" : : : "memory");
  tile_rows = 0;
}

template <int TILE> FD_INLINE void zero_tile() { asm volatile("tilezero %%tmm%c0" : : "i"(TILE)); }

template <int TILE>
FD_INLINE void load_tile(const float* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(4 * stride), "i"(TILE) : "memory");
}

template <int TILE>
FD_INLINE void store_tile(float* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(4 * stride), "i"(TILE) : "memory");
}

template <int SUMS, int ROWS, int COLUMNS>
FD_INLINE void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUMS), "i"(ROWS), "i"(COLUMNS));
}

#endif

// Other code of this thread finds the tiles as they were at first.
struct TilesInUse {
  ~TilesInUse() { release_tiles(); }
};

}  // namespace fastdiff::FD_VARIANT

#endif
