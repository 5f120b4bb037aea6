// The ops `mse`, `bound_loss` and `bound_terms`, and gradients.
#include "losses.h"

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "checks.h"
#include "kernels.h"
#include "matrix.h"
#include "tensors.h"
#include "tiling.h"

namespace fastdiff {

namespace {

constexpr double LN_2 = 0.69314718055994530942;
constexpr int64_t NUM_SUMS = 3;

// The arguments of a kernel, and the tensors that they point into.
struct Prepared {
  std::vector<Tensor> kept;
  LossArgs args = {};
  int64_t batch = 0, num_units = 0;
  bool channels_last = false;
  ScalarType arithmetic = ScalarType::Float;

  // One number for each sample.
  const void* keep(const Tensor& x, ScalarType type, const char* name) {
    STD_TORCH_CHECK(x.scalar_type() == type && x.dim() == 1 && x.size(0) == batch, name, " must be ",
                    type == ScalarType::Long     ? "int64"
                    : type == ScalarType::Double ? "float64"
                                                 : "float32",
                    " [", batch, "], got ", described(x));
    kept.push_back(in_layout(x, false));
    return kept.back().data_ptr();
  }

  // Of the output's shape, or that of its half.
  Matrix keep_image(const Tensor& x, const Tensor& output, const char* name) {
    if (args.learned)
      check_image(name, x, output, output.size(1) / 2);
    else
      check_same_shape(name, x, output);
    kept.push_back(in_layout(x, channels_last));
    return matrix_of(kept.back(), channels_last);
  }
};

Prepared prepare(const Tensor& output, const std::optional<Tensor>& target, bool learned) {
  STD_TORCH_CHECK(output.dim() >= (learned ? 2 : 1),
                  "output must be [B, ...], or [B, 2C, ...] with a learned variance, got ", described(output));
  check_floating("output", output);
  Prepared p;
  const int64_t halves = learned ? 2 : 1, channels = learned ? output.size(1) / 2 : 0;
  STD_TORCH_CHECK(!learned || output.size(1) == 2 * channels, "a learned variance needs 2C channels, got ",
                  described(output));
  p.batch = output.size(0);
  // Halves that alternate are taken apart tile by tile; more channels than a tile holds go through a copy.
  p.channels_last = is_channels_last(output) && channels <= TILE;
  p.arithmetic = output.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  p.kept.push_back(in_layout(output, p.channels_last));
  p.args.output = matrix_of(p.kept.back(), p.channels_last);
  p.args.learned = learned;
  p.args.per_sample = elements_from(output, 1) / halves;
  p.args.channels = p.channels_last ? channels : 0;
  p.args.tile = p.args.channels != 0 ? TILE / channels * channels : TILE;
  p.num_units = p.batch * ((p.args.per_sample + p.args.tile - 1) / p.args.tile);
  if (target) p.args.target = p.keep_image(*target, output, "target");
  return p;
}

void add_bound(Prepared& p, const Tensor& output, const Tensor& x0, const Tensor& x_t, const Tensor& t,
               const Tensor& table, std::optional<double> clip, bool detach_mean, const std::string& decoder,
               int64_t levels) {
  p.args.x0 = p.keep_image(x0, output, "x0");
  p.args.x_t = p.keep_image(x_t, output, "x_t");
  p.kept.push_back(in_layout(table, false));
  check_table("table", p.kept.back(), output, 6);
  p.args.table = p.kept.back().data_ptr();
  STD_TORCH_CHECK(!clip || *clip > 0, "clip must be above 0, or none, got ", *clip);
  STD_TORCH_CHECK(decoder == "discrete" || decoder == "gaussian", "decoder must be discrete or gaussian, got ",
                  decoder);
  STD_TORCH_CHECK(levels >= 2, "levels must be at least 2, got ", levels);
  p.args.t = static_cast<const int64_t*>(p.keep(t, ScalarType::Long, "t"));
  check_index("t", p.kept.back(), table.size(0));
  p.args.clip = clip.value_or(0.0);
  p.args.detach_mean = detach_mean;
  p.args.discrete = decoder == "discrete";
  p.args.levels = static_cast<double>(levels);
}

void run(const Prepared& p) {
  const Kernels& variant = kernels();
  torch::stable::parallel_for(0, p.num_units, GRAIN,
                              [&](int64_t first, int64_t last) { variant.losses(p.args, first, last); });
}

Tensor empty_like_arithmetic(const Prepared& p, const Tensor& output, int64_t size) {
  return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(&size, 1), p.arithmetic, std::nullopt,
                              output.device());
}

// What the units of each sample add up to, in their order, as means; of an empty sample NaN, as a mean of nothing is.
class Means {
 public:
  Means(Prepared& p, const Tensor& output) : prepared_(p), output_(output), sums_(NUM_SUMS * p.num_units) {
    p.args.sums = sums_.data();
    run(p);
  }

