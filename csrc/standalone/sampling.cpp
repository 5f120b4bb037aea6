// The loop over a table: batches of samples, the time vectors of some rows ahead, and the rows.
#include "sampling.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "failure.h"
#include "kernels.h"
#include "noise_layout.h"
#include "pool.h"
#include "rounding.h"
#include "row.h"
#include "row_layout.h"

namespace fastdiff {

namespace {

constexpr int64_t MOST_THREADS = 1024;
constexpr int64_t MOST_BATCH = 1 << 16;
// Where nobody asks for more.
constexpr int64_t MOST_IN_BATCH = 256;
constexpr int64_t BATCH_ARENA = (int64_t{128} << 20) / static_cast<int64_t>(sizeof(float));
// Numbers of time vectors that are made ahead.
constexpr int64_t TIMES_AHEAD = int64_t{1} << 22;
// No memory is as long.
constexpr int64_t MOST = int64_t{1} << 56;

int64_t product(std::initializer_list<int64_t> numbers) {
  int64_t total = 1;
  for (const int64_t number : numbers)
    if (__builtin_mul_overflow(total, number, &total) || total > MOST) return MOST;
  return total;
}

// Memory of one call, taken from one block once all sizes are known.
class Block {
 public:
  // Floats at an address that is a multiple of 64 bytes; until `allocate`, only their number counts.
  int64_t reserve(int64_t count) {
    const int64_t place = total_;
    total_ = std::min(MOST, total_ + round_up(count, 16));
    return place;
  }
  void allocate(int64_t max_bytes) {
    const int64_t bytes = std::max<int64_t>(64, 4 * total_);
    if (max_bytes > 0 && bytes > max_bytes)
      throw OutOfMemory("sampling takes " + std::to_string(bytes) + " bytes, and max_bytes is " +
                        std::to_string(max_bytes) + ": give a smaller batch");
    data_.reset(static_cast<float*>(total_ < MOST ? std::aligned_alloc(64, static_cast<size_t>(bytes)) : nullptr));
    if (data_ == nullptr)
      throw OutOfMemory("out of memory: sampling takes " + std::to_string(bytes) + " bytes; give a smaller batch");
  }
  float* at(int64_t place) const { return data_.get() + place; }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> data_;
  int64_t total_ = 0;
};

// A plan, and room for batches up to a largest one.
class Prepared {
 public:
  Prepared(const Code& code, ConstFloats weights, int64_t arena, const Ends& ends, int64_t times_width, int64_t threads)
      : code_(code), weights_(weights), arena_(arena), ends_(ends), times_width_(times_width), threads_(threads) {}

  // How a batch is shared out: see Program. Results do not depend on it.
  void lanes(int64_t most, bool few) { lane_samples_ = most, lane_few_ = few; }

  void reserve(Block& block, std::initializer_list<int64_t> batches) {
    int64_t arena = 0;
    for (const int64_t batch : batches) {
      const Share share = shared_out(batch);
      std::vector<Instruction> scaled = code_for(batch);
      arena = std::max(arena, product({arena_, share.in_arena(batch), std::max<int64_t>(1, share.lanes)}));
      scratch_count_ = std::max(
          scratch_count_, scratch_of({scaled.data(), code_.length}, batch, share.part, share.lanes, threads_).total());
    }
    arena_place_ = block.reserve(arena);
    scratch_place_ = block.reserve(scratch_count_);
  }

  // The program for a batch, which lives until the next.
  const Program& program(const Block& block, int64_t batch) {
    if (batch != batch_) {
      const Share share = shared_out(batch);
      instructions_ = code_for(batch);
      const int64_t arena = product({arena_, share.in_arena(batch), std::max<int64_t>(1, share.lanes)});
      program_ = program_of({instructions_.data(), code_.length}, weights_, {block.at(arena_place_), arena},
                            {block.at(scratch_place_), scratch_count_}, batch, share.part, share.lanes, threads_,
                            times_width_);
      // Places are those of the largest part.
      scaled_ends_ = ends_;
      scaled_ends_.input *= share.in_arena(batch);
      scaled_ends_.output *= share.in_arena(batch);
      check_ends(program_, scaled_ends_);
      batch_ = batch;
    }
    return program_;
  }
  const Ends& ends() const { return scaled_ends_; }

 private:
  struct Share {
    int64_t part, lanes;
    int64_t in_arena(int64_t batch) const { return lanes > 0 ? std::min(part, batch) : batch; }
  };

  Share shared_out(int64_t batch) const {
    if (lane_samples_ == 0 || (batch < threads_ && !lane_few_)) return {batch, 0};
    const int64_t part = std::max<int64_t>(1, std::min(lane_samples_, ceil_div(batch, threads_)));
    return {part, std::min(threads_, ceil_div(batch, part))};
  }

  std::vector<Instruction> code_for(int64_t batch) const {
    std::vector<Instruction> scaled(code_.instructions, code_.instructions + code_.length);
    for (Instruction& instruction : scaled) scale_places(instruction, shared_out(batch).in_arena(batch));
    return scaled;
  }

