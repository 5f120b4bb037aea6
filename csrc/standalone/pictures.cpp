// PNG, whose pixels are stored and not compressed, and NumPy's format.
#include "pictures.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include <string>
#include <utility>
#include <vector>

#include "checksum.h"
#include "failure.h"

namespace fastdiff {

namespace {

using Bytes = std::vector<uint8_t>;

// Under another name first, so that a reader never sees half of a file.
void write_whole(const std::string& path, const std::vector<std::pair<const void*, size_t>>& parts) {
  const std::string partial = path + ".partial";
  std::FILE* file = std::fopen(partial.c_str(), "wb");
  FD_CHECK(file != nullptr, path, ": ", std::strerror(errno));
  bool written = true;
  for (const auto& [data, size] : parts) written = written && std::fwrite(data, 1, size, file) == size;
  int error = errno;
  if (std::fclose(file) != 0) {
    error = errno;
    written = false;
  }
  if (written && std::rename(partial.c_str(), path.c_str()) != 0) {
    error = errno;
    written = false;
  }
  if (!written) std::remove(partial.c_str());
  FD_CHECK(written, path, ": ", std::strerror(error));
}

void append(Bytes& bytes, uint32_t word) {
  for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<uint8_t>(word >> shift));
}

void append_chunk(Bytes& png, const char* kind, const Bytes& contents) {
  append(png, static_cast<uint32_t>(contents.size()));
  const size_t start = png.size();
  png.insert(png.end(), kind, kind + 4);
  png.insert(png.end(), contents.begin(), contents.end());
  append(png, crc32(png.data() + start, png.size() - start));
}

uint32_t adler32(const Bytes& bytes) {
  uint32_t a = 1, b = 0;
  for (const uint8_t byte : bytes) {
    a = (a + byte) % 65521;
    b = (b + a) % 65521;
  }
  return b << 16 | a;
}

// zlib's format around stored blocks.
Bytes stored(const Bytes& raw) {
  constexpr size_t MOST = 65535;
  Bytes stream = {0x78, 0x01};
  size_t first = 0;
  do {
    const size_t count = std::min(MOST, raw.size() - first);
    stream.push_back(first + count == raw.size());
    for (const size_t number : {count, ~count})
      for (int shift = 0; shift <= 8; shift += 8) stream.push_back(static_cast<uint8_t>(number >> shift));
    stream.insert(stream.end(), raw.begin() + static_cast<int64_t>(first),
                  raw.begin() + static_cast<int64_t>(first + count));
    first += count;
  } while (first < raw.size());
  append(stream, adler32(raw));
  return stream;
}

// RGB [height, width, 3], each row with its filter, none, before it.
struct Canvas {
  int64_t height, width;
  Bytes rows;
  Canvas(int64_t h, int64_t w) : height(h), width(w), rows(static_cast<size_t>(h * (3 * w + 1)), 255) {
    for (int64_t y = 0; y < h; ++y) rows[static_cast<size_t>(y * (3 * w + 1))] = 0;
  }
  uint8_t& at(int64_t y, int64_t x, int64_t c) {
    return rows[static_cast<size_t>(y * (3 * width + 1) + 1 + 3 * x + c)];
  }
};

uint8_t pixel_value(float value) {
  return static_cast<uint8_t>(std::clamp(std::nearbyint((value + 1) * 127.5f), 0.0f, 255.0f));
}

}  // namespace

void write_png(const std::string& path, const Images& images) {
  constexpr int64_t TILE_PIXELS = 64, MOST_PIXELS = int64_t{1} << 30;
  FD_CHECK(images.channels == 1 || images.channels == 3, path,
           ": a PNG holds images of 1 or 3 channels, and these have ", images.channels,
           ": give a name that ends in .npy");
  const int64_t count = images.num * images.channels * images.height * images.width;
  const int64_t bad = std::count_if(images.data, images.data + count, [](float v) { return std::isnan(v); });
  FD_CHECK(bad == 0, path, ": ", bad, " of ", count,
           " values are NaN, which a PNG cannot hold: give a name that ends in .npy");
  const int64_t scale = std::max<int64_t>(1, TILE_PIXELS / std::max(images.height, images.width));
  const int64_t tile_height = images.height * scale, tile_width = images.width * scale;
  const int64_t pad = std::max<int64_t>(2, std::min(tile_height, tile_width) / 16);
  int64_t columns = 1;
  while (columns * columns < images.num) ++columns;
  const int64_t lines = (images.num + columns - 1) / columns;
  FD_CHECK((lines * (tile_height + pad) + pad) * (columns * (tile_width + pad) + pad) <= MOST_PIXELS, path,
           ": too many images for one PNG: give a name that ends in .npy");
  Canvas canvas(lines * (tile_height + pad) + pad, columns * (tile_width + pad) + pad);
  for (int64_t n = 0; n < images.num; ++n)
    for (int64_t y = 0; y < tile_height; ++y)
      for (int64_t x = 0; x < tile_width; ++x)
        for (int64_t c = 0; c < 3; ++c) {
          const int64_t channel = n * images.channels + (images.channels == 3 ? c : 0);
          const float value = images.data[(channel * images.height + y / scale) * images.width + x / scale];
          canvas.at(pad + n / columns * (tile_height + pad) + y, pad + n % columns * (tile_width + pad) + x, c) =
              pixel_value(value);
        }
  Bytes png = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'}, header;
  append(header, static_cast<uint32_t>(canvas.width));
  append(header, static_cast<uint32_t>(canvas.height));
  // 8 bits, RGB, the only compression and filtering, not interlaced.
  header.insert(header.end(), {8, 2, 0, 0, 0});
  append_chunk(png, "IHDR", header);
  append_chunk(png, "IDAT", stored(canvas.rows));
  append_chunk(png, "IEND", {});
  write_whole(path, {{png.data(), png.size()}});
}

void write_npy(const std::string& path, const Images& images) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ || __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__);
  constexpr char ORDER = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? '<' : '>';
  std::string about = std::string("{'descr': '") + ORDER + "f4', 'fortran_order': False, 'shape': (" +
                      std::to_string(images.num) + ", " + std::to_string(images.channels) + ", " +
                      std::to_string(images.height) + ", " + std::to_string(images.width) + "), }";
  // The numbers begin at a multiple of 64 bytes; before the text are ten, behind it is the end of the line.
  about.append(64 - (10 + about.size() + 1) % 64, ' ');
  about += '\n';
  std::string header("\x93NUMPY\x01\x00", 8);
  header += static_cast<char>(about.size() & 255);
  header += static_cast<char>(about.size() >> 8);
  header += about;
  const size_t bytes = sizeof(float) * static_cast<size_t>(images.num * images.channels * images.height * images.width);
  write_whole(path, {{header.data(), header.size()}, {images.data, bytes}});
}

}  // namespace fastdiff
