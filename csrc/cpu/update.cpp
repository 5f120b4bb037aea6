// A training's update of the weights: AdamW's step with their average in one pass over memory, and norms of gradients.
#include "update.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "checks.h"
#include "kernels.h"
#include "tensors.h"
#include "threads.h"

namespace fastdiff {

namespace {

// Whether the values lie in one stretch of memory, each at a place of its own, in the order in which those of `other`
// do.
bool lies_as(const Tensor& x, const Tensor& other) {
  if (x.dim() != other.dim()) return false;
  std::vector<std::pair<int64_t, int64_t>> dims;  // strides and sizes
  for (int64_t dim = 0; dim < x.dim(); ++dim) {
    if (x.size(dim) != other.size(dim) || (x.size(dim) != 1 && x.stride(dim) != other.stride(dim))) return false;
    if (x.size(dim) != 1) dims.push_back({x.stride(dim), x.size(dim)});
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

void check_number(const char* name, const std::vector<Tensor>& tensors, const std::vector<Tensor>& gradients) {
  STD_TORCH_CHECK(tensors.size() == gradients.size(), name, " must be as many as gradients, ", gradients.size(),
                  ", got ", tensors.size());
}

float* data_of(const char* name, const Tensor& x, const Tensor& gradient) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && lies_as(x, gradient), name,
                  " must be dense float32 that lies as its gradient does, ", described(gradient), ", got ",
                  described(x));
  return static_cast<float*>(x.data_ptr());
}

// The pieces of one tensor, behind those of others.
void append(std::vector<UpdatePiece>& pieces, const UpdatePiece& whole) {
  for (int64_t first = 0; first < whole.count; first += UPDATE_PIECE) {
    const auto from = [&](float* data) { return data == nullptr ? nullptr : data + first; };
    pieces.push_back({from(whole.parameter), from(whole.exp_avg), from(whole.exp_avg_sq), from(whole.average),
                      whole.gradient + first, std::min(UPDATE_PIECE, whole.count - first)});
  }
}

// Pieces for each thread at least.
constexpr int64_t LEAST_PIECES = 4;

}  // namespace

// AdamW's step with gradients times `scale`; `averages`: one for each parameter, or none.
void update_cpu(std::vector<Tensor> parameters, std::vector<Tensor> gradients, std::vector<Tensor> exp_avgs,
                std::vector<Tensor> exp_avg_sqs, std::vector<Tensor> averages, double scale, double kept, double beta1,
                double beta2, double root, double eps, double step_size, double average_share) {
  check_number("parameters", parameters, gradients);
  check_number("exp_avgs", exp_avgs, gradients);
  check_number("exp_avg_sqs", exp_avg_sqs, gradients);
  if (!averages.empty()) check_number("averages", averages, gradients);
  std::vector<UpdatePiece> pieces;
  std::vector<std::pair<Extent, bool>> all;
  for (size_t n = 0; n < gradients.size(); ++n) {
    const Tensor& gradient = gradients[n];
    UpdatePiece whole = {data_of("a parameter", parameters[n], gradient),
                         data_of("exp_avg", exp_avgs[n], gradient),
                         data_of("exp_avg_sq", exp_avg_sqs[n], gradient),
                         averages.empty() ? nullptr : data_of("an average", averages[n], gradient),
                         data_of("a gradient", gradient, gradient),
                         gradient.numel()};
    append(pieces, whole);
    all.push_back({extent_of("a gradient", gradient), false});
    all.push_back({extent_of("a parameter", parameters[n]), true});
    all.push_back({extent_of("exp_avg", exp_avgs[n]), true});
    all.push_back({extent_of("exp_avg_sq", exp_avg_sqs[n]), true});
    if (!averages.empty()) all.push_back({extent_of("an average", averages[n]), true});
  }
  check_all_apart(all);
  const auto number = [](double value) { return static_cast<float>(value); };
  const UpdateArgs args = {pieces.data(),     number(scale),    number(kept), number(1 - beta1), number(beta2),
                           number(1 - beta2), number(1 / root), number(eps),  number(step_size), number(average_share)};
  const Kernels& variant = kernels();
  parallel_for(0, static_cast<int64_t>(pieces.size()), LEAST_PIECES,
               [&](int64_t first, int64_t last) { variant.update(args, first, last); });
}

// The norm of each gradient, its squares summed in float64, in an order of their own.
void gradient_norms_out_cpu(std::vector<Tensor> gradients, Tensor out) {
  STD_TORCH_CHECK(out.dim() == 1 && out.size(0) == static_cast<int64_t>(gradients.size()) && out.is_contiguous() &&
                      out.scalar_type() == ScalarType::Float,
                  "out must be contiguous float32 [", gradients.size(), "], got ", described(out));
  std::vector<UpdatePiece> pieces;
  std::vector<size_t> ends;
  for (const Tensor& gradient : gradients) {
    check_apart(extent_of("out", out), extent_of("a gradient", gradient));
    append(pieces, {nullptr, nullptr, nullptr, nullptr, data_of("a gradient", gradient, gradient), gradient.numel()});
    ends.push_back(pieces.size());
  }
  std::vector<double> sums(pieces.size());
  const SquaresArgs args = {pieces.data(), sums.data()};
  const Kernels& variant = kernels();
  parallel_for(0, static_cast<int64_t>(pieces.size()), LEAST_PIECES,
               [&](int64_t first, int64_t last) { variant.squares(args, first, last); });
  auto* norms = static_cast<float*>(out.data_ptr());
  size_t piece = 0;
  for (const size_t end : ends) {
    double total = 0;
    for (; piece < end; ++piece) total += sums[piece];
    *norms++ = static_cast<float>(std::sqrt(total));
  }
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("update", TORCH_BOX(&update_cpu));
  m.impl("gradient_norms_out", TORCH_BOX(&gradient_norms_out_cpu));
}

}  // namespace fastdiff
