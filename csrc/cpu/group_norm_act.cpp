// The op `group_norm_act` and its gradient.
#include "group_norm_act.h"

#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "kernels.h"
#include "layers.h"
#include "matrix.h"
#include "parallel.h"
#include "rounding.h"
#include "tensors.h"
#include "threads.h"
#include "workspace.h"

namespace fastdiff {

namespace {

// One memory format for all images of a call.
struct Layout {
  std::vector<int64_t> size;  // of an image of all channels
  bool channels_last;         // as tensors know it
  bool planar;

  Layout(const Tensor& x, const std::optional<Tensor>& x2) : channels_last(is_channels_last(x)) {
    STD_TORCH_CHECK(x.dim() >= 2 && (!x2 || x2->dim() == x.dim()),
                    "x must be [B, C, ...], and x2 have as many dimensions, got ", described(x));
    check_floating("x", x);
    STD_TORCH_CHECK(x.scalar_type() != ScalarType::Double && x.numel() > 0,
                    "x must be float32, bfloat16 or float16, of at least one value, got ", described(x));
    if (x2) check_image("x2", *x2, x, x2->size(1));
    const int64_t channels = x.size(1) + (x2 ? x2->size(1) : 0);
    for (int64_t i = 0; i < x.dim(); ++i) size.push_back(i == 1 ? channels : x.size(i));
    // Where an image is one pixel, its channels are a row.
    planar = !channels_last && elements_from(x, 2) > 1;
  }

  Tensor empty(ScalarType dtype, int64_t channels) const {
    std::vector<int64_t> sizes = size;
    sizes[1] = channels;
    return torch::stable::empty(sizes, dtype, std::nullopt, std::nullopt, std::nullopt, format_of(channels_last));
  }

