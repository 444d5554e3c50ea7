/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One layer's file in the block cache (its form: block_cache_internal.h).
 *
 * A file is made under a name of its own and linked into place, so that nobody sees one without its
 * header.  One whose header is wrong is replaced.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <xxhash.h>

#include "block_cache_internal.h"
#include "bytes.h"

#define MAGIC   UINT64_C(0x736b636f6c426e43) /* "CnBlocks" in bytes */
#define VERSION 1u

/* A segment's stamp is written again when it is this old, in seconds. */
#define STAMP_AGE 30u

/* -- The header ------------------------------------------------------------------------------- */

enum {
    AT_MAGIC = 0,
    AT_VERSION = 8,
    AT_BLOCK_SIZE = 12,
    AT_LAYER_SIZE = 16,
    AT_DIGEST = 24,
    AT_CHECKSUM = AT_DIGEST + sizeof(struct digest),
};

static void header_encode(const struct blocks_header *h, uint8_t bytes[BLOCKS_HEADER_SIZE])
{
    memset(bytes, 0, BLOCKS_HEADER_SIZE);
    bytes_put_le64(bytes + AT_MAGIC, MAGIC);
    bytes_put_le32(bytes + AT_VERSION, VERSION);
    bytes_put_le32(bytes + AT_BLOCK_SIZE, BLOCK_SIZE);
    bytes_put_le64(bytes + AT_LAYER_SIZE, h->layer_size);
    memcpy(bytes + AT_DIGEST, h->digest.sha256, sizeof(h->digest.sha256));
    bytes_put_le64(bytes + AT_CHECKSUM, XXH3_64bits(bytes, AT_CHECKSUM));
}

bool blocks_header_decode(const uint8_t bytes[BLOCKS_HEADER_SIZE], struct blocks_header *ret_h)
{
    if (bytes_get_le64(bytes + AT_MAGIC) != MAGIC ||
        bytes_get_le32(bytes + AT_VERSION) != VERSION ||
        bytes_get_le32(bytes + AT_BLOCK_SIZE) != BLOCK_SIZE ||
        bytes_get_le64(bytes + AT_CHECKSUM) != XXH3_64bits(bytes, AT_CHECKSUM) ||
        bytes_get_le64(bytes + AT_LAYER_SIZE) > LAYER_SIZE_MAX)
        return false;
    ret_h->layer_size = bytes_get_le64(bytes + AT_LAYER_SIZE);
    memcpy(ret_h->digest.sha256, bytes + AT_DIGEST, sizeof(ret_h->digest.sha256));
    return true;
}

static uint64_t nr_segments(uint64_t layer_size)
{
    return div_round_up(layer_blocks(layer_size), SEGMENT_BLOCKS);
}

uint64_t blocks_slots_off(uint64_t layer_size)
{
    return BLOCKS_HEADER_SIZE + round_up(nr_segments(layer_size) * STAMP_SIZE, BLOCK_SIZE);
}

/* -- Opening ---------------------------------------------------------------------------------- */

static bool header_fits(const struct block_layer *layer)
{
    uint8_t bytes[BLOCKS_HEADER_SIZE];
    struct blocks_header h;
    struct stat st;

    return fstat(layer->fd, &st) == 0 && S_ISREG(st.st_mode) &&
           pread(layer->fd, bytes, sizeof(bytes), 0) == (ssize_t)sizeof(bytes) &&
           blocks_header_decode(bytes, &h) && h.layer_size == layer->size &&
           digest_equal(&h.digest, &layer->digest);
}

/* Open name if it is there, with its lock.  It may have been removed before it was locked: then it
 * is not there. */
static bool open_there(struct block_layer *layer, const char *name)
{
    struct stat st;

    layer->fd = openat(layer->cache->folder_fd, name,
                       O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_NOATIME | O_CLOEXEC);
    if (layer->fd >= 0 && block_lock(layer->fd, F_RDLCK, 0, 1) && fstat(layer->fd, &st) == 0 &&
        st.st_nlink > 0) {
        if (header_fits(layer))
            return true;
        unlinkat(layer->cache->folder_fd, name, 0);
    }
    cleanup_close(&layer->fd);
    layer->fd = -1;
    return false;
}

static int write_new(const struct block_layer *layer, int fd, struct cairn_error *err)
{
    const struct blocks_header h = {.digest = layer->digest, .layer_size = layer->size};
    uint8_t bytes[BLOCKS_HEADER_SIZE];

    header_encode(&h, bytes);
    if (pwrite(fd, bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes) ||
        ftruncate(fd, (off_t)slot_off(layer, layer_blocks(layer->size))) != 0)
        return error_set_errno(err, errno, "%s: cannot write to the block cache",
                               layer->cache->folder);
    return CAIRN_OK;
}

