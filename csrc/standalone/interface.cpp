// The C interface: no exception leaves it.
#include <cstdint>
#include <exception>
#include <memory>
#include <new>
#include <string>

#include "failure.h"
#include "fastdiff.h"
#include "kernels.h"
#include "model.h"
#include "row_layout.h"
#include "sampling.h"

struct fastdiff_model {
  std::unique_ptr<fastdiff::Mapping> mapping;
  fastdiff::Model model;
};

namespace {

thread_local std::string complaint;

// The status of what `work` does; `otherwise` where it throws for no lack of memory.
template <typename F> int guarded(int otherwise, const F& work) {
  try {
    try {
      work();
      return FASTDIFF_OK;
    } catch (const fastdiff::OutOfMemory& error) {
      complaint = error.what();
      return FASTDIFF_NO_MEMORY;
    } catch (const std::bad_alloc&) {
      complaint = "out of memory";
      return FASTDIFF_NO_MEMORY;
    } catch (const std::exception& error) {
      complaint = error.what();
      return otherwise;
    }
  } catch (...) {
    // There was no memory for the words either.
    return FASTDIFF_NO_MEMORY;
  }
}

}  // namespace

extern "C" {

int fastdiff_open(const char* path, fastdiff_model** model) {
  return guarded(FASTDIFF_BAD_FILE, [&] {
    *model = nullptr;
    try {
      fastdiff::kernels();
      auto opened = std::make_unique<fastdiff_model>();
      opened->mapping = std::make_unique<fastdiff::Mapping>(path);
      opened->model = fastdiff::read_model(opened->mapping->data(), opened->mapping->size());
      *model = opened.release();
    } catch (const std::runtime_error& error) {
      fastdiff::fail(path, ": ", error.what());
    }
  });
}

int fastdiff_open_memory(const void* data, size_t bytes, fastdiff_model** model) {
  return guarded(FASTDIFF_BAD_FILE, [&] {
    *model = nullptr;
    fastdiff::kernels();
    FD_CHECK(data != nullptr && reinterpret_cast<uintptr_t>(data) % fastdiff::FILE_ALIGNMENT == 0,
             "the file's address must be a multiple of ", fastdiff::FILE_ALIGNMENT);
    auto opened = std::make_unique<fastdiff_model>();
    opened->model = fastdiff::read_model(data, bytes);
    *model = opened.release();
  });
}

void fastdiff_close(fastdiff_model* model) { delete model; }

int fastdiff_describe(const fastdiff_model* model, fastdiff_info* info) {
  return guarded(FASTDIFF_BAD_ARGUMENT, [&] {
    FD_CHECK(model != nullptr && info != nullptr, "a model and room for what it is are needed, got NULL");
    const fastdiff::Model& m = model->model;
    const fastdiff::FileNumbers& n = m.numbers;
    int64_t evaluations = 0;
    for (int64_t r = 0; r < n.rows; ++r) evaluations += m.table[r * fastdiff::ROW_WIDTH + fastdiff::ROW_EVALUATE] != 0;
    *info = {n.channels,        n.height,
             n.width,           n.classes,
             n.classes_in_turn, n.rows,
             evaluations,       static_cast<int64_t>(m.bytes),
             m.text.c_str(),    fastdiff::kernels().name};
  });
}

int fastdiff_sample(const fastdiff_model* model, int64_t num, const fastdiff_options* options, float* images) {
  return guarded(FASTDIFF_BAD_ARGUMENT, [&] {
    FD_CHECK(model != nullptr, "a model is needed, got NULL");
    const fastdiff_options defaults = {};
    fastdiff::sample(model->model, num, options == nullptr ? defaults : *options, images);
  });
}

const char* fastdiff_error(void) { return complaint.c_str(); }

}  // extern "C"
