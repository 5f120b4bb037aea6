// What the ops ask of their arguments before they touch memory; an op may be called with anything. Launchers only, as
// tensors.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tensors.h"

namespace fastdiff {

// For messages; made only when one is written.
inline std::string described(const Tensor& x) {
  const auto list = [](const auto& numbers) {
    std::string text = "[";
    for (size_t i = 0; i < numbers.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(numbers[i]);
    return text + "]";
  };
  const auto type = [&]() -> std::string {
    switch (x.scalar_type()) {
      case ScalarType::Float: return "float32";
      case ScalarType::BFloat16: return "bfloat16";
      case ScalarType::Half: return "float16";
      case ScalarType::Double: return "float64";
      case ScalarType::Byte: return "uint8";
      case ScalarType::Long: return "int64";
      default: return "another type";
    }
  };
  return type() + " " + list(x.sizes()) + " with strides " + list(x.strides());
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half ||
         type == ScalarType::Double;
}

inline void check_floating(const char* name, const Tensor& x) {
  STD_TORCH_CHECK(is_floating(x.scalar_type()), name, " must be float32, bfloat16, float16 or float64, got ",
                  described(x));
}

// Floating point, of the sizes given.
inline void check_sizes(const char* name, const Tensor& x, std::initializer_list<int64_t> sizes) {
  bool fits = x.dim() == static_cast<int64_t>(sizes.size());
  int64_t dim = 0;
  for (const int64_t size : sizes) fits = fits && x.size(dim++) == size;
  const auto expected = [&] {
    std::string text;
    for (const int64_t size : sizes) text += (text.empty() ? "" : ", ") + std::to_string(size);
    return text;
  };
  STD_TORCH_CHECK(fits, name, " must have shape [", expected(), "], got ", described(x));
  check_floating(name, x);
}

inline void check_sizes(const char* name, const std::optional<Tensor>& x, std::initializer_list<int64_t> sizes) {
  if (x) check_sizes(name, *x, sizes);
}

// Floating point, of the shape of x [B, C, ...], but with so many channels.
inline void check_image(const char* name, const Tensor& value, const Tensor& x, int64_t channels) {
  bool fits = value.dim() == x.dim();
  for (int64_t i = 0; fits && i < x.dim(); ++i) fits = value.size(i) == (i == 1 ? channels : x.size(i));
  STD_TORCH_CHECK(fits, name, " must have the shape of ", described(x), " with ", channels, " channels, got ",
                  described(value));
  check_floating(name, value);
}

inline void check_same_shape(const char* name, const Tensor& value, const Tensor& x) {
  bool fits = value.dim() == x.dim();
  for (int64_t i = 0; fits && i < x.dim(); ++i) fits = value.size(i) == x.size(i);
  STD_TORCH_CHECK(fits, name, " must have the shape of ", described(x), ", got ", described(value));
  check_floating(name, value);
}

// Whether the dimensions from `first` on lie densely in the layout.
inline bool is_dense(const Tensor& x, bool channels_last, int64_t first = 0) {
  if (x.numel() == 0) return true;
  const int64_t dims = x.dim() - first;
  if (channels_last && dims != 4) return false;
  int64_t expected = 1;
  const auto fits = [&](int64_t dim) {
    const bool right = x.size(dim) == 1 || x.stride(dim) == expected;
    expected *= x.size(dim);
    return right;
  };
  if (channels_last) return fits(first + 1) && fits(first + 3) && fits(first + 2) && fits(first);
  for (int64_t dim = x.dim() - 1; dim >= first; --dim)
    if (!fits(dim)) return false;
  return true;
}

// [length, width] in the type that x is computed in, float64 or else float32.
inline void check_table(const char* name, const Tensor& table, const Tensor& x, int64_t width) {
  const bool is_double = x.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(table.dim() == 2 && table.size(1) == width && table.is_contiguous() &&
                      table.scalar_type() == (is_double ? ScalarType::Double : ScalarType::Float),
                  name, " must be contiguous ", is_double ? "float64" : "float32", " [rows, ", width, "], got ",
                  described(table));
}

// Where a tensor lies in memory, from its first byte to behind its last.
struct Extent {
  const char* name;
  uintptr_t first, last;
  ScalarType type;
};

inline Extent extent_of(const char* name, const Tensor& x) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(x.data_ptr());
  if (x.numel() == 0) return {name, first, first, x.scalar_type()};
  int64_t last = 0;
  for (int64_t dim = 0; dim < x.dim(); ++dim) last += (x.size(dim) - 1) * x.stride(dim);
  return {name, first, first + static_cast<uintptr_t>(last + 1) * x.element_size(), x.scalar_type()};
}

// What is written lies apart from what else the op uses; or, where `may_be_same`, exactly where it lies.
inline void check_apart(const Extent& written, const Extent& other, bool may_be_same = false) {
  const bool apart = written.first == written.last || written.last <= other.first || other.last <= written.first ||
                     other.first == other.last;
  const bool same = written.first == other.first && written.last == other.last && written.type == other.type;
  STD_TORCH_CHECK(apart || (may_be_same && same), written.name, " overlaps ", other.name,
                  " in memory: give it memory of its own", may_be_same ? ", or exactly the same" : "");
}

// Of extents with whether they are written: those that are lie apart from all others.
inline void check_all_apart(std::vector<std::pair<Extent, bool>>& all) {
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.first.first < b.first.first; });
  for (size_t k = 1; k < all.size(); ++k)
    if (all[k - 1].second || all[k].second) check_apart(all[k - 1].first, all[k].first);
}

}  // namespace fastdiff
