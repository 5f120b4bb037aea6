#include "running.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "captured.h"
#include "failure.h"

namespace fastdiff {

namespace {

using Clock = std::chrono::steady_clock;

// Driver 550.
constexpr int64_t FIRST_WITH_LOOPS = 12040;
// Rows queued ahead of the GPU where they are replayed: enough to keep it busy between two looks, few enough to stop.
constexpr int64_t ROWS_AHEAD = 32;
// Between two looks at the end of a launch; the first few follow each other at once, for stretches of a row.
constexpr auto FIRST_LOOKS = std::chrono::microseconds(100);
constexpr auto PAUSE = std::chrono::microseconds(50);

template <typename T>
T pointer(int64_t address) {
  return reinterpret_cast<T>(static_cast<intptr_t>(address));
}

void require(bool holds, const std::string& message) {
  if (!holds) throw Failure(LOOP_MISUSED, message);
}

std::string range_of(int64_t first, int64_t last) {
  return "[" + std::to_string(first) + ", " + std::to_string(last) + ")";
}

std::string version_of(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

void check_driver() {
  int driver = 0;
  FD_CUDA(cudaDriverGetVersion, &driver);
  if (driver < FIRST_WITH_LOOPS)
    throw Failure(LOOP_UNSUPPORTED, "a loop within a graph needs a driver for CUDA 12.4 or later, got one for CUDA " +
                                        version_of(driver) + ": replay the rows, or update the driver");
}

}  // namespace

Loop::Loop(const LoopOptions& options) : mode_(options.mode), device_(static_cast<int>(options.device)) {
  require(0 <= mode_ && mode_ < LOOP_MODES, "the mode of a loop must be one of LoopMode");
  require(options.control != 0 && options.step != 0, "a loop needs a control block and the graph of a step");
  require(options.rows != 0 || options.every_row != 0 || options.network == 0,
          "a loop whose rows say whether they evaluate the network needs the rows");
  require(mode_ != LOOP_UNROLLED || (0 <= options.first && options.first < options.last &&
                                     (options.evaluates != 0 || options.every_row != 0 || options.network == 0)),
          "an unrolled loop needs its rows, and which of them evaluate the network");
  const OnDevice on_device(device_);
  if (mode_ == LOOP_WHILE) check_driver();
  build(options);
}

void Loop::build(const LoopOptions& options) {
  const auto network = pointer<cudaGraph_t>(options.network), step = pointer<cudaGraph_t>(options.step);
  if (network != nullptr) check_captured("the network's graph", network, device_);
  check_captured("the step's graph", step, device_);

  FD_CUDA(cudaHostAlloc, memory_.place(), LOOP_SHARED_WIDTH * sizeof(int64_t),
          cudaHostAllocMapped | cudaHostAllocPortable);
  shared_ = static_cast<volatile int64_t*>(memory_.get());
  for (int64_t i = 0; i < LOOP_SHARED_WIDTH; ++i) shared_[i] = 0;
  shared_[LOOP_BAD_ROW] = -1;
  void* seen = nullptr;
  FD_CUDA(cudaHostGetDevicePointer, &seen, memory_.get(), 0);
  body_ = {
      {pointer<int64_t*>(options.control), static_cast<volatile int64_t*>(seen), pointer<const float*>(options.rows)},
      network,
      step,
      options.every_row != 0};
  FD_CUDA(cudaEventCreateWithFlags, end_.place(), cudaEventDisableTiming | cudaEventBlockingSync);

  const auto keep = [&](Executable& place, Executable&& made) {
    place = std::move(made);
    FD_CUDA(cudaGraphUpload, place.exec.get(), pointer<cudaStream_t>(options.stream));
  };
  switch (mode_) {
    case LOOP_WHILE: keep(loop_, while_graph(body_)); break;
    case LOOP_REPLAY:
      keep(loop_, row_graph(body_, true));
      if (network != nullptr && !body_.every_row) keep(short_row_, row_graph(body_, false));
      break;
    default:
      unrolled_first_ = options.first;
      unrolled_last_ = options.last;
      keep(loop_, unrolled_graph(body_, pointer<const uint8_t*>(options.evaluates), options.last - options.first));
  }
}

void Loop::launch(int64_t first, int64_t last, int64_t num_rows, int64_t seed, cudaStream_t stream,
                  const uint8_t* evaluates) {
  require(0 <= first && first <= last && last <= num_rows,
          "rows must be in [0, " + std::to_string(num_rows) + "), got " + range_of(first, last));
  require(mode_ != LOOP_UNROLLED || (first == unrolled_first_ && last == unrolled_last_),
          "this loop was unrolled for rows " + range_of(unrolled_first_, unrolled_last_) + ", got " +
              range_of(first, last));
  const OnDevice on_device(device_);
  require(!running_ || ended(), "the loop is still running: wait for its end before it is launched again");
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  FD_CUDA(cudaStreamIsCapturing, stream, &capture);
  require(capture == cudaStreamCaptureStatusNone,
          "the stream is being captured, and a loop cannot be part of another graph: launch it outside of the capture");
  shared_[LOOP_DONE] = first;
  shared_[LOOP_BAD_ROW] = -1;
  shared_[LOOP_WORD_FIRST] = first;
  shared_[LOOP_WORD_LAST] = last;
  shared_[LOOP_WORD_NUM_ROWS] = num_rows;
  shared_[LOOP_WORD_SEED] = seed;
  stream_ = stream;
  first_ = next_ = first;
  last_ = last;
  if (mode_ == LOOP_REPLAY) evaluates_.assign(evaluates, evaluates + (evaluates == nullptr ? 0 : last - first));
  running_ = true;
  or_abandon([&] {
    if (mode_ == LOOP_REPLAY) {
      launch_begin(body_.memory, stream_);
      FD_CUDA(cudaEventRecord, end_.get(), stream_);
      queue_rows();
    } else {
      FD_CUDA(cudaGraphLaunch, loop_.exec.get(), stream_);
      FD_CUDA(cudaEventRecord, end_.get(), stream_);
    }
  });
}

// What was queued before a failure has no event behind it: it is waited for at once.
template <typename F>
void Loop::or_abandon(const F& work) {
  try {
    work();
  } catch (...) {
    ask(ENDING, true);
    cudaStreamSynchronize(stream_);
    cudaGetLastError();
    ask(ENDING, false);
    running_ = false;
    throw;
  }
}

void Loop::queue_rows() {
  if (shared_[LOOP_WORD_STOP] != 0 || bad_row() >= 0) last_ = next_;
  const int64_t until = std::min(last_, done() + ROWS_AHEAD);
  if (next_ >= until) return;
  for (; next_ < until; ++next_) {
    const bool is_short = !evaluates_.empty() && evaluates_[next_ - first_] == 0 && short_row_.exec.get() != nullptr;
    FD_CUDA(cudaGraphLaunch, (is_short ? short_row_ : loop_).exec.get(), stream_);
  }
  FD_CUDA(cudaEventRecord, end_.get(), stream_);
}

bool Loop::ended() {
  if (mode_ == LOOP_REPLAY) or_abandon([&] { queue_rows(); });
  const cudaError_t status = cudaEventQuery(end_.get());
  if (status == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  check(status, "cudaEventQuery");
  if (mode_ == LOOP_REPLAY && next_ < last_) return false;
  running_ = false;
  return true;
}

void Loop::ask(int64_t bit, bool wanted) {
  if (wanted)
    __atomic_fetch_or(&shared_[LOOP_WORD_STOP], bit, __ATOMIC_SEQ_CST);
  else
    __atomic_fetch_and(&shared_[LOOP_WORD_STOP], ~bit, __ATOMIC_SEQ_CST);
}

bool Loop::wait(double seconds) {
  if (!running_) return true;
  const OnDevice on_device(device_);
  const auto began = Clock::now();
  const auto deadline = began + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  for (;;) {
    if (ended()) return true;
    const auto now = Clock::now();
    if (now >= deadline) return false;
    if (now - began < FIRST_LOOKS)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(std::min<Clock::duration>(PAUSE, deadline - now));
  }
}

void Loop::finish() {
  if (!running_) return;
  const OnDevice on_device(device_);
  ask(ENDING, true);
  const cudaError_t status = cudaEventSynchronize(end_.get());
  ask(ENDING, false);
  running_ = false;
  check(status, "cudaEventSynchronize");
}

void Loop::release() {
  // What fails is told at the end, the first of it.
  std::optional<Failure> failure;
  const auto note = [&](cudaError_t status, const char* call) {
    try {
      check(status, call);
    } catch (const Failure& caught) {
      if (!failure) failure.emplace(caught);
    }
  };
  std::optional<OnDevice> on_device;
  try {
    on_device.emplace(device_);
  } catch (const Failure& caught) {
    failure.emplace(caught);
  }
  if (running_) {
    ask(ENDING, true);
    running_ = false;
    note(cudaEventSynchronize(end_.get()), "cudaEventSynchronize");
  }
  for (Executable* executable : {&loop_, &short_row_}) {
    note(executable->exec.release(), "cudaGraphExecDestroy");
    note(executable->graph.release(), "cudaGraphDestroy");
  }
  note(end_.release(), "cudaEventDestroy");
  note(memory_.release(), "cudaFreeHost");
  if (failure) throw *failure;
}

}  // namespace fastdiff