  Code code_;
  ConstFloats weights_;
  int64_t arena_;
  Ends ends_, scaled_ends_ = {};
  int64_t times_width_, threads_;
  int64_t lane_samples_ = 0;
  bool lane_few_ = false;
  int64_t arena_place_ = 0, scratch_count_ = 0, scratch_place_ = 0;
  int64_t batch_ = 0;
  std::vector<Instruction> instructions_;
  Program program_ = {};
};

// init_scale z, in place of the zeros x [batch, pixels, channels].
void draw_first_state(const Model& model, float* x, int64_t batch, const int64_t* sample_ids, uint64_t seed) {
  const FileNumbers& n = model.numbers;
  alignas(64) float row[ROW_WIDTH] = {};
  row[ROW_S] = static_cast<float>(n.init_scale);
  row[ROW_CLIP] = std::numeric_limits<float>::infinity();
  const int64_t zero = 0;
  StepArgs args;
  args.shape = {batch, model.pixels(), n.channels, true};
  args.x = args.out = {x, Dtype::F32, model.image(), n.channels};
  args.history_depth = 0;
  args.noise = {{}, seed, STREAM_INITIAL, sample_ids, &zero, 0};
  args.row = &zero;
  args.row_stride = 0;
  args.rows = row;
  std::memset(x, 0, sizeof(float) * static_cast<size_t>(batch * model.image()));
  launch_step(args);
}

// What is asked for, with the defaults filled in.
struct Request {
  int64_t num, threads, batch;
  std::vector<int64_t> ids, labels;
};

Request checked(const Model& model, int64_t num, const fastdiff_options& o) {
  const FileNumbers& n = model.numbers;
  FD_CHECK(num >= 0 && num <= (int64_t{1} << 40), "num must be 0 to 2^40 images, got ", num);
  FD_CHECK(0 <= o.threads && o.threads <= MOST_THREADS, "threads must be 1 to ", MOST_THREADS,
           ", or 0 for as many as there are processors, got ", o.threads);
  FD_CHECK(0 <= o.batch && o.batch <= MOST_BATCH, "batch must be 1 to ", MOST_BATCH, ", or 0 for as many as fit, got ",
           o.batch);
  FD_CHECK(o.max_bytes >= 0, "max_bytes must be at least 1, or 0 for no limit, got ", o.max_bytes);
  FD_CHECK(o.first_id >= 0 && o.first_id <= std::numeric_limits<int64_t>::max() - num,
           "first_id must be at least 0, and with num count to 2^63 - 1 at most, got ", o.first_id);
  FD_CHECK(o.labels == nullptr || n.classes > 0, "this network has no labels: leave them out");
  Request request;
  request.num = num;
  const auto processors = static_cast<int64_t>(std::thread::hardware_concurrency());
  request.threads = o.threads > 0 ? o.threads : std::clamp<int64_t>(processors, 1, MOST_THREADS);
  const int64_t fit = std::clamp<int64_t>(BATCH_ARENA / n.arena, 1, MOST_IN_BATCH);
  request.batch = std::min(o.batch > 0 ? o.batch : fit, std::max<int64_t>(1, num));
  const auto count = static_cast<size_t>(num);
  request.ids.resize(count);
  for (size_t i = 0; i < count; ++i) {
    request.ids[i] = o.sample_ids != nullptr ? o.sample_ids[i] : o.first_id + static_cast<int64_t>(i);
    FD_CHECK(request.ids[i] >= 0, "sample_ids must not be negative, got ", request.ids[i]);
  }
  if (n.classes == 0) return request;
  request.labels.resize(count);
  for (size_t i = 0; i < count; ++i) {
    const int64_t label = o.labels != nullptr ? o.labels[i] : static_cast<int64_t>(i) % n.classes_in_turn;
    FD_CHECK(0 <= label && label < n.classes, "labels must be in [0, ", n.classes, "), got ", label);
    request.labels[i] = label;
  }
  return request;
}

// One call: its memory, and batch after batch.
class Run {
 public:
  Run(const Model& model, const Request& request, const fastdiff_options& options)
      : model_(model),
        n_(model.numbers),
        request_(request),
        seed_(options.seed),
        network_(model.code, model.weights, n_.arena, model.ends(), n_.time_width, request.threads),
        times_(model.time_code, model.time_weights, n_.time_arena, model.time_ends(), 0, request.threads) {
    const int64_t batch = request.batch, left = request.num % batch;
    network_.lanes(n_.lane_samples, n_.lane_few != 0);
    network_.reserve(block_, {batch, left > 0 ? left : batch});
    window_ = std::clamp<int64_t>(TIMES_AHEAD / product({n_.time_width, vectors(batch)}), 1, n_.rows);
    const int64_t last = n_.rows % window_;
    times_.reserve(block_, {window_ * vectors(batch), (last > 0 ? last : window_) * vectors(batch),
                            window_ * vectors(left > 0 ? left : batch),
                            (last > 0 ? last : window_) * vectors(left > 0 ? left : batch)});
    const int64_t state = product({batch, model.image()});
    x_ = block_.reserve(state);
    output_ = block_.reserve(product({batch, model.pixels(), n_.channels_out}));
    base_ = block_.reserve(n_.uses_base ? state : 0);
    history_ = block_.reserve(product({n_.history_depth, state}));
    embedded_ = block_.reserve(product({window_, vectors(batch), n_.classes > 0 ? n_.embedding : 0}));
    vectors_ = block_.reserve(product({window_, vectors(batch), n_.time_width}));
    block_.allocate(options.max_bytes);
    numbers_.resize(static_cast<size_t>(n_.rows));
    for (int64_t r = 0; r < n_.rows; ++r) numbers_[static_cast<size_t>(r)] = r;
  }

