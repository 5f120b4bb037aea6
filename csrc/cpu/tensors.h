// Views of tensors for the kernels. Launchers only: this header is not for the kernels' own files.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "matrix.h"
#include "noise.h"
#include "tiling.h"

namespace fastdiff {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Dtype::F32;
    case ScalarType::BFloat16: return Dtype::BF16;
    case ScalarType::Half: return Dtype::F16;
    case ScalarType::Double: return Dtype::F64;
    case ScalarType::Byte: return Dtype::U8;
    default: STD_TORCH_CHECK(false, "expected a float32, bfloat16, float16, float64 or uint8 tensor");
  }
  return Dtype::F32;
}

// Whether a [B, C, H, W] tensor is dense with channels last, and not contiguous.
inline bool is_channels_last(const Tensor& x) {
  if (x.dim() != 4 || x.is_contiguous()) return false;
  const int64_t C = x.size(1), H = x.size(2), W = x.size(3);
  const int64_t expected[4] = {H * W * C, 1, W * C, C};
  for (int64_t i = 0; i < 4; ++i)
    if (x.size(i) != 1 && x.stride(i) != expected[i]) return false;
  return true;
}

inline MemoryFormat format_of(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// Whether x lies densely in the layout; one that fits both formats has either.
inline bool has_layout(const Tensor& x, bool channels_last) {
  if (!channels_last) return x.is_contiguous();
  return is_channels_last(x) ||
         (x.dim() == 4 && x.is_contiguous() && (x.numel() == 0 || x.size(1) == 1 || x.size(2) * x.size(3) == 1));
}

// x itself where it has the layout, else a copy that has.
inline Tensor in_layout(const Tensor& x, bool channels_last) {
  return has_layout(x, channels_last) ? x : torch::stable::contiguous(x, format_of(channels_last));
}

// [B, H, W, C] of a float32 image [B, C, H, W] with channels last.
inline float* channels_last_data(const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4 && x.scalar_type() == ScalarType::Float && has_layout(x, true), name,
                  " must be float32 [B, C, H, W], channels_last");
  return static_cast<float*>(x.data_ptr());
}

// Elements in one index of the dimensions before `first_dim`.
inline int64_t elements_from(const Tensor& x, int64_t first_dim) {
  int64_t n = 1;
  for (int64_t i = first_dim; i < x.dim(); ++i) n *= x.size(i);
  return n;
}

inline Shape shape_of(const Tensor& x, bool channels_last) {
  if (channels_last) return {x.size(0), x.size(2) * x.size(3), x.size(1), true};
  return {x.size(0), 1, elements_from(x, 1), false};
}

// Channels [first_channel, ...) of a tensor in the layout.
inline Matrix matrix_of(const Tensor& x, bool channels_last, int64_t first_channel = 0) {
  Matrix m;
  m.dtype = dtype_of(x);
  m.sample_stride = elements_from(x, 1);
  m.row_stride = channels_last ? x.size(1) : 0;
  const int64_t offset = channels_last ? first_channel : first_channel * elements_from(x, 2);
  m.data = static_cast<char*>(x.data_ptr()) + offset * static_cast<int64_t>(x.element_size());
  return m;
}

inline void check_index(const char* name, const Tensor& index, int64_t length) {
  const int64_t* values = static_cast<const int64_t*>(index.data_ptr());
  for (int64_t i = 0; i < index.numel(); ++i)
    STD_TORCH_CHECK(0 <= values[i] && values[i] < length, name, " must be in [0, ", length, "), got ", values[i]);
}

// int64, contiguous, one entry or one per sample.
inline const int64_t* index_data(const char* name, const Tensor& index, int64_t batch, bool one_is_enough) {
  STD_TORCH_CHECK(index.scalar_type() == ScalarType::Long && index.dim() == 1 && index.is_contiguous(), name,
                  " must be int64 and contiguous, of one dimension");
  STD_TORCH_CHECK(index.size(0) == batch || (one_is_enough && index.size(0) == 1), name, " must have ", batch,
                  one_is_enough ? " entries or one, got " : " entries, got ", index.size(0));
  return static_cast<const int64_t*>(index.data_ptr());
}

inline int64_t stride_of(const Tensor& row) { return row.size(0) == 1 ? 0 : 1; }

inline Noise noise_of(const std::optional<Tensor>& given, const Tensor& sample_ids, const Tensor& row, int64_t seed,
                      int64_t stream, bool channels_last) {
  Noise noise;
  if (given) noise.given = matrix_of(*given, channels_last);
  noise.seed = static_cast<uint64_t>(seed);
  noise.stream = static_cast<uint32_t>(stream);
  noise.sample_ids = static_cast<const int64_t*>(sample_ids.data_ptr());
  noise.row = static_cast<const int64_t*>(row.data_ptr());
  noise.row_stride = stride_of(row);
  return noise;
}

}  // namespace fastdiff
