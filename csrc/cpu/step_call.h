// The op `step` before it runs. Launchers only, as tensors.h.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "step.h"
#include "tensors.h"

namespace fastdiff {

// What a call was found to be, and tensors of its own, in another layout than what was given, that `args` reads.
struct __attribute__((visibility("hidden"))) StepCall {
  StepArgs args;
  std::array<std::optional<Tensor>, 3> copies;
};

// Checks all that the op is given.
StepCall step_call(const Tensor& x, const std::optional<Tensor>& model_output, const Tensor& rows, const Tensor& row,
                   const std::optional<Tensor>& noise, const Tensor& sample_ids, int64_t seed, bool learned_variance,
                   const std::optional<Tensor>& base, const std::optional<Tensor>& history,
                   const std::optional<Tensor>& pred_out, const Tensor& out);

}  // namespace fastdiff
