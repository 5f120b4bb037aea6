// CRC-32, as zlib, gzip and PNG have it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastdiff {

// Of bytes that follow those of which `crc` is the checksum.
uint32_t crc32(const void* data, size_t size, uint32_t crc = 0);

}  // namespace fastdiff
