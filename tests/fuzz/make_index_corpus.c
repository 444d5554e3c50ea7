/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes the seeds of fuzz_index into a folder: make_index_corpus tests/fuzz/corpus/index.  Built
 * on demand (target make_index_corpus), when the format changes.  Seeds are stored uncompressed
 * too, because mutations of compressed bytes seldom get far.
 */
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "chain_index_format.h"
#include "index_input.h"

#define SLICES_MAX 8

struct chain {
    const char *folder;
    uint32_t depth;
    struct index_l1 *l1s[INPUT_DEPTH];
    struct index_slice *slices[INPUT_DEPTH][SLICES_MAX];
};

static const struct extent extents[INPUT_DEPTH][4] = {
    {{.len = 80 << 20, .kind = EXTENT_DATA}},
    {{.guest_off = 65536, .len = 131072, .kind = EXTENT_ZERO},
     {.guest_off = 1 << 20, .len = 65536, .host_off = 5000, .compressed_len = 700, .kind = 3},
     {.guest_off = 39 << 20, .len = 65536, .host_off = 1 << 20, .kind = EXTENT_DATA}},
    {{.guest_off = 2 << 20, .len = 2 << 20, .host_off = 4 << 20, .kind = EXTENT_ZERO_ALLOC},
     {.guest_off = 36 << 20, .len = 4 << 20, .host_off = 8 << 20, .kind = EXTENT_DATA},
     {.guest_off = 98 << 20, .len = 2 << 20, .host_off = 9999, .compressed_len = 9, .kind = 3}},
};

static void write_input(const struct chain *chain, const char *name, uint8_t mode, uint32_t ordinal,
                        uint32_t slice_nr, const void *buf, size_t len)
{
    uint8_t head[INPUT_HEAD_SIZE] = {mode, (uint8_t)ordinal, (uint8_t)slice_nr};
    char path[4096];
    FILE *f;

    memcpy(head + INPUT_CHAIN_ID_OFF, chain->l1s[ordinal]->chain_id.sha256, 32);
    snprintf(path, sizeof(path), "%s/%s%u-%u%s", chain->folder, name, ordinal, slice_nr,
             mode & INPUT_SEAL ? "-sealed" : "");
    f = fopen(path, "wb");
    if (!f || fwrite(head, sizeof(head), 1, f) != 1 || (len > 0 && fwrite(buf, len, 1, f) != 1) ||
        fclose(f) != 0) {
        perror(path);
        exit(1);
    }
}

/* The frame with its payload not compressed; the fuzzer makes its checksum good. */
static void write_plain_frame(const struct chain *chain, const char *name, enum frame_type type,
                              uint32_t ordinal, uint32_t slice_nr, const uint8_t *raw, size_t len)
{
    uint8_t frame[4096] = {0};

    bytes_put_le32(frame, FRAME_MAGIC);
    frame[4] = FORMAT_VERSION;
    frame[5] = (uint8_t)type;
    if (len <= sizeof(frame) - FRAME_HEADER_SIZE)
        memcpy(frame + FRAME_HEADER_SIZE, raw, len);
    write_input(chain, name, (uint8_t)(type == FRAME_L1 ? INPUT_L1 : INPUT_SLICE) | INPUT_SEAL,
                ordinal, slice_nr, frame, FRAME_HEADER_SIZE + len);
}

static void write_slice(const struct chain *chain, uint32_t ordinal, uint32_t slice_nr)
{
    const struct index_slice *slice = chain->slices[ordinal][slice_nr];
    CLEANUP_FREE void *buf = NULL;
    struct index_extent list[64];
    uint8_t raw[sizeof(list)];
    size_t len;

    if (slice->nr_extents > sizeof(list) / sizeof(list[0]) ||
        index_slice_encode(slice, &chain->l1s[ordinal]->chain_id, slice_nr, &buf, &len, NULL) < 0)
        exit(1);
    write_input(chain, "slice", INPUT_SLICE, ordinal, slice_nr, buf, len);
    for (uint32_t i = 0; i < slice->nr_extents; i++)
        list[i] = slice_extent(slice, i);
    index_extents_put(list, slice->nr_extents, raw);
    write_plain_frame(chain, "slice", FRAME_SLICE, ordinal, slice_nr, raw,
                      16 * (size_t)slice->nr_extents);
}

