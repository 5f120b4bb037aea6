// Loops over all threads: PyTorch's in the Python extension (threads.cpp), a pool's in the library without Python
// (csrc/standalone/pool.cpp). Launchers only.
#pragma once

#include <cstdint>
#include <functional>

namespace fastdiff {

// Calls body(first, last) for ranges that make up [begin, end) side by side; all but the last are of `grain` numbers at
// least.
void parallel_for(int64_t begin, int64_t end, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

}  // namespace fastdiff
