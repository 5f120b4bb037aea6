// Runs of values, converted to and from the type of the arithmetic. With FASTDIFF_FLOAT32_ONLY there is no other type,
// as in the library without Python, whose size this halves.
#pragma once

#include <cstdint>

#include "matrix.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// From the bits of a float16.
FD_INLINE float half_to_float(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
  uint32_t magnitude = h & 0x7FFFu;
  union {
    uint32_t u;
    float f;
  } v;
  if (magnitude >= 0x7C00u) {
    v.u = sign | 0x7F800000u | ((magnitude & 0x3FFu) << 13);
  } else {
    // Exponent and fraction in place, times 2^112: exact, subnormal numbers included.
    v.u = magnitude << 13;
    v.f *= 0x1p112f;
    v.u |= sign;
  }
  return v.f;
}

// The bits of the float16 that is nearest, ties to even.
FD_INLINE uint16_t float_to_half(float f) {
  union {
    float f;
    uint32_t u;
  } v = {f};
  const uint16_t sign = (uint16_t)((v.u >> 16) & 0x8000u);
  v.u &= 0x7FFFFFFFu;
  if (v.u > 0x7F800000u) return sign | 0x7E00u;
  if (v.u >= 0x477FF000u) return sign | 0x7C00u;
  if (v.u < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the rounded fraction in the low bits.
    v.f += 0.5f;
    return sign | (uint16_t)(v.u - 0x3F000000u);
  }
  return sign | (uint16_t)((v.u - 0x38000000u + 0xFFFu + ((v.u >> 13) & 1u)) >> 13);
}

// The same of bfloat16.
FD_INLINE uint16_t float_to_bfloat(float f) {
  union {
    float f;
    uint32_t u;
  } v = {f};
  return f != f ? (uint16_t)((v.u >> 16) | 0x40u) : (uint16_t)((v.u + 0x7FFFu + ((v.u >> 16) & 1u)) >> 16);
}

// to: [n], elements [offset, offset + n) of m.
template <typename A>
FD_INLINE void load_run(A* __restrict to, const Matrix& m, int64_t offset, int64_t n) {
  switch (m.dtype) {
    case Dtype::F32: {
      const float* from = (const float*)m.data + offset;
      for (int64_t i = 0; i < n; ++i) to[i] = (A)from[i];
      break;
    }
#ifdef FASTDIFF_FLOAT32_ONLY
    default: break;
#else
    case Dtype::F64: {
      const double* from = (const double*)m.data + offset;
      for (int64_t i = 0; i < n; ++i) to[i] = (A)from[i];
      break;
    }
    case Dtype::BF16: {
      const uint16_t* from = (const uint16_t*)m.data + offset;
      for (int64_t i = 0; i < n; ++i) {
        union {
          uint32_t u;
          float f;
        } v = {(uint32_t)from[i] << 16};
        to[i] = (A)v.f;
      }
      break;
    }
    case Dtype::F16: {
      const uint16_t* from = (const uint16_t*)m.data + offset;
      for (int64_t i = 0; i < n; ++i) to[i] = (A)half_to_float(from[i]);
      break;
    }
    case Dtype::U8: {
      const uint8_t* from = (const uint8_t*)m.data + offset;
      for (int64_t i = 0; i < n; ++i) to[i] = (A)from[i];
      break;
    }
#endif
  }
}

// from: [n], to elements [offset, offset + n) of m.
template <typename A>
FD_INLINE void store_run(const A* __restrict from, const Matrix& m, int64_t offset, int64_t n) {
  switch (m.dtype) {
    case Dtype::F32: {
      float* to = (float*)m.data + offset;
      for (int64_t i = 0; i < n; ++i) to[i] = (float)from[i];
      break;
    }
#ifdef FASTDIFF_FLOAT32_ONLY
    default: break;
#else
    case Dtype::F64: {
      double* to = (double*)m.data + offset;
      for (int64_t i = 0; i < n; ++i) to[i] = (double)from[i];
      break;
    }
    case Dtype::BF16: {
      uint16_t* to = (uint16_t*)m.data + offset;
      for (int64_t i = 0; i < n; ++i) to[i] = float_to_bfloat((float)from[i]);
      break;
    }
    case Dtype::F16: {
      uint16_t* to = (uint16_t*)m.data + offset;
      for (int64_t i = 0; i < n; ++i) to[i] = float_to_half((float)from[i]);
      break;
    }
    case Dtype::U8: break;  // no op writes uint8
#endif
  }
}

// The type of a tensor that needs no conversion.
template <typename A> constexpr Dtype dtype_of();
template <> constexpr Dtype dtype_of<float>() { return Dtype::F32; }
template <> constexpr Dtype dtype_of<double>() { return Dtype::F64; }

// n values that lie together: in place where they have the type, else converted into the buffer [n].
template <typename A>
FD_INLINE const A* run_at(const Matrix& m, int64_t offset, int64_t n, A* buffer) {
  if (m.dtype == dtype_of<A>()) return (const A*)m.data + offset;
  load_run(buffer, m, offset, n);
  return buffer;
}

}  // namespace fastdiff::FD_VARIANT
