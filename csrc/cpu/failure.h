// How a check fails: with a std::runtime_error. Launchers only: not for the kernels' own files.
#pragma once

#include <sstream>
#include <stdexcept>

namespace fastdiff {

// The parts of the message, one behind the other.
template <typename... Parts> [[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace fastdiff

#define FD_CHECK(condition, ...)                     \
  do {                                               \
    if (!(condition)) ::fastdiff::fail(__VA_ARGS__); \
  } while (false)
