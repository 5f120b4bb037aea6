// Work over all threads. Launchers only, as threads.h.
#pragma once

#include <atomic>
#include <cstdint>

#include "instructions.h"
#include "kernels.h"
#include "threads.h"

namespace fastdiff {

// Calls `work(unit, worker)` for all units; whoever is free takes the next, so results must not depend on who.
template <typename F>
void run_units(int64_t units, int64_t threads, const F& work) {
  const int64_t workers = units < threads ? units : threads;
  std::atomic<int64_t> next{0};
  parallel_for(0, workers, 1, [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; ++worker)
      for (int64_t unit; (unit = next.fetch_add(1)) < units;) work(unit, worker);
  });
}

// All phases of an instruction; `scratch` holds `per_thread` floats for each thread.
inline void run_instruction(Work work, int64_t threads, float* scratch, int64_t per_thread) {
  const auto run = work.i.pairs ? kernels().pairs : kernels().instruction;
  for (; work.phase < num_phases(work.i, work.batch, threads); ++work.phase)
    run_units(num_units(work.i, work.batch, threads, work.phase), threads,
              [&](int64_t unit, int64_t worker) { run(work, threads, unit, scratch + worker * per_thread); });
}

// The same on the calling thread alone.
inline void run_instruction_alone(Work work, float* scratch) {
  const auto run = work.i.pairs ? kernels().pairs : kernels().instruction;
  for (; work.phase < num_phases(work.i, work.batch, 1); ++work.phase)
    for (int64_t unit = 0, units = num_units(work.i, work.batch, 1, work.phase); unit < units; ++unit)
      run(work, 1, unit, scratch);
}

}  // namespace fastdiff
