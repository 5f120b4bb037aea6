/* Sampling from an exported model: no Python, no PyTorch. C and C++.
 *
 *     fastdiff_model* model;
 *     if (fastdiff_open("digits.fd", &model) != FASTDIFF_OK) puts(fastdiff_error());
 *
 * Every function that can fail returns a fastdiff_status; fastdiff_error() then says in a sentence what was wrong.
 * A model may be used by several threads at once.
 */
#ifndef FASTDIFF_H
#define FASTDIFF_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define FASTDIFF_API __attribute__((visibility("default")))
#else
#define FASTDIFF_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct fastdiff_model fastdiff_model;

typedef enum fastdiff_status {
  FASTDIFF_OK = 0,
  FASTDIFF_BAD_FILE = 1,     /* it cannot be read, or is not an exported model of this version */
  FASTDIFF_BAD_ARGUMENT = 2, /* what a function was given does not fit */
  FASTDIFF_NO_MEMORY = 3     /* memory, or threads, could not be had, or would be more than max_bytes */
} fastdiff_status;

typedef struct fastdiff_info {
  int64_t channels, height, width; /* of an image */
  int64_t classes;                 /* labels lie in [0, classes); 0: the network has none */
  int64_t classes_in_turn;         /* the first so many are what samples take in turn where no label is given */
  int64_t rows;                    /* of the coefficient table */
  int64_t evaluations;             /* of the network, for one sample */
  int64_t file_bytes;
  const char* text;            /* what it was exported from, for people; as long as the model is open */
  const char* instruction_set; /* generic, avx2, avx512, avx512bf16 or avx512amx; FASTDIFF_CPU_ISA in the environment
                                  chooses another */
} fastdiff_info;

/* Zeros are the defaults. */
typedef struct fastdiff_options {
  uint64_t seed;
  int64_t first_id;          /* the samples' ids are first_id, first_id + 1, ..., unless sample_ids are given */
  const int64_t* sample_ids; /* [num], not negative */
  const int64_t* labels;     /* [num]; where absent, sample number i of the call takes i % classes_in_turn */
  int32_t threads;           /* 1 to 1024; 0: as many as there are processors */
  int64_t batch;             /* images at a time, which changes memory and speed alone; 0: as fit into 128 MiB */
  int64_t max_bytes;         /* memory that the call may take besides `images`; 0: no limit */
} fastdiff_options;

/* Maps the file into memory, and checks it: its checksums, every size and every place. It must stay as it is until the
 * model is closed. *model is NULL unless the result is FASTDIFF_OK. */
FASTDIFF_API int fastdiff_open(const char* path, fastdiff_model** model);

/* The same of a file that is in memory, from an address that is a multiple of 64; it must stay until the model is
 * closed. */
FASTDIFF_API int fastdiff_open_memory(const void* data, size_t bytes, fastdiff_model** model);

/* NULL is closed already. */
FASTDIFF_API void fastdiff_close(fastdiff_model* model);

FASTDIFF_API int fastdiff_describe(const fastdiff_model* model, fastdiff_info* info);

/* Samples `num` images into `images` [num, channels, height, width]: the state at the end of the table, not clamped;
 * data lie in [-1, 1]. An image depends on the model, the seed, the sample's id and its label alone, and equals that of
 * fastdiff.sample in Python on the same machine to the bit. options: NULL for the defaults. */
FASTDIFF_API int fastdiff_sample(const fastdiff_model* model, int64_t num, const fastdiff_options* options,
                                 float* images);

/* What the last function that failed in this thread found wrong. */
FASTDIFF_API const char* fastdiff_error(void);

#ifdef __cplusplus
}
#endif

#endif
