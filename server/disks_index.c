/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GET …/index?slices=a-b: the L1 and the slices asked for (all, if the parameter is missing), as a
 * container of chain_index.h.
 *
 * An answer stops after about INDEX_ANSWER_BYTES of slices.  The L1 says which slices there are,
 * the container's directory which of them came with it: a client asks again for those that did
 * not.  The first one asked for always comes.
 *
 * GET …/open: what a client needs to begin with, in one answer: the manifest, as stored, and the
 * container of L1 and slices from 0 on.
 *      0  length of the manifest: 64, little-endian
 *      8  the manifest
 *         the container
 */
#include "disks_internal.h"

#include <inttypes.h>

#include "bytes.h"
#include "quote.h"
#include "registry.h"

#define INDEX_ANSWER_BYTES ((size_t)8 << 20)
#define INDEX_TYPE         "application/vnd.cairn.index.v1"
#define OPENING_TYPE       "application/vnd.cairn.opening.v1"

/* One number of `a-b`; returns behind it, or NULL. */
static const char *parse_number(const char *text, uint32_t *ret_value)
{
    uint64_t value = 0;
    const char *p = text;

    for (; *p >= '0' && *p <= '9'; p++) {
        value = value * 10 + (uint64_t)(*p - '0');
        if (value > UINT32_MAX)
            return NULL;
    }
    *ret_value = (uint32_t)value;
    return p > text ? p : NULL;
}

/* First and last slice asked for; nothing if first is above last. */
static int asked_slices(const struct disk_request *rq, uint32_t *ret_first, uint32_t *ret_end,
                        struct cairn_error *err)
{
    const char *text = http_query(rq->http, "slices");
    uint32_t nr_slices = rq->disk->l1->nr_slices;
    uint32_t first = 0, last = UINT32_MAX;
    char quoted[QUOTE_MAX];
    const char *p;

    if (text) {
        p = parse_number(text, &first);
        p = p && *p == '-' ? parse_number(p + 1, &last) : NULL;
        if (!p || *p || first > last)
            return error_set(err, CAIRN_E_USAGE,
                             "query parameter slices=%s: expected <first>-<last>",
                             quote_str(text, quoted));
        if (first >= nr_slices)
            return error_set(err, CAIRN_E_USAGE,
                             "query parameter slices=%s: the disk has %u slices, from 0 on",
                             quote_str(text, quoted), nr_slices);
    }
    *ret_first = first;
    *ret_end = last < nr_slices ? last + 1 : nr_slices;
    return CAIRN_OK;
}

static int add_slice(struct disk *disk, struct index_writer *w, uint32_t nr, size_t *bytes,
                     struct cairn_error *err)
{
    CLEANUP(index_slice_unref_p) struct index_slice *slice = NULL;
    uint32_t ordinal = disk->l1->slices[nr];
    int code = metacache_slice(disk->disks->meta, &disk->chain, disk->l1, ordinal, nr, &slice, err);

    if (code != CAIRN_OK)
        return code;
    *bytes += index_slice_bytes(slice);
    return index_writer_add(w, nr, ordinal, &disk->chain.chain_ids[ordinal], slice, err);
}

static int make_container(struct disk *disk, uint32_t first, uint32_t end, void **ret_buf,
                          size_t *ret_len, struct cairn_error *err)
{
    CLEANUP(index_writer_free_p) struct index_writer *w = NULL;
    size_t bytes = 0;
    int code = index_writer_new(&w, err);

    for (uint32_t i = first; code == CAIRN_OK && i < end && bytes < INDEX_ANSWER_BYTES; i++)
        if (disk->l1->slices[i] != INDEX_NO_SLICE)
            code = add_slice(disk, w, i, &bytes, err);
    if (code != CAIRN_OK)
        return code;
    return index_writer_finish(w, disk->l1, ret_buf, ret_len, err);
}

void disks_reply_index(const struct disk_request *rq)
{
    struct cairn_error err;
    uint32_t first = 0, end = 0;
    void *buf;
    size_t len;

    if (asked_slices(rq, &first, &end, &err) != CAIRN_OK)
        http_reply_failure(rq->reply, &err);
    else if (make_container(rq->disk, first, end, &buf, &len, &err) != CAIRN_OK)
        http_reply_failure(rq->reply, &err);
    else
        http_reply_buffer(rq->reply, 200, INDEX_TYPE, buf, len);
}

/* -- Opening ---------------------------------------------------------------------------------- */

static int make_opening(const struct disk_request *rq, void **ret_buf, size_t *ret_len,
                        struct cairn_error *err)
{
    struct disk *disk = rq->disk;
    CLEANUP_FREE void *manifest = NULL;
    CLEANUP_FREE void *container = NULL;
    size_t manifest_len, container_len;
    uint8_t *buf;
    int code = registry_get_manifest(disk->disks->store, rq->ref->repo, &disk->manifest_digest,
                                     &manifest, &manifest_len, err);

    if (code == CAIRN_OK)
        code = make_container(disk, 0, disk->l1->nr_slices, &container, &container_len, err);
    if (code != CAIRN_OK)
        return code;
    *ret_len = sizeof(uint64_t) + manifest_len + container_len;
    buf = malloc(*ret_len);
    if (!buf)
        return error_no_memory(err, "an answer");
    bytes_put_le64(buf, manifest_len);
    memcpy(buf + sizeof(uint64_t), manifest, manifest_len);
    memcpy(buf + sizeof(uint64_t) + manifest_len, container, container_len);
    *ret_buf = buf;
    return CAIRN_OK;
}

void disks_reply_open(const struct disk_request *rq)
{
    char text[DIGEST_STR_MAX];
    struct cairn_error err;
    void *buf = NULL;
    size_t len = 0;

    if (make_opening(rq, &buf, &len, &err) != CAIRN_OK) {
        http_reply_failure(rq->reply, &err);
        return;
    }
    http_reply_header(rq->reply, "Docker-Content-Digest", "%s",
                      digest_format(&rq->disk->manifest_digest, text));
    http_reply_buffer(rq->reply, 200, OPENING_TYPE, buf, len);
}
