// What the op `attention` and its gradient are given. Plain data, as in kernels.h.
#pragma once

#include <cstdint>

#include "plan_layout.h"
#include "rounding.h"

namespace fastdiff {

// A unit is one head of one sample. q, k and v of head h begin at channels h * head_stride + {0, 1, 2} * part_stride.
struct AttentionArgs {
  const float* qkv;  // [B, S, 3 * heads * d]
  int64_t batch, tokens, heads, d;
  int64_t head_stride, part_stride;
  float scale;
  float* out;  // [B, S, heads * d]
  float* lse;  // [B, heads, S]
};
struct AttentionGradArgs {
  AttentionArgs forward;
  const float* grad;  // [B, S, heads * d]
  float* grad_qkv;    // as qkv
};
// Queries at a time: of the result, and of the gradients, which are sums over such blocks.
constexpr int64_t ATTENTION_QUERIES = 24, ATTENTION_GRAD_QUERIES = 48;

// Floats of a row of scores: whole panels, and a cache line more, so that rows do not compete for the same sets.
static inline int64_t score_stride(const AttentionArgs& a) { return round_up(a.tokens, PANEL) + 16; }
// Floats of k^T or v^T of a head, in panels of columns.
static inline int64_t packed_keys(const AttentionArgs& a) { return round_up(a.tokens, PANEL) * a.d; }
// Floats of scratch of a thread.
static inline int64_t attention_scratch(const AttentionArgs& a) {
  return packed_keys(a) + ATTENTION_QUERIES * score_stride(a);
}
static inline int64_t attention_backward_scratch(const AttentionArgs& a) {
  return 2 * packed_keys(a) + 2 * ATTENTION_GRAD_QUERIES * score_stride(a);
}

}  // namespace fastdiff
