// The op `attention` in training, and its gradient.
#include "attention.h"

#include "checks.h"
#include "kernels.h"
#include "layers.h"
#include "parallel.h"
#include "rounding.h"
#include "tensors.h"
#include "threads.h"
#include "workspace.h"

namespace fastdiff {

namespace {

// Contiguous float32 of the sizes given.
float* floats(const char* name, const Tensor& x, std::initializer_list<int64_t> sizes) {
  check_sizes(name, x, sizes);
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.is_contiguous(), name, " must be contiguous float32, got ",
                  described(x));
  return static_cast<float*>(x.data_ptr());
}

// What the forward call is, with the places of its results. heads_first: q, k and v of a head lie together.
AttentionArgs arguments(const Tensor& qkv, int64_t num_heads, bool heads_first, double scale, const Tensor& out,
                        const Tensor& lse) {
  STD_TORCH_CHECK(qkv.dim() == 3 && 0 < num_heads && num_heads <= qkv.size(2) && qkv.size(2) % (3 * num_heads) == 0,
                  "qkv must be [B, S, 3C] with heads that divide C, got ", described(qkv));
  AttentionArgs a;
  a.batch = qkv.size(0);
  a.tokens = qkv.size(1);
  a.heads = num_heads;
  a.d = qkv.size(2) / (3 * num_heads);
  STD_TORCH_CHECK(a.d % 16 == 0, "heads must have a multiple of 16 channels, got ", a.d);
  a.head_stride = heads_first ? 3 * a.d : a.d;
  a.part_stride = heads_first ? a.d : num_heads * a.d;
  a.scale = static_cast<float>(scale);
  a.qkv = floats("qkv", qkv, {a.batch, a.tokens, 3 * num_heads * a.d});
  a.out = floats("out", out, {a.batch, a.tokens, num_heads * a.d});
  a.lse = floats("lse", lse, {a.batch, num_heads, a.tokens});
  return a;
}

}  // namespace

void attention(const AttentionArgs& a) {
  const int64_t threads = loop_threads(), per_thread = round_up(attention_scratch(a), 16);
  float* memory = workspace(threads * per_thread);
  const Kernels& variant = kernels();
  run_units(a.batch * a.heads, threads,
            [&](int64_t unit, int64_t worker) { variant.attention(a, unit, memory + worker * per_thread); });
}

void attention_backward(const AttentionGradArgs& g) {
  const AttentionArgs& a = g.forward;
  const int64_t threads = loop_threads(), per_thread = round_up(attention_backward_scratch(a), 16);
  float* memory = workspace(threads * per_thread);
  const Kernels& variant = kernels();
  run_units(a.batch * a.heads, threads,
            [&](int64_t unit, int64_t worker) { variant.attention_backward(g, unit, memory + worker * per_thread); });
}

void attention_out_cpu(Tensor qkv, int64_t num_heads, bool heads_first, double scale, Tensor out, Tensor lse) {
  const AttentionArgs a = arguments(qkv, num_heads, heads_first, scale, out, lse);
  check_apart(extent_of("out", out), extent_of("qkv", qkv));
  check_apart(extent_of("lse", lse), extent_of("qkv", qkv));
  check_apart(extent_of("lse", lse), extent_of("out", out));
  if (qkv.numel() == 0) return;
  attention(a);
}

void attention_backward_out_cpu(Tensor grad, Tensor qkv, Tensor out, Tensor lse, int64_t num_heads, bool heads_first,
                                double scale, Tensor grad_qkv) {
  AttentionGradArgs g;
  g.forward = arguments(qkv, num_heads, heads_first, scale, out, lse);
  const AttentionArgs& a = g.forward;
  g.grad = floats("grad", grad, {a.batch, a.tokens, num_heads * a.d});
  g.grad_qkv = floats("grad_qkv", grad_qkv, {a.batch, a.tokens, 3 * num_heads * a.d});
  const Extent written = extent_of("grad_qkv", grad_qkv);
  check_apart(written, extent_of("grad", grad));
  check_apart(written, extent_of("qkv", qkv));
  check_apart(written, extent_of("out", out));
  check_apart(written, extent_of("lse", lse));
  if (qkv.numel() == 0) return;
  attention_backward(g);
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("attention_out", TORCH_BOX(&attention_out_cpu));
  m.impl("attention_backward_out", TORCH_BOX(&attention_backward_out_cpu));
}

}  // namespace fastdiff
