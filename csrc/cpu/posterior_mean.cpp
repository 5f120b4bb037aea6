// The op `posterior_mean`, by the kernel of `step`.
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "checks.h"
#include "kernels.h"
#include "row_layout.h"
#include "step.h"
#include "tensors.h"
#include "tiling.h"

namespace fastdiff {

namespace {

// The reverse step's mean is a step without noise: one row of `step` per sample.
template <typename A>
std::vector<A> rows_of(const Tensor& table, const int64_t* t, int64_t batch, std::optional<double> clip) {
  std::vector<A> rows(batch * ROW_WIDTH);
  for (int64_t sample = 0; sample < batch; ++sample) {
    const A* c = static_cast<const A*>(table.data_ptr()) + 4 * t[sample];
    A* row = rows.data() + sample * ROW_WIDTH;
    row[ROW_C0] = c[0], row[ROW_CX] = c[1], row[ROW_PX] = c[2], row[ROW_PM] = c[3];
    row[ROW_CLIP] = clip ? static_cast<A>(*clip) : std::numeric_limits<A>::infinity();
    row[ROW_EVALUATE] = 1;
  }
  return rows;
}

}  // namespace

Tensor posterior_mean_cpu(Tensor x_t, Tensor model_output, Tensor t, Tensor table, std::optional<double> clip) {
  STD_TORCH_CHECK(x_t.dim() >= 1, "x_t must be [B, ...], got ", described(x_t));
  check_floating("x_t", x_t);
  check_same_shape("model_output", model_output, x_t);
  const bool channels_last = is_channels_last(x_t), is_double = x_t.scalar_type() == ScalarType::Double;
  const int64_t batch = x_t.size(0);
  const Tensor steps = in_layout(t, false), rows_in = in_layout(table, false);
  const int64_t* step = index_data("t", steps, batch, false);
  check_table("table", rows_in, x_t, 4);
  STD_TORCH_CHECK(!clip || *clip > 0, "clip must be above 0, or none, got ", *clip);
  check_index("t", steps, table.size(0));
  const Tensor state = in_layout(x_t, channels_last), output = in_layout(model_output, channels_last);
  Tensor mean = torch::stable::empty(x_t.sizes(), x_t.scalar_type(), std::nullopt, x_t.device(), std::nullopt,
                                     format_of(channels_last));
  const auto floats = is_double ? std::vector<float>() : rows_of<float>(rows_in, step, batch, clip);
  const auto doubles = is_double ? rows_of<double>(rows_in, step, batch, clip) : std::vector<double>();
  std::vector<int64_t> counting(batch);
  for (int64_t i = 0; i < batch; ++i) counting[i] = i;
  StepArgs args = {};
  args.shape = shape_of(state, channels_last);
  args.x = matrix_of(state, channels_last);
  args.model_output = matrix_of(output, channels_last);
  args.out = matrix_of(mean, channels_last);
  args.row = counting.data();
  args.row_stride = 1;
  args.rows = is_double ? static_cast<const void*>(doubles.data()) : floats.data();
  const Kernels& variant = kernels();
  torch::stable::parallel_for(0, num_units(args.shape), GRAIN,
                              [&](int64_t first, int64_t last) { variant.step(args, first, last); });
  return mean;
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) { m.impl("posterior_mean", TORCH_BOX(&posterior_mean_cpu)); }

}  // namespace fastdiff
