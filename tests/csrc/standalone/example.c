#include <stdio.h>
#include <stdlib.h>

#include "fastdiff.h"

int main(int count, char** words) {
  fastdiff_model* model;
  if (count != 2 || fastdiff_open(words[1], &model) != FASTDIFF_OK) {
    fprintf(stderr, "%s\n", count == 2 ? fastdiff_error() : "give a file");
    return 1;
  }
  fastdiff_info info;
  fastdiff_describe(model, &info);
  size_t size = (size_t)(info.channels * info.height * info.width);
  float* images = malloc(4 * size * sizeof(float));
  fastdiff_options options = {.seed = 7, .threads = 2};
  if (images == NULL || fastdiff_sample(model, 4, &options, images) != FASTDIFF_OK) {
    fprintf(stderr, "%s\n", images == NULL ? "out of memory" : fastdiff_error());
    return 1;
  }
  for (size_t i = 0; i < 4 * size; ++i) printf("%a\n", images[i]);
  free(images);
  fastdiff_close(model);
  return 0;
}
