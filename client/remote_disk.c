/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The remote chain.
 *
 * Opening takes two requests at any depth: the manifest, and the index's L1 with as many slices as
 * the service sends unasked.  Further slices are fetched when a look-up needs them, a
 * neighbourhood at a time, once however many threads ask; each is verified by the decoder against
 * the chain IDs that were computed here from the manifest.
 *
 * A read maps the range, answers zeros and holes at once, and fetches every run of other extents
 * with one request: of the layer's blob if the run is one piece of one layer (the service sends
 * that straight from the file), else of the disk's data, whose ETag must be the chain ID.  Small
 * reads go through the read-ahead first.
 *
 * No lock is held over a request.  Every request ends by the client's deadline, therefore so does
 * every wait for somebody else's.
 */
#include "remote_disk.h"

#include <stdio.h>
#include <string.h>

#include "checked.h"
#include "readahead.h"
#include "slice_cache.h"

#define SLICE_CACHE_BYTES ((size_t)32 << 20)
#define FETCH_SLICES      16u /* half a GiB of guest space with one request */
#define READ_EXTENTS      64  /* mapped at a time */

/* Slices that are being fetched, and the threads that wait for them. */
struct flight {
    struct flight *next;
    uint32_t first, last;
    unsigned refs; /* of the fetcher and the waiting */
    bool landed;
    int code;
    struct cairn_error err; /* if code is not OK */
};

struct remote_disk {
    atomic_uint refs;
    struct remote *remote;
    struct ref pinned;
    struct manifest *manifest;
    struct index_l1 *l1;
    struct index_slices slices;
    struct slice_cache *cache;
    struct readahead *ahead;
    char etag[DIGEST_STR_MAX + 2]; /* with its quotes */
    char data_path[CLIENT_PATH_MAX];

    pthread_mutex_t flights_lock; /* taken before the cache's */
    pthread_cond_t flight_landed;
    struct flight *flights;

    atomic_uint_least64_t nr_reads, read_bytes, nr_index_reads;
};

/* -- The index ------------------------------------------------------------------------------ */

/* An answer of the index call, and a reader of it. */
struct index_answer {
    struct remote_answer answer;
    struct source *src;
    struct index_reader *reader;
};

static void index_answer_release(struct index_answer *a)
{
    index_reader_free(a->reader);
    source_free(a->src);
    remote_answer_release(&a->answer);
}

static int index_answer_open(struct remote_disk *rd, const char *path, struct index_answer *a,
                             struct cairn_error *err)
{
    int ret;

    if (a->answer.status != 200)
        return remote_answer_error(&a->answer, path, err);
    ret = source_from_memory(a->answer.body, a->answer.body_len, path, &a->src, err);
    if (ret == CAIRN_OK)
        ret = index_reader_open(a->src, remote_disk_chain_id(rd), &a->reader, err);
    return ret;
}

/* suffix: "/index", with its query. */
static int index_request(struct remote_disk *rd, const char *suffix, struct index_answer *ret_a,
                         struct cairn_error *err)
{
    char path[CLIENT_PATH_MAX];
    const struct remote_request request = {
        .method = "GET",
        .path = client_disk_path(&rd->pinned, suffix, path),
        .idempotent = true,
    };
    int ret;

    memset(ret_a, 0, sizeof(*ret_a));
    atomic_fetch_add_explicit(&rd->nr_index_reads, 1, memory_order_relaxed);
    ret = remote_request(rd->remote, &request, &ret_a->answer, err);
    if (ret != CAIRN_OK)
        return error_prefix(err, ret, "%s", path);
    ret = index_answer_open(rd, path, ret_a, err);
    if (ret != CAIRN_OK)
        index_answer_release(ret_a);
    return ret;
}

static const struct digest *prefix_of(const struct remote_disk *rd, uint32_t ordinal)
{
    return &rd->manifest->chain_ids[ordinal];
}

/* Keep slice slice_nr of an answer; NOT_FOUND if the answer does not hold it. */
static int keep_slice(struct remote_disk *rd, struct index_reader *reader, uint32_t slice_nr,
                      struct cairn_error *err)
{
    CLEANUP(index_slice_unref_p) struct index_slice *slice = NULL;
    uint32_t ordinal = rd->l1->slices[slice_nr];
    int ret = index_reader_slice(reader, slice_nr, ordinal, prefix_of(rd, ordinal), &slice, err);