  void batch(int64_t first, float* images) {
    const int64_t count = std::min(request_.batch, request_.num - first), size = model_.image();
    const int64_t* ids = request_.ids.data() + first;
    float* x = block_.at(x_);
    draw_first_state(model_, x, count, ids, seed_);
    // What no row has written shows as NaN.
    const float nan = std::numeric_limits<float>::quiet_NaN();
    if (n_.uses_base) std::fill_n(block_.at(base_), count * size, nan);
    std::fill_n(block_.at(history_), n_.history_depth * count * size, nan);
    const int64_t per_row = vectors(count);
    for (int64_t row = 0; row < n_.rows; row += window_) {
      const int64_t end = std::min(n_.rows, row + window_);
      make_times(row, end, first, per_row);
      const Program& program = network_.program(block_, count);
      run_rows(program, network_.ends(),
               {.x = x,
                .model_output = block_.at(output_),
                .base = n_.uses_base ? block_.at(base_) : nullptr,
                .pred_out = nullptr,
                .history = n_.history_depth > 0 ? block_.at(history_) : nullptr,
                .history_depth = n_.history_depth,
                .history_stride = count * size,
                .pixels = model_.pixels(),
                .channels = n_.channels,
                .channels_out = n_.channels_out,
                .learned_variance = n_.learned_variance != 0,
                .table = model_.table,
                .numbers = numbers_.data(),
                .first = row,
                .last = end,
                .times = block_.at(vectors_),
                .first_time = row,
                .times_row = per_row * n_.time_width,
                .times_stride = n_.classes > 0 ? n_.time_width : 0,
                .sample_ids = ids,
                .seed = seed_});
    }
    for (int64_t sample = 0; sample < count; ++sample, images += size)
      for (int64_t pixel = 0; pixel < model_.pixels(); ++pixel)
        for (int64_t c = 0; c < n_.channels; ++c)
          images[c * model_.pixels() + pixel] = x[sample * size + pixel * n_.channels + c];
  }

 private:
  // Time vectors of a row: one, or one for each sample where labels differ.
  int64_t vectors(int64_t batch) const { return n_.classes > 0 ? batch : 1; }

  // Those of rows [first_row, last_row) for samples from first_sample on.
  void make_times(int64_t first_row, int64_t last_row, int64_t first_sample, int64_t per_row) {
    const float* from = model_.embedded + first_row * n_.embedding;
    if (n_.classes > 0) {
      float* sum = block_.at(embedded_);
      for (int64_t r = 0; r < last_row - first_row; ++r)
        for (int64_t i = 0; i < per_row; ++i) {
          const int64_t label = request_.labels[static_cast<size_t>(first_sample + i)];
          for (int64_t k = 0; k < n_.embedding; ++k)
            *sum++ = from[r * n_.embedding + k] + model_.labels[label * n_.embedding + k];
        }
      from = block_.at(embedded_);
    }
    const Program& program = times_.program(block_, (last_row - first_row) * per_row);
    evaluate(program, times_.ends(), from, 1.0f, nullptr, 0, block_.at(vectors_));
  }

  const Model& model_;
  const FileNumbers& n_;
  const Request& request_;
  uint64_t seed_;
  Block block_;
  Prepared network_, times_;
  int64_t window_ = 0;
  int64_t x_ = 0, output_ = 0, base_ = 0, history_ = 0, embedded_ = 0, vectors_ = 0;
  std::vector<int64_t> numbers_;
};

}  // namespace

void sample(const Model& model, int64_t num, const fastdiff_options& options, float* images) {
  const Request request = checked(model, num, options);
  if (num == 0) return;
  FD_CHECK(images != nullptr, "images must be room for ", num, " images, got NULL");
  Run run(model, request, options);
  std::unique_ptr<Pool> pool;
  try {
    pool = std::make_unique<Pool>(request.threads);
  } catch (const std::system_error& error) {
    throw OutOfMemory("the system gives no " + std::to_string(request.threads) + " threads: " + error.what());
  }
  const Pool::Use use(*pool);
  for (int64_t first = 0; first < num; first += request.batch) run.batch(first, images + first * model.image());
}

}  // namespace fastdiff
