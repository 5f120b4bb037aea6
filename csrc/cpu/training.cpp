// A network's training as a list of instructions over one arena: its forward pass, or its backward pass.
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <exception>
#include <mutex>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "checks.h"
#include "kernels.h"
#include "layers.h"
#include "parallel.h"
#include "pixels.h"
#include "threads.h"
#include "training_layout.h"

namespace fastdiff {

namespace {

// Larger sizes, places or numbers of channels are no network's.
constexpr int64_t LARGEST = int64_t{1} << 31;

// Whether a parameter's values lie densely as [C_out, (H, W,) C_in].
bool is_dense_parameter(const Tensor& x) {
  int64_t expected = 1;
  const auto fits = [&](int64_t dim) {
    const bool right = x.size(dim) == 1 || x.stride(dim) == expected;
    expected *= x.size(dim);
    return right;
  };
  if (x.dim() == 4) return fits(1) && fits(3) && fits(2) && fits(0);
  return x.is_contiguous();
}

struct Network {
  int64_t batch, first, count;  // samples of the arena, and those of them that are computed
  float* arena;
  int64_t length;  // floats
  const std::vector<Tensor>&parameters, &gradients;
  const int64_t *seeds, *sample_ids;
  int64_t num_seeds, stream;

  // Of `size` floats of each sample, of those that are computed; nullptr where there is no place.
  float* optional(int64_t place, int64_t size) const {
    if (place == -1) return nullptr;
    STD_TORCH_CHECK(0 <= place && place < LARGEST && 0 <= size && size < LARGEST && (place + size) * batch <= length,
                    "an instruction's place lies outside of the arena");
    return arena + place * batch + first * size;
  }
  float* at(int64_t place, int64_t size) const {
    float* found = optional(place, size);
    STD_TORCH_CHECK(found != nullptr, "an instruction lacks a place");
    return found;
  }
  const Tensor& tensor(const std::vector<Tensor>& of, int64_t number, int64_t size) const {
    STD_TORCH_CHECK(0 <= number && number < static_cast<int64_t>(of.size()),
                    "an instruction's parameter has no number");
    const Tensor& x = of[static_cast<size_t>(number)];
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.numel() == size && is_dense_parameter(x),
                    "parameters and their gradients must be dense float32 of ", size,
                    " values, convolutions' in "
                    "channels_last, got ",
                    described(x));
    return x;
  }
  const float* parameter(int64_t number, int64_t size) const {
    return static_cast<const float*>(tensor(parameters, number, size).data_ptr());
  }
  const float* parameter_or_none(int64_t number, int64_t size) const {
    return number == -1 ? nullptr : parameter(number, size);
  }
  float* gradient(int64_t number, int64_t size) const {
    return static_cast<float*>(tensor(gradients, number, size).data_ptr());
  }
};

void check_numbers(const TrainInstruction& i) {
  for (const int64_t count : {i.channels, i.channels2, i.height, i.width, i.height_out, i.width_out, i.channels_out,
                              i.pad, i.heads, i.groups})
    STD_TORCH_CHECK(0 <= count && count < (int64_t{1} << 20), "an instruction's numbers do not fit");
  STD_TORCH_CHECK(0 < i.channels && 0 < i.height && 0 < i.width &&
                      i.height * i.width * (i.channels + i.channels2) < LARGEST &&
                      i.height_out * i.width_out * std::max(i.channels_out, 9 * i.channels) < LARGEST && 0 < i.stride &&
                      i.stride < 8,
                  "an instruction's sizes do not fit");
}

Matrix matrix(float* data, int64_t pixels, int64_t channels) {
  Matrix m;
  if (data != nullptr) m = {data, Dtype::F32, pixels * channels, channels};
  return m;
}

void run_conv(const Network& n, const TrainInstruction& i) {
  STD_TORCH_CHECK(i.channels % 16 == 0 && i.channels_out % 16 == 0 && i.channels_out > 0,
                  "a convolution's channels must be multiples of 16");
  const int64_t pixels = i.height * i.width, size = 9 * i.channels * i.channels_out;
  ConvLayer layer;
  layer.x = n.at(i.x, pixels * i.channels);
  layer.batch = n.count;
  layer.height = i.height;
  layer.width = i.width;
  layer.channels_in = i.channels;
  layer.channels_out = i.channels_out;
  const Tensor& weight = n.tensor(n.parameters, i.weight, size);
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3 &&
                      weight.size(i.transposed ? 0 : 1) == i.channels,
                  "a convolution's weight must be [C_out, C_in, 3, 3], got ", described(weight));
  layer.weight = weights_of(weight);
  layer.bias = n.parameter_or_none(i.bias, i.channels_out);
  layer.residual = n.optional(i.added, pixels * i.channels_out);
  layer.transposed = i.transposed;
  layer.out = n.at(i.y, pixels * i.channels_out);
  conv3x3(layer);
}

