/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames and containers of the chain index from anybody.  What decodes must encode to something
 * that decodes the same, and a container that opens must be mapped from end to end without a gap
 * and without a range that leaves the disk.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "chain_index_format.h"
#include "chain_index_internal.h"
#include "checked.h"
#include "index_input.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MAPS_MAX 64 /* calls of chain_map on one container */

static void want(bool condition)
{
    if (!condition)
        abort();
}

/* -- Sealing ----------------------------------------------------------------------------------- */

static void seal_frame(const char *key, uint8_t *frame, size_t len)
{
    if (len < FRAME_HEADER_SIZE)
        return;
    bytes_put_le32(frame + 12, (uint32_t)(len - FRAME_HEADER_SIZE));
    if (bytes_get_le16(frame + 6) == 0)
        bytes_put_le32(frame + 8, (uint32_t)(len - FRAME_HEADER_SIZE));
    index_checksum(key, frame, frame + FRAME_HEADER_SIZE, len - FRAME_HEADER_SIZE,
                   frame + CHECKSUM_OFF);
}

static void seal_l1(const struct digest *chain_id, uint8_t *frame, size_t len)
{
    char key[INDEX_KEY_MAX];

    index_key_l1(chain_id, key);
    seal_frame(key, frame, len);
}

static void seal_slice(const struct digest *chain_id, uint32_t slice_nr, uint8_t *frame, size_t len)
{
    char key[INDEX_KEY_MAX];

    index_key_slice(chain_id, slice_nr, key);
    seal_frame(key, frame, len);
}

static void seal_container(const struct digest *chain_id, uint8_t *buf, size_t len)
{
    char key[INDEX_KEY_MAX];
    uint64_t l1_len, nr_entries, frames_off;

    if (len < CONTAINER_HEADER_SIZE)
        return;
    l1_len = bytes_get_le32(buf + 8);
    nr_entries = bytes_get_le32(buf + 12);
    frames_off = CONTAINER_HEADER_SIZE + l1_len + nr_entries * CONTAINER_ENTRY_SIZE;
    if (frames_off > len)
        return;
    for (uint64_t i = 0; i < nr_entries; i++) {
        const uint8_t *e = buf + CONTAINER_HEADER_SIZE + l1_len + i * CONTAINER_ENTRY_SIZE;
        uint64_t off = bytes_get_le64(e + 8), frame_len = bytes_get_le32(e + 16);

        if (range_in(off, frame_len, len - frames_off))
            seal_slice(chain_id, bytes_get_le32(e), buf + frames_off + off, frame_len);
    }
    seal_l1(chain_id, buf + CONTAINER_HEADER_SIZE, l1_len);
    index_key_l1(chain_id, key);
    index_checksum(key, buf, buf + CONTAINER_HEADER_SIZE + l1_len,
                   nr_entries * CONTAINER_ENTRY_SIZE, buf + CHECKSUM_OFF);
}

/* -- Decoding ---------------------------------------------------------------------------------- */

static void try_l1(const struct digest *chain_id, const uint8_t *buf, size_t len)
{
    CLEANUP(index_l1_unref_p) struct index_l1 *l1 = NULL, *back = NULL;
    CLEANUP_FREE void *again = NULL;
    struct cairn_error err;
    size_t again_len;

    if (index_l1_decode(buf, len, chain_id, &l1, &err) != CAIRN_OK)
        return;
    want(index_l1_encode(l1, &again, &again_len, &err) == CAIRN_OK);
    want(index_l1_decode(again, again_len, chain_id, &back, &err) == CAIRN_OK);
    want(l1->depth == back->depth && l1->nr_slices == back->nr_slices);
    want(l1->nr_slices == 0 ||
         memcmp(l1->slices, back->slices, l1->nr_slices * sizeof(*l1->slices)) == 0);
}

static struct index_l1 *input_l1(void)
{
    struct index_l1 *l1;

    want(index_l1_new(INPUT_DEPTH, input_layers[INPUT_DEPTH - 1].virtual_size, &l1, NULL) ==
         CAIRN_OK);
    memcpy(l1->layers, input_layers, sizeof(input_layers));
    return l1;
}