/* Make the file, unless somebody else does. */
static int make(struct block_layer *layer, const char *name, struct cairn_error *err)
{
    CLEANUP_CLOSE int fd =
        openat(layer->cache->folder_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    char self[64];
    int ret;

    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot make a file in the block cache",
                               layer->cache->folder);
    ret = write_new(layer, fd, err);
    if (ret != CAIRN_OK)
        return ret;
    snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
    if (linkat(AT_FDCWD, self, layer->cache->folder_fd, name, AT_SYMLINK_FOLLOW) != 0 &&
        errno != EEXIST)
        return error_set_errno(err, errno, "%s/%s: cannot make", layer->cache->folder, name);
    return CAIRN_OK;
}

static int open_or_make(struct block_layer *layer, struct cairn_error *err)
{
    char name[BLOCKS_NAME_MAX];

    strcpy(digest_format_hex(&layer->digest, name) + DIGEST_HEX_LEN, BLOCKS_SUFFIX);
    for (int tries = 0; tries < 4; tries++) {
        int ret;

        if (open_there(layer, name))
            return CAIRN_OK;
        ret = make(layer, name, err);
        if (ret != CAIRN_OK)
            return ret;
    }
    return error_set(err, CAIRN_E_IO, "%s/%s: cannot be opened, nor made anew",
                     layer->cache->folder, name);
}

/* All zeros; NULL without memory. */
static struct block_layer *layer_new(uint64_t size)
{
    struct block_layer *layer = aligned_alloc(alignof(struct block_layer), sizeof(*layer));

    if (!layer)
        return NULL;
    memset(layer, 0, sizeof(*layer));
    layer->fd = -1;
    layer->stamps = layer->few_stamps;
    if (nr_segments(size) > sizeof(layer->few_stamps) / sizeof(*layer->few_stamps))
        layer->stamps = calloc((size_t)nr_segments(size), sizeof(*layer->stamps));
    if (layer->stamps)
        return layer;
    free(layer);
    return NULL;
}

int block_layer_open(struct block_cache *cache, const struct digest *digest, uint64_t size,
                     struct block_layer **ret_layer, struct cairn_error *err)
{
    struct block_layer *layer;
    int ret;

    if (size > LAYER_SIZE_MAX)
        return error_set(err, CAIRN_E_LIMIT, "a layer of %llu bytes is too large for a block cache",
                         (unsigned long long)size);
    layer = layer_new(size);
    if (!layer)
        return error_no_memory(err, "a layer of the block cache");
    layer->cache = cache;
    layer->digest = *digest;
    layer->seed = bytes_get_le64(digest->sha256);
    layer->size = size;
    layer->slots_off = blocks_slots_off(size);
    ret = open_or_make(layer, err);
    if (ret == CAIRN_OK)
        *ret_layer = layer;
    else
        block_layer_close(layer);
    return ret;
}

void block_layer_close(struct block_layer *layer)
{
    cleanup_close(&layer->fd);
    if (layer->stamps != layer->few_stamps)
        free(layer->stamps);
    free(layer);
}

uint64_t block_layer_size(const struct block_layer *layer)
{
    return layer->size;
}

/* -- Stamps ----------------------------------------------------------------------------------- */

uint32_t block_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    return (uint32_t)now.tv_sec;
}

/* Is the stamp in the file new enough?  Another process may have put it there. */
static bool stamped_lately(const struct block_layer *layer, off_t at, uint32_t now)
{
    uint8_t bytes[STAMP_SIZE];

    return pread(layer->fd, bytes, sizeof(bytes), at) == (ssize_t)sizeof(bytes) &&
           now - bytes_get_le32(bytes) < STAMP_AGE;
}

/* Note that a segment is used. */
static void stamp(struct block_layer *layer, uint64_t block)
{
    uint64_t segment = block / SEGMENT_BLOCKS;
    off_t at = (off_t)(BLOCKS_HEADER_SIZE + segment * STAMP_SIZE);
    uint32_t now = block_now();
    uint8_t bytes[STAMP_SIZE];

    if (now - atomic_load_explicit(&layer->stamps[segment], memory_order_relaxed) < STAMP_AGE)
        return;
    atomic_store_explicit(&layer->stamps[segment], now, memory_order_relaxed);
    if (stamped_lately(layer, at, now))
        return;
    bytes_put_le32(bytes, now);
    /* If it fails, the segment is merely thought to be older than it is. */
    if (pwrite(layer->fd, bytes, sizeof(bytes), at) < 0)
        return;
}

/* -- Blocks ----------------------------------------------------------------------------------- */

static uint64_t checksum(const struct block_layer *layer, const void *bytes, uint64_t block)
{
    uint64_t sum = layer->cache->sum(bytes, layer->seed + block);

    return sum ? sum : 1; /* 0 says that nothing is here */
}

bool block_set_next(const struct block_set *set, unsigned *from, unsigned *ret_at, unsigned *ret_nr)
{
    unsigned at = *from, end;

    while (at < set->nr && !block_set_has(set, at))
        at++;
    for (end = at; end < set->nr && block_set_has(set, end);)
        end++;
    *from = end;
    *ret_at = at;
    *ret_nr = end - at;
    return end > at;
}

