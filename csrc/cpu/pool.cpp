// A pool whose loops need no lock.
#include "pool.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <system_error>
#include <thread>

#include "rounding.h"

namespace fastdiff {

namespace {

constexpr int LOOKS = 2000;

thread_local Pool* current = nullptr;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Waits until the number is another; returns it.
uint32_t await_change(const std::atomic<uint32_t>& number, uint32_t known) {
  for (int look = 0; look < LOOKS; ++look) {
    const uint32_t value = number.load(std::memory_order_acquire);
    if (value != known) return value;
    pause();
  }
  number.wait(known, std::memory_order_acquire);
  return number.load(std::memory_order_acquire);
}

}  // namespace

Pool::Pool(int64_t threads) {
  helpers_.reserve(static_cast<size_t>(threads - 1));
  try {
    while (static_cast<int64_t>(helpers_.size()) < threads - 1) helpers_.emplace_back([this] { help(); });
  } catch (const std::system_error&) {
    stop();
    throw;
  }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
  stopping_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& helper : helpers_) helper.join();
  helpers_.clear();
}

void Pool::run(int64_t begin, int64_t end, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  const int64_t total = end - begin, threads = static_cast<int64_t>(helpers_.size()) + 1;
  if (total <= 0) return;
  const int64_t length = std::max(grain, ceil_div(total, threads)), count = ceil_div(total, length);
  if (count == 1) return body(begin, end);
  // Nobody has a range of the last loop any more, so nobody reads this.
  loop_ = {begin, end, length, &body};
  finished_.store(0, std::memory_order_relaxed);
  const uint64_t number = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
  ticket_.store(number << 32 | static_cast<uint64_t>(count) << 16, std::memory_order_release);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  while (take_range()) {
  }
  for (uint32_t done = finished_.load(std::memory_order_acquire); done != static_cast<uint32_t>(count);)
    done = await_change(finished_, done);
}

// Runs a range of the loop; false where none is left. Who has taken one may read the loop, which lives until all ranges
// are finished.
bool Pool::take_range() {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  do {
    if ((ticket & 0xFFFF) >= (ticket >> 16 & 0xFFFF)) return false;
  } while (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_acquire));
  const int64_t first = loop_.begin + static_cast<int64_t>(ticket & 0xFFFF) * loop_.length;
  (*loop_.body)(first, std::min(loop_.end, first + loop_.length));
  finished_.fetch_add(1, std::memory_order_acq_rel);
  finished_.notify_one();
  return true;
}

void Pool::help() {
  uint32_t known = epoch_.load(std::memory_order_acquire);
  while (!stopping_.load(std::memory_order_acquire)) {
    if (!take_range()) known = await_change(epoch_, known);
  }
}

bool Pool::run_in_current(int64_t begin, int64_t end, int64_t grain,
                          const std::function<void(int64_t, int64_t)>& body) {
  Pool* pool = current;
  if (pool == nullptr) return false;
  // A loop within a range would be one thread's.
  current = nullptr;
  pool->run(begin, end, grain, body);
  current = pool;
  return true;
}

Pool::Use::Use(Pool& pool) { current = &pool; }

Pool::Use::~Use() { current = nullptr; }

}  // namespace fastdiff
