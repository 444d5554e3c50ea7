/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The remote chain.
 *
 * A read maps the range by the chain's index, answers zeros and holes at once, and fetches every
 * run of other extents with one request: of the layer's blob if the run is one piece of one layer
 * (the service sends that straight from the file), else of the disk's data, whose ETag must be the
 * chain ID.
 *
 * With a block cache on this host, what is in it is read from there, before all else; the rest is
 * read ahead of need where reads go on in sequence (readahead.c), and fills the cache.  Compressed
 * clusters are cached as they are stored and decompressed here; without a block cache the service
 * does it.
 */
#include "remote_disk.h"

#include <stdio.h>
#include <string.h>

#include "block_read.h"
#include "chain_read.h"
#include "checked.h"
#include "readahead.h"
#include "remote_index.h"

#define SLICE_CACHE_BYTES ((size_t)32 << 20)
#define READ_EXTENTS      64 /* mapped at a time */

struct remote_disk {
    atomic_uint refs;
    struct remote *remote;
    struct remote_index *index;
    const struct manifest *manifest; /* this and the next two are the index's */
    struct index_l1 *l1;
    struct index_slices slices;
    struct readahead *ahead;
    char etag[DIGEST_STR_MAX + 2]; /* with its quotes */
    char data_path[CLIENT_PATH_MAX];

    /* Of the host's block cache; all NULL without one. */
    struct block_cache *blocks;
    _Atomic(struct block_layer *) *cached; /* by ordinal; NULL: not opened */
    struct digest *layers;                 /* by ordinal */
    struct block_fetch through;            /* how missing blocks are had */
    struct chain_reader reader;            /* of compressed clusters */

    atomic_uint_least64_t nr_reads, read_bytes;
};

/* -- Reading -------------------------------------------------------------------------------- */

/* Requests for content that this thread has made. */
static _Thread_local uint64_t nr_fetches_here;

static int fetch(struct remote_disk *rd, const char *path, const char *etag, void *buf, size_t len,
                 uint64_t off, struct cairn_error *err)
{
    nr_fetches_here++;
    atomic_fetch_add_explicit(&rd->nr_reads, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&rd->read_bytes, len, memory_order_relaxed);
    return remote_read_range(rd->remote, path, etag, buf, len, off, err);
}

/* Bytes of a layer as they are stored, inside it. */
static int fetch_layer(void *ctx, uint32_t ordinal, void *buf, size_t len, uint64_t host_off,
                       struct cairn_error *err)
{
    struct remote_disk *rd = ctx;
    char path[CLIENT_PATH_MAX];

    client_blob_path(remote_disk_pinned(rd)->repo, &rd->manifest->layers[ordinal].digest, path);
    return fetch(rd, path, NULL, buf, len, host_off, err);
}

static int fetch_guest(void *ctx, void *buf, size_t len, uint64_t guest_off,
                       struct cairn_error *err)
{
    struct remote_disk *rd = ctx;

    return fetch(rd, rd->data_path, rd->etag, buf, len, guest_off, err);
}

/* Past the end of a layer there are zeros, as in QEMU. */
static int fetch_extent(struct remote_disk *rd, const struct extent *e, void *buf,
                        struct cairn_error *err)
{
    uint64_t size = rd->manifest->layers[e->layer].size;
    uint64_t stored = e->host_off < size ? min_u64(e->len, size - e->host_off) : 0;

    memset((char *)buf + stored, 0, (size_t)(e->len - stored));
    return stored > 0 ? fetch_layer(rd, e->layer, buf, (size_t)stored, e->host_off, err) : CAIRN_OK;
}

/* Fetch neighbouring extents that do not read as zeros, with one request. */
static int fetch_run(struct remote_disk *rd, const struct extent *run, size_t nr, size_t len,
                     void *buf, struct cairn_error *err)
{
    if (nr == 1 && run->kind == EXTENT_DATA)
        return fetch_extent(rd, run, buf, err);
    return fetch_guest(rd, buf, len, run->guest_off, err);
}

/* -- Through the host's block cache --------------------------------------------------------- */

/* A layer's place in the block cache, opened when it is first needed; NULL: there is none now. */
static struct block_layer *open_cached_layer(void *ctx, uint32_t ordinal, bool *ret_borrowed)
{
    struct remote_disk *rd = ctx;
    const struct manifest_layer *layer = &rd->manifest->layers[ordinal];
    struct block_layer *place = atomic_load_explicit(&rd->cached[ordinal], memory_order_acquire);
    struct block_layer *nobody = NULL;
    bool keep;

