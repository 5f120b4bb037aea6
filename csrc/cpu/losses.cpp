#include "tensors.h"

namespace fastdiff {

namespace {

struct Prepared {
  Tensor output, target;
  MseArgs args;
};

Prepared prepare(const Tensor& output, const Tensor& target) {
  STD_TORCH_CHECK(output.dim() >= 1 && output.numel() == target.numel(), "output and target must have one shape");
  const bool channels_last = is_channels_last(output);
  Prepared p{in_layout(output, channels_last), in_layout(target, channels_last), {}};
  p.args.per_sample = elements_from(p.output, 1);
  p.args.output = matrix_of(p.output, channels_last);
  p.args.target = matrix_of(p.target, channels_last);
  return p;
}

void run(const MseArgs& args, int64_t batch) {
  const Kernels& variant = kernels();
  torch::stable::parallel_for(0, batch, 1, [&](int64_t first, int64_t last) { variant.mse(args, first, last); });
}

}  // namespace

// [B]; of an empty sample NaN, as a mean of nothing is.
Tensor mse_cpu(Tensor output, Tensor target) {
  Prepared p = prepare(output, target);
  const int64_t batch = output.size(0);
  const bool is_double = output.scalar_type() == ScalarType::Double;
  Tensor loss = torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(&batch, 1),
                                     is_double ? ScalarType::Double : ScalarType::Float, std::nullopt, output.device());
  p.args.loss = loss.data_ptr();
  run(p.args, batch);
  return loss;
}

Tensor mse_backward_cpu(Tensor grad, Tensor output, Tensor target) {
  Prepared p = prepare(output, target);
  const bool channels_last = is_channels_last(output), is_double = output.scalar_type() == ScalarType::Double;
  const Tensor dense = torch::stable::contiguous(grad);
  STD_TORCH_CHECK(dense.numel() == output.size(0) &&
                      dense.scalar_type() == (is_double ? ScalarType::Double : ScalarType::Float),
                  "grad must be [B], of the arithmetic's type");
  Tensor gradient = torch::stable::empty(output.sizes(), output.scalar_type(), std::nullopt, output.device(),
                                         std::nullopt, format_of(channels_last));
  p.args.gradient = matrix_of(gradient, channels_last);
  p.args.grad = dense.data_ptr();
  run(p.args, output.size(0));
  return gradient;
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("mse", TORCH_BOX(&mse_cpu));
  m.impl("mse_backward", TORCH_BOX(&mse_backward_cpu));
}

}  // namespace fastdiff
