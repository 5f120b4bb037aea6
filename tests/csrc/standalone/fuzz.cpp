// Opens altered copies of an exported model and samples from those that open: fuzz FILE COUNT SEED. Each is refused in
// words or runs; a crash ends the program, or a sanitizer does.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <vector>

#include "checksum.h"
#include "fastdiff.h"
#include "file_layout.h"

namespace {

using fastdiff::FileHeader;
using fastdiff::FileSection;
using Bytes = std::vector<uint8_t>;

std::mt19937_64 random_words;

uint64_t below(uint64_t count) { return random_words() % count; }

// A number that is likely to find the edge of a check.
uint64_t odd_number(uint64_t old) {
  switch (below(8)) {
    case 0: return old + 1;
    case 1: return old - 1;
    case 2: return 0 - old;
    case 3: return old * 2;
    case 4: return below(64);
    case 5: return uint64_t{1} << below(64);
    case 6: return ~uint64_t{0} >> below(64);
    default: return random_words();
  }
}

template <typename T> void alter(Bytes& file, size_t place) {
  T value;
  std::memcpy(&value, file.data() + place, sizeof value);
  value = static_cast<T>(odd_number(value));
  std::memcpy(file.data() + place, &value, sizeof value);
}

std::vector<FileSection> sections_of(const Bytes& file) {
  FileHeader header;
  if (file.size() < sizeof header) return {};
  std::memcpy(&header, file.data(), sizeof header);
  if (header.num_sections > 64 || file.size() < sizeof header + header.num_sections * sizeof(FileSection)) return {};
  std::vector<FileSection> sections(header.num_sections);
  if (!sections.empty())
    std::memcpy(sections.data(), file.data() + sizeof header, sections.size() * sizeof(FileSection));
  return sections;
}

// A number somewhere in a section, the small ones as likely as the large.
void alter_section(Bytes& file) {
  const std::vector<FileSection> sections = sections_of(file);
  if (sections.empty()) return;
  const FileSection& chosen = sections[below(sections.size())];
  if (chosen.size < 8 || chosen.offset > file.size() || chosen.size > file.size() - chosen.offset) return;
  const bool whole = chosen.kind == fastdiff::FILE_NUMBERS || chosen.kind == fastdiff::FILE_CODE ||
                     chosen.kind == fastdiff::FILE_TIME_CODE;
  if (whole)
    alter<uint64_t>(file, chosen.offset + 8 * below(chosen.size / 8));
  else
    alter<uint32_t>(file, chosen.offset + 4 * below(chosen.size / 4));
}

void alter_somehow(Bytes& file) {
  const size_t head = std::min<size_t>(file.size(), sizeof(FileHeader) + fastdiff::FILE_KINDS * sizeof(FileSection));
  switch (below(12)) {
    case 0: file.resize(below(file.size() + 1)); break;
    case 1: file.resize(file.size() + below(256)); break;
    case 2:
      if (!file.empty()) file[below(file.size())] ^= static_cast<uint8_t>(1 << below(8));
      break;
    case 3:
      if (head >= 8) alter<uint64_t>(file, 8 * below(head / 8));
      break;
    case 4:
      if (head >= 4) alter<uint32_t>(file, 4 * below(head / 4));
      break;
    default: alter_section(file);
  }
}

// The checksums and the size that the contents have now, so that the checks behind those are reached.
void make_right(Bytes& file) {
  FileHeader header;
  std::vector<FileSection> sections = sections_of(file);
  if (sections.empty()) return;
  std::memcpy(&header, file.data(), sizeof header);
  for (FileSection& section : sections)
    if (section.offset <= file.size() && section.size <= file.size() - section.offset)
      section.crc = fastdiff::crc32(file.data() + section.offset, section.size);
  header.size = file.size();
  header.crc = 0;
  const size_t length = sections.size() * sizeof(FileSection);
  header.crc = fastdiff::crc32(sections.data(), length, fastdiff::crc32(&header, sizeof header));
  std::memcpy(file.data(), &header, sizeof header);
  std::memcpy(file.data() + sizeof header, sections.data(), length);
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Whether the file opens and runs. All of its bytes and no more are in a block of their own.
bool runs(const Bytes& file) {
  void* block = nullptr;
  if (posix_memalign(&block, 64, std::max<size_t>(1, file.size())) != 0) std::abort();
  const std::unique_ptr<void, Free> owner(block);
  std::memcpy(block, file.data(), file.size());
  fastdiff_model* opened = nullptr;
  if (fastdiff_open_memory(block, file.size(), &opened) != FASTDIFF_OK) return false;
  const std::unique_ptr<fastdiff_model, void (*)(fastdiff_model*)> model(opened, fastdiff_close);
  fastdiff_info info;
  if (fastdiff_describe(opened, &info) != FASTDIFF_OK) std::abort();
  constexpr int64_t NUM = 3, MOST = 1 << 22;
  const int64_t size = info.channels * info.height * info.width;
  if (size > MOST || info.rows > 1000) return true;
  std::vector<float> images(static_cast<size_t>(NUM * size));
  fastdiff_options options = {};
  options.seed = random_words();
  options.threads = static_cast<int32_t>(1 + below(3));
  options.batch = static_cast<int64_t>(below(3));
  options.max_bytes = MOST;
  return fastdiff_sample(opened, NUM, &options, images.data()) == FASTDIFF_OK;
}

}  // namespace

int main(int count, char** words) {
  if (count != 4) return 2;
  std::ifstream stream(words[1], std::ios::binary);
  const Bytes file{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  const long long times = std::atoll(words[2]), seed = std::atoll(words[3]);
  if (!runs(file)) {
    std::fprintf(stderr, "the file itself: %s\n", fastdiff_error());
    return 1;
  }
  long long ran = 0;
  for (long long n = 0; n < times; ++n) {
    random_words.seed(static_cast<uint64_t>(seed + n));
    Bytes altered = file;
    for (uint64_t k = 0, changes = 1 + below(3); k < changes; ++k) alter_somehow(altered);
    if (below(8) > 0) make_right(altered);
    const bool ran_this = runs(altered);
    ran += ran_this;
    if (!ran_this && *fastdiff_error() == '\0') {
      std::fprintf(stderr, "file %lld was refused without a word\n", n);
      return 1;
    }
  }
  std::printf("%lld of %lld ran\n", ran, times);
  return 0;
}