  Tensor of(int64_t which, double unit = 1.0) const {
    const int64_t batch = prepared_.batch, per_sample = batch == 0 ? 0 : prepared_.num_units / batch;
    Tensor means = empty_like_arithmetic(prepared_, output_, batch);
    for (int64_t sample = 0; sample < batch; ++sample) {
      double total = 0;
      for (int64_t i = 0; i < per_sample; ++i) total += sums_[NUM_SUMS * (sample * per_sample + i) + which];
      const double mean = total / (unit * static_cast<double>(prepared_.args.per_sample));
      if (prepared_.arithmetic == ScalarType::Double)
        static_cast<double*>(means.data_ptr())[sample] = mean;
      else
        static_cast<float*>(means.data_ptr())[sample] = static_cast<float>(mean);
    }
    return means;
  }

 private:
  const Prepared& prepared_;
  const Tensor& output_;
  std::vector<double> sums_;
};

Tensor gradient_of(Prepared& p, const Tensor& output) {
  Tensor gradient = torch::stable::empty(output.sizes(), output.scalar_type(), std::nullopt, output.device(),
                                         std::nullopt, format_of(p.channels_last));
  p.args.gradient = matrix_of(gradient, p.channels_last);
  if (p.num_units > 0) run(p);
  return in_layout(gradient, is_channels_last(output));
}

}  // namespace

Tensor mse_cpu(Tensor output, Tensor target) {
  Prepared p = prepare(output, target, false);
  return Means(p, output).of(0);
}

Tensor mse_backward_cpu(Tensor grad, Tensor output, Tensor target) {
  Prepared p = prepare(output, target, false);
  p.args.grad_mse = p.keep(grad, p.arithmetic, "grad");
  return gradient_of(p, output);
}

std::tuple<Tensor, Tensor> bound_loss_cpu(Tensor output, std::optional<Tensor> target, Tensor x0, Tensor x_t, Tensor t,
                                          Tensor table, std::optional<double> clip, bool learned_variance,
                                          bool detach_mean, std::string decoder, int64_t levels) {
  Prepared p = prepare(output, target, learned_variance);
  add_bound(p, output, x0, x_t, t, table, clip, detach_mean, decoder, levels);
  const Means means(p, output);
  return {target ? means.of(0) : empty_like_arithmetic(p, output, 0), means.of(1, LN_2)};
}

Tensor bound_loss_backward_cpu(Tensor output, std::optional<Tensor> grad_mse, std::optional<Tensor> grad_bound,
                               std::optional<Tensor> target, Tensor x0, Tensor x_t, Tensor t, Tensor table,
                               std::optional<double> clip, bool learned_variance, bool detach_mean, std::string decoder,
                               int64_t levels) {
  Prepared p = prepare(output, grad_mse ? target : std::nullopt, learned_variance);
  STD_TORCH_CHECK(!grad_mse || target, "grad_mse needs the target");
  if (grad_mse) p.args.grad_mse = p.keep(*grad_mse, p.arithmetic, "grad_mse");
  if (grad_bound) {
    add_bound(p, output, x0, x_t, t, table, clip, detach_mean, decoder, levels);
    p.args.grad_bound = p.keep(*grad_bound, p.arithmetic, "grad_bound");
  }
  return gradient_of(p, output);
}

std::tuple<Tensor, Tensor> bound_terms_cpu(Tensor output, Tensor x0, Tensor x_t, Tensor t, Tensor table,
                                           std::optional<double> clip, bool learned_variance, std::string decoder,
                                           int64_t levels) {
  Prepared p = prepare(output, std::nullopt, learned_variance);
  add_bound(p, output, x0, x_t, t, table, clip, false, decoder, levels);
  const Means means(p, output);
  return {means.of(1, LN_2), means.of(2)};
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("mse", TORCH_BOX(&mse_cpu));
  m.impl("mse_backward", TORCH_BOX(&mse_backward_cpu));
  m.impl("bound_loss", TORCH_BOX(&bound_loss_cpu));
  m.impl("bound_terms", TORCH_BOX(&bound_terms_cpu));
  m.impl("bound_loss_backward", TORCH_BOX(&bound_loss_backward_cpu));
}

}  // namespace fastdiff
