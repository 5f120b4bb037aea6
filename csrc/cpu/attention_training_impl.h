// The op `attention` and its gradient, a block of queries at a time: no scores are kept, but the log of their sum.
#pragma once

#include <cstdint>

#include "attention.h"
#include "gemm_impl.h"
#include "gradient_impl.h"
#include "instructions.h"
#include "plan_layout.h"
#include "rounding.h"
#include "scores_impl.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// k^T or v^T of one head of one sample: from [S, stride], d columns, to [panels, d, PANEL], zero behind the last key as
// far as vectors reach.
static void pack_keys(const AttentionArgs& a, const float* from, int64_t stride, float* to) {
  for (int64_t panel = 0; panel < panels_of(a.tokens); ++panel)
    for (int64_t j = 0; j < keys_of(a.tokens, panel); ++j) {
      const int64_t key = panel * PANEL + j;
      float* column = to + panel * a.d * PANEL + j;
      for (int64_t k = 0; k < a.d; ++k) column[k * PANEL] = key < a.tokens ? from[key * stride + k] : 0.0f;
    }
}

// factor * x packed for `count` rows of x [count, stride]. packed: of pack_keys; to: [count, score_stride].
FD_INLINE void multiply_keys(const AttentionArgs& a, const float* x, int64_t stride, int64_t count, const float* packed,
                             float factor, float* to) {
  const int64_t none = 0, width = score_stride(a);
  for (int64_t q = 0; q < count; q += GEMM_ROWS) {
    const int64_t rows = count - q < GEMM_ROWS ? count - q : GEMM_ROWS;
    const float* row[GEMM_ROWS];
    for (int64_t m = 0; m < rows; ++m) row[m] = x + (q + m) * stride;
    for (int64_t panel = 0; panel < panels_of(a.tokens); ++panel)
      multiply_panel(
          rows, row, &none, 1, a.d, packed + panel * a.d * PANEL, PANEL, keys_of(a.tokens, panel),
          [&](int m, int64_t v, f32x16 sum) { store16(to + (q + m) * width + panel * PANEL + 16 * v, sum * factor); });
  }
}

// scores values for `count` rows of scores. values: [S, stride], d columns; to: [count, to_stride].
FD_INLINE void multiply_values(const AttentionArgs& a, const float* scores, int64_t count, const float* values,
                               int64_t stride, float* to, int64_t to_stride) {
  const int64_t none = 0;
  for (int64_t q = 0; q < count; q += GEMM_ROWS) {
    const int64_t rows = count - q < GEMM_ROWS ? count - q : GEMM_ROWS;
    const float* row[GEMM_ROWS];
    for (int64_t m = 0; m < rows; ++m) row[m] = scores + (q + m) * score_stride(a);
    for (int64_t c = 0; c < a.d; c += PANEL)
      multiply_panel(rows, row, &none, 1, a.tokens, values + c, stride, a.d - c < PANEL ? a.d - c : PANEL,
                     [&](int m, int64_t v, f32x16 sum) { store16(to + (q + m) * to_stride + c + 16 * v, sum); });
  }
}

// Where a unit's parts lie.
struct Head {
  int64_t width, row;  // floats of a token of the result, and of qkv
  int64_t in, out;     // where q begins in qkv, and the head in the result
  int64_t lse;
};
FD_INLINE Head head_of(const AttentionArgs& a, int64_t unit) {
  const int64_t sample = unit / a.heads, head = unit % a.heads, width = a.heads * a.d;
  return {width, 3 * width, sample * a.tokens * 3 * width + head * a.head_stride,
          sample * a.tokens * width + head * a.d, unit * a.tokens};
}

// scratch: [attention_scratch(a)].
void run_attention(const AttentionArgs& a, int64_t unit, float* scratch) {
  const Head h = head_of(a, unit);
  const float *q = a.qkv + h.in, *k = q + a.part_stride, *v = k + a.part_stride;
  float *keys = scratch, *scores = keys + packed_keys(a);
  pack_keys(a, k, h.row, keys);
  for (int64_t first = 0; first < a.tokens; first += ATTENTION_QUERIES) {
    const int64_t count = a.tokens - first < ATTENTION_QUERIES ? a.tokens - first : ATTENTION_QUERIES;
    multiply_keys(a, q + first * h.row, h.row, count, keys, a.scale, scores);
    for (int64_t m = 0; m < count; ++m) {
      const SoftmaxSums sums = softmax(scores + m * score_stride(a), a.tokens);
      a.lse[h.lse + first + m] = sums.largest + (float)__builtin_log((double)sums.total);
    }
    multiply_values(a, scores, count, v, h.row, a.out + h.out + first * h.width, h.width);
  }
}

// With p = exp(scale q k^T - lse) and delta = the sum of out * grad over the head's channels: dv = p^T grad,
// ds = scale p (grad v^T - delta), dq = ds k, dk = ds^T q. Dao et al. (2022), arXiv:2205.14135, appendix B.2.
// scratch: [attention_backward_scratch(a)].
void run_attention_backward(const AttentionGradArgs& g, int64_t unit, float* scratch) {
  const AttentionArgs& a = g.forward;
  const Head h = head_of(a, unit);
  const int64_t stride = score_stride(a);
  const float *q = a.qkv + h.in, *k = q + a.part_stride, *v = k + a.part_stride;
  float *dq = g.grad_qkv + h.in, *dk = dq + a.part_stride, *dv = dk + a.part_stride;
  float *keys = scratch, *values = keys + packed_keys(a), *p = values + packed_keys(a);
  float* ds = p + ATTENTION_GRAD_QUERIES * stride;
  pack_keys(a, k, h.row, keys);
  pack_keys(a, v, h.row, values);
  for (int64_t j = 0; j < a.tokens; ++j)
    for (int64_t c = 0; c < a.d; ++c) dk[j * h.row + c] = dv[j * h.row + c] = 0.0f;
  for (int64_t first = 0; first < a.tokens; first += ATTENTION_GRAD_QUERIES) {
    const int64_t count = a.tokens - first < ATTENTION_GRAD_QUERIES ? a.tokens - first : ATTENTION_GRAD_QUERIES;
    const float *out = a.out + h.out + first * h.width, *grad = g.grad + h.out + first * h.width;
    multiply_keys(a, q + first * h.row, h.row, count, keys, a.scale, p);
    multiply_keys(a, grad, h.width, count, values, 1.0f, ds);
    for (int64_t m = 0; m < count; ++m) {
      f32x16 sums[1] = {};
      for (int64_t c = 0; c < a.d; c += 16) sums[0] += load16(out + m * h.width + c) * load16(grad + m * h.width + c);
      const float delta = sum_of<1>(sums), lse = a.lse[h.lse + first + m];
      for (int64_t j = 0; j < a.tokens; j += 16) {
        float *p16 = p + m * stride + j, *ds16 = ds + m * stride + j;
        const f32x16 share = exp_v(load16(p16) - lse);
        store16(p16, share);
        store16(ds16, share * (load16(ds16) - delta) * a.scale);
      }
    }
    multiply_values(a, ds, count, k, h.row, dq + first * h.row, h.row);
    add_product<false>(ds, stride, q + first * h.row, h.row, a.tokens, a.d, count, dk, h.row);
    add_product<false>(p, stride, grad, h.width, a.tokens, a.d, count, dv, h.row);
  }
}

}  // namespace fastdiff::FD_VARIANT
