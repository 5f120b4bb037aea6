// How the command line is read.
#include "arguments.h"

#include <charconv>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace fastdiff {

const char USAGE[] =
    "Usage: fastdiff-run FILE [OPTIONS]\n"
    "\n"
    "Samples images from a model that `fastdiff export` wrote.\n"
    "\n"
    "  -n, --num N          How many images; 16 if left out, or one per sample id.\n"
    "  -o, --out FILE       A grid (.png) or float32 NCHW (.npy); samples.png if left out.\n"
    "  --seed N             Sample i of a seed is the same image in any batch; 0 if left out.\n"
    "  --start-id N         Number of the first sample; 0 if left out.\n"
    "  --sample-ids N,N,... Numbers of the samples, one image each.\n"
    "  --label N,N,...      For networks with classes: numbers, taken in turn; all in turn if left out.\n"
    "  --batch-size N       Images at a time; changes nothing but speed and memory.\n"
    "  --threads N          As many as there are processors, if left out.\n"
    "  --info               Say what the file holds, and leave.\n"
    "  -h, --help           Show this, and leave.\n";

namespace {

constexpr int64_t LAST = std::numeric_limits<int64_t>::max();

template <typename T> T number_of(const std::string& option, std::string_view text, T low, T high) {
  T value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < low || value > high)
    throw BadOption(option + " must be a whole number from " + std::to_string(low) + " to " + std::to_string(high) +
                    ", got '" + std::string(text) + "'");
  return value;
}

std::vector<int64_t> numbers_of(const std::string& option, std::string_view text) {
  std::vector<int64_t> numbers;
  for (;;) {
    const size_t comma = text.find(',');
    numbers.push_back(number_of<int64_t>(option, text.substr(0, comma), 0, LAST));
    if (comma == std::string_view::npos) return numbers;
    text.remove_prefix(comma + 1);
  }
}

bool ends_in(std::string_view text, std::string_view suffix) {
  return text.size() > suffix.size() && text.substr(text.size() - suffix.size()) == suffix;
}

}  // namespace

Arguments arguments_of(int count, const char* const* words) {
  Arguments given;
  bool num_given = false, start_given = false;
  for (int n = 1; n < count; ++n) {
    std::string_view word = words[n];
    if (word.size() < 2 || word[0] != '-') {
      if (!given.file.empty())
        throw BadOption("one file is expected, got '" + given.file + "' and '" + std::string(word) + "'");
      given.file = word;
      continue;
    }
    const size_t equals = word.substr(0, 2) == "--" ? word.find('=') : std::string_view::npos;
    const std::string option(word.substr(0, equals));
    const auto value = [&]() -> std::string_view {
      if (equals != std::string_view::npos) return word.substr(equals + 1);
      if (n + 1 == count) throw BadOption(option + " needs a value");
      return words[++n];
    };
    if (option == "-h" || option == "--help") {
      given.help = true;
    } else if (option == "--info") {
      given.info = true;
    } else if (option == "-n" || option == "--num") {
      given.num = number_of<int64_t>(option, value(), 1, int64_t{1} << 40);
      num_given = true;
    } else if (option == "-o" || option == "--out") {
      given.out = value();
      if (!ends_in(given.out, ".png") && !ends_in(given.out, ".npy"))
        throw BadOption(option + " must end in .png or .npy, got '" + given.out + "'");
    } else if (option == "--seed") {
      given.seed = number_of<uint64_t>(option, value(), 0, std::numeric_limits<uint64_t>::max());
    } else if (option == "--start-id") {
      given.start_id = number_of<int64_t>(option, value(), 0, LAST - (int64_t{1} << 40));
      start_given = true;
    } else if (option == "--sample-ids") {
      given.sample_ids = numbers_of(option, value());
    } else if (option == "--label") {
      given.labels = numbers_of(option, value());
    } else if (option == "--batch-size") {
      given.batch = number_of<int64_t>(option, value(), 1, 1 << 16);
    } else if (option == "--threads") {
      given.threads = number_of<int64_t>(option, value(), 1, 1024);
    } else {
      throw BadOption("there is no option " + option + " (see fastdiff-run --help)");
    }
  }
  if (!given.help && given.file.empty()) throw BadOption("a file is needed (see fastdiff-run --help)");
  if (given.sample_ids.empty()) return given;
  if (start_given) throw BadOption("--sample-ids and --start-id both number the samples: leave out one");
  const auto ids = static_cast<int64_t>(given.sample_ids.size());
  if (num_given && given.num != ids)
    throw BadOption("--sample-ids has " + std::to_string(ids) + " numbers, one per image, and --num is " +
                    std::to_string(given.num) + ": leave out --num");
  given.num = ids;
  return given;
}

}  // namespace fastdiff
