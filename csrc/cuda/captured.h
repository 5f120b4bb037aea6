// Captured graphs that are to become part of the loop's body.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

namespace fastdiff {

// Refuses a graph that the body of a conditional node does not take, or that is empty, by the place and type of the
// node: cudaGraphInstantiate would say "invalid argument" and no more. `name` begins the sentence.
void check_captured(const std::string& name, cudaGraph_t graph, int device);

// In words.
const char* name_of(cudaGraphNodeType type);

}  // namespace fastdiff
