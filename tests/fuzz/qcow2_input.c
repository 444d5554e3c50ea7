/* SPDX-License-Identifier: Apache-2.0 */
/* Inputs of the qcow2 fuzzers, packed and unpacked: see qcow2_input.h. */
#include "qcow2_input.h"

#include <string.h>

#include "bytes.h"
#include "checked.h"

#define HEAD_LEN  6
#define PIECE_LEN 6
#define WORD      8

uint32_t input_image_size(const uint8_t *input, size_t len)
{
    return len < HEAD_LEN ? 0 : (uint32_t)min_u64(bytes_get_be32(input), IMAGE_MAX);
}

void image_touch(struct image *image, uint64_t off, uint64_t len)
{
    uint64_t end = min_u64(off + len, IMAGE_MAX);

    for (uint64_t b = off / IMAGE_BLOCK; b * IMAGE_BLOCK < end; b++)
        image->dirty[b / 64] |= UINT64_C(1) << b % 64;
}

/* The next dirty block from first on; past the last, if there is none. */
static uint32_t next_dirty(const struct image *image, uint32_t first)
{
    for (uint32_t b = first; b < IMAGE_MAX / IMAGE_BLOCK; b = (b / 64 + 1) * 64) {
        uint64_t bits = image->dirty[b / 64] >> b % 64;

        if (bits)
            return b + (uint32_t)__builtin_ctzll(bits);
    }
    return IMAGE_MAX / IMAGE_BLOCK;
}

void image_clear(struct image *image)
{
    for (uint32_t b = next_dirty(image, 0); b < IMAGE_MAX / IMAGE_BLOCK;
         b = next_dirty(image, b + 1))
        if (b * IMAGE_BLOCK < image->size)
            memset(image->bytes + b * IMAGE_BLOCK, 0,
                   min_u64(IMAGE_BLOCK, image->size - b * IMAGE_BLOCK));
    memset(image->dirty, 0, sizeof(image->dirty));
}

void input_unpack(const uint8_t *input, size_t len, struct image *image)
{
    const uint8_t *end = input + len;

    image->size = input_image_size(input, len);
    image->script_len = 0;
    if (len < HEAD_LEN)
        return;
    image->script_len = min_u64(bytes_get_be16(input + 4), min_u64(SCRIPT_MAX, len - HEAD_LEN));
    input += HEAD_LEN;
    memcpy(image->script, input, image->script_len);
    input += image->script_len;
    while (end - input > PIECE_LEN) {
        uint32_t off = bytes_get_be32(input);
        uint64_t piece = min_u64(bytes_get_be16(input + 4), (size_t)(end - input) - PIECE_LEN);

        input += PIECE_LEN;
        if (off < image->size && piece > 0) {
            uint64_t inside = min_u64(piece, image->size - off);

            image_touch(image, off, inside);
            memcpy(image->bytes + off, input, inside);
        }
        input += piece;
    }
}

/* The words at off that are not zero, with single words of zeros between them. */
static uint32_t piece_at(const struct image *image, uint32_t off, uint32_t end)
{
    uint32_t past = off;

    for (uint32_t at = off; at + WORD <= end && at - past <= WORD; at += WORD)
        if (bytes_get_be64(image->bytes + at) != 0)
            past = at + WORD;
    return past - off;
}

/* The pieces of one block; false: no room. */
static bool pack_block(const struct image *image, uint32_t block, uint8_t *input, size_t *pos,
                       size_t max)
{
    uint32_t off = block * IMAGE_BLOCK;
    uint32_t end = off + IMAGE_BLOCK;

    while (off < end) {
        uint32_t len = (uint32_t)min_u64(piece_at(image, off, end), image->size - off);

        if (len == 0) {
            off += WORD;
            continue;
        }
        if (*pos + PIECE_LEN + len > max)
            return false;
        bytes_put_be32(input + *pos, off);
        bytes_put_be16(input + *pos + 4, (uint16_t)len);
        memcpy(input + *pos + PIECE_LEN, image->bytes + off, len);
        *pos += PIECE_LEN + len;
        off += (uint32_t)round_up(len, WORD);
    }
    return true;
}

size_t input_pack(const struct image *image, uint8_t *input, size_t max)
{
    size_t script_len, pos;

    if (max < HEAD_LEN)
        return 0;
    script_len = min_u64(image->script_len, max - HEAD_LEN);
    bytes_put_be32(input, image->size);
    bytes_put_be16(input + 4, (uint16_t)script_len);
    memcpy(input + HEAD_LEN, image->script, script_len);
    pos = HEAD_LEN + script_len;
    for (uint32_t b = next_dirty(image, 0); b * IMAGE_BLOCK < image->size;
         b = next_dirty(image, b + 1))
        if (!pack_block(image, b, input, &pos, max))
            break;
    return pos;
}
