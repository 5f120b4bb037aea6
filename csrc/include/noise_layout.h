// Constants of the noise contract; noise.py states it.
#pragma once

#include <cstdint>

namespace fastdiff {

constexpr uint32_t PHILOX_M0 = 0xD2511F53u, PHILOX_M1 = 0xCD9E8D57u;
constexpr uint32_t PHILOX_W0 = 0x9E3779B9u, PHILOX_W1 = 0xBB67AE85u;
constexpr int PHILOX_ROUNDS = 10;
constexpr int STREAM_SHIFT = 28;
constexpr int STREAM_SAMPLING = 0;
constexpr int STREAM_INITIAL = 1;

}  // namespace fastdiff
