// A loop that was built: launched, watched, stopped.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "building.h"
#include "owned.h"

namespace fastdiff {

class Loop {
 public:
  explicit Loop(const LoopOptions& options);

  void launch(int64_t first, int64_t last, int64_t num_rows, int64_t seed, cudaStream_t stream,
              const uint8_t* evaluates);
  // Whether the launch has ended, after `seconds` at most.
  bool wait(double seconds);
  void finish();
  // Releases everything, also what comes behind a failure.
  void release();

  int64_t done() const { return shared_[LOOP_DONE]; }
  int64_t bad_row() const { return shared_[LOOP_BAD_ROW]; }
  void stop(bool wanted) { ask(REQUESTED, wanted); }

 private:
  // Who asks the rows to stop: a caller until further notice, or what waits for their end.
  static constexpr int64_t REQUESTED = 1, ENDING = 2;
  void ask(int64_t bit, bool wanted);
  void build(const LoopOptions& options);
  template <typename F>
  void or_abandon(const F& work);
  void queue_rows();
  bool ended();

  const int64_t mode_;
  const int device_;
  OwnedHostMemory memory_;
  volatile int64_t* shared_ = nullptr;  // [LOOP_SHARED_WIDTH], as the host sees it
  Body body_ = {};
  OwnedEvent end_;
  Executable loop_;
  Executable short_row_;  // replay: without the network
  int64_t unrolled_first_ = 0, unrolled_last_ = 0;

  bool running_ = false;
  cudaStream_t stream_ = nullptr;
  int64_t next_ = 0, first_ = 0, last_ = 0;  // replay: queued next
  std::vector<uint8_t> evaluates_;           // replay: [last - first]
};

}  // namespace fastdiff