/* Where the blocks of one look-up go: the first and the last may be wanted in part. */
struct landing {
    uint8_t head[BLOCK_SIZE], tail[BLOCK_SIZE];
    uint8_t sums[BLOCK_SET_MAX][SLOT_HEADER];
    struct iovec iov[2 * BLOCK_SET_MAX];
    uint8_t *blocks[BLOCK_SET_MAX];
};

static void landing_plan(struct landing *l, const struct block_set *set, uint8_t *buf, size_t len,
                         uint64_t host_off)
{
    for (unsigned i = 0; i < set->nr; i++) {
        uint64_t off = (set->first + i) * BLOCK_SIZE;

        if (off < host_off)
            l->blocks[i] = l->head;
        else if (off + BLOCK_SIZE > host_off + len)
            l->blocks[i] = l->tail;
        else
            l->blocks[i] = buf + (off - host_off);
        l->iov[2 * i] = (struct iovec){l->sums[i], SLOT_HEADER};
        l->iov[2 * i + 1] = (struct iovec){l->blocks[i], BLOCK_SIZE};
    }
}

/* Read the slots; how many came whole. */
static unsigned landing_read(struct landing *l, const struct block_layer *layer,
                             const struct block_set *set)
{
    static_assert(2 * BLOCK_SET_MAX <= 1024, "IOV_MAX");
    ssize_t n = preadv(layer->fd, l->iov, (int)(2 * set->nr), (off_t)slot_off(layer, set->first));

    return n > 0 ? (unsigned)((size_t)n / SLOT_SIZE) : 0;
}

/* Copy the parts that are wanted of the first and the last block. */
static void landing_finish(const struct landing *l, const struct block_set *set, uint8_t *buf,
                           size_t len, uint64_t host_off)
{
    size_t skip = (size_t)(host_off % BLOCK_SIZE);
    size_t over = (size_t)((host_off + len) % BLOCK_SIZE);

    if (l->blocks[0] == l->head)
        memcpy(buf, l->head + skip, (size_t)min_u64(len, BLOCK_SIZE - skip));
    if (l->blocks[set->nr - 1] == l->tail)
        memcpy(buf + len - over, l->tail, over);
}

static void count(atomic_uint_fast64_t *counter, unsigned nr)
{
    if (nr > 0)
        atomic_fetch_add_explicit(counter, nr, memory_order_relaxed);
}

unsigned block_layer_read(struct block_layer *layer, void *buf, size_t len, uint64_t host_off,
                          struct block_set *ret_missing)
{
    struct block_set *set = ret_missing;
    struct landing l;
    unsigned nr_read, nr_missing = 0;

    set->first = host_off / BLOCK_SIZE;
    set->nr = (unsigned)(div_round_up(host_off + len, BLOCK_SIZE) - set->first);
    memset(set->bits, 0, sizeof(set->bits));
    landing_plan(&l, set, buf, len, host_off);
    nr_read = landing_read(&l, layer, set);
    for (unsigned i = 0; i < set->nr; i++) {
        uint64_t sum = i < nr_read ? bytes_get_le64(l.sums[i]) : 0;

        if (sum != 0 && sum == checksum(layer, l.blocks[i], set->first + i))
            continue;
        if (sum != 0)
            atomic_fetch_add_explicit(&layer->cache->bad, 1, memory_order_relaxed);
        set->bits[i / 64] |= UINT64_C(1) << i % 64;
        nr_missing++;
    }
    landing_finish(&l, set, buf, len, host_off);
    if (nr_missing < set->nr)
        stamp(layer, set->first);
    count(&layer->cache->misses, nr_missing);
    count(&layer->cache->hits, set->nr - nr_missing);
    return nr_missing;
}

void block_layer_write(struct block_layer *layer, const void *buf, uint64_t first, unsigned nr)
{
    uint64_t nr_blocks = layer_blocks(layer->size);
    uint8_t sums[BLOCK_SET_MAX][SLOT_HEADER], last[BLOCK_SIZE];
    struct iovec iov[2 * BLOCK_SET_MAX];

    for (unsigned i = 0; i < nr; i++) {
        const uint8_t *bytes = (const uint8_t *)buf + (size_t)i * BLOCK_SIZE;

        if (first + i + 1 == nr_blocks && layer->size % BLOCK_SIZE) {
            memset(last, 0, sizeof(last));
            bytes = memcpy(last, bytes, layer->size % BLOCK_SIZE);
        }
        bytes_put_le64(sums[i], checksum(layer, bytes, first + i));
        iov[2 * i] = (struct iovec){sums[i], SLOT_HEADER};
        iov[2 * i + 1] = (struct iovec){.iov_len = BLOCK_SIZE};
        memcpy(&iov[2 * i + 1].iov_base, &bytes, sizeof(bytes)); /* not written to */
    }
    if (!block_usage_reserve(layer->cache, (uint64_t)nr * SLOT_SIZE))
        return;
    /* What a full disk or a crash leaves of it denies itself. */
    if (pwritev(layer->fd, iov, (int)(2 * nr), (off_t)slot_off(layer, first)) <= 0)
        return;
    stamp(layer, first);
    atomic_fetch_add_explicit(&layer->cache->writes, nr, memory_order_relaxed);
}