static void write_container(const struct chain *chain, uint32_t ordinal)
{
    CLEANUP(index_writer_free_p) struct index_writer *w = NULL;
    const struct digest *chain_id = &chain->l1s[ordinal]->chain_id;
    CLEANUP_FREE void *buf = NULL;
    size_t len;

    if (index_writer_new(&w, NULL) < 0)
        exit(1);
    for (uint32_t s = 0; s < SLICES_MAX; s++)
        if (chain->slices[ordinal][s] &&
            index_writer_add(w, s, ordinal, chain_id, chain->slices[ordinal][s], NULL) < 0)
            exit(1);
    if (index_writer_finish(w, chain->l1s[ordinal], &buf, &len, NULL) < 0)
        exit(1);
    write_input(chain, "container", INPUT_CONTAINER, ordinal, 0, buf, len);
    write_input(chain, "container", INPUT_CONTAINER | INPUT_SEAL, ordinal, 0, buf, len);
}

/* As index_l1_encode lays it out, but for the compression. */
static void write_l1(const struct chain *chain, uint32_t ordinal)
{
    const struct index_l1 *l1 = chain->l1s[ordinal];
    CLEANUP_FREE void *buf = NULL;
    uint8_t raw[1024] = {0}, *p = raw + L1_HEAD_SIZE;
    size_t len;

    if (index_l1_encode(l1, &buf, &len, NULL) < 0)
        exit(1);
    write_input(chain, "l1-", INPUT_L1, ordinal, 0, buf, len);
    memcpy(raw, l1->chain_id.sha256, 32);
    bytes_put_le32(raw + 32, l1->depth);
    bytes_put_le32(raw + 36, l1->nr_slices);
    bytes_put_le64(raw + 40, l1->virtual_size);
    for (uint32_t i = 0; i < l1->depth; i++, p += L1_LAYER_SIZE) {
        bytes_put_le64(p, l1->layers[i].virtual_size);
        p[8] = l1->layers[i].cluster_bits;
        p[9] = l1->layers[i].format;
        p[10] = l1->layers[i].compression;
    }
    for (uint32_t i = 0; i < l1->nr_slices; i++, p += 2)
        bytes_put_le16(p, l1->slices[i]);
    write_plain_frame(chain, "l1-", FRAME_L1, ordinal, 0, raw, (size_t)(p - raw));
}

static int feed(void *feed_arg, layer_extent_fn fn, void *arg, struct cairn_error *err)
{
    int rc = CAIRN_OK;

    for (const struct extent *e = feed_arg; rc == CAIRN_OK && e->len > 0; e++)
        rc = fn(arg, e, err);
    return rc;
}

static int get_slice(void *ctx, uint32_t ordinal, uint32_t slice_nr, struct index_slice **ret_slice,
                     struct cairn_error *err)
{
    const struct chain *chain = ctx;

    (void)err;
    *ret_slice = index_slice_ref(chain->slices[ordinal][slice_nr]);
    return CAIRN_OK;
}

static int keep_slice(void *arg, uint32_t slice_nr, struct index_slice *slice,
                      struct cairn_error *err)
{
    struct chain *chain = arg;

    (void)err;
    chain->slices[chain->depth][slice_nr] = index_slice_ref(slice);
    return CAIRN_OK;
}

static void build_prefix(struct chain *chain)
{
    uint32_t k = chain->depth;
    struct index_slices slices = {.get = get_slice, .ctx = chain};
    struct extent list[5] = {{0}};
    struct cairn_error err;
    struct digest digest;

    memcpy(list, extents[k], sizeof(extents[k]));
    digest_of(&k, sizeof(k), &digest);
    if (chain_index_overlay(k > 0 ? chain->l1s[k - 1] : NULL, &slices, &input_layers[k], &digest,
                            feed, list, keep_slice, chain, &chain->l1s[k], &err) < 0) {
        fprintf(stderr, "%s\n", err.message);
        exit(1);
    }
    chain->depth++;
}

int main(int argc, char **argv)
{
    struct chain chain = {.folder = argc == 2 ? argv[1] : NULL};

    if (!chain.folder) {
        fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    while (chain.depth < INPUT_DEPTH)
        build_prefix(&chain);
    for (uint32_t k = 0; k < INPUT_DEPTH; k++) {
        write_l1(&chain, k);
        write_container(&chain, k);
        for (uint32_t s = 0; s < SLICES_MAX; s++)
            if (chain.slices[k][s])
                write_slice(&chain, k, s);
    }
    return 0;
}
