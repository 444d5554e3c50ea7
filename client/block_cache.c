/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The folder of the block cache, and which of its files this process has open.
 *
 * A file descriptor is what an open layer costs, and a chain may have more layers than a process
 * may have descriptors: beyond half of its limit, files are opened for one read and closed again.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>

#include "block_cache_internal.h"

#define OPEN_MAX 16384u

static unsigned max_open(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return 128;
    return limit.rlim_cur / 2 < OPEN_MAX ? (unsigned)(limit.rlim_cur / 2) : OPEN_MAX;
}

/* Others must not be able to write to it: checksums tell accidents, not forgeries. */
static int check_folder(const struct block_cache *cache, struct cairn_error *err)
{
    struct stat st;

    if (fstat(cache->folder_fd, &st) != 0)
        return error_set_errno(err, errno, "%s: cannot look at the block cache", cache->folder);
    if (st.st_uid != geteuid() || (st.st_mode & (S_IWGRP | S_IWOTH)))
        return error_set(err, CAIRN_E_DENIED,
                         "%s: owner %u, mode %03o: the folder of a block cache must be this user's "
                         "(%u) and writable for nobody else",
                         cache->folder, st.st_uid, st.st_mode & 0777u, geteuid());
    return CAIRN_OK;
}

/* Files are made without a name first (block_layer.c).  A disk that is full now may have room
 * later.
 */
static int check_files(const struct block_cache *cache, struct cairn_error *err)
{
    CLEANUP_CLOSE int fd = openat(cache->folder_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    if (fd >= 0 || errno == ENOSPC || errno == EDQUOT)
        return CAIRN_OK;
    if (errno == EOPNOTSUPP || errno == EISDIR)
        return error_set(err, CAIRN_E_UNSUPPORTED,
                         "%s: this file system has no files without a name (O_TMPFILE), which the "
                         "block cache needs; ext4, XFS, Btrfs and tmpfs have",
                         cache->folder);
    return error_set_errno(err, errno, "%s: cannot make a file in the block cache", cache->folder);
}

static int open_folder(struct block_cache *cache, const char *folder, struct cairn_error *err)
{
    int ret;

    cache->folder = strdup(folder);
    if (!cache->folder)
        return error_no_memory(err, "a block cache");
    if (mkdir(folder, 0700) != 0 && errno != EEXIST)
        return error_set_errno(err, errno, "%s: cannot make the block cache's folder", folder);
    cache->folder_fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (cache->folder_fd < 0)
        return error_set_errno(err, errno, "%s: cannot open the block cache's folder", folder);
    ret = check_folder(cache, err);
    if (ret == CAIRN_OK)
        ret = check_files(cache, err);
    if (ret != CAIRN_OK)
        return ret;
    cache->usage_fd =
        openat(cache->folder_fd, "usage", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (cache->usage_fd < 0)
        return error_set_errno(err, errno, "%s/usage: cannot open", folder);
    return CAIRN_OK;
}

static void init_condition(pthread_cond_t *condition)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &attr);
    pthread_condattr_destroy(&attr);
}

int block_cache_open(const char *folder, uint64_t max_bytes, struct block_cache **ret_cache,
                     struct cairn_error *err)
{
    CLEANUP(block_cache_unref_p) struct block_cache *cache = NULL;
    int ret;

    if (max_bytes < BLOCK_CACHE_BYTES_MIN)
        return error_set(err, CAIRN_E_USAGE,
                         "%s: a block cache of %" PRIu64 " bytes, at least %" PRIu64 " expected",
                         folder, max_bytes, BLOCK_CACHE_BYTES_MIN);
    cache = calloc(1, sizeof(*cache));
    if (!cache)
        return error_no_memory(err, "a block cache");
    atomic_init(&cache->refs, 1);
    cache->folder_fd = cache->usage_fd = -1;
    cache->max_bytes = max_bytes;
    cache->max_open = max_open();
    cache->sum = block_sum_choose();
    pthread_mutex_init(&cache->lock, NULL);
    pthread_mutex_init(&cache->claims_lock, NULL);
    pthread_mutex_init(&cache->usage_lock, NULL);
    init_condition(&cache->claim_ended);
    ret = open_folder(cache, folder, err);
    if (ret == CAIRN_OK)
        *ret_cache = steal_ptr(cache);
    return ret;
}

struct block_cache *block_cache_ref(struct block_cache *cache)
{
    atomic_fetch_add_explicit(&cache->refs, 1, memory_order_relaxed);
    return cache;
}

void block_cache_unref(struct block_cache *cache)
{
    if (!cache || atomic_fetch_sub_explicit(&cache->refs, 1, memory_order_acq_rel) != 1)
        return;
    cleanup_close(&cache->usage_fd);
    cleanup_close(&cache->folder_fd);
    pthread_cond_destroy(&cache->claim_ended);
    pthread_mutex_destroy(&cache->usage_lock);
    pthread_mutex_destroy(&cache->claims_lock);
    pthread_mutex_destroy(&cache->lock);
    free(cache->folder);
    free(cache);
}

/* -- Open layers ------------------------------------------------------------------------------ */

static struct block_layer **bucket_of(struct block_cache *cache, const struct digest *layer)
{
    return &cache->buckets[layer->sha256[0] % NR_BUCKETS];
}

static struct block_layer *find_locked(struct block_cache *cache, const struct digest *digest,
                                       uint64_t size)
{
    struct block_layer *layer = *bucket_of(cache, digest);

    while (layer && (layer->size != size || !digest_equal(&layer->digest, digest)))
        layer = layer->next;
    return layer;
}

int block_cache_layer(struct block_cache *cache, const struct digest *digest, uint64_t size,
                      struct block_layer **ret_layer, bool *ret_keep, struct cairn_error *err)
{
    SCOPED_LOCK(&cache->lock);
    struct block_layer *layer = find_locked(cache, digest, size);
    int ret;

    if (!layer) {
        ret = block_layer_open(cache, digest, size, &layer, err);
        if (ret != CAIRN_OK)
            return ret;
        layer->next = *bucket_of(cache, digest);
        *bucket_of(cache, digest) = layer;
        cache->nr_open++;
        block_cache_ref(cache);
    }
    layer->refs++;
    *ret_layer = layer;
    *ret_keep = cache->nr_open <= cache->max_open;
    return CAIRN_OK;
}

static bool forget_layer(struct block_layer *layer)
{
    struct block_layer **link = bucket_of(layer->cache, &layer->digest);

    SCOPED_LOCK(&layer->cache->lock);
    if (--layer->refs > 0)
        return false;
    while (*link != layer)
        link = &(*link)->next;
    *link = layer->next;
    layer->cache->nr_open--;
    return true;
}

void block_layer_unref(struct block_layer *layer)
{
    if (!layer || !forget_layer(layer))
        return;
    block_cache_unref(layer->cache);
    block_layer_close(layer);
}

void block_cache_get_stats(struct block_cache *cache, struct block_cache_stats *ret_stats)
{
    *ret_stats = (struct block_cache_stats){
        .hits = atomic_load_explicit(&cache->hits, memory_order_relaxed),
        .misses = atomic_load_explicit(&cache->misses, memory_order_relaxed),
        .writes = atomic_load_explicit(&cache->writes, memory_order_relaxed),
        .bad = atomic_load_explicit(&cache->bad, memory_order_relaxed),
        .evictions = atomic_load_explicit(&cache->evictions, memory_order_relaxed),
    };
}