    *ret_borrowed = place != NULL;
    if (place || block_cache_layer(rd->blocks, &layer->digest, layer->size, &place, &keep, NULL))
        return place;
    if (keep && atomic_compare_exchange_strong(&rd->cached[ordinal], &nobody, place))
        *ret_borrowed = true;
    return place;
}

static uint64_t layer_size(void *ctx, uint32_t ordinal)
{
    const struct remote_disk *rd = ctx;

    return rd->manifest->layers[ordinal].size;
}

/* Bytes of one layer, through the block cache. */
static int read_layer_cached(void *ctx, uint32_t ordinal, void *buf, size_t len, uint64_t host_off,
                             struct cairn_error *err)
{
    struct remote_disk *rd = ctx;
    const struct extent e = {
        .len = len, .host_off = host_off, .layer = (uint16_t)ordinal, .kind = EXTENT_DATA};

    return block_read_run(&rd->through, &e, 1, buf, err);
}

/* How many compressed clusters from run[0] on lie behind each other in their layer. */
static size_t adjoining_clusters(const struct extent *run, size_t nr, size_t *ret_len)
{
    uint64_t start = run->host_off, end = start + run->compressed_len;
    size_t n = 1;

    for (; n < nr && run[n].layer == run->layer; n++) {
        uint64_t next_end = run[n].host_off + run[n].compressed_len;

        if (run[n].host_off < start || run[n].host_off > end || next_end - start > BLOCK_SPAN)
            break;
        end = max_u64(end, next_end);
    }
    *ret_len = (size_t)(end - start);
    return n;
}

/* Clusters that are stored behind each other are brought into the cache with one request; how many
 * they are. */
static int gather_compressed(struct remote_disk *rd, const struct extent *run, size_t nr,
                             size_t *ret_nr, struct cairn_error *err)
{
    size_t len, n = adjoining_clusters(run, nr, &len);
    CLEANUP_FREE char *stored = n > 1 ? malloc(len) : NULL;

    *ret_nr = n;
    return stored ? read_layer_cached(rd, run->layer, stored, len, run->host_off, err) : CAIRN_OK;
}

static int read_compressed(struct remote_disk *rd, const struct extent *run, size_t nr, char *buf,
                           struct cairn_error *err)
{
    size_t nr_gathered = 0;
    int ret = CAIRN_OK;

    for (size_t i = 0; ret == CAIRN_OK && i < nr; i++, nr_gathered--) {
        if (nr_gathered == 0)
            ret = gather_compressed(rd, run + i, nr - i, &nr_gathered, err);
        if (ret == CAIRN_OK)
            ret = chain_read_extent(&rd->reader, &run[i], buf, err);
        buf += run[i].len;
    }
    return ret;
}

/* -- Extents -------------------------------------------------------------------------------- */

/* How extents are read: neighbours of one way are read together. */
enum way { READ_ZEROS, READ_DATA, READ_COMPRESSED, READ_REMOTE };

static enum way way_of(const struct remote_disk *rd, const struct extent *e)
{
    if (extent_reads_zero(e->kind))
        return READ_ZEROS;
    if (!rd->blocks)
        return READ_REMOTE;
    return e->kind == EXTENT_DATA ? READ_DATA : READ_COMPRESSED;
}

static int read_run(struct remote_disk *rd, enum way way, const struct extent *run, size_t nr,
                    size_t len, void *buf, struct cairn_error *err)
{
    switch (way) {
    case READ_ZEROS:
        memset(buf, 0, len);
        return CAIRN_OK;
    case READ_DATA:
        return block_read_run(&rd->through, run, nr, buf, err);
    case READ_COMPRESSED:
        return read_compressed(rd, run, nr, buf, err);
    case READ_REMOTE:
        break;
    }
    return fetch_run(rd, run, nr, len, buf, err);
}

static int read_extents(struct remote_disk *rd, const struct extent *extents, size_t nr, char *buf,
                        struct cairn_error *err)
{
    for (size_t i = 0, end; i < nr; i = end) {
        enum way way = way_of(rd, &extents[i]);
        size_t len = 0;
        int ret;

        for (end = i; end < nr && way_of(rd, &extents[end]) == way; end++)
            len += (size_t)extents[end].len;
        ret = read_run(rd, way, &extents[i], end - i, len, buf, err);
        if (ret != CAIRN_OK)
            return ret;
        buf += len;
    }
    return CAIRN_OK;
}

/* Read inside the chain. */
static int read_chain(struct remote_disk *rd, char *buf, size_t len, uint64_t guest_off,
                      struct cairn_error *err)
{
    struct extent extents[READ_EXTENTS];

