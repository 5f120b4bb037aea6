// Threads that share the loops of one call.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace fastdiff {

// A caller and its helpers. Whoever is free takes the next range of a loop, the caller too, so that a thread that lost
// its processor holds up no more than the range it has. Who waits looks for some 50 microseconds, then sleeps.
class Pool {
 public:
  // threads: the caller among them.
  explicit Pool(int64_t threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  void run(int64_t begin, int64_t end, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

  int64_t threads() const { return static_cast<int64_t>(helpers_.size()) + 1; }

  // Runs the loop in the pool that the calling thread uses; false where it uses none.
  static bool run_in_current(int64_t begin, int64_t end, int64_t grain,
                             const std::function<void(int64_t, int64_t)>& body);

  // The pool of the loops that the calling thread starts (`parallel_for`), while it lives.
  class Use {
   public:
    explicit Use(Pool& pool);
    ~Use();
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
  };

 private:
  struct Loop {
    int64_t begin, end, length;
    const std::function<void(int64_t, int64_t)>* body;
  };

  void help();
  void stop();
  bool take_range();

  Loop loop_ = {};
  // Number of the loop, its ranges, and those taken: 32, 16 and 16 bits.
  std::atomic<uint64_t> ticket_{0};
  std::atomic<uint32_t> finished_{0};  // ranges
  std::atomic<uint32_t> epoch_{0};     // raised when there is something new to look at
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> helpers_;
};

}  // namespace fastdiff
