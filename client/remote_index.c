/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The manifest and index of a chain that a service keeps.
 *
 * Opening takes one request at any depth: the manifest, the index's L1, and as many slices as the
 * service sends unasked.  Further slices are fetched when a look-up needs them, a neighbourhood at
 * a time, once however many threads ask; each is verified by the decoder against the chain IDs that
 * are computed here from the manifest.
 *
 * No lock is held over a request.  Every request ends by the client's deadline, therefore so does
 * every wait for somebody else's.
 */
#include "remote_index.h"

#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "checked.h"

#define FETCH_SLICES 16u /* half a GiB of guest space with one request */

/* Slices that reads have at hand; they stay in the cache too, while it has room for them. */
#define HELD_BYTES ((size_t)16 << 20)

/* Slices that are being fetched, and the threads that wait for them. */
struct flight {
    struct flight *next;
    uint32_t first, last;
    unsigned refs; /* of the fetcher and the waiting */
    bool landed;
    int code;
    struct cairn_error err; /* if code is not OK */
};

struct remote_index {
    struct remote *remote;
    struct ref pinned;
    struct manifest *manifest;
    struct index_l1 *l1;
    struct slice_cache *cache;
    struct chain_index *held; /* over the cache: what reads go through, without a lock */

    pthread_mutex_t flights_lock; /* taken before the cache's */
    pthread_cond_t flight_landed;
    struct flight *flights;

    atomic_uint_least64_t nr_requests;
};

static const struct digest *index_chain_id(const struct remote_index *ix)
{
    return &ix->manifest->chain_ids[ix->manifest->depth - 1];
}

/* -- Requests ------------------------------------------------------------------------------- */

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

/* bytes are those of a container in the answer's body. */
static int index_answer_open(struct remote_index *ix, const char *path, const char *bytes,
                             size_t len, struct index_answer *a, struct cairn_error *err)
{
    int ret = source_from_memory(bytes, len, path, &a->src, err);

    if (ret == CAIRN_OK)
        ret = index_reader_open(a->src, index_chain_id(ix), &a->reader, err);
    return ret;
}

/* GET of `/v1/disks/<ref><suffix>`, which must be 200. */
static int request(struct remote_index *ix, const struct ref *ref, const char *suffix,
                   char path[CLIENT_PATH_MAX], struct remote_answer *ret_answer,
                   struct cairn_error *err)
{
    const struct remote_request rq = {
        .method = "GET",
        .path = client_disk_path(ref, suffix, path),
        .idempotent = true,
    };
    int ret;

    memset(ret_answer, 0, sizeof(*ret_answer));
    atomic_fetch_add_explicit(&ix->nr_requests, 1, memory_order_relaxed);
    ret = remote_request(ix->remote, &rq, ret_answer, err);
    if (ret != CAIRN_OK)
        return error_prefix(err, ret, "%s", path);
    return ret_answer->status == 200 ? CAIRN_OK : remote_answer_error(ret_answer, path, err);
}

static int index_request(struct remote_index *ix, const char *suffix, struct index_answer *ret_a,
                         struct cairn_error *err)
{
    char path[CLIENT_PATH_MAX];
    int ret;

    memset(ret_a, 0, sizeof(*ret_a));
    ret = request(ix, &ix->pinned, suffix, path, &ret_a->answer, err);
    if (ret == CAIRN_OK)
        ret = index_answer_open(ix, path, ret_a->answer.body, ret_a->answer.body_len, ret_a, err);
    if (ret != CAIRN_OK)
        index_answer_release(ret_a);
    return ret;
}

static const struct digest *prefix_of(const struct remote_index *ix, uint32_t ordinal)
{
    return &ix->manifest->chain_ids[ordinal];
}

/* Keep slice slice_nr of an answer; NOT_FOUND if the answer does not hold it. */
static int keep_slice(struct remote_index *ix, struct index_reader *reader, uint32_t slice_nr,
                      struct cairn_error *err)
{
    CLEANUP(index_slice_unref_p) struct index_slice *slice = NULL;
    uint32_t ordinal = ix->l1->slices[slice_nr];
    int ret = index_reader_slice(reader, slice_nr, ordinal, prefix_of(ix, ordinal), &slice, err);

    if (ret == CAIRN_OK)
        slice_cache_put(ix->cache, prefix_of(ix, ordinal), slice_nr, slice);
    return ret;
}

/* Keep what the answer holds of [first, last].  The service sends slices in order to a budget, so
 * the first that is missing ends it. */
