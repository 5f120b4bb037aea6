// The noise contract's words and normals; noise.py states it.
#pragma once

#include <cstdint>

#include "noise_layout.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// Products of the low 32 bits of each 64-bit lane, 64 bits each.
FD_INLINE u64x8 mul_low(u64x8 a, u64x8 b) {
#if defined(FD_AVX512)
  return (u64x8)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(FD_AVX2)
  union {
    u64x8 v;
    __m256i h[2];
  } x = {a}, y = {b}, z;
  z.h[0] = _mm256_mul_epu32(x.h[0], y.h[0]);
  z.h[1] = _mm256_mul_epu32(x.h[1], y.h[1]);
  return z.v;
#else
  const u64x8 low = (uint64_t)0xFFFFFFFFu - (u64x8){};
  return (a & low) * (b & low);
#endif
}

// One round of Philox on 8 counters, one word to a 64-bit lane. Only the low halves count: a product's low half is the
// next word as it stands, and the high halves hold whatever came along, which mul_low does not read.
FD_INLINE void philox_round(u64x8& c0, u64x8& c1, u64x8& c2, u64x8& c3, uint64_t k0, uint64_t k1) {
  const u64x8 p0 = mul_low(c0, (uint64_t)PHILOX_M0 - (u64x8){}), p1 = mul_low(c2, (uint64_t)PHILOX_M1 - (u64x8){});
  c0 = (p1 >> 32) ^ c1 ^ k0;
  c1 = p1;
  c2 = (p0 >> 32) ^ c3 ^ k1;
  c3 = p0;
}

// Words of 16 blocks from those of the even and of the odd ones.
FD_INLINE u32x16 join(u64x8 even, u64x8 odd) {
  const u64x8 low = (uint64_t)0xFFFFFFFFu - (u64x8){};
  return (u32x16)((even & low) | (odd << 32));
}

