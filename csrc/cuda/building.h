// The loop's graphs: captured rows between kernels of our own.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "loop_rows.h"
#include "owned.h"

namespace fastdiff {

// What a row is made of. `network` may be none, where `step` has it.
struct Body {
  LoopMemory memory;
  cudaGraph_t network, step;
  bool every_row;  // else a row of the table says whether it runs the network
};

// A graph with its executable copy. The graph stays: conditional handles are its own.
struct Executable {
  OwnedGraph graph;
  OwnedExec exec;
};

// begin -> WHILE [body]; one launch runs all rows of the stretch that it is given.
Executable while_graph(const Body& body);
// The body without any condition; a launch runs one row.
Executable row_graph(const Body& body, bool evaluates);
// begin -> body, body, ...; `evaluates` [count] of each.
Executable unrolled_graph(const Body& body, const uint8_t* evaluates, int64_t count);

// Once before the loop, where no graph does it.
void launch_begin(const LoopMemory& memory, cudaStream_t stream);

}  // namespace fastdiff