static int keep_slices(struct remote_index *ix, struct index_reader *reader, uint32_t first,
                       uint32_t last, struct cairn_error *err)
{
    struct cairn_error why;

    for (uint32_t s = first; s <= last && s < ix->l1->nr_slices; s++) {
        int ret;

        if (ix->l1->slices[s] == INDEX_NO_SLICE)
            continue;
        ret = keep_slice(ix, reader, s, &why);
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
static int fetch_slices(struct remote_index *ix, uint32_t first, uint32_t last,
                        struct index_slice **ret_slice, struct cairn_error *err)
{
    uint32_t ordinal = ix->l1->slices[first];
    struct index_answer a;
    char suffix[64], name[REF_STR_MAX];
    int ret;

    snprintf(suffix, sizeof(suffix), "/index?slices=%u-%u", first, last);
    ret = index_request(ix, suffix, &a, err);
    if (ret != CAIRN_OK)
        return ret;
    ret = keep_slices(ix, a.reader, first + 1, last, err);
    if (ret == CAIRN_OK)
        ret = index_reader_slice(a.reader, first, ordinal, prefix_of(ix, ordinal), ret_slice, err);
    if (ret == CAIRN_E_NOT_FOUND)
        ret = error_set(err, CAIRN_E_CORRUPT, "/v1/disks/%s%s: the answer does not hold slice %u",
                        ref_format(&ix->pinned, name), suffix, first);
    if (ret == CAIRN_OK)
        slice_cache_put(ix->cache, prefix_of(ix, ordinal), first, *ret_slice);
    index_answer_release(&a);
    return ret;
}

static struct flight *find_flight_locked(struct remote_index *ix, uint32_t slice_nr)
{
    struct flight *f = ix->flights;

    while (f && (slice_nr < f->first || slice_nr > f->last))
        f = f->next;
    return f;
}

/* Stop before slices that are in the cache or on their way. */
static uint32_t end_of_flight_locked(struct remote_index *ix, uint32_t first)
{
    uint32_t last = first;

    while (last - first + 1 < FETCH_SLICES && last + 1 < ix->l1->nr_slices) {
        uint32_t ordinal = ix->l1->slices[last + 1];
        struct index_slice *slice;

        if (find_flight_locked(ix, last + 1))
            break;
        if (ordinal != INDEX_NO_SLICE) {
            slice = slice_cache_get(ix->cache, prefix_of(ix, ordinal), last + 1);
            index_slice_unref(slice);
            if (slice)
                break;
        }
        last++;
    }
    return last;
}

static struct flight *start_flight_locked(struct remote_index *ix, uint32_t slice_nr)
{
    struct flight *f = calloc(1, sizeof(*f));

    if (!f)
        return NULL;
    f->first = slice_nr;
    f->last = end_of_flight_locked(ix, slice_nr);
    f->refs = 1;
    f->next = ix->flights;
    ix->flights = f;
    return f;
}

static void put_flight_locked(struct flight *f)
{
    if (--f->refs == 0)
        free(f);
}

static void land_flight_locked(struct remote_index *ix, struct flight *f, int code)
{
    struct flight **link = &ix->flights;

    while (*link != f)
        link = &(*link)->next;
    *link = f->next;
    f->code = code;
    f->landed = true;
    pthread_cond_broadcast(&ix->flight_landed);
    put_flight_locked(f);
}

/* Wait until f has landed; its failure is that of all who wait. */
static int join_flight_locked(struct remote_index *ix, struct flight *f, struct cairn_error *err)
{
    int code;

    f->refs++;
    while (!f->landed)
        pthread_cond_wait(&ix->flight_landed, &ix->flights_lock);
    code = f->code;
    if (code != CAIRN_OK && err)
        *err = f->err;
    put_flight_locked(f);
    return code;
}

/* Fly, with the lock released meanwhile. */
static int fly_locked(struct remote_index *ix, uint32_t slice_nr, struct index_slice **ret_slice,
                      struct cairn_error *err)
{
    struct flight *f = start_flight_locked(ix, slice_nr);
    int ret;

    if (!f)
        return error_no_memory(err, "a request for the index");
    pthread_mutex_unlock(&ix->flights_lock);
    ret = fetch_slices(ix, f->first, f->last, ret_slice, &f->err);
    if (ret != CAIRN_OK && err)
        *err = f->err;
    pthread_mutex_lock(&ix->flights_lock);
    land_flight_locked(ix, f, ret);
    return ret;
}

static int get_missing_slice(struct remote_index *ix, uint32_t ordinal, uint32_t slice_nr,
                             struct index_slice **ret_slice, struct cairn_error *err)
{
    SCOPED_LOCK(&ix->flights_lock);

    for (;;) {
        struct flight *f;
        int ret;

        *ret_slice = slice_cache_get(ix->cache, prefix_of(ix, ordinal), slice_nr);
        if (*ret_slice)
            return CAIRN_OK;
        f = find_flight_locked(ix, slice_nr);
        if (!f)
            return fly_locked(ix, slice_nr, ret_slice, err);
        ret = join_flight_locked(ix, f, err);
        if (ret != CAIRN_OK)
            return ret;
    }
}

static int get_slice(void *ctx, uint32_t ordinal, uint32_t slice_nr, struct index_slice **ret_slice,
                     struct cairn_error *err)
{
    struct remote_index *ix = ctx;
    struct index_slice *slice = slice_cache_get(ix->cache, prefix_of(ix, ordinal), slice_nr);

    if (!slice)
        return get_missing_slice(ix, ordinal, slice_nr, ret_slice, err);
    *ret_slice = slice;
    return CAIRN_OK;
}

/* -- Opening -------------------------------------------------------------------------------- */

/* The manifest from an answer of the open call; *ret_rest: where the container begins. */
static int take_manifest(struct remote_index *ix, const struct ref *ref,
                         const struct remote_answer *answer, const char *path, size_t *ret_rest,
                         struct cairn_error *err)
{
    size_t head = sizeof(uint64_t), len;
    int ret;

    if (answer->body_len < head ||
        bytes_get_le64(answer->body) > min_u64(answer->body_len - head, MANIFEST_BYTES_MAX))
        return error_set(err, CAIRN_E_CORRUPT, "%s: an answer of %zu bytes has no whole manifest",
                         path, answer->body_len);
    len = (size_t)bytes_get_le64(answer->body);
    ix->pinned = *ref;
    ix->pinned.tag[0] = 0;
    ret = client_check_manifest(answer->body + head, len, ref, answer->digest, path,
                                &ix->pinned.digest, err);
    if (ret == CAIRN_OK) {
        ret = manifest_parse(answer->body + head, len, &ix->manifest, err);
        if (ret != CAIRN_OK)
            ret = error_prefix(err, ret, "%s", path);
    }
    *ret_rest = head + len;
    return ret;
}

static int take_l1(struct remote_index *ix, struct index_reader *reader, const char *path,
                   struct cairn_error *err)
{
    ix->l1 = index_l1_ref(index_reader_l1(reader));
    if (ix->l1->depth != ix->manifest->depth)
        return error_set(err, CAIRN_E_CORRUPT, "%s: the index is of %u layers, the manifest of %u",
                         path, ix->l1->depth, ix->manifest->depth);
    return ix->l1->nr_slices > 0 ? keep_slices(ix, reader, 0, ix->l1->nr_slices - 1, err)
                                 : CAIRN_OK;
}

static int fetch_opening(struct remote_index *ix, const struct ref *ref, struct cairn_error *err)
{
    struct index_answer a = {0};
    char path[CLIENT_PATH_MAX];
    size_t rest = 0;
    int ret = request(ix, ref, "/open", path, &a.answer, err);

    if (ret == CAIRN_OK)
        ret = take_manifest(ix, ref, &a.answer, path, &rest, err);
    if (ret == CAIRN_OK)
        ret = index_answer_open(ix, path, a.answer.body + rest, a.answer.body_len - rest, &a, err);
    if (ret == CAIRN_OK)
        ret = take_l1(ix, a.reader, path, err);
    index_answer_release(&a);
    return ret;
}

int remote_index_open(struct cairn_client *client, const struct ref *ref, struct slice_cache *cache,
                      struct remote_index **ret_index, struct cairn_error *err)
{
    CLEANUP(remote_index_free_p) struct remote_index *ix = calloc(1, sizeof(*ix));
    int ret;

    if (!ix)
        return error_no_memory(err, "a chain's index");
    ix->remote = client->remote;
    ix->cache = slice_cache_ref(cache);
    pthread_mutex_init(&ix->flights_lock, NULL);
    pthread_cond_init(&ix->flight_landed, NULL);
    ret = fetch_opening(ix, ref, err);
    if (ret == CAIRN_OK)
        ret = chain_index_new(ix->l1, &(struct index_slices){.get = get_slice, .ctx = ix},
                              HELD_BYTES, &ix->held, err);
    if (ret == CAIRN_OK)
        *ret_index = steal_ptr(ix);
    return ret;
}

void remote_index_free(struct remote_index *ix)
{
    if (!ix)
        return;
    chain_index_free(ix->held);
    index_l1_unref(ix->l1);
    manifest_free(ix->manifest);
    slice_cache_unref(ix->cache);
    pthread_cond_destroy(&ix->flight_landed);
    pthread_mutex_destroy(&ix->flights_lock);
    free(ix);
}

const struct ref *remote_index_pinned(const struct remote_index *ix)
{
    return &ix->pinned;
}

const struct manifest *remote_index_manifest(const struct remote_index *ix)
{
    return ix->manifest;
}

struct index_l1 *remote_index_l1(struct remote_index *ix)
{
    return ix->l1;
}

struct index_slices remote_index_slices(struct remote_index *ix)
{
    return chain_index_slices(ix->held);
}

struct chain_index *remote_index_held(struct remote_index *ix)
{
    return ix->held;
}

struct slice_cache *remote_index_cache(const struct remote_index *ix)
{
    return ix->cache;
}

uint64_t remote_index_requests(const struct remote_index *ix)
{
    return atomic_load_explicit(&ix->nr_requests, memory_order_relaxed);
}