    if (ret == CAIRN_OK)
        slice_cache_put(rd->cache, prefix_of(rd, ordinal), slice_nr, slice);
    return ret;
}

/* Keep what the answer holds of [first, last].  The service sends slices in order to a budget, so
 * the first that is missing ends it. */
static int keep_slices(struct remote_disk *rd, struct index_reader *reader, uint32_t first,
                       uint32_t last, struct cairn_error *err)
{
    struct cairn_error why;

    for (uint32_t s = first; s <= last && s < rd->l1->nr_slices; s++) {
        int ret;

        if (rd->l1->slices[s] == INDEX_NO_SLICE)
            continue;
        ret = keep_slice(rd, reader, s, &why);
        if (ret == CAIRN_E_NOT_FOUND)
            return CAIRN_OK;
        if (ret != CAIRN_OK) {
            if (err)
                *err = why;
            return ret;
        }
    }
    return CAIRN_OK;
}

/* Fetch slice first and, while they are at hand, its neighbours to last. */
static int fetch_slices(struct remote_disk *rd, uint32_t first, uint32_t last,
                        struct index_slice **ret_slice, struct cairn_error *err)
{
    uint32_t ordinal = rd->l1->slices[first];
    struct index_answer a;
    char suffix[64];
    int ret;

    snprintf(suffix, sizeof(suffix), "/index?slices=%u-%u", first, last);
    ret = index_request(rd, suffix, &a, err);
    if (ret != CAIRN_OK)
        return ret;
    ret = keep_slices(rd, a.reader, first + 1, last, err);
    if (ret == CAIRN_OK)
        ret = index_reader_slice(a.reader, first, ordinal, prefix_of(rd, ordinal), ret_slice, err);
    if (ret == CAIRN_E_NOT_FOUND)
        ret = error_set(err, CAIRN_E_CORRUPT, "%s%s: the answer does not hold slice %u",
                        rd->data_path, suffix, first);
    if (ret == CAIRN_OK)
        slice_cache_put(rd->cache, prefix_of(rd, ordinal), first, *ret_slice);
    index_answer_release(&a);
    return ret;
}

static struct flight *find_flight_locked(struct remote_disk *rd, uint32_t slice_nr)
{
    struct flight *f = rd->flights;

    while (f && (slice_nr < f->first || slice_nr > f->last))
        f = f->next;
    return f;
}

/* Stop before slices that are in the cache or on their way. */
static uint32_t end_of_flight_locked(struct remote_disk *rd, uint32_t first)
{
    uint32_t last = first;

    while (last - first + 1 < FETCH_SLICES && last + 1 < rd->l1->nr_slices) {
        uint32_t ordinal = rd->l1->slices[last + 1];
        struct index_slice *slice;

        if (find_flight_locked(rd, last + 1))
            break;
        if (ordinal != INDEX_NO_SLICE) {
            slice = slice_cache_get(rd->cache, prefix_of(rd, ordinal), last + 1);
            index_slice_unref(slice);
            if (slice)
                break;
        }
        last++;
    }
    return last;
}

static struct flight *start_flight_locked(struct remote_disk *rd, uint32_t slice_nr)
{
    struct flight *f = calloc(1, sizeof(*f));

    if (!f)
        return NULL;
    f->first = slice_nr;
    f->last = end_of_flight_locked(rd, slice_nr);
    f->refs = 1;
    f->next = rd->flights;
    rd->flights = f;
    return f;
}

static void put_flight_locked(struct flight *f)
{
    if (--f->refs == 0)
        free(f);
}

static void land_flight_locked(struct remote_disk *rd, struct flight *f, int code)
{
    struct flight **link = &rd->flights;

    while (*link != f)
        link = &(*link)->next;
    *link = f->next;
    f->code = code;
    f->landed = true;
    pthread_cond_broadcast(&rd->flight_landed);
    put_flight_locked(f);
}

/* Wait until f has landed; its failure is that of all who wait. */
static int join_flight_locked(struct remote_disk *rd, struct flight *f, struct cairn_error *err)
{
    int code;

    f->refs++;
    while (!f->landed)
        pthread_cond_wait(&rd->flight_landed, &rd->flights_lock);
    code = f->code;
    if (code != CAIRN_OK && err)
        *err = f->err;
    put_flight_locked(f);
    return code;
}

