/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an input of the qcow2 fuzzers is: an image, of which only the bytes that are not zero take
 * space, and a script, bytes that tell the fuzzer what to do with it.  So an image with clusters
 * of 16 KiB is an input of some hundred bytes, and a mutated one is written down as quickly.
 *
 *   u32 size of the image, u16 length of the script, the script,
 *   pieces to the end of the input: u32 host offset, u16 length, bytes
 *
 * Numbers are big-endian.  Every sequence of bytes is an input: what does not fit is cut off.
 */
#ifndef TESTS_FUZZ_QCOW2_INPUT_H
#define TESTS_FUZZ_QCOW2_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IMAGE_MAX   (UINT32_C(1) << 20)
#define SCRIPT_MAX  512
#define IMAGE_BLOCK 512 /* what is not zero is remembered in blocks of this size */

struct image {
    uint8_t *bytes; /* IMAGE_MAX of them, borrowed; all zero but for dirty blocks */
    uint32_t size;
    uint64_t dirty[IMAGE_MAX / IMAGE_BLOCK / 64]; /* a bit per block */
    uint8_t script[SCRIPT_MAX];
    size_t script_len;
};

/* The size that the image of an input has. */
uint32_t input_image_size(const uint8_t *input, size_t len);

/* Unpack into image, whose bytes are all zero and at least as many as input_image_size says. */
void input_unpack(const uint8_t *input, size_t len, struct image *image);
/* The length of the input; at most max: pieces that find no room are left out. */
size_t input_pack(const struct image *image, uint8_t *input, size_t max);

static inline bool image_is_dirty(const struct image *image, uint32_t block)
{
    return image->dirty[block / 64] >> block % 64 & 1;
}

/* Something in [off, off + len) is about to be written. */
void image_touch(struct image *image, uint64_t off, uint64_t len);
/* All zeros again, as far as the image's size reaches. */
void image_clear(struct image *image);

#endif