void run_conv_grad(const Network& n, const TrainInstruction& i) {
  STD_TORCH_CHECK(i.channels_out > 0, "a convolution must have channels");
  const int64_t pixels = i.height * i.width;
  ConvGradArgs a;
  a.x = n.at(i.x, pixels * i.channels);
  a.dy = n.at(i.dy, pixels * i.channels_out);
  a.batch = n.count;
  a.height = i.height;
  a.width = i.width;
  a.channels_in = i.channels;
  a.channels_out = i.channels_out;
  a.dweight = n.gradient(i.weight, 9 * i.channels * i.channels_out);
  conv3x3_weight_grad(a);
}

void run_linear(const Network& n, const TrainInstruction& i) {
  const int64_t pixels = i.height * i.width, channels = i.channels + i.channels2;
  STD_TORCH_CHECK(i.channels_out > 0, "a linear layer must have channels");
  LinearLayer layer;
  layer.x = n.at(i.x, pixels * i.channels);
  layer.x2 = n.optional(i.x2, pixels * i.channels2);
  layer.rows = n.count * pixels;
  layer.channels_in = i.channels;
  layer.channels2 = layer.x2 == nullptr ? 0 : i.channels2;
  layer.channels_out = i.channels_out;
  layer.weight = n.parameter(i.weight, channels * i.channels_out);
  layer.in_stride = i.transposed ? i.channels_out : 1;
  layer.out_stride = i.transposed ? 1 : channels;
  layer.bias = n.parameter_or_none(i.bias, i.channels_out);
  layer.residual = n.optional(i.added, pixels * i.channels_out);
  layer.out = n.at(i.y, pixels * i.channels_out);
  linear(layer);
}

void run_linear_grad(const Network& n, const TrainInstruction& i) {
  const int64_t pixels = i.height * i.width, channels = i.channels + i.channels2;
  STD_TORCH_CHECK(i.channels_out > 0, "a linear layer must have channels");
  LinearGradArgs a;
  a.dy = n.at(i.dy, pixels * i.channels_out);
  a.rows = n.count * pixels;
  a.channels_out = i.channels_out;
  a.dweight = n.gradient(i.weight, channels * i.channels_out);
  a.dweight_stride = channels;
  a.x = n.at(i.x, pixels * i.channels);
  a.channels_in = i.channels;
  linear_weight_grad(a);
  if (i.channels2 == 0) return;
  a.x = n.at(i.x2, pixels * i.channels2);
  a.channels_in = i.channels2;
  a.dweight += i.channels;
  linear_weight_grad(a);
}

NormArgs norm_arguments(const Network& n, const TrainInstruction& i) {
  NormArgs a;
  a.batch = n.count;
  a.pixels = i.height * i.width;
  a.channels1 = i.channels;
  a.channels = i.channels + i.channels2;
  STD_TORCH_CHECK(i.groups > 0 && a.channels % i.groups == 0, "groups must divide the number of channels");
  a.groups = i.groups;
  a.planar = false;
  a.block = norm_block(a);
  a.eps = std::bit_cast<double>(i.number);
  a.act = i.act;
  a.x = matrix(n.at(i.x, a.pixels * i.channels), a.pixels, i.channels);
  if (i.channels2 > 0) a.x2 = matrix(n.at(i.x2, a.pixels * i.channels2), a.pixels, i.channels2);
  a.added_bias = nullptr;
  a.added_time = n.optional(i.time, a.channels);
  a.weight = n.parameter(i.weight, a.channels);
  a.bias = n.parameter(i.bias, a.channels);
  a.scale = n.optional(i.scale, 2 * a.channels);
  a.shift = a.scale == nullptr ? nullptr : a.scale + a.channels;
  a.scale_stride = 2 * a.channels;
  // All means of the batch come before all of rstd.
  a.mean = n.at(i.stats, 2 * i.groups) - n.first * i.groups;
  a.rstd = a.mean + n.batch * i.groups;
  return a;
}