  Matrix matrix(const Tensor& x) const {
    const int64_t channels = x.size(1), pixels = elements_from(x, 2);
    return {x.data_ptr(), dtype_of(x), pixels * channels, planar ? pixels : channels};
  }
};

// An image that the kernels read, in the call's layout; `kept` holds what had to be copied.
Matrix image(const Layout& layout, const Tensor& x, std::vector<Tensor>& kept) {
  kept.push_back(in_layout(x, layout.channels_last));
  return layout.matrix(kept.back());
}

const float* floats(const Tensor& x, std::vector<Tensor>& kept) {
  Tensor y = x.scalar_type() == ScalarType::Float ? x : torch::stable::to(x, ScalarType::Float);
  kept.push_back(y.is_contiguous() ? y : torch::stable::contiguous(y));
  return static_cast<const float*>(kept.back().data_ptr());
}

const float* floats(const std::optional<Tensor>& x, std::vector<Tensor>& kept) {
  return x ? floats(*x, kept) : nullptr;
}

float* results(const Tensor& x) { return static_cast<float*>(x.data_ptr()); }

Tensor nothing(ScalarType dtype) { return torch::stable::empty({0}, dtype); }

void check_groups(int64_t groups, int64_t channels) {
  STD_TORCH_CHECK(groups > 0 && channels > 0 && channels % groups == 0,
                  "groups must divide the number of channels, both at least 1, got ", groups, " and ", channels);
}

// All but the results.
NormArgs arguments(const Layout& layout, const Tensor& x, const std::optional<Tensor>& x2,
                   const std::optional<Tensor>& added_bias, const std::optional<Tensor>& added_time,
                   const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& scale,
                   const std::optional<Tensor>& shift, const Tensor& mean, const Tensor& rstd, bool act,
                   std::vector<Tensor>& kept) {
  NormArgs a;
  a.batch = x.size(0);
  a.pixels = elements_from(x, 2);
  a.channels1 = x.size(1);
  a.channels = layout.size[1];
  check_groups(mean.size(1), a.channels);
  a.groups = mean.size(1);
  check_sizes("added_bias", added_bias, {a.channels});
  check_sizes("added_time", added_time, {a.batch, a.channels});
  check_sizes("weight", weight, {a.channels});
  check_sizes("bias", bias, {a.channels});
  check_sizes("scale", scale, {a.batch, a.channels});
  check_sizes("shift", shift, {a.batch, a.channels});
  STD_TORCH_CHECK(scale.has_value() == shift.has_value(), "scale and shift go together: give both, or neither");
  a.planar = layout.planar;
  a.block = norm_block(a);
  a.eps = 0;
  a.act = act;
  a.x = image(layout, x, kept);
  if (x2) a.x2 = image(layout, *x2, kept);
  a.added_bias = floats(added_bias, kept);
  a.added_time = floats(added_time, kept);
  a.weight = floats(weight, kept);
  a.bias = floats(bias, kept);
  a.scale = floats(scale, kept);
  a.shift = floats(shift, kept);
  a.scale_stride = a.channels;
  a.mean = results(mean);
  a.rstd = results(rstd);
  return a;
}

template <typename F>
void run(const NormArgs& a, const F& unit_of) {
  const int64_t threads = loop_threads(), per_thread = norm_scratch(a);
  float* memory = workspace(threads * per_thread);
  run_units(norm_units(a), threads, [&](int64_t unit, int64_t worker) { unit_of(unit, memory + worker * per_thread); });
}

}  // namespace

void group_norm_act(const NormArgs& a) {
  const Kernels& variant = kernels();
  run(a, [&](int64_t unit, float* memory) { variant.group_norm_act(a, unit, memory); });
}

void group_norm_act_backward(const NormGradArgs& grad) {
  const Kernels& variant = kernels();
  run(grad.forward, [&](int64_t unit, float* memory) { variant.group_norm_act_backward(grad, unit, memory); });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> group_norm_act_cpu(
    Tensor x, std::optional<Tensor> x2, std::optional<Tensor> residual, std::optional<Tensor> added_bias,
    std::optional<Tensor> added_time, Tensor weight, Tensor bias, std::optional<Tensor> scale,
    std::optional<Tensor> shift, int64_t groups, double eps, bool act) {
  const Layout layout(x, x2);
  const ScalarType dtype = x.scalar_type();
  check_groups(groups, layout.size[1]);
  if (residual) check_image("residual", *residual, x, layout.size[1]);
  Tensor y = layout.empty(dtype, layout.size[1]);
  Tensor total = residual ? layout.empty(dtype, layout.size[1]) : nothing(dtype);
  Tensor mean = torch::stable::empty({x.size(0), groups}, ScalarType::Float);
  Tensor rstd = torch::stable::empty({x.size(0), groups}, ScalarType::Float);
  std::vector<Tensor> kept;
  NormArgs a = arguments(layout, x, x2, added_bias, added_time, weight, bias, scale, shift, mean, rstd, act, kept);
  a.eps = eps;
  if (residual) {
    a.residual = image(layout, *residual, kept);
    a.total = layout.matrix(total);
  }
  a.y = layout.matrix(y);
  group_norm_act(a);
  return {y, total, mean, rstd};
}

// dx, dx2, and per sample and channel the sums over the pixels of du, of du * xhat and, if wanted, of dh.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> group_norm_act_backward_cpu(
    Tensor grad_y, std::optional<Tensor> grad_total, Tensor x, std::optional<Tensor> x2,
    std::optional<Tensor> added_bias, std::optional<Tensor> added_time, Tensor weight, Tensor bias,
    std::optional<Tensor> scale, std::optional<Tensor> shift, Tensor mean, Tensor rstd, bool act, bool want_added) {
  const Layout layout(x, x2);
  const int64_t batch = x.size(0), channels = layout.size[1];
  check_image("grad_y", grad_y, x, channels);
  if (grad_total) check_image("grad_sum", *grad_total, x, channels);
  STD_TORCH_CHECK(mean.dim() == 2 && mean.scalar_type() == ScalarType::Float && mean.is_contiguous() &&
                      rstd.scalar_type() == ScalarType::Float && rstd.is_contiguous(),
                  "mean and rstd must be contiguous float32 [B, groups], got ", described(mean), " and ",
                  described(rstd));
  check_sizes("mean", mean, {batch, mean.size(1)});
  check_sizes("rstd", rstd, {batch, mean.size(1)});
  Tensor dx = layout.empty(x.scalar_type(), x.size(1));
  Tensor dx2 = x2 ? layout.empty(x.scalar_type(), x2->size(1)) : nothing(x.scalar_type());
  Tensor du_sum = torch::stable::empty({batch, channels}, ScalarType::Float);
  Tensor du_xhat_sum = torch::stable::empty({batch, channels}, ScalarType::Float);
  Tensor dh_sum = want_added ? torch::stable::empty({batch, channels}, ScalarType::Float) : nothing(ScalarType::Float);
  std::vector<Tensor> kept;
  NormGradArgs grad;
  grad.forward = arguments(layout, x, x2, added_bias, added_time, weight, bias, scale, shift, mean, rstd, act, kept);
  grad.dy = image(layout, grad_y, kept);
  if (grad_total) grad.dtotal = image(layout, *grad_total, kept);
  grad.dx = layout.matrix(dx);
  if (x2) grad.dx2 = layout.matrix(dx2);
  grad.du_sum = results(du_sum);
  grad.du_xhat_sum = results(du_xhat_sum);
  grad.dh_sum = want_added ? results(dh_sum) : nullptr;
  group_norm_act_backward(grad);
  return {dx, dx2, du_sum, du_xhat_sum, dh_sum};
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("group_norm_act_cpu", TORCH_BOX(&group_norm_act_cpu));
  m.impl("group_norm_act_backward_cpu", TORCH_BOX(&group_norm_act_backward_cpu));
}

}  // namespace fastdiff