    while (len > 0) {
        size_t nr, mapped;
        int ret = chain_map(rd->l1, &rd->slices, guest_off, len, extents, READ_EXTENTS, &nr, err);

        if (ret == CAIRN_OK)
            ret = read_extents(rd, extents, nr, buf, err);
        if (ret != CAIRN_OK)
            return ret;
        mapped = (size_t)(extents[nr - 1].guest_off + extents[nr - 1].len - guest_off);
        buf += mapped;
        guest_off += mapped;
        len -= mapped;
    }
    return CAIRN_OK;
}

/*
 * The same, and the rest of the blocks at both ends with it: the cache keeps whole blocks, and the
 * neighbouring read would fetch these again.
 */
static int read_whole_blocks(struct remote_disk *rd, char *buf, size_t len, uint64_t guest_off,
                             struct cairn_error *err)
{
    uint64_t from = guest_off - guest_off % BLOCK_SIZE, end = guest_off + len;
    uint64_t to = min_u64(round_up(end, BLOCK_SIZE), rd->l1->virtual_size);
    CLEANUP_FREE char *wide = from < guest_off || end < to ? malloc((size_t)(to - from)) : NULL;
    int ret;

    if (!wide)
        return read_chain(rd, buf, len, guest_off, err);
    ret = read_chain(rd, wide, (size_t)(to - from), from, err);
    if (ret == CAIRN_OK)
        memcpy(buf, wide + (guest_off - from), len);
    return ret;
}

/* For the read-ahead, which decides how much at a time. */
static int read_through(void *ctx, void *buf, size_t len, uint64_t guest_off, bool *ret_near,
                        struct cairn_error *err)
{
    struct remote_disk *rd = ctx;
    uint64_t before = nr_fetches_here;
    int ret = rd->blocks ? read_whole_blocks(rd, buf, len, guest_off, err)
                         : read_chain(rd, buf, len, guest_off, err);

    *ret_near = nr_fetches_here == before;
    return ret;
}

/* A small read of which everything is on this host: it needs no read-ahead, and takes no lock. */
static bool read_at_hand(struct remote_disk *rd, void *buf, size_t len, uint64_t guest_off)
{
    struct chain_index *held = remote_index_held(rd->index);
    struct extent e;

    if (!rd->blocks || len >= READAHEAD_LARGE)
        return false;
    for (char *at = buf; len > 0; at += e.len, guest_off += e.len, len -= (size_t)e.len) {
        if (chain_index_lookup(held, guest_off, &e, NULL) != CAIRN_OK ||
            e.kind == EXTENT_COMPRESSED)
            return false;
        e.len = min_u64(e.len, len);
        if (extent_reads_zero(e.kind))
            memset(at, 0, (size_t)e.len);
        else if (!block_read_cached(&rd->through, &e, 1, at))
            return false;
    }
    return true;
}

int remote_disk_pread(struct remote_disk *rd, void *buf, size_t len, uint64_t guest_off,
                      struct cairn_error *err)
{
    uint64_t size = rd->l1->virtual_size;
    size_t inside = guest_off < size ? (size_t)min_u64(len, size - guest_off) : 0;

    if (inside < len)
        memset((char *)buf + inside, 0, len - inside);
    if (inside == 0)
        return CAIRN_OK;
    if (read_at_hand(rd, buf, inside, guest_off)) {
        readahead_note(rd->ahead, inside, guest_off);
        return CAIRN_OK;
    }
    return readahead_pread(rd->ahead, buf, inside, guest_off, err);
}

int remote_disk_map(struct remote_disk *rd, uint64_t guest_off, uint64_t len,
                    struct extent *ret_extents, size_t max, size_t *ret_nr, struct cairn_error *err)
{
    uint64_t size = rd->l1->virtual_size;

    if (guest_off >= size) {
        ret_extents[0] = (struct extent){.guest_off = guest_off, .len = len, .kind = EXTENT_HOLE};
        *ret_nr = 1;
        return CAIRN_OK;
    }
    return chain_map(rd->l1, &rd->slices, guest_off, min_u64(len, size - guest_off), ret_extents,
                     max, ret_nr, err);
}

void remote_disk_get_stats(struct remote_disk *rd, struct remote_disk_stats *ret_stats)
{
    *ret_stats = (struct remote_disk_stats){
        .nr_reads = atomic_load_explicit(&rd->nr_reads, memory_order_relaxed),
        .read_bytes = atomic_load_explicit(&rd->read_bytes, memory_order_relaxed),
        .nr_index_reads = remote_index_requests(rd->index),
        .index_bytes = slice_cache_bytes(remote_index_cache(rd->index)),
    };
    if (rd->blocks)
        block_cache_get_stats(rd->blocks, &ret_stats->blocks);
}