void run_norm(const Network& n, const TrainInstruction& i) {
  NormArgs a = norm_arguments(n, i);
  a.y = matrix(n.at(i.y, a.pixels * a.channels), a.pixels, a.channels);
  group_norm_act(a);
}

void run_norm_grad(const Network& n, const TrainInstruction& i) {
  NormGradArgs grad;
  grad.forward = norm_arguments(n, i);
  const NormArgs& a = grad.forward;
  STD_TORCH_CHECK(i.more == -1 || i.channels2 == 0, "of two images no more can be added to a gradient");
  grad.dy = matrix(n.at(i.dy, a.pixels * a.channels), a.pixels, a.channels);
  grad.dtotal = matrix(n.optional(i.added, a.pixels * a.channels), a.pixels, a.channels);
  grad.dmore = matrix(n.optional(i.more, a.pixels * i.channels), a.pixels, i.channels);
  grad.dx = matrix(n.at(i.y, a.pixels * i.channels), a.pixels, i.channels);
  if (i.channels2 > 0) grad.dx2 = matrix(n.at(i.y2, a.pixels * i.channels2), a.pixels, i.channels2);
  grad.du_sum = n.at(i.sums, a.channels);
  grad.du_xhat_sum = n.at(i.products, a.channels);
  grad.dh_sum = n.optional(i.total, a.channels);
  group_norm_act_backward(grad);
}

// Of u = (xhat weight + bias) (1 + scale) + shift: y gets the gradients of scale and shift, [2, C], and the sums become
// those of a norm without them.
void run_scale_grad(const Network& n, const TrainInstruction& i) {
  const int64_t channels = i.channels;
  float *du = n.at(i.sums, channels), *du_xhat = n.at(i.products, channels), *to = n.at(i.y, 2 * channels);
  const float *scale = n.at(i.scale, 2 * channels), *weight = n.parameter(i.weight, channels),
              *bias = n.parameter(i.bias, channels);
  for (int64_t sample = 0; sample < n.count; ++sample)
    for (int64_t c = 0; c < channels; ++c) {
      float &sum = du[sample * channels + c], &products = du_xhat[sample * channels + c];
      to[2 * sample * channels + c] = weight[c] * products + bias[c] * sum;
      to[(2 * sample + 1) * channels + c] = sum;
      const float gain = 1.0f + scale[2 * sample * channels + c];
      sum *= gain;
      products *= gain;
    }
}

void run_dropout(const Network& n, const TrainInstruction& i) {
  STD_TORCH_CHECK(0 <= i.layer && i.layer < n.num_seeds, "a dropout has no seed");
  STD_TORCH_CHECK(0 <= i.last_kept && i.last_kept <= 0xFFFFFFFF, "last_kept must be a 32-bit word");
  const int64_t size = i.height * i.width * i.channels;
  DropoutArgs args;
  args.x = {n.at(i.x, size), Dtype::F32, size, i.channels};
  args.y = {n.at(i.y, size), Dtype::F32, size, i.channels};
  args.numel = size;
  args.sample_ids = n.sample_ids + n.first;
  args.seed = static_cast<uint64_t>(n.seeds[i.layer]);
  args.stream = static_cast<uint32_t>(n.stream);
  args.last_kept = static_cast<uint32_t>(i.last_kept);
  args.scale = std::bit_cast<double>(i.number);
  dropout(args, n.count);
}

AttentionArgs attention_arguments(const Network& n, const TrainInstruction& i, int64_t out) {
  AttentionArgs a;
  a.batch = n.count;
  a.tokens = i.height * i.width;
  a.heads = i.heads;
  STD_TORCH_CHECK(i.heads > 0 && i.channels % (16 * i.heads) == 0, "heads must have a multiple of 16 channels");
  a.d = i.channels / i.heads;
  a.head_stride = i.heads_first ? 3 * a.d : a.d;
  a.part_stride = i.heads_first ? a.d : i.channels;
  a.scale = static_cast<float>(std::bit_cast<double>(i.number));
  a.qkv = n.at(i.x, 3 * a.tokens * i.channels);
  a.out = n.at(out, a.tokens * i.channels);
  a.lse = n.at(i.stats, a.tokens * i.heads);
  return a;
}

