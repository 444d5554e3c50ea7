/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads of less than a block fetch whole blocks and keep some; larger ones go to the service as
 * they are, in pieces.  The lock is held for looking and copying, never over a request: two threads
 * may fetch the same block.
 */
#include "remote_blobs.h"

#include <stdio.h>
#include <string.h>

#include "checked.h"

#define BLOCK_BYTES ((size_t)64 << 10)
#define NR_BLOCKS   64                /* 4 MiB of them */
#define PIECE_BYTES ((size_t)1 << 20) /* of one request: seconds even on a slow line */

struct block {
    uint8_t *bytes; /* NULL: free.  As many of BLOCK_BYTES as the layer has there */
    uint32_t layer;
    uint64_t host_off;
    uint64_t used; /* the time of its last use */
};

struct remote_blobs {
    struct cairn_client *client;
    const struct manifest *manifest;
    char repo[sizeof(((struct ref *)NULL)->repo)];

    pthread_mutex_t lock; /* of what follows */
    uint64_t now;
    struct block blocks[NR_BLOCKS];
};

int remote_blobs_new(struct cairn_client *client, const char *repo, const struct manifest *m,
                     struct remote_blobs **ret_blobs, struct cairn_error *err)
{
    struct remote_blobs *blobs = calloc(1, sizeof(*blobs));

    if (!blobs)
        return error_no_memory(err, "the layers of a disk");
    blobs->client = client;
    blobs->manifest = m;
    snprintf(blobs->repo, sizeof(blobs->repo), "%s", repo);
    pthread_mutex_init(&blobs->lock, NULL);
    *ret_blobs = blobs;
    return CAIRN_OK;
}

void remote_blobs_free(struct remote_blobs *blobs)
{
    if (!blobs)
        return;
    for (size_t i = 0; i < NR_BLOCKS; i++)
        free(blobs->blocks[i].bytes);
    pthread_mutex_destroy(&blobs->lock);
    free(blobs);
}

/* -- Requests ------------------------------------------------------------------------------- */

static int fetch(struct remote_blobs *blobs, uint32_t layer, uint8_t *buf, size_t len,
                 uint64_t host_off, struct cairn_error *err)
{
    char path[CLIENT_PATH_MAX];
    int ret = CAIRN_OK;

    client_blob_path(blobs->repo, &blobs->manifest->layers[layer].digest, path);
    for (size_t done = 0; ret == CAIRN_OK && done < len; done += PIECE_BYTES) {
        size_t piece = (size_t)min_u64(PIECE_BYTES, len - done);

        ret = remote_read_range(blobs->client->remote, path, NULL, buf + done, piece,
                                host_off + done, err);
    }
    return ret;
}

/* -- Blocks --------------------------------------------------------------------------------- */

static bool copy_cached(struct remote_blobs *blobs, uint32_t layer, uint64_t block_off, void *buf,
                        size_t len, size_t within)
{
    SCOPED_LOCK(&blobs->lock);

    for (size_t i = 0; i < NR_BLOCKS; i++) {
        struct block *b = &blobs->blocks[i];

        if (!b->bytes || b->layer != layer || b->host_off != block_off)
            continue;
        memcpy(buf, b->bytes + within, len);
        b->used = ++blobs->now;
        return true;
    }
    return false;
}

/* In the place of the one that was not used for longest.  Takes bytes over. */
static void keep(struct remote_blobs *blobs, uint32_t layer, uint64_t block_off, uint8_t *bytes)
{
    SCOPED_LOCK(&blobs->lock);
    struct block *oldest = &blobs->blocks[0];

    for (size_t i = 1; i < NR_BLOCKS; i++)
        if (blobs->blocks[i].used < oldest->used)
            oldest = &blobs->blocks[i];
    free(oldest->bytes);
    *oldest = (struct block){bytes, layer, block_off, ++blobs->now};
}

/* len bytes that lie in one block and in the layer. */
static int read_in_block(struct remote_blobs *blobs, uint32_t layer, void *buf, size_t len,
                         uint64_t host_off, struct cairn_error *err)
{
    uint64_t block_off = round_down(host_off, BLOCK_BYTES);
    size_t within = (size_t)(host_off - block_off);
    size_t there = (size_t)min_u64(BLOCK_BYTES, blobs->manifest->layers[layer].size - block_off);
    CLEANUP_FREE uint8_t *bytes = NULL;
    int ret;

    if (copy_cached(blobs, layer, block_off, buf, len, within))
        return CAIRN_OK;
    bytes = malloc(there);
    if (!bytes)
        return error_no_memory(err, "a block of a layer");
    ret = fetch(blobs, layer, bytes, there, block_off, err);
    if (ret != CAIRN_OK)
        return ret;
    memcpy(buf, bytes + within, len);
    keep(blobs, layer, block_off, steal_ptr(bytes));
    return CAIRN_OK;
}

/* Inside the layer. */
static int read_inside(struct remote_blobs *blobs, uint32_t layer, uint8_t *buf, size_t len,
                       uint64_t host_off, struct cairn_error *err)
{
    int ret = CAIRN_OK;

    if (len >= BLOCK_BYTES)
        return fetch(blobs, layer, buf, len, host_off, err);
    while (ret == CAIRN_OK && len > 0) {
        size_t part = (size_t)min_u64(len, BLOCK_BYTES - host_off % BLOCK_BYTES);

        ret = read_in_block(blobs, layer, buf, part, host_off, err);
        buf += part;
        host_off += part;
        len -= part;
    }
    return ret;
}

int remote_blobs_pread(void *ctx, uint32_t layer, void *buf, size_t len, uint64_t host_off,
                       struct cairn_error *err)
{
    struct remote_blobs *blobs = ctx;
    uint64_t size = blobs->manifest->layers[layer].size;
    size_t inside = host_off < size ? (size_t)min_u64(len, size - host_off) : 0;

    memset((uint8_t *)buf + inside, 0, len - inside);
    return read_inside(blobs, layer, buf, inside, host_off, err);
}

/* -- One layer as a source ------------------------------------------------------------------ */

struct blob_source {
    struct source src;
    struct remote_blobs *blobs;
    uint32_t layer;
    char name[sizeof("layer ") + DIGEST_STR_MAX];
};

static int source_read(struct source *src, void *buf, size_t len, uint64_t off,
                       struct cairn_error *err)
{
    struct blob_source *s = (struct blob_source *)src;

    return read_inside(s->blobs, s->layer, buf, len, off, err);
}

static void source_end(struct source *src)
{
    free(src);
}

int remote_blobs_source(struct remote_blobs *blobs, uint32_t layer, struct source **ret_src,
                        struct cairn_error *err)
{
    static const struct source_ops ops = {source_read, source_end};
    const struct manifest_layer *m = &blobs->manifest->layers[layer];
    struct blob_source *s = calloc(1, sizeof(*s));
    char digest[DIGEST_STR_MAX];

    if (!s)
        return error_no_memory(err, "a layer");
    snprintf(s->name, sizeof(s->name), "layer %s", digest_format(&m->digest, digest));
    s->src = (struct source){.ops = &ops, .size = m->size, .name = s->name};
    s->blobs = blobs;
    s->layer = layer;
    *ret_src = &s->src;
    return CAIRN_OK;
}
