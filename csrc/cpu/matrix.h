// What the kernels are given of a tensor. Plain data only, as everything that kernels.h brings together.
#pragma once

#include <cstdint>

namespace fastdiff {

enum class Dtype : int { F32, BF16, F16, F64, U8 };

// Element (sample b, row r, column c) lies at data + b * sample_stride + r * row_stride + c, counted in elements.
// Rows and columns follow memory: contiguous samples are one row, channels_last samples are H*W rows of C columns.
struct Matrix {
  void* data = nullptr;
  Dtype dtype = Dtype::F32;
  int64_t sample_stride = 0;
  int64_t row_stride = 0;
};

}  // namespace fastdiff
