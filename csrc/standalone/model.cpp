// How an exported model is read.
#include "model.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "checksum.h"
#include "failure.h"
#include "row.h"
#include "row_layout.h"

namespace fastdiff {

namespace {

// Numbers behind the last that is used, which a vector load may reach.
constexpr int64_t SLACK = 16;
constexpr int64_t MOST_ROWS = int64_t{1} << 24;
constexpr int64_t MOST = int64_t{1} << 40;
constexpr const char* NAMES[FILE_KINDS] = {"",          "numbers",  "text",   "table",        "code",
                                           "time code", "embedded", "labels", "time weights", "weights"};

struct Section {
  const uint8_t* data = nullptr;
  uint64_t size = 0;
};

uint32_t swapped(uint32_t word) { return __builtin_bswap32(word); }

FileHeader read_header(const uint8_t* data, size_t size) {
  FileHeader header;
  FD_CHECK(size >= sizeof header, "it has ", size, " bytes, fewer than the ", sizeof header, " of a header");
  std::memcpy(&header, data, sizeof header);
  FD_CHECK(std::memcmp(header.magic, FILE_MAGIC, sizeof header.magic) == 0,
           "it is no exported model: make one with `fastdiff export`");
  FD_CHECK(header.word_order != swapped(FILE_WORD_ORDER),
           "it was written for machines of the other word order: export it on a machine of this one's");
  FD_CHECK(header.word_order == FILE_WORD_ORDER, "its mark of the word order is damaged");
  FD_CHECK(header.version == FILE_VERSION, "it has version ", header.version, " of the format, and this library reads ",
           FILE_VERSION, ": export it with the fastdiff that the library belongs to");
  FD_CHECK(header.size == size, "it has ", size, " bytes, and its header says ", header.size,
           size < header.size ? ": it was cut off" : ": something was added to it");
  FD_CHECK(header.num_sections < FILE_KINDS && size - sizeof header >= header.num_sections * sizeof(FileSection),
           "its header says that it has ", header.num_sections, " sections, which do not fit");
  return header;
}

// Each kind's section; what is absent has no data.
std::vector<Section> read_sections(const uint8_t* data, size_t size) {
  FileHeader header = read_header(data, size);
  const uint8_t* entries = data + sizeof header;
  const size_t length = header.num_sections * sizeof(FileSection);
  const uint32_t crc = header.crc;
  header.crc = 0;
  FD_CHECK(crc32(entries, length, crc32(&header, sizeof header)) == crc, "its header is damaged: the checksum differs");
  std::vector<Section> sections(FILE_KINDS);
  uint64_t free = sizeof header + length;
  uint32_t last = 0;
  for (uint32_t n = 0; n < header.num_sections; ++n) {
    FileSection entry;
    std::memcpy(&entry, entries + n * sizeof entry, sizeof entry);
    FD_CHECK(last < entry.kind && entry.kind < FILE_KINDS, "its section ", n, " is of kind ", entry.kind,
             ", which is not known or out of turn");
    last = entry.kind;
    FD_CHECK(entry.offset % FILE_ALIGNMENT == 0 && entry.offset >= free && entry.offset <= size &&
                 entry.size <= size - entry.offset,
             "its section ", NAMES[entry.kind], " lies outside of it: ", entry.size, " bytes at ", entry.offset, " of ",
             size);
    free = entry.offset + entry.size;
    FD_CHECK(crc32(data + entry.offset, entry.size) == entry.crc, "its section ", NAMES[entry.kind],
             " is damaged: the checksum differs");
    sections[entry.kind] = {data + entry.offset, entry.size};
  }
  return sections;
}

// Bytes of so many items; sizes are small enough here that nothing overflows.
void check_size(const std::vector<Section>& sections, FileKind kind, uint64_t expected) {
  FD_CHECK(sections[kind].size == expected, "its section ", NAMES[kind], " must have ", expected, " bytes, got ",
           sections[kind].size);
}

FileNumbers read_numbers(const std::vector<Section>& sections) {
  FileNumbers n;
  check_size(sections, FILE_NUMBERS, sizeof n);
  std::memcpy(&n, sections[FILE_NUMBERS].data, sizeof n);
  FD_CHECK(n.plan_width == PLAN_WIDTH && n.row_width == ROW_WIDTH && n.panel == PANEL,
           "its instructions, rows or panels have ", n.plan_width, ", ", n.row_width, " and ", n.panel,
           " numbers, and this library's ", PLAN_WIDTH, ", ", ROW_WIDTH, " and ", PANEL);
  const auto between = [](const char* name, int64_t low, int64_t number, int64_t high) {
    FD_CHECK(low <= number && number <= high, "its ", name, " must be in [", low, ", ", high, "], got ", number);
  };
  between("channels", 1, n.channels, 1 << 16);
  between("height", 1, n.height, 1 << 16);
  between("width", 1, n.width, 1 << 16);
  between("learned_variance", 0, n.learned_variance, 1);
  FD_CHECK(n.channels_out == 2 * n.channels || (n.channels_out == n.channels && n.learned_variance == 0),
           "its network must give ", n.channels, " or ", 2 * n.channels, " channels, got ", n.channels_out);
  between("rows", 1, n.rows, MOST_ROWS);
  between("embedding", 1, n.embedding, 1 << 20);
  between("time_width", 1, n.time_width, 1 << 24);
  between("classes", 0, n.classes, 1 << 24);
  between("classes_in_turn", n.classes > 0 ? 1 : 0, n.classes_in_turn, n.classes);
  between("history_depth", 0, n.history_depth, 3);
  between("uses_base", 0, n.uses_base, 1);
  between("arena", 1, n.arena, MOST);
  between("time_arena", 1, n.time_arena, MOST);
  between("lane_samples", 0, n.lane_samples, MOST);
  between("lane_few", 0, n.lane_few, 1);
  // In float32, as it will be.
  FD_CHECK(std::isfinite(static_cast<float>(n.init_scale)), "the scale of its first state is not finite");
  return n;
}

void check_table(const Model& model) {
  const FileNumbers& n = model.numbers;
  for (int64_t r = 0; r < n.rows; ++r) {
    const float* k = model.table + r * ROW_WIDTH;
    for (int field = 0; field <= ROW_DEPTH; ++field)
      FD_CHECK(std::isfinite(k[field]) || (field == ROW_CLIP && !std::isnan(k[field])), "row ", r,
               " of its table has a number that is not finite");
    FD_CHECK(k[ROW_SLOT] >= 0 && k[ROW_SLOT] <= 3, "row ", r, " of its table uses slot ", k[ROW_SLOT]);
    check_row(k, r, true, n.uses_base != 0, n.history_depth);
  }
}

// Of a plan for one sample.
void check_one(const Code& code, ConstFloats weights, const Ends& ends, int64_t arena, int64_t times_width) {
  check_plan(code, 1, arena, weights.count - SLACK, times_width, ends);
  bool reads = false, writes = false;
  for (int64_t n = 0; n < code.length; ++n) {
    const Instruction& i = code.instructions[n];
    reads = reads || (i.op != PLAN_NORM && i.source == ends.input);
    writes = writes || i.target == ends.output;
  }
  FD_CHECK(reads && writes, "its plan does not read the image, or does not write the result");
}

template <typename T> const T* items(const Section& section) { return reinterpret_cast<const T*>(section.data); }

Code code_of(const std::vector<Section>& sections, FileKind kind) {
  const Section& section = sections[kind];
  FD_CHECK(section.size > 0 && section.size % sizeof(Instruction) == 0, "its section ", NAMES[kind],
           " must have whole instructions of ", sizeof(Instruction), " bytes, got ", section.size);
  return {items<Instruction>(section), static_cast<int64_t>(section.size / sizeof(Instruction))};
}

ConstFloats weights_of(const std::vector<Section>& sections, FileKind kind) {
  const Section& section = sections[kind];
  FD_CHECK(section.size >= SLACK * sizeof(float) && section.size % sizeof(float) == 0, "its section ", NAMES[kind],
           " must have whole numbers of 4 bytes, ", SLACK, " at least, got ", section.size, " bytes");
  return {items<float>(section), static_cast<int64_t>(section.size / sizeof(float))};
}

}  // namespace

Mapping::Mapping(const char* path) {
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  FD_CHECK(file >= 0, std::strerror(errno));
  struct stat about;
  const bool known = fstat(file, &about) == 0;
  const bool regular = known && S_ISREG(about.st_mode);
  if (regular && about.st_size > 0) {
    size_ = static_cast<size_t>(about.st_size);
    data_ = mmap(nullptr, size_, PROT_READ, MAP_SHARED, file, 0);
  }
  const int error = errno;
  close(file);
  FD_CHECK(regular, "it is no file");
  FD_CHECK(size_ > 0, "it is empty");
  if (data_ == MAP_FAILED) {
    data_ = nullptr;
    fail("it cannot be mapped into memory: ", std::strerror(error));
  }
}

Mapping::~Mapping() {
  if (data_ != nullptr) munmap(data_, size_);
}

Model read_model(const void* data, size_t size) {
  const std::vector<Section> sections = read_sections(static_cast<const uint8_t*>(data), size);
  Model model;
  const FileNumbers& n = model.numbers = read_numbers(sections);
  model.bytes = size;
  const Section& text = sections[FILE_TEXT];
  model.text.assign(items<char>(text), text.size);
  const auto rows = static_cast<uint64_t>(n.rows), embedding = static_cast<uint64_t>(n.embedding);
  check_size(sections, FILE_TABLE, rows * ROW_WIDTH * sizeof(float));
  check_size(sections, FILE_EMBEDDED, rows * embedding * sizeof(float));
  check_size(sections, FILE_LABELS, static_cast<uint64_t>(n.classes) * embedding * sizeof(float));
  model.table = items<float>(sections[FILE_TABLE]);
  model.embedded = items<float>(sections[FILE_EMBEDDED]);
  model.labels = items<float>(sections[FILE_LABELS]);
  model.code = code_of(sections, FILE_CODE);
  model.time_code = code_of(sections, FILE_TIME_CODE);
  model.weights = weights_of(sections, FILE_WEIGHTS);
  model.time_weights = weights_of(sections, FILE_TIME_WEIGHTS);
  check_table(model);
  check_one(model.code, model.weights, model.ends(), n.arena, n.time_width);
  check_one(model.time_code, model.time_weights, model.time_ends(), n.time_arena, 0);
  return model;
}

void scale_places(Instruction& instruction, int64_t batch) {
  for (int64_t* place : {&instruction.source, &instruction.source2, &instruction.target, &instruction.residual,
                         &instruction.norm, &instruction.stats, &instruction.stats2})
    if (*place > 0) *place *= batch;
}

}  // namespace fastdiff
