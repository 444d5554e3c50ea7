/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The image of an input as the engine sees it: a file in memory.  There is one, which all inputs
 * share, so that an input costs little besides what the engine does with it.
 *
 * Whatever leaves the image ends the program: a read that is not inside it, a write or a new size
 * farther past its end than the fuzzer allows, more operations than any work on so small an image
 * can need.
 */
#ifndef TESTS_FUZZ_FUZZ_IMAGE_H
#define TESTS_FUZZ_FUZZ_IMAGE_H

#include <stdio.h>
#include <stdlib.h>

#include "hostfile.h"
#include "qcow2_input.h"
#include "source.h"

/* What must hold, or the program ends with a core and this text. */
#define FUZZ_CHECK(condition)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);         \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* The same for what a function of the engine returns; its error is in err. */
#define FUZZ_CHECK_OK(result, err)                                                                 \
    do {                                                                                           \
        if ((result) != CAIRN_OK) {                                                                \
            fprintf(stderr, "%s:%d: does not hold: no error: %s\n", __FILE__, __LINE__,            \
                    (err)->message);                                                               \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* The next input's image.  Close it before the next. */
struct image *fuzz_image_open(const uint8_t *data, size_t size);
void fuzz_image_close(void);

/* How long the file is now; make it longer or shorter. */
uint64_t fuzz_image_size(void);
void fuzz_image_resize(uint64_t size);
/* The image as it is now, for reading.  Its name is "image". */
struct source *fuzz_image_source(void);
/* A descriptor of its own, for writing; and a path by which it can be opened. */
int fuzz_image_fd(void);
const char *fuzz_image_path(void);

/* For everything that writes to the image.  max_growth: how many bytes longer it may become. */
const struct hostfile_hook *fuzz_image_hook(uint64_t max_growth);
/* How many writes and changes of size there were since. */
unsigned fuzz_image_nr_writes(void);

#endif