void run_attention_grad(const Network& n, const TrainInstruction& i) {
  AttentionGradArgs grad;
  grad.forward = attention_arguments(n, i, i.x2);
  grad.grad = n.at(i.dy, grad.forward.tokens * i.channels);
  grad.grad_qkv = n.at(i.y, 3 * grad.forward.tokens * i.channels);
  attention_backward(grad);
}

void run_image_op(const Network& n, const TrainInstruction& i, PixelOp op) {
  PixelArgs a;
  a.op = op;
  a.channels = i.channels;
  a.height_in = i.height;
  a.width_in = i.width;
  a.height = i.height_out;
  a.width = i.width_out;
  a.stride = i.stride;
  a.pad = i.pad;
  a.turned = i.transposed;
  a.factor = static_cast<float>(std::bit_cast<double>(i.number));
  const int64_t in = i.height * i.width * i.channels, out = i.height_out * i.width_out * i.channels;
  STD_TORCH_CHECK(out > 0, "an image must have pixels");
  a.x = n.at(i.x, op == PIXELS_FOLD ? 9 * in : in);
  a.x2 = n.optional(i.x2, in);
  a.added = n.optional(i.added, out);
  a.bias = n.parameter_or_none(i.bias, i.channels);
  a.y = n.at(i.y, op == PIXELS_UNFOLD ? 9 * out : out);
  const bool alike = op == PIXELS_SILU || op == PIXELS_SILU_GRAD || op == PIXELS_ADD;
  STD_TORCH_CHECK(!alike || (in == out && i.width == i.width_out && (op == PIXELS_SILU || a.x2 != nullptr)),
                  "an instruction's images must be alike");
  STD_TORCH_CHECK(op != PIXELS_POOL || (i.height == 2 * i.height_out && i.width == 2 * i.width_out), "a pool halves");
  STD_TORCH_CHECK(op != PIXELS_REPEAT || (2 * i.height == i.height_out && 2 * i.width == i.width_out),
                  "a repetition doubles");
  const Kernels& variant = kernels();
  // About 16,000 values for each thread at least.
  const int64_t row = std::max<int64_t>(1, a.width * a.channels);
  parallel_for(0, n.count * a.height, std::max<int64_t>(1, 16384 / row),
               [&](int64_t first, int64_t last) { variant.pixels(a, first, last); });
}

void run_one(const Network& n, const TrainInstruction& i) {
  check_numbers(i);
  switch (i.op) {
    case TRAIN_CONV: return run_conv(n, i);
    case TRAIN_CONV_GRAD: return run_conv_grad(n, i);
    case TRAIN_LINEAR: return run_linear(n, i);
    case TRAIN_LINEAR_GRAD: return run_linear_grad(n, i);
    case TRAIN_SUMS:
      return column_sums(n.at(i.x, i.height * i.width * i.channels), n.count * i.height * i.width, i.channels,
                         n.gradient(i.bias, i.channels));
    case TRAIN_NORM: return run_norm(n, i);
    case TRAIN_NORM_GRAD: return run_norm_grad(n, i);
    case TRAIN_SCALE_GRAD: return run_scale_grad(n, i);
    case TRAIN_DROPOUT: return run_dropout(n, i);
    case TRAIN_ATTENTION: return attention(attention_arguments(n, i, i.y));
    case TRAIN_ATTENTION_GRAD: return run_attention_grad(n, i);
    case TRAIN_SILU: return run_image_op(n, i, PIXELS_SILU);
    case TRAIN_SILU_GRAD: return run_image_op(n, i, PIXELS_SILU_GRAD);
    case TRAIN_ADD: return run_image_op(n, i, PIXELS_ADD);
    case TRAIN_POOL: return run_image_op(n, i, PIXELS_POOL);
    case TRAIN_REPEAT: return run_image_op(n, i, PIXELS_REPEAT);
    case TRAIN_UNFOLD: return run_image_op(n, i, PIXELS_UNFOLD);
    case TRAIN_FOLD: return run_image_op(n, i, PIXELS_FOLD);
    default: STD_TORCH_CHECK(false, "there is no instruction of the number ", i.op);
  }
}

// Calls body(k) for k of [0, count), each on one thread, and throws what one of them threw.
template <typename F>
void each_alone(int64_t count, const F& body) {
  std::exception_ptr thrown;
  std::mutex throwing;
  run_units(count, loop_threads(), [&](int64_t k, int64_t) {
    const Alone alone;
    try {
      body(k);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(throwing);
      thrown = std::current_exception();
    }
  });
  if (thrown) std::rethrow_exception(thrown);
}