/* Fly, with the lock released meanwhile. */
static int fly_locked(struct remote_disk *rd, uint32_t slice_nr, struct index_slice **ret_slice,
                      struct cairn_error *err)
{
    struct flight *f = start_flight_locked(rd, slice_nr);
    int ret;

    if (!f)
        return error_no_memory(err, "a request for the index");
    pthread_mutex_unlock(&rd->flights_lock);
    ret = fetch_slices(rd, f->first, f->last, ret_slice, &f->err);
    if (ret != CAIRN_OK && err)
        *err = f->err;
    pthread_mutex_lock(&rd->flights_lock);
    land_flight_locked(rd, f, ret);
    return ret;
}

static int get_missing_slice(struct remote_disk *rd, uint32_t ordinal, uint32_t slice_nr,
                             struct index_slice **ret_slice, struct cairn_error *err)
{
    SCOPED_LOCK(&rd->flights_lock);

    for (;;) {
        struct flight *f;
        int ret;

        *ret_slice = slice_cache_get(rd->cache, prefix_of(rd, ordinal), slice_nr);
        if (*ret_slice)
            return CAIRN_OK;
        f = find_flight_locked(rd, slice_nr);
        if (!f)
            return fly_locked(rd, slice_nr, ret_slice, err);
        ret = join_flight_locked(rd, f, err);
        if (ret != CAIRN_OK)
            return ret;
    }
}

static int get_slice(void *ctx, uint32_t ordinal, uint32_t slice_nr, struct index_slice **ret_slice,
                     struct cairn_error *err)
{
    struct remote_disk *rd = ctx;
    struct index_slice *slice = slice_cache_get(rd->cache, prefix_of(rd, ordinal), slice_nr);

    if (!slice)
        return get_missing_slice(rd, ordinal, slice_nr, ret_slice, err);
    *ret_slice = slice;
    return CAIRN_OK;
}

/* -- Reading -------------------------------------------------------------------------------- */

static int fetch(struct remote_disk *rd, const char *path, const char *etag, void *buf, size_t len,
                 uint64_t off, struct cairn_error *err)
{
    atomic_fetch_add_explicit(&rd->nr_reads, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&rd->read_bytes, len, memory_order_relaxed);
    return remote_read_range(rd->remote, path, etag, buf, len, off, err);
}

/* Bytes of a layer as they are stored; past the end of the blob there are zeros, as in QEMU. */
static int fetch_from_layer(struct remote_disk *rd, const struct extent *e, void *buf,
                            struct cairn_error *err)
{
    const struct manifest_layer *layer = &rd->manifest->layers[e->layer];
    uint64_t stored = e->host_off < layer->size ? min_u64(e->len, layer->size - e->host_off) : 0;
    char path[CLIENT_PATH_MAX];

    memset((char *)buf + stored, 0, (size_t)(e->len - stored));
    if (stored == 0)
        return CAIRN_OK;
    return fetch(rd, client_blob_path(rd->pinned.repo, &layer->digest, path), NULL, buf,
                 (size_t)stored, e->host_off, err);
}

/*
 * Fetch a run of neighbouring extents that do not read as zeros.  Here is the place of a cache of
 * blocks on this host: every DATA extent names its bytes by (layer digest, host offset), which
 * never change.
 */
static int fetch_run(struct remote_disk *rd, const struct extent *run, size_t nr, uint64_t len,
                     void *buf, struct cairn_error *err)
{
    if (nr == 1 && run->kind == EXTENT_DATA)
        return fetch_from_layer(rd, run, buf, err);
    return fetch(rd, rd->data_path, rd->etag, buf, (size_t)len, run->guest_off, err);
}

static int read_extents(struct remote_disk *rd, const struct extent *extents, size_t nr, char *buf,
                        struct cairn_error *err)
{
    for (size_t i = 0, end; i < nr; i = end) {
        uint64_t len = 0;
        bool zero = extent_reads_zero(extents[i].kind);
        int ret;

        for (end = i; end < nr && extent_reads_zero(extents[end].kind) == zero; end++)
            len += extents[end].len;
        if (zero) {
            memset(buf, 0, (size_t)len);
        } else {
            ret = fetch_run(rd, &extents[i], end - i, len, buf, err);
            if (ret != CAIRN_OK)
                return ret;
        }
        buf += len;
    }
    return CAIRN_OK;
}

