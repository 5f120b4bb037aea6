// The plan's convolutions: which algorithm runs.
#pragma once

#include <cstdint>

#include "direct_impl.h"
#include "instructions.h"
#include "plan_layout.h"
#include "winograd_impl.h"

namespace fastdiff::FD_VARIANT {

template <typename F>
static void convolution(const Work& w, int64_t threads, int64_t unit, float* scratch) {
  const Instruction& i = w.i;
  if (i.algorithm == PLAN_WINOGRAD4) return winograd<F, 4>(w, threads, unit, scratch);
  if (i.algorithm == PLAN_WINOGRAD2) return winograd<F, 2>(w, threads, unit, scratch);
  const Padded padded = padded_of(i);
  if (padded.copied && !padded.pointwise && w.phase == 0) return direct_read<F>(w, padded, unit, scratch);
  direct_multiply<F>(w, threads, unit, scratch);
}

}  // namespace fastdiff::FD_VARIANT
