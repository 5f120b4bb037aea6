// The program fastdiff-run. It leaves with 2 where an option must be given in another way, with 1 where something else
// failed, and says so in a line.
#include <cstddef>
#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "arguments.h"
#include "failure.h"
#include "fastdiff.h"
#include "pictures.h"

namespace {

void check(int status) {
  if (status == FASTDIFF_BAD_ARGUMENT) throw fastdiff::BadOption(fastdiff_error());
  FD_CHECK(status == FASTDIFF_OK, fastdiff_error());
}

// Text of a file, for a terminal.
std::string printable(const char* text) {
  std::string safe(text);
  for (char& c : safe)
    if ((c >= 0 && c < 32 && c != '\n') || c == 127) c = '?';
  return safe;
}

void print_info(const std::string& file, const fastdiff_info& info) {
  std::printf("%s: %lld bytes\n", file.c_str(), static_cast<long long>(info.file_bytes));
  std::printf("images: %lld x %lld, %lld channels", static_cast<long long>(info.height),
              static_cast<long long>(info.width), static_cast<long long>(info.channels));
  if (info.classes > 0) std::printf(", %lld classes", static_cast<long long>(info.classes_in_turn));
  std::printf("\nsampler: %lld rows, %lld evaluations\n", static_cast<long long>(info.rows),
              static_cast<long long>(info.evaluations));
  std::printf("instruction set: %s\n%s\n", info.instruction_set, printable(info.text).c_str());
}

void run(int count, const char* const* words) {
  fastdiff::Arguments given = fastdiff::arguments_of(count, words);
  if (given.help) {
    std::fputs(fastdiff::USAGE, stdout);
    return;
  }
  fastdiff_model* opened = nullptr;
  check(fastdiff_open(given.file.c_str(), &opened));
  const std::unique_ptr<fastdiff_model, void (*)(fastdiff_model*)> model(opened, fastdiff_close);
  fastdiff_info info;
  check(fastdiff_describe(model.get(), &info));
  if (given.info) return print_info(given.file, info);
  const size_t size = static_cast<size_t>(info.channels * info.height * info.width);
  std::vector<int64_t> labels = given.labels;
  if (!labels.empty())
    for (size_t i = labels.size(); i < static_cast<size_t>(given.num); ++i)
      labels.push_back(labels[i - given.labels.size()]);
  std::vector<float> images(static_cast<size_t>(given.num) * size);
  fastdiff_options options = {};
  options.seed = given.seed;
  options.first_id = given.start_id;
  options.sample_ids = given.sample_ids.empty() ? nullptr : given.sample_ids.data();
  options.labels = labels.empty() ? nullptr : labels.data();
  options.threads = static_cast<int32_t>(given.threads);
  options.batch = given.batch;
  check(fastdiff_sample(model.get(), given.num, &options, images.data()));
  const fastdiff::Images written = {images.data(), given.num, info.channels, info.height, info.width};
  if (given.out.ends_with(".png"))
    fastdiff::write_png(given.out, written);
  else
    fastdiff::write_npy(given.out, written);
  std::printf("%lld images: %s\n", static_cast<long long>(given.num), given.out.c_str());
}

}  // namespace

int main(int count, char** words) {
  try {
    run(count, words);
    return 0;
  } catch (const fastdiff::BadOption& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
