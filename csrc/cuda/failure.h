// Failures of csrc/cuda as exceptions, which loop.h turns into a number and a message.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "loop_layout.h"

#if CUDART_VERSION < 12040
#error "the sampling loop on a GPU needs CUDA 12.4 or later, which has conditional nodes"
#endif

namespace fastdiff {

class Failure : public std::runtime_error {
 public:
  // A LoopFailure or a cudaError_t.
  Failure(int64_t failure, const std::string& message) : std::runtime_error(message), code(failure) {}
  const int64_t code;
};

inline std::string described(cudaError_t status, const char* call) {
  return std::string(call) + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ")";
}

inline void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  // An error that is not taken away would be reported once more, by whoever asks next.
  cudaGetLastError();
  throw Failure(status, described(status, call));
}

// Calls a function of the CUDA runtime; a failure says which.
#define FD_CUDA(function, ...) ::fastdiff::check(function(__VA_ARGS__), #function)

}  // namespace fastdiff
