// What products are made of: float32 numbers, or pairs of bfloat16 in words of 32 bits, the first in the lower half.
//
// A word is kept where a float would be, so that both have the same strides and panels; only its bits are looked at.
#pragma once

#include <cstdint>

#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef uint16_t u16x16u __attribute__((vector_size(32), aligned(2), may_alias));
typedef uint32_t u32x16u __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t word __attribute__((may_alias));

// Each kind says how a sum is taken: in STEPS parts, with what a part takes of sixteen columns and of a row's number.
// `words`: so many that a row of `count` numbers has; ROWS: as many rows as are multiplied at a time.
struct Floats {
  static constexpr bool PAIRED = false;
  static constexpr int64_t ROWS = 6;
  static constexpr int STEPS = 1;
  static constexpr int64_t words(int64_t count) { return count; }
  static inline __attribute__((always_inline)) f32x16 columns(const float* p, int) { return load16(p); }
  static inline __attribute__((always_inline)) f32x16 number(const float* p, int) { return splat(*p); }
  static inline __attribute__((always_inline)) void add(f32x16& sum, f32x16 number, f32x16 columns) {
    sum += number * columns;
  }
};

struct Pairs {
  static constexpr bool PAIRED = true;
  static constexpr int64_t words(int64_t count) { return (count + 1) / 2; }
#if defined(FD_AMX)
  // Two tiles of them (gemm_amx_impl.h).
  static constexpr int64_t ROWS = 32;
#else
  static constexpr int64_t ROWS = Floats::ROWS;
#endif
#if defined(FD_AVX512BF16)
  // Both products of a pair at once, added in float32; the sum is rounded once for each, to nearest.
  static constexpr int STEPS = 1;
  static inline __attribute__((always_inline)) f32x16 columns(const float* p, int) {
    return (f32x16)*(const u32x16u*)p;
  }
  static inline __attribute__((always_inline)) f32x16 number(const float* p, int) {
    return (f32x16)_mm512_set1_epi32((int)*(const word*)p);
  }
  static inline __attribute__((always_inline)) void add(f32x16& sum, f32x16 number, f32x16 columns) {
    sum = (f32x16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)number, (__m512bh)columns);
  }
#else
  // First the lower halves, then the upper ones, widened.
  static constexpr int STEPS = 2;
  static inline __attribute__((always_inline)) f32x16 columns(const float* p, int step) {
    const u32x16u v = *(const u32x16u*)p;
    return (f32x16)(step == 0 ? v << 16 : v & 0xFFFF0000u);
  }
  static inline __attribute__((always_inline)) f32x16 number(const float* p, int step) {
    const uint32_t v = *(const word*)p;
    return (f32x16)((u32x16){} + (step == 0 ? v << 16 : v & 0xFFFF0000u));
  }
  static inline __attribute__((always_inline)) void add(f32x16& sum, f32x16 number, f32x16 columns) {
    sum += number * columns;
  }
#endif
};

// Weights that are wanted next, fetched into the second-level cache while others are used: `lines` cache lines with
// every row of those.
struct Ahead {
  const float* next = nullptr;
  int64_t lines = 0;
};

// The bits of the nearest bfloat16 of each, ties to even.
FD_INLINE u16x16 rounded_to_bfloat(f32x16 v) {
#if defined(FD_AVX512BF16)
  return (u16x16)_mm512_cvtneps_pbh((__m512)v);
#else
  const u32x16 bits = (u32x16)v, nearest = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return __builtin_convertvector(v == v ? nearest : (bits >> 16) | 0x40u, u16x16);
#endif
}

// Sixteen numbers of a row, to sixteen floats or eight words.
template <typename F>
FD_INLINE void store_factors(float* to, f32x16 v) {
  if constexpr (F::PAIRED)
    *(u16x16u*)to = rounded_to_bfloat(v);
  else
    store16(to, v);
}

// A row of numbers to words, with a zero behind an odd one. from: [count]; to: [Pairs::words(count)].
FD_INLINE void round_row(const float* from, int64_t count, float* to) {
  int64_t c = 0;
  for (; c + 16 <= count; c += 16) store_factors<Pairs>(to + c / 2, load16(from + c));
  if (c < count) {
    const u16x16 last = rounded_to_bfloat(load_some(from + c, count - c));
    __builtin_memcpy(to + c / 2, &last, sizeof(float) * Pairs::words(count - c));
  }
}

}  // namespace fastdiff::FD_VARIANT