/* -- Opening -------------------------------------------------------------------------------- */

/* Use the client's block cache, if it has one. */
static int open_blocks(struct remote_disk *rd, struct cairn_client *client, struct cairn_error *err)
{
    uint32_t depth = rd->manifest->depth;

    if (!client->blocks)
        return CAIRN_OK;
    rd->cached = calloc(depth, sizeof(*rd->cached));
    rd->layers = calloc(depth, sizeof(*rd->layers));
    if (!rd->cached || !rd->layers)
        return error_no_memory(err, "a chain in the block cache");
    for (uint32_t i = 0; i < depth; i++)
        rd->layers[i] = rd->manifest->layers[i].digest;
    rd->blocks = block_cache_ref(client->blocks);
    rd->through = (struct block_fetch){
        .open = open_cached_layer,
        .layer_size = layer_size,
        .layer = fetch_layer,
        .guest = fetch_guest,
        .ctx = rd,
    };
    rd->reader = (struct chain_reader){
        .l1 = rd->l1,
        .slices = rd->slices,
        .blobs = {.pread = read_layer_cached, .ctx = rd},
        .layers = rd->layers,
        .cache = client->clusters,
    };
    return CAIRN_OK;
}

static void close_blocks(struct remote_disk *rd)
{
    for (uint32_t i = 0; rd->blocks && i < rd->manifest->depth; i++)
        block_layer_unref(rd->cached[i]);
    block_cache_unref(rd->blocks);
    free(rd->cached);
    free(rd->layers);
}

/* Manifest and index, into the slices that are known already, if any are. */
static int open_index(struct remote_disk *rd, struct cairn_client *client, const struct ref *ref,
                      const struct remote_disk *previous, struct cairn_error *err)
{
    CLEANUP(slice_cache_unref_p) struct slice_cache *cache = NULL;
    char text[DIGEST_STR_MAX];
    int ret = CAIRN_OK;

    if (previous)
        cache = slice_cache_ref(remote_index_cache(previous->index));
    else
        ret = slice_cache_new(SLICE_CACHE_BYTES, &cache, err);
    if (ret == CAIRN_OK)
        ret = remote_index_open(client, ref, cache, &rd->index, err);
    if (ret != CAIRN_OK)
        return ret;
    rd->manifest = remote_index_manifest(rd->index);
    rd->l1 = remote_index_l1(rd->index);
    rd->slices = remote_index_slices(rd->index);
    client_disk_path(remote_disk_pinned(rd), "/data", rd->data_path);
    snprintf(rd->etag, sizeof(rd->etag), "\"%s\"", digest_format(remote_disk_chain_id(rd), text));
    return CAIRN_OK;
}

int remote_disk_open(struct cairn_client *client, const struct ref *ref,
                     const struct remote_disk *previous, struct remote_disk **ret_rd,
                     struct cairn_error *err)
{
    CLEANUP(remote_disk_unref_p) struct remote_disk *rd = calloc(1, sizeof(*rd));
    int ret;

    if (!rd)
        return error_no_memory(err, "a remote chain");
    atomic_init(&rd->refs, 1);
    rd->remote = client->remote;
    ret = open_index(rd, client, ref, previous, err);
    if (ret == CAIRN_OK)
        ret = open_blocks(rd, client, err);
    if (ret == CAIRN_OK)
        ret = readahead_new(&(struct readahead_disk){read_through, rd, rd->l1->virtual_size},
                            &rd->ahead, err);
    if (ret == CAIRN_OK)
        *ret_rd = steal_ptr(rd);
    return ret;
}

struct remote_disk *remote_disk_ref(struct remote_disk *rd)
{
    atomic_fetch_add_explicit(&rd->refs, 1, memory_order_relaxed);
    return rd;
}

void remote_disk_unref(struct remote_disk *rd)
{
    if (!rd || atomic_fetch_sub_explicit(&rd->refs, 1, memory_order_acq_rel) != 1)
        return;
    readahead_free(rd->ahead);
    close_blocks(rd);
    remote_index_free(rd->index);
    free(rd);
}

const struct ref *remote_disk_pinned(const struct remote_disk *rd)
{
    return remote_index_pinned(rd->index);
}

const struct manifest *remote_disk_manifest(const struct remote_disk *rd)
{
    return rd->manifest;
}

const struct digest *remote_disk_chain_id(const struct remote_disk *rd)
{
    return &rd->manifest->chain_ids[rd->manifest->depth - 1];
}

uint64_t remote_disk_size(const struct remote_disk *rd)
{
    return rd->l1->virtual_size;
}
