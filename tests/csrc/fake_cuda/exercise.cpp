// Runs loops over the fake runtime, with each of its calls failing in turn, for AddressSanitizer to watch: nothing may
// leak, be freed twice or be used afterwards. Prints how many failures it went through.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "fake_runtime.h"
#include "loop.h"
#include "row_layout.h"

namespace {

using namespace fastdiff;

constexpr int64_t ROWS = 5;

struct Run {
  int64_t control[LOOP_CONTROL_WIDTH] = {};
  float rows[ROWS * ROW_WIDTH] = {};
  uint8_t evaluates[ROWS] = {1, 0, 1, 1, 0};
  std::vector<int64_t> networks, steps;
  void *network = fake_graph_new(), *step = fake_graph_new();
  char message[256] = "";
  int64_t pasted = 0, copied = 3;

  Run() {
    for (int64_t i = 0; i < ROWS; ++i) rows[i * ROW_WIDTH + ROW_EVALUATE] = evaluates[i];
    fake_register(&pasted, sizeof pasted);
    fake_register(&copied, sizeof copied);
    fake_add_kernel(
        network,
        [](void* run) { static_cast<Run*>(run)->networks.push_back(static_cast<Run*>(run)->control[LOOP_ROW]); }, this,
        0, 0);
    void* const inner = fake_graph_new();
    fake_add_kernel(
        inner, [](void* run) { static_cast<Run*>(run)->steps.push_back(static_cast<Run*>(run)->control[LOOP_ROW]); },
        this, 1, 0);
    fake_add_child(step, inner);
    fake_add_copy(step, &pasted, &copied, sizeof copied, 0);
    fake_graph_free(inner);
  }
  ~Run() {
    fake_graph_free(network);
    fake_graph_free(step);
  }
};

void demand(bool holds, const char* what, const Run& run) {
  if (holds) return;
  std::fprintf(stderr, "%s: failed call %s, message %s, violation %s\n", what, fake_failed(), run.message,
               fake_violation());
  std::exit(1);
}

// Whether all of it succeeded; else `message` says what did not.
bool exercise(Run& run, LoopMode mode) {
  LoopOptions options = {};
  options.mode = mode;
  options.control = reinterpret_cast<int64_t>(run.control);
  options.rows = reinterpret_cast<int64_t>(run.rows);
  options.network = reinterpret_cast<int64_t>(run.network);
  options.step = reinterpret_cast<int64_t>(run.step);
  options.last = ROWS;
  options.evaluates = reinterpret_cast<int64_t>(run.evaluates);
  void* loop = nullptr;
  if (fd_loop_build(&options, &loop, run.message, sizeof run.message) != 0) return false;
  const int64_t cut = mode == LOOP_UNROLLED ? 0 : 2;
  bool good = true;
  for (const auto& [first, last] : {std::pair{int64_t{0}, cut}, std::pair{cut, ROWS}}) {
    if (first == last) continue;
    int64_t finished = 0;
    good = good &&
           fd_loop_launch(loop, first, last, ROWS, 7, 0, run.evaluates + first, run.message, sizeof run.message) == 0;
    while (good && finished == 0) good = fd_loop_wait(loop, 0.01, &finished, run.message, sizeof run.message) == 0;
  }
  char last_message[sizeof run.message];
  const bool destroyed = fd_loop_destroy(loop, last_message, sizeof last_message) == 0;
  if (good && !destroyed) std::memcpy(run.message, last_message, sizeof last_message);
  return good && destroyed;
}

void check_clean(const Run& run) {
  for (const char* what : {"graphs", "execs", "events", "host"}) demand(fake_live(what) == 0, what, run);
  demand(std::string(fake_violation()).empty(), "violation", run);
}

}  // namespace

int main() {
  int64_t failures = 0;
  for (const LoopMode mode : {LOOP_WHILE, LOOP_REPLAY, LOOP_UNROLLED}) {
    for (int64_t nth = 0;; ++nth) {
      fake_reset();
      fake_set("threads", nth % 2);
      Run run;
      fake_fail(nullptr, nth, cudaErrorMemoryAllocation);
      const bool good = exercise(run, mode);
      const std::string failed = fake_failed();
      check_clean(run);
      if (failed.empty()) {
        demand(good, "a run without failures", run);
        demand(run.networks == std::vector<int64_t>{0, 2, 3}, "rows of the network", run);
        demand(run.steps == std::vector<int64_t>{0, 1, 2, 3, 4}, "rows of the step", run);
        break;
      }
      demand(!good && std::string(run.message).find(failed + ": out of memory") == 0, "the message", run);
      ++failures;
    }
  }
  fake_reset();
  std::printf("%lld failures\n", static_cast<long long>(failures));
  return 0;
}
