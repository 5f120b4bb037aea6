// Vectors of 16 lanes (8 of float64) in GCC's vector extension, and arithmetic on them.
#pragma once

#include <cstdint>

#if defined(FD_AVX2) || defined(FD_AVX512)
#include <immintrin.h>
#endif

#define FD_INLINE static inline __attribute__((always_inline))

namespace fastdiff::FD_VARIANT {

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint64_t u64x8 __attribute__((vector_size(64)));
typedef float f32x16u __attribute__((vector_size(64), aligned(4)));
typedef double f64x8 __attribute__((vector_size(64)));
typedef int64_t i64x8 __attribute__((vector_size(64)));
typedef double f64x8u __attribute__((vector_size(64), aligned(8)));

// v in every lane.
FD_INLINE f32x16 splat(float v) { return v - (f32x16){}; }
FD_INLINE f64x8 splat(double v) { return v - (f64x8){}; }
// a where the mask is set, else b.
FD_INLINE f32x16 select(i32x16 mask, f32x16 a, f32x16 b) { return mask ? a : b; }
FD_INLINE f64x8 select(i64x8 mask, f64x8 a, f64x8 b) { return mask ? a : b; }

// The vector of a type of arithmetic.
template <typename A> struct Lanes;
template <> struct Lanes<float> {
  typedef f32x16 Vector;
  typedef f32x16u Unaligned;
  typedef i32x16 Mask;
  static constexpr int COUNT = 16;
};
template <> struct Lanes<double> {
  typedef f64x8 Vector;
  typedef f64x8u Unaligned;
  typedef i64x8 Mask;
  static constexpr int COUNT = 8;
};

// p: [16], of any alignment.
FD_INLINE f32x16 load16(const float* p) { return *(const f32x16u*)p; }
FD_INLINE void store16(float* p, f32x16 v) { *(f32x16u*)p = v; }

// p: [count], of which at most 16 are read; the lanes behind are 0.
FD_INLINE f32x16 load_some(const float* p, int64_t count) {
  if (count >= 16) return load16(p);
  f32x16 v = {};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
}

// p: [count], of which at most 16 are written.
FD_INLINE void store_some(float* p, f32x16 v, int64_t count) {
  if (count >= 16) return store16(p, v);
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

// a * b + c, rounded once where there are instructions for that. Compilers make them of a product and a sum in one
// block of code; across the branches of `load_some` they may or may not.
FD_INLINE f32x16 multiply_add(f32x16 a, f32x16 b, f32x16 c) {
#if defined(FD_AVX512)
  return (f32x16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(FD_AVX2)
  union Halves {
    f32x16 all;
    __m256 h[2];
  } x = {a}, y = {b}, sum = {c};
  for (int half = 0; half < 2; ++half) sum.h[half] = _mm256_fmadd_ps(x.h[half], y.h[half], sum.h[half]);
  return sum.all;
#else
  return a * b + c;
#endif
}

// Sum of all lanes of U vectors, by halves.
template <int U>
FD_INLINE float sum_of(const f32x16 (&vectors)[U]) {
  f32x16 v = vectors[0];
  for (int j = 1; j < U; ++j) v += vectors[j];
  v += __builtin_shuffle(v, (i32x16){8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
  v += __builtin_shuffle(v, (i32x16){4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11});
  v += __builtin_shuffle(v, (i32x16){2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13});
  return v[0] + v[1];
}

// Sum of the lanes in their order, in float64.
template <typename V>
FD_INLINE double sum_of_lanes(V v) {
  double total = 0;
  for (int i = 0; i < (int)(sizeof(V) / sizeof(v[0])); ++i) total += (double)v[i];
  return total;
}

template <typename V> FD_INLINE V abs_v(V x) { return select(x < 0, -x, x); }
template <typename V> FD_INLINE V min_v(V a, V b) { return select(a > b, b, a); }  // a where it is NaN
template <typename V> FD_INLINE V max_v(V a, V b) { return select(a < b, b, a); }  // likewise

// exp for |x| < 80 or so; beyond, it saturates to the ends of the float range. NaN stays NaN.
FD_INLINE f32x16 exp_v(f32x16 x) {
  const f32x16 top = splat(88.0f), bottom = splat(-87.0f);
  const f32x16 y = select(x > top, top, select(x < bottom, bottom, x));
  const f32x16 magic = splat(12582912.0f);
  const f32x16 shifted = y * 1.44269504088896341f + magic;
  const f32x16 k = shifted - magic;
  const f32x16 r = y - k * 0.693359375f - k * -2.12194440e-4f;
  f32x16 p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const f32x16 scale = (f32x16)((((i32x16)shifted - 0x4B400000) + 127) << 23);
  return select(x == x, p * scale, x);
}

// exp(x) - 1 - x, what exp has above its tangent at 0, for |x| <= 1/2. By its series, x^2 (1/2! + x/3! + ...), no
// digits cancel.
template <typename V>
FD_INLINE V exp_excess(V x) {
  constexpr double COEFFICIENTS[] = {
      1.0 / 2,         1.0 / 6,          1.0 / 24,          1.0 / 120,          1.0 / 720,
      1.0 / 5040,      1.0 / 40320,      1.0 / 362880,      1.0 / 3628800,      1.0 / 39916800,
      1.0 / 479001600, 1.0 / 6227020800, 1.0 / 87178291200, 1.0 / 1307674368000};
  typedef decltype(+x[0]) A;
  constexpr int LAST = sizeof(A) == 8 ? 13 : 7;
  V p = splat((A)COEFFICIENTS[LAST]);
#pragma GCC unroll 16
  for (int i = LAST - 1; i >= 0; --i) p = p * x + (A)COEFFICIENTS[i];
  return p * x * x;
}

// exp to a few ulp, saturating near the ends of the double range. NaN stays NaN.
FD_INLINE f64x8 exp_v(f64x8 x) {
  const f64x8 y = min_v(max_v(x, splat(-708.0)), splat(709.0));
  const f64x8 magic = splat(0x1.8p52);
  const f64x8 shifted = y * 1.44269504088896340736 + magic;
  const f64x8 k = shifted - magic;
  const f64x8 r = y - k * 6.93147180369123816490e-01 - k * 1.90821492927058770002e-10;
  const f64x8 scale = (f64x8)((((i64x8)shifted - (i64x8)magic) + 1023) << 52);
  return (exp_excess(r) + r + 1.0) * scale;
}

// log for normal positive x, within 1 ulp or so: the reduction and the polynomial of fdlibm's e_log.c.
FD_INLINE f64x8 log_v(f64x8 x) {
  const i64x8 bits = (i64x8)x;
  const i64x8 e = (bits - 0x3FE6A09E667F3BCD) >> 52;
  const f64x8 f = (f64x8)(bits - (e << 52)) - 1.0;
  const f64x8 k = __builtin_convertvector(e, f64x8);
  const f64x8 s = f / (2.0 + f), z = s * s, half = 0.5 * f * f;
  f64x8 p = splat(1.479819860511658591e-01);
  p = p * z + 1.531383769920937332e-01;
  p = p * z + 1.818357216161805012e-01;
  p = p * z + 2.222219843214978396e-01;
  p = p * z + 2.857142874366239149e-01;
  p = p * z + 3.999999999940941908e-01;
  p = p * z + 6.666666666666735130e-01;
  return k * 6.93147180369123816490e-01 - (half - (s * (half + z * p) + k * 1.90821492927058770002e-10) - f);
}

#if defined(FD_AVX2) || defined(FD_AVX512)
// 2^(index / 32), by the last five bits of each index.
FD_INLINE f32x16 root_of_two(i32x16 index) {
  alignas(64) static const float roots[32] = {
      1.000000000f, 1.021897149f, 1.044273782f, 1.067140401f, 1.090507733f, 1.114386743f, 1.138788635f, 1.163724859f,
      1.189207115f, 1.215247360f, 1.241857812f, 1.269050957f, 1.296839555f, 1.325236643f, 1.354255547f, 1.383909882f,
      1.414213562f, 1.445180807f, 1.476826146f, 1.509164428f, 1.542210825f, 1.575980845f, 1.610490332f, 1.645755478f,
      1.681792831f, 1.718619298f, 1.756252160f, 1.794709075f, 1.834008086f, 1.874167634f, 1.915206561f, 1.957144124f};
#if defined(FD_AVX512)
  return (f32x16)_mm512_permutex2var_ps(_mm512_load_ps(roots), (__m512i)index, _mm512_load_ps(roots + 16));
#else
  union {
    i32x16 all;
    __m256i h[2];
  } from = {index};
  union {
    f32x16 all;
    __m256 h[2];
  } to;
  for (int half = 0; half < 2; ++half) {
    const __m256i i = from.h[half];
    const __m256 fourth = _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)),
                 fifth = _mm256_castsi256_ps(_mm256_slli_epi32(i, 27));
    const __m256 low = _mm256_blendv_ps(_mm256_permutevar8x32_ps(_mm256_load_ps(roots), i),
                                        _mm256_permutevar8x32_ps(_mm256_load_ps(roots + 8), i), fourth);
    const __m256 high = _mm256_blendv_ps(_mm256_permutevar8x32_ps(_mm256_load_ps(roots + 16), i),
                                         _mm256_permutevar8x32_ps(_mm256_load_ps(roots + 24), i), fourth);
    to.h[half] = _mm256_blendv_ps(low, high, fifth);
  }
  return to.all;
#endif
}

// x with the absolute value of `limit` at most; NaN becomes the limit.
FD_INLINE f32x16 limited(f32x16 x, float limit) {
#if defined(FD_AVX512)
  return (f32x16)_mm512_range_ps((__m512)x, _mm512_set1_ps(limit), 2);
#else
  const i32x16 sign = (i32x16)x & (int32_t)0x80000000;
  return select(abs_v(x) < limit, x, (f32x16)((i32x16)splat(limit) | sign));
#endif
}
#endif

// exp(-x) + 1, finite for any x but NaN. AVX2 and AVX-512 have the same bits.
FD_INLINE f32x16 exp_minus_plus_one(f32x16 x) {
#if defined(FD_AVX2) || defined(FD_AVX512)
  // 2^t as 2^floor(s) 2^(i / 32) 2^r, with s the multiple of 1 / 32 nearest to t and |r| <= 1 / 64: a table in
  // registers, indexed by the last bits of the shifted s, and a minimax polynomial of 5e-8 relative.
  const f32x16 t = limited(x * -1.44269504088896341f, 126.0f);
  const f32x16 magic = splat(393216.0f);  // 1.5 * 2^18
  const f32x16 shifted = t + magic, s = shifted - magic, r = t - s;
  const f32x16 root = root_of_two((i32x16)shifted);
  const f32x16 power = (root * r) * (r * 0.2402265f + 0.69315734f) + root;
#if defined(FD_AVX512)
  return (f32x16)_mm512_scalef_ps((__m512)power, (__m512)s) + 1.0f;
#else
  // floor(s) stands above the five bits of the index.
  const i32x16 whole = ((i32x16)shifted - (i32x16)magic) >> 5;
  return power * (f32x16)((whole + 127) << 23) + 1.0f;
#endif
#else
  return exp_v(-x) + 1.0f;
#endif
}

FD_INLINE f32x16 sigmoid_v(f32x16 x) { return 1.0f / exp_minus_plus_one(x); }

FD_INLINE f32x16 silu_v(f32x16 x) { return x / exp_minus_plus_one(x); }

// Moments of a channel: a value near its mean (`pivot`), the mean less that, and the sum of squares about the mean,
// with `before` pixels seen. Those of `pixels` more join them, as the sum of their differences from `from` and of its
// squares. `from` is pivot + mean as it was rounded, so no digits are lost where the mean is many deviations from zero.
// Chan, Golub, LeVeque (1983), eq. 2.1.
template <typename V>
FD_INLINE void merge_moments(V sum, V products, float pixels, float before, V from, V pivot, V& mean, V& squares) {
  const V tile_mean = sum / pixels, difference = tile_mean + (from - pivot) - mean;
  const float share = pixels / (before + pixels);
  squares += products - sum * tile_mean + difference * difference * (before * share);
  mean += difference * share;
}

}  // namespace fastdiff::FD_VARIANT