static void try_slice(const struct digest *chain_id, uint32_t ordinal, uint32_t slice_nr,
                      const uint8_t *buf, size_t len)
{
    CLEANUP(index_l1_unref_p) struct index_l1 *l1 = input_l1();
    CLEANUP(index_slice_unref_p) struct index_slice *slice = NULL, *back = NULL;
    CLEANUP_FREE void *again = NULL;
    struct cairn_error err;
    size_t again_len;

    if (index_slice_decode(buf, len, chain_id, l1, ordinal, slice_nr, &slice, &err) != CAIRN_OK)
        return;
    want(index_slice_encode(slice, chain_id, slice_nr, &again, &again_len, &err) == CAIRN_OK);
    want(index_slice_decode(again, again_len, chain_id, l1, ordinal, slice_nr, &back, &err) ==
         CAIRN_OK);
    want(slice->nr_extents == back->nr_extents);
    for (uint32_t i = 0; i < slice->nr_extents; i++) {
        const struct index_extent of_slice = slice_extent(slice, i),
                                  of_back = slice_extent(back, i);

        want(memcmp(&of_slice, &of_back, sizeof(of_slice)) == 0);
    }
}

struct container {
    struct index_reader *reader;
    const struct digest *chain_id;
};

static int get_slice(void *ctx, uint32_t ordinal, uint32_t slice_nr, struct index_slice **ret_slice,
                     struct cairn_error *err)
{
    const struct container *c = ctx;

    return index_reader_slice(c->reader, slice_nr, ordinal, c->chain_id, ret_slice, err);
}

static void map_container(struct container *c)
{
    const struct index_l1 *l1 = index_reader_l1(c->reader);
    struct index_slices slices = {.get = get_slice, .ctx = c};
    uint64_t guest_off = 0;

    for (unsigned i = 0; i < MAPS_MAX && guest_off < l1->virtual_size; i++) {
        struct extent extents[16];
        struct cairn_error err;
        size_t nr;

        if (chain_map(l1, &slices, guest_off, l1->virtual_size - guest_off, extents, 16, &nr,
                      &err) != CAIRN_OK) {
            guest_off = round_down(guest_off, INDEX_SLICE_SIZE) + INDEX_SLICE_SIZE;
            continue;
        }
        want(nr > 0);
        for (size_t e = 0; e < nr; guest_off += extents[e++].len)
            want(extents[e].guest_off == guest_off && extents[e].len > 0 &&
                 range_in(guest_off, extents[e].len, l1->virtual_size) &&
                 extents[e].layer < l1->depth);
    }
}

static void try_container(const struct digest *chain_id, const uint8_t *buf, size_t len)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(index_reader_free_p) struct index_reader *reader = NULL;
    struct cairn_error err;

    want(source_from_memory(buf, len, "container", &src, &err) == CAIRN_OK);
    if (index_reader_open(src, chain_id, &reader, &err) == CAIRN_OK)
        map_container(&(struct container){.reader = reader, .chain_id = chain_id});
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CLEANUP_FREE uint8_t *buf = NULL;
    struct digest chain_id;
    size_t len = size - INPUT_HEAD_SIZE;
    uint8_t mode;
    bool seal;

    if (size < INPUT_HEAD_SIZE)
        return 0;
    mode = (uint8_t)(data[INPUT_MODE_OFF] & ~INPUT_SEAL) % INPUT_MODES;
    seal = data[INPUT_MODE_OFF] & INPUT_SEAL;
    memcpy(chain_id.sha256, data + INPUT_CHAIN_ID_OFF, sizeof(chain_id.sha256));
    buf = malloc(len + 1);
    want(buf != NULL);
    memcpy(buf, data + INPUT_HEAD_SIZE, len);
    if (mode == INPUT_L1) {
        if (seal)
            seal_l1(&chain_id, buf, len);
        try_l1(&chain_id, buf, len);
    } else if (mode == INPUT_SLICE) {
        if (seal)
            seal_slice(&chain_id, data[INPUT_SLICE_OFF], buf, len);
        try_slice(&chain_id, data[INPUT_ORDINAL_OFF], data[INPUT_SLICE_OFF], buf, len);
    } else {
        if (seal)
            seal_container(&chain_id, buf, len);
        try_container(&chain_id, buf, len);
    }
    return 0;
}
