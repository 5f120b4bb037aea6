// Launchers of group norm. Images come and go as [B, pixels, C], contiguous: fastdiff/ops/_group_norm_act.py sees to it.
#include "norm.h"

#include "run.h"
#include "variants.h"
#include "workspace.h"

namespace fastdiff {

namespace {

const NormKernels& norm_kernels() {
  static const NormKernels& chosen = variant_of<NormKernels>(FD_VARIANTS(norm));
  return chosen;
}

Matrix pixels_of(const char* name, const Tensor& x, int64_t batch, int64_t pixels, int64_t channels) {
  STD_TORCH_CHECK(x.dim() == 3 && x.is_contiguous() && x.size(0) == batch && x.size(1) == pixels && x.size(2) == channels,
                  name, " must be contiguous [", batch, ", ", pixels, ", ", channels, "]");
  return {x.data_ptr(), dtype_of(x), pixels * channels, channels};
}

float* vector_of(const char* name, const Tensor& x, int64_t numel) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.is_contiguous() && x.numel() == numel, name,
                  " must be float32 and contiguous, of ", numel, " entries");
  return static_cast<float*>(x.data_ptr());
}

float* vector_of(const char* name, const std::optional<Tensor>& x, int64_t numel) {
  return x ? vector_of(name, *x, numel) : nullptr;
}

// All but the results.
NormArgs arguments(const Tensor& x, const std::optional<Tensor>& x2, const std::optional<Tensor>& added,
                   const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& scale,
                   const std::optional<Tensor>& shift, const Tensor& mean, const Tensor& rstd, bool act) {
  STD_TORCH_CHECK(x.dim() == 3, "x must be [B, pixels, C]");
  NormArgs a;
  a.batch = x.size(0);
  a.pixels = x.size(1);
  a.channels1 = x.size(2);
  a.channels = a.channels1 + (x2 ? x2->size(2) : 0);
  a.groups = mean.size(1);
  STD_TORCH_CHECK(a.groups > 0 && a.channels % a.groups == 0, "groups must divide the number of channels");
  // Whole groups, and whole cache lines where groups are small.
  const int64_t size = a.channels / a.groups;
  a.block = size * (size >= 64 ? 1 : 64 / size);
  a.eps = 0;
  a.act = act;
  a.x = pixels_of("x", x, a.batch, a.pixels, a.channels1);
  if (x2) a.x2 = pixels_of("x2", *x2, a.batch, a.pixels, a.channels - a.channels1);
  a.added_stride = added && added->size(0) == a.batch && a.batch > 1 ? a.channels : 0;
  a.added = vector_of("added", added, added ? added->size(0) * a.channels : 0);
  a.weight = vector_of("weight", weight, a.channels);
  a.bias = vector_of("bias", bias, a.channels);
  a.scale = vector_of("scale", scale, a.batch * a.channels);
  a.shift = vector_of("shift", shift, a.batch * a.channels);
  a.mean = vector_of("mean", mean, a.batch * a.groups);
  a.rstd = vector_of("rstd", rstd, a.batch * a.groups);
  return a;
}

}  // namespace

void group_norm_act_out_cpu(Tensor x, std::optional<Tensor> x2, std::optional<Tensor> residual,
                            std::optional<Tensor> added, Tensor weight, Tensor bias, std::optional<Tensor> scale,
                            std::optional<Tensor> shift, double eps, bool act, Tensor y, std::optional<Tensor> total,
                            Tensor mean, Tensor rstd) {
  NormArgs a = arguments(x, x2, added, weight, bias, scale, shift, mean, rstd, act);
  a.eps = eps;
  STD_TORCH_CHECK(residual.has_value() == total.has_value(), "a residual comes with the sum to write");
  if (residual) {
    a.residual = pixels_of("residual", *residual, a.batch, a.pixels, a.channels);
    a.total = pixels_of("total", *total, a.batch, a.pixels, a.channels);
  }
  a.y = pixels_of("y", y, a.batch, a.pixels, a.channels);
  const int64_t threads = torch::stable::get_num_threads(), own = norm_scratch(a);
  float* memory = workspace(threads * own);
  const NormKernels& variant = norm_kernels();
  run_units(norm_units(a), threads, [&](int64_t unit, int64_t worker) { variant.forward(a, unit, memory + worker * own); });
}

void group_norm_act_backward_out_cpu(Tensor grad_y, std::optional<Tensor> grad_total, Tensor x, std::optional<Tensor> x2,
                                     std::optional<Tensor> added, Tensor weight, Tensor bias, std::optional<Tensor> scale,
                                     std::optional<Tensor> shift, Tensor mean, Tensor rstd, bool act, Tensor dx,
                                     std::optional<Tensor> dx2, Tensor du_sum, Tensor du_xhat_sum,
                                     std::optional<Tensor> dh_sum) {
  NormGradArgs grad;
  grad.forward = arguments(x, x2, added, weight, bias, scale, shift, mean, rstd, act);
  const NormArgs& a = grad.forward;
  grad.dy = pixels_of("grad_y", grad_y, a.batch, a.pixels, a.channels);
  if (grad_total) grad.dtotal = pixels_of("grad_total", *grad_total, a.batch, a.pixels, a.channels);
  grad.dx = pixels_of("dx", dx, a.batch, a.pixels, a.channels1);
  if (x2) grad.dx2 = pixels_of("dx2", *dx2, a.batch, a.pixels, a.channels - a.channels1);
  grad.du_sum = vector_of("du_sum", du_sum, a.batch * a.channels);
  grad.du_xhat_sum = vector_of("du_xhat_sum", du_xhat_sum, a.batch * a.channels);
  grad.dh_sum = vector_of("dh_sum", dh_sum, a.batch * a.channels);
  const int64_t threads = torch::stable::get_num_threads(), own = norm_scratch(a);
  float* memory = workspace(threads * own);
  const NormKernels& variant = norm_kernels();
  run_units(norm_units(a), threads, [&](int64_t unit, int64_t worker) { variant.backward(grad, unit, memory + worker * own); });
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("group_norm_act_out", TORCH_BOX(&group_norm_act_out_cpu));
  m.impl("group_norm_act_backward_out", TORCH_BOX(&group_norm_act_backward_out_cpu));
}

}  // namespace fastdiff
