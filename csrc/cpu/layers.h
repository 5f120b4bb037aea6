// The layers of training over plain memory: what their ops and the plan of a whole network run. Who calls them has
// checked shapes, and that what is written lies apart from what is read, but where something else is said. Launchers
// only, as tensors.h.
#pragma once

#include <cstdint>
#include <optional>

#include "attention.h"
#include "conv3x3.h"
#include "dropout.h"
#include "group_norm_act.h"
#include "linear.h"
#include "tensors.h"

namespace fastdiff {

// A parameter [C_out, C_in, 3, 3] of any strides.
struct ConvWeights {
  const float* at;
  int64_t out_stride, in_stride, y_stride, x_stride;
};
ConvWeights weights_of(const Tensor& weight);

// out = conv(x, weight) + bias + residual, which may be out; `transposed`: x is the gradient of the result, and out
// that of the input. Channels are multiples of 16.
struct ConvLayer {
  const float* x;  // [B, H, W, C_in]
  int64_t batch, height, width, channels_in, channels_out;
  ConvWeights weight;
  const float *bias, *residual;  // or nullptr
  bool transposed;
  float* out;  // [B, H, W, C_out]
};
void conv3x3(const ConvLayer& layer);
// Of an op that writes `out` of so many columns: its bias and residual, checked, and that they, x and weight lie apart
// from it. `data`: where a tensor's values begin, in the layout of x.
struct Added {
  const float *bias, *residual;
};
Added checked_added(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                    const std::optional<Tensor>& residual, const Tensor& out, int64_t columns,
                    float* (*data)(const char* name, const Tensor& x));
// `size` and the scratch are found here.
void conv3x3_weight_grad(ConvGradArgs a);

// out = (x, x2) weight^T + bias + residual, which may be out.
struct LinearLayer {
  const float *x, *x2 = nullptr;  // [rows, C_in], [rows, C2] or nullptr
  int64_t rows, channels_in, channels2 = 0, channels_out;
  const float* weight;
  int64_t in_stride, out_stride;
  const float *bias, *residual;  // or nullptr
  float* out;                    // [rows, C_out]
};
void linear(const LinearLayer& layer);
// Blocks are found here.
void linear_weight_grad(LinearGradArgs a);
// Sums over the rows of x: those of so many rows each, and then of these, in their order.
void column_sums(const float* x, int64_t rows, int64_t columns, float* out);

void group_norm_act(const NormArgs& a);
void group_norm_act_backward(const NormGradArgs& grad);
void attention(const AttentionArgs& a);
void attention_backward(const AttentionGradArgs& grad);
// x may be y.
void dropout(const DropoutArgs& args, int64_t batch);

}  // namespace fastdiff
