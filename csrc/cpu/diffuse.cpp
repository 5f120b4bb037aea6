// The op `diffuse`.
#include "diffuse.h"

#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>

#include "checks.h"
#include "kernels.h"
#include "noise_layout.h"
#include "tensors.h"
#include "tiling.h"

namespace fastdiff {

std::tuple<Tensor, Tensor> diffuse_cpu(Tensor x0, Tensor t, Tensor table, std::optional<Tensor> noise,
                                       Tensor sample_ids, Tensor row, int64_t seed, int64_t stream, int64_t levels,
                                       ScalarType dtype, bool want_target) {
  STD_TORCH_CHECK(x0.dim() >= 1, "x0 must be [B, ...], got ", described(x0));
  dtype_of(x0);
  const int64_t batch = x0.size(0);
  const bool is_double = x0.scalar_type() == ScalarType::Double;
  index_data("t", t, batch, false);
  index_data("sample_ids", sample_ids, batch, false);
  index_data("row", row, batch, true);
  check_table("table", table, x0, 4);
  STD_TORCH_CHECK(is_floating(dtype) && (dtype == ScalarType::Double) == is_double,
                  "the results must be float32, bfloat16 or float16, or float64 of float64 images");
  STD_TORCH_CHECK(2 <= levels && levels <= std::numeric_limits<int>::max(),
                  "levels must be at least 2 and a 32-bit number, got ", levels);
  STD_TORCH_CHECK(0 <= stream && stream < int64_t{1} << (32 - STREAM_SHIFT), "stream must have 4 bits, got ", stream);
  check_index("t", t, table.size(0));
  check_index("row", row, int64_t{1} << STREAM_SHIFT);
  const bool channels_last = is_channels_last(x0);
  const Tensor image = in_layout(x0, channels_last);
  std::optional<Tensor> given;
  if (noise) {
    check_same_shape("noise", *noise, x0);
    given = in_layout(*noise, channels_last);
  }
  const auto empty = [&](torch::headeronly::IntHeaderOnlyArrayRef size, MemoryFormat format) {
    return torch::stable::empty(size, dtype, std::nullopt, x0.device(), std::nullopt, format);
  };
  Tensor x_t = empty(x0.sizes(), format_of(channels_last));
  const int64_t none = 0;
  Tensor target = want_target ? empty(x0.sizes(), format_of(channels_last))
                              : empty(torch::headeronly::IntHeaderOnlyArrayRef(&none, 1), MemoryFormat::Contiguous);
  DiffuseArgs args;
  args.shape = shape_of(image, channels_last);
  args.x0 = matrix_of(image, channels_last);
  args.x_t = matrix_of(x_t, channels_last);
  if (want_target) args.target = matrix_of(target, channels_last);
  args.noise = noise_of(given, sample_ids, row, seed, stream, channels_last);
  args.t = static_cast<const int64_t*>(t.data_ptr());
  args.table = table.data_ptr();
  args.levels = static_cast<int>(levels);
  const Kernels& variant = kernels();
  torch::stable::parallel_for(0, num_units(args.shape), GRAIN,
                              [&](int64_t first, int64_t last) { variant.diffuse(args, first, last); });
  return {x_t, target};
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) { m.impl("diffuse", TORCH_BOX(&diffuse_cpu)); }

}  // namespace fastdiff
