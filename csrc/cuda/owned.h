// What the CUDA runtime gives and takes back.
#pragma once

#include <cuda_runtime_api.h>

#include <utility>

#include "failure.h"

namespace fastdiff {

template <typename T, cudaError_t (*RELEASE)(T)>
class Owned {
 public:
  Owned() = default;
  Owned(Owned&& other) noexcept : value_(std::exchange(other.value_, nullptr)) {}
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  Owned& operator=(Owned&& other) noexcept {
    if (this != &other) {
      release();
      value_ = std::exchange(other.value_, nullptr);
    }
    return *this;
  }
  ~Owned() { release(); }

  T get() const { return value_; }
  // For a function that creates it.
  T* place() { return &value_; }
  cudaError_t release() {
    T value = std::exchange(value_, nullptr);
    return value == nullptr ? cudaSuccess : RELEASE(value);
  }

 private:
  T value_ = nullptr;
};

using OwnedGraph = Owned<cudaGraph_t, cudaGraphDestroy>;
using OwnedExec = Owned<cudaGraphExec_t, cudaGraphExecDestroy>;
using OwnedEvent = Owned<cudaEvent_t, cudaEventDestroy>;
using OwnedHostMemory = Owned<void*, cudaFreeHost>;

// The calling thread's device for as long as it lives. PyTorch shares the thread's context and counts on its own.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    FD_CUDA(cudaGetDevice, &before_);
    changed_ = before_ != device;
    if (changed_) FD_CUDA(cudaSetDevice, device);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace fastdiff