FD_INLINE f32x16 sqrt_v(f32x16 x) {
#if defined(FD_AVX512)
  return (f32x16)_mm512_sqrt_ps((__m512)x);
#elif defined(FD_AVX2)
  union {
    f32x16 v;
    __m256 h[2];
  } u = {x};
  u.h[0] = _mm256_sqrt_ps(u.h[0]);
  u.h[1] = _mm256_sqrt_ps(u.h[1]);
  return u.v;
#else
  for (int i = 0; i < 16; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// -2 log(x) for normal positive x. log(m * 2^e) = e log 2 + log1p(m - 1), m in [sqrt(1/2), sqrt(2)); polynomial of
// Cephes' logf (S. Moshier), within 1 ulp or so, relative, near 1 as well.
FD_INLINE f32x16 minus_two_log(f32x16 x) {
  i32x16 bits = (i32x16)x;
  i32x16 e = ((bits - 0x3F3504F3) >> 23);
  const f32x16 m = (f32x16)(bits - (e << 23));
  const f32x16 f = m - 1.0f;
  const f32x16 k = __builtin_convertvector(e, f32x16);
  const f32x16 z = f * f;
  f32x16 p = splat(7.0376836292e-2f);
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  f32x16 y = f * z * p;
  y = y + k * -2.12194440e-4f - 0.5f * z;
  return -2.0f * (k * 0.693359375f + (f + y));
}

// cos and sin of 2 pi a for a in [-1/2, 1/2]: the quarter turn nearest to a comes off exactly; then polynomials
// of Cephes.
FD_INLINE void cos_sin_turns(f32x16 a, f32x16& cosine, f32x16& sine) {
  const f32x16 magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest whole number
  const f32x16 shifted = a * 4.0f + magic;
  const i32x16 quadrant = (i32x16)shifted;
  const f32x16 g = a - (shifted - magic) * 0.25f;
  const f32x16 w = g * 6.28318530717958647692f;
  const f32x16 z = w * w;
  f32x16 s = splat(-1.9515295891e-4f);
  s = s * z + 8.3321608736e-3f;
  s = s * z - 1.6666654611e-1f;
  s = s * z * w + w;
  f32x16 c = splat(2.443315711809948e-5f);
  c = c * z - 1.388731625493765e-3f;
  c = c * z + 4.166664568298827e-2f;
  c = c * z * z - 0.5f * z + 1.0f;
  const i32x16 swap = (quadrant & 1) != 0;
  const i32x16 sine_sign = (quadrant & 2) << 30;
  const i32x16 cosine_sign = ((quadrant + 1) & 2) << 30;
  cosine = (f32x16)((i32x16)select(swap, s, c) ^ cosine_sign);
  sine = (f32x16)((i32x16)select(swap, c, s) ^ sine_sign);
}

// Words of blocks first_block .. first_block + 15 of one sample: c[j] holds word j of each.
FD_INLINE void words_chunk(u32x16 (&c)[4], uint32_t first_block, uint64_t sample_id, uint32_t last_word,
                           uint64_t seed) {
  const u64x8 lane = {0, 2, 4, 6, 8, 10, 12, 14};
  const u64x8 id_low = (sample_id & 0xFFFFFFFFu) - (u64x8){}, id_high = (sample_id >> 32) - (u64x8){};
  const u64x8 last = (uint64_t)last_word - (u64x8){};
  // Even and odd blocks apart, since a 64-bit lane holds one.
  u64x8 a0 = lane + first_block, a1 = id_low, a2 = id_high, a3 = last;
  u64x8 b0 = lane + first_block + 1, b1 = id_low, b2 = id_high, b3 = last;
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < PHILOX_ROUNDS; ++round) {
    philox_round(a0, a1, a2, a3, k0, k1);
    philox_round(b0, b1, b2, b3, k0, k1);
    k0 += PHILOX_W0;
    k1 += PHILOX_W1;
  }
  c[0] = join(a0, b0), c[1] = join(a1, b1), c[2] = join(a2, b2), c[3] = join(a3, b3);
}

// out: [16, 4], the values of 16 blocks in element order; zj holds value j of each block: 4 x 16 transposed to 16 x 4,
// by two zips each way.
FD_INLINE void store_blocks(float* out, f32x16 z0, f32x16 z1, f32x16 z2, f32x16 z3) {
  const i32x16 low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  const i32x16 high = {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const f32x16 even_low = __builtin_shuffle(z0, z2, low), even_high = __builtin_shuffle(z0, z2, high);
  const f32x16 odd_low = __builtin_shuffle(z1, z3, low), odd_high = __builtin_shuffle(z1, z3, high);
  *(f32x16u*)(out) = __builtin_shuffle(even_low, odd_low, low);
  *(f32x16u*)(out + 16) = __builtin_shuffle(even_low, odd_low, high);
  *(f32x16u*)(out + 32) = __builtin_shuffle(even_high, odd_high, low);
  *(f32x16u*)(out + 48) = __builtin_shuffle(even_high, odd_high, high);
}

// Blocks first_block .. first_block + 15 of one sample's noise, in element order. out: [64] normals.
FD_INLINE void normals_chunk(float* out, uint32_t first_block, uint64_t sample_id, uint32_t last_word, uint64_t seed) {
  u32x16 c[4];
  words_chunk(c, first_block, sample_id, last_word, seed);
  const f32x16 u0 = __builtin_convertvector(c[0], f32x16) * 0x1p-32f + 0x1p-33f;
  const f32x16 u1 = __builtin_convertvector(c[2], f32x16) * 0x1p-32f + 0x1p-33f;
  const f32x16 turns0 = __builtin_convertvector((i32x16)c[1], f32x16) * 0x1p-32f;
  const f32x16 turns1 = __builtin_convertvector((i32x16)c[3], f32x16) * 0x1p-32f;
  const f32x16 r0 = sqrt_v(minus_two_log(u0)), r1 = sqrt_v(minus_two_log(u1));
  f32x16 cos0, sin0, cos1, sin1;
  cos_sin_turns(turns0, cos0, sin0);
  cos_sin_turns(turns1, cos1, sin1);
  store_blocks(out, r0 * cos0, r0 * sin0, r1 * cos1, r1 * sin1);
}

}  // namespace fastdiff::FD_VARIANT