// Samples, shared out to the threads, go through the first `alone` instructions by themselves; then the others are
// shared out.
void run_apart(const Network& n, const TrainInstruction* instructions, int64_t alone, int64_t length) {
  const int64_t lanes = std::min(n.batch, loop_threads());
  each_alone(lanes, [&](int64_t lane) {
    Network mine = n;
    mine.first = lane * n.batch / lanes;
    mine.count = (lane + 1) * n.batch / lanes - mine.first;
    for (int64_t k = 0; k < alone; ++k) run_one(mine, instructions[k]);
  });
  each_alone(length - alone, [&](int64_t k) { run_one(n, instructions[alone + k]); });
}

// What is written, the arena and the gradients, overlaps nothing.
void check_memory(const Tensor& arena, const std::vector<Tensor>& gradients, const std::vector<Tensor>& parameters) {
  std::vector<std::pair<Extent, bool>> all = {{extent_of("arena", arena), true}};
  for (const Tensor& gradient : gradients) all.push_back({extent_of("a gradient", gradient), true});
  for (const Tensor& parameter : parameters) all.push_back({extent_of("a parameter", parameter), false});
  check_all_apart(all);
}

// Large pages for the arena, which is gone through in strides; it counts before the first touch.
void want_large_pages(const Tensor& arena) {
  constexpr uintptr_t PAGE = uintptr_t{2} << 20;
  const Extent extent = extent_of("arena", arena);
  const uintptr_t first = (extent.first + PAGE - 1) / PAGE * PAGE, last = extent.last / PAGE * PAGE;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

}  // namespace

// code: [instructions, TRAIN_WIDTH]; gradients: one for each parameter, or none where the code writes none. alone: so
// many instructions at the beginning are of each sample alone, with places that no two samples share, and none of the
// others needs what another one writes; -1 where it is not so.
void training_run_cpu(Tensor code, std::vector<Tensor> parameters, std::vector<Tensor> gradients, Tensor arena,
                      int64_t batch, Tensor seeds, std::optional<Tensor> sample_ids, int64_t stream, int64_t alone) {
  STD_TORCH_CHECK(
      code.dim() == 2 && code.size(1) == TRAIN_WIDTH && code.scalar_type() == ScalarType::Long && code.is_contiguous(),
      "code must be contiguous int64 [instructions, ", TRAIN_WIDTH, "], got ", described(code));
  STD_TORCH_CHECK(arena.dim() == 1 && arena.scalar_type() == ScalarType::Float && arena.is_contiguous(),
                  "arena must be contiguous float32 [floats], got ", described(arena));
  STD_TORCH_CHECK(seeds.dim() == 1 && seeds.scalar_type() == ScalarType::Long && seeds.is_contiguous(),
                  "seeds must be contiguous int64 [layers], got ", described(seeds));
  STD_TORCH_CHECK(0 < batch && batch < (int64_t{1} << 24), "batch must be at least 1, got ", batch);
  STD_TORCH_CHECK(0 <= stream && stream < 16, "stream must have 4 bits, got ", stream);
  check_memory(arena, gradients, parameters);
  want_large_pages(arena);
  STD_TORCH_CHECK(-1 <= alone && alone <= code.size(0), "alone must be -1 or a number of instructions, got ", alone);
  std::vector<int64_t> numbers;
  if (!sample_ids) {
    numbers.resize(static_cast<size_t>(batch));
    std::iota(numbers.begin(), numbers.end(), 0);
  }
  const int64_t* ids = sample_ids ? index_data("sample_ids", *sample_ids, batch, false) : numbers.data();
  const auto* all_seeds = static_cast<const int64_t*>(seeds.data_ptr());
  const Network network = {batch,         0,
                           batch,         static_cast<float*>(arena.data_ptr()),
                           arena.numel(), parameters,
                           gradients,     all_seeds,
                           ids,           seeds.numel(),
                           stream};
  const auto* instructions = static_cast<const TrainInstruction*>(code.data_ptr());
  if (alone >= 0) return run_apart(network, instructions, alone, code.size(0));
  for (int64_t k = 0; k < code.size(0); ++k) run_one(network, instructions[k]);
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) { m.impl("training_run", TORCH_BOX(&training_run_cpu)); }

}  // namespace fastdiff