/* Read inside the chain; for the read-ahead, which decides how much at a time. */
static int read_through(void *ctx, void *buf, size_t len, uint64_t guest_off,
                        struct cairn_error *err)
{
    struct remote_disk *rd = ctx;
    struct extent extents[READ_EXTENTS];
    char *at = buf;

    while (len > 0) {
        size_t nr, mapped;
        int ret = chain_map(rd->l1, &rd->slices, guest_off, len, extents, READ_EXTENTS, &nr, err);

        if (ret == CAIRN_OK)
            ret = read_extents(rd, extents, nr, at, err);
        if (ret != CAIRN_OK)
            return ret;
        mapped = (size_t)(extents[nr - 1].guest_off + extents[nr - 1].len - guest_off);
        at += mapped;
        guest_off += mapped;
        len -= mapped;
    }
    return CAIRN_OK;
}

int remote_disk_pread(struct remote_disk *rd, void *buf, size_t len, uint64_t guest_off,
                      struct cairn_error *err)
{
    uint64_t size = rd->l1->virtual_size;
    size_t inside = guest_off < size ? (size_t)min_u64(len, size - guest_off) : 0;

    memset((char *)buf + inside, 0, len - inside);
    return inside > 0 ? readahead_pread(rd->ahead, buf, inside, guest_off, err) : CAIRN_OK;
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
        .nr_index_reads = atomic_load_explicit(&rd->nr_index_reads, memory_order_relaxed),
        .index_bytes = slice_cache_bytes(rd->cache),
    };
}

/* -- Opening -------------------------------------------------------------------------------- */

static int fetch_l1(struct remote_disk *rd, struct cairn_error *err)
{
    struct index_answer a;
    int ret = index_request(rd, "/index", &a, err);

    if (ret != CAIRN_OK)
        return ret;
    rd->l1 = index_l1_ref(index_reader_l1(a.reader));
    if (rd->l1->depth != rd->manifest->depth)
        ret = error_set(err, CAIRN_E_CORRUPT, "%s: the index is of %u layers, the manifest of %u",
                        rd->data_path, rd->l1->depth, rd->manifest->depth);
    else if (rd->l1->nr_slices > 0)
        ret = keep_slices(rd, a.reader, 0, rd->l1->nr_slices - 1, err);
    index_answer_release(&a);
    return ret;
}

static int fetch_manifest(struct remote_disk *rd, struct cairn_client *client,
                          const struct ref *ref, struct cairn_error *err)
{
    char text[DIGEST_STR_MAX];
    int ret;

    rd->pinned = *ref;
    rd->pinned.tag[0] = 0;
    ret = client_get_manifest(client, ref, &rd->manifest, &rd->pinned.digest, err);
    if (ret != CAIRN_OK)
        return ret;
    client_disk_path(&rd->pinned, "/data", rd->data_path);
    snprintf(rd->etag, sizeof(rd->etag), "\"%s\"", digest_format(remote_disk_chain_id(rd), text));
    return CAIRN_OK;
}

int remote_disk_open(struct cairn_client *client, const struct ref *ref,
                     const struct remote_disk *previous, struct remote_disk **ret_rd,
                     struct cairn_error *err)
{
    CLEANUP(remote_disk_unref_p) struct remote_disk *rd = calloc(1, sizeof(*rd));
    int ret = CAIRN_OK;

    if (!rd)
        return error_no_memory(err, "a remote chain");
    atomic_init(&rd->refs, 1);
    rd->remote = client->remote;
    rd->slices = (struct index_slices){.get = get_slice, .ctx = rd};
    pthread_mutex_init(&rd->flights_lock, NULL);
    pthread_cond_init(&rd->flight_landed, NULL);
    if (previous)
        rd->cache = slice_cache_ref(previous->cache);
    else
        ret = slice_cache_new(SLICE_CACHE_BYTES, &rd->cache, err);
    if (ret == CAIRN_OK)
        ret = fetch_manifest(rd, client, ref, err);
    if (ret == CAIRN_OK)
        ret = fetch_l1(rd, err);
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
    if (rd->l1)
        index_l1_unref(rd->l1);
    manifest_free(rd->manifest);
    slice_cache_unref(rd->cache);
    pthread_cond_destroy(&rd->flight_landed);
    pthread_mutex_destroy(&rd->flights_lock);
    free(rd);
}

const struct ref *remote_disk_pinned(const struct remote_disk *rd)
{
    return &rd->pinned;
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
