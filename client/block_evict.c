/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much the folder holds, and letting go of what was used least recently.
 *
 * The file `usage` holds a count of bytes that all processes add to, a megabyte at a time and in
 * advance: a process that ends with some of its megabyte unwritten, or dies, leaves a count that is
 * too high, never one that is too low.  When the count reaches the bound, whoever notices looks at
 * what the files really take, and makes room: segments go in the order of their stamps until an
 * eighth of the bound is free.  The count is then what was found; so it need not be exact, nor
 * survive anything, and one that cannot be right is looked at again.
 *
 * The lock on `usage` is never waited for.  Who cannot have it goes on and remembers what it wrote,
 * up to UNACCOUNTED_MAX; beyond that it keeps nothing more.  So the folder never takes more than
 * its bound and that much for each process.  Where no room can be made (a file system that cannot
 * punch holes), nothing is kept for a while.
 *
 * Evicting is giving a segment's slots back to the file system, under readers and writers, who see
 * slots that their checksums deny.  A file of which nothing is left is removed unless somebody has
 * it open.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "block_cache_internal.h"
#include "bytes.h"

#define ACCOUNT_STEP    ((uint64_t)1 << 20)
#define UNACCOUNTED_MAX ((int64_t)16 << 20)
#define FULL_SECONDS    10u /* until it is tried again to make room */

static_assert(SEGMENT_BLOCKS * SLOT_SIZE % BLOCK_SIZE == 0, "segments do not share pages");

/* -- What there is ---------------------------------------------------------------------------- */

struct segment {
    uint32_t stamp;
    uint32_t file; /* in the census */
    uint64_t number;
};

struct census_file {
    char name[BLOCKS_NAME_MAX];
    uint64_t layer_size;
    uint64_t bytes; /* on the disk */
};

struct census {
    struct census_file *files;
    size_t nr_files, max_files;
    struct segment *segments; /* that have data */
    size_t nr_segments, max_segments;
    uint64_t bytes;
};

static void census_release(struct census *c)
{
    free(c->files);
    free(c->segments);
}

/* Room for one more; false: out of memory. */
static bool grow(void **array, size_t nr, size_t *max, size_t size)
{
    size_t more = *max ? 2 * *max : 64;
    void *grown;

    if (nr < *max)
        return true;
    grown = reallocarray(*array, more, size);
    if (!grown)
        return false;
    *array = grown;
    *max = more;
    return true;
}

static uint64_t bytes_on_disk(int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 ? (uint64_t)st.st_blocks * 512 : 0;
}

static int open_blocks(const struct block_cache *cache, const char *name,
                       struct blocks_header *ret_h)
{
    CLEANUP_CLOSE int fd =
        openat(cache->folder_fd, name, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    uint8_t bytes[BLOCKS_HEADER_SIZE];

    if (fd < 0 || pread(fd, bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes) ||
        !blocks_header_decode(bytes, ret_h))
        return -1;
    return steal_fd(&fd);
}

static bool is_blocks_name(const char *name)
{
    return strlen(name) == BLOCKS_NAME_MAX - 1 && !strcmp(name + DIGEST_HEX_LEN, BLOCKS_SUFFIX);
}

static void count_files(struct block_cache *cache, struct census *c)
{
    int fd = openat(cache->folder_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    struct dirent *entry;

    if (!dir) {
        cleanup_close(&fd);
        return;
    }
    while ((entry = readdir(dir))) {
        struct stat st;

        if (!is_blocks_name(entry->d_name) ||
            fstatat(cache->folder_fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
            !grow((void **)&c->files, c->nr_files, &c->max_files, sizeof(*c->files)))
            continue;
        c->files[c->nr_files] = (struct census_file){.bytes = (uint64_t)st.st_blocks * 512};
        memcpy(c->files[c->nr_files].name, entry->d_name, BLOCKS_NAME_MAX);
        c->bytes += c->files[c->nr_files++].bytes;
    }
    closedir(dir);
}

/* -- Segments --------------------------------------------------------------------------------- */

static void segment_range(uint64_t layer_size, uint64_t number, uint64_t *ret_off,
                          uint64_t *ret_end)
{
    uint64_t first = number * SEGMENT_BLOCKS;
    uint64_t end = min_u64(first + SEGMENT_BLOCKS, layer_blocks(layer_size));

    *ret_off = blocks_slots_off(layer_size) + first * SLOT_SIZE;
    *ret_end = blocks_slots_off(layer_size) + round_up(end * SLOT_SIZE, BLOCK_SIZE);
}

static uint32_t read_stamp(int fd, uint64_t segment)
{
    uint8_t bytes[STAMP_SIZE];

    if (pread(fd, bytes, sizeof(bytes), (off_t)(BLOCKS_HEADER_SIZE + segment * STAMP_SIZE)) !=
        (ssize_t)sizeof(bytes))
        return 0;
    return bytes_get_le32(bytes);
}

/* Find the segments of a file that have data; out of memory ends the list, which does no harm. */
static void list_segments(struct census *c, uint32_t file, int fd)
{
    uint64_t layer_size = c->files[file].layer_size;
    uint64_t slots_off = blocks_slots_off(layer_size);
    uint64_t nr = div_round_up(layer_blocks(layer_size), SEGMENT_BLOCKS);

    for (uint64_t s = 0; s < nr; s++) {
        uint64_t off, end;
        off_t data;

        segment_range(layer_size, s, &off, &end);
        data = lseek(fd, (off_t)off, SEEK_DATA);
        if (data < 0)
            return;
        if ((uint64_t)data >= end) {
            s = ((uint64_t)data - slots_off) / (SEGMENT_BLOCKS * SLOT_SIZE) - 1;
            continue;
        }
        if (!grow((void **)&c->segments, c->nr_segments, &c->max_segments, sizeof(*c->segments)))
            return;
        c->segments[c->nr_segments++] = (struct segment){read_stamp(fd, s), file, s};
    }
}

static int older(const void *a, const void *b)
{
    const struct segment *x = a, *y = b;

    if (x->stamp != y->stamp)
        return x->stamp < y->stamp ? -1 : 1;
    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    return x->number < y->number ? -1 : x->number > y->number;
}

/* -- Evicting --------------------------------------------------------------------------------- */

/* Remove the file if nobody has it open; what it takes is then gone with it. */
static bool remove_unused(struct block_cache *cache, const struct census_file *file, int fd)
{
    return block_lock(fd, F_WRLCK, 0, 1) && unlinkat(cache->folder_fd, file->name, 0) == 0;
}

/* Look into a file for what could be evicted.  One that holds nothing would never be met again. */
static void look_into(struct block_cache *cache, struct census *c, uint32_t nr)
{
    struct census_file *file = &c->files[nr];
    size_t nr_before = c->nr_segments;
    struct blocks_header h;
    CLEANUP_CLOSE int fd = open_blocks(cache, file->name, &h);

    if (fd < 0)
        return;
    file->layer_size = h.layer_size;
    list_segments(c, nr, fd);
    if (c->nr_segments > nr_before || file->bytes > blocks_slots_off(h.layer_size) ||
        !remove_unused(cache, file, fd))
        return;
    c->bytes -= file->bytes;
    file->bytes = 0;
}

static void evict_segment(struct block_cache *cache, struct census *c, const struct segment *s)
{
    struct census_file *file = &c->files[s->file];
    struct blocks_header h;
    CLEANUP_CLOSE int fd = open_blocks(cache, file->name, &h);
    uint64_t off, end, left;

    if (fd < 0 || h.layer_size != file->layer_size)
        return;
    segment_range(h.layer_size, s->number, &off, &end);
    if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)(end - off)) !=
        0)
        return;
    left = bytes_on_disk(fd);
    if (left <= blocks_slots_off(h.layer_size) && remove_unused(cache, file, fd))
        left = 0;
    c->bytes -= min_u64(c->bytes, file->bytes - min_u64(left, file->bytes));
    file->bytes = left;
    atomic_fetch_add_explicit(&cache->evictions, 1, memory_order_relaxed);
}

/* Make room where there is too little; what the folder takes then. */
static uint64_t take_census(struct block_cache *cache)
{
    struct census c = {0};
    uint64_t bytes;

    count_files(cache, &c);
    if (c.bytes > cache->max_bytes - cache->max_bytes / 8) {
        for (size_t i = 0; i < c.nr_files; i++)
            look_into(cache, &c, (uint32_t)i);
        qsort(c.segments, c.nr_segments, sizeof(*c.segments), older);
        for (size_t i = 0; i < c.nr_segments && c.bytes > cache->max_bytes - cache->max_bytes / 8;
             i++)
            evict_segment(cache, &c, &c.segments[i]);
    }
    bytes = c.bytes;
    census_release(&c);
    return bytes;
}

/* -- The count -------------------------------------------------------------------------------- */

/* The count, or more than any bound if there is none. */
static uint64_t read_usage(const struct block_cache *cache)
{
    uint8_t bytes[8];

    if (pread(cache->usage_fd, bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes))
        return UINT64_MAX;
    return bytes_get_le64(bytes);
}

static bool write_usage(const struct block_cache *cache, uint64_t usage)
{
    uint8_t bytes[8];

    bytes_put_le64(bytes, usage);
    return pwrite(cache->usage_fd, bytes, sizeof(bytes), 0) == (ssize_t)sizeof(bytes);
}

/* Add what this process has written, and a step in advance, to the folder's count, which is locked.
 */
static void account_locked(struct block_cache *cache)
{
    int64_t written = atomic_load(&cache->unaccounted);
    uint64_t mine = (written > 0 ? (uint64_t)written : 0) + ACCOUNT_STEP;
    uint64_t usage = read_usage(cache), sum;

    atomic_fetch_sub(&cache->unaccounted, (int64_t)mine);
    if (!checked_add(usage, mine, &sum) || sum > cache->max_bytes)
        sum = take_census(cache) + ACCOUNT_STEP;
    atomic_store(&cache->full_since, sum > cache->max_bytes ? block_now() : 0);
    /* A full disk may refuse even this; then the next step looks again. */
    if (!write_usage(cache, sum))
        atomic_fetch_add(&cache->unaccounted, (int64_t)ACCOUNT_STEP);
}

static void account(struct block_cache *cache)
{
    if (pthread_mutex_trylock(&cache->usage_lock) != 0)
        return;
    if (block_lock(cache->usage_fd, F_WRLCK, 0, 1)) {
        account_locked(cache);
        block_lock(cache->usage_fd, F_UNLCK, 0, 1);
    }
    pthread_mutex_unlock(&cache->usage_lock);
}

bool block_usage_reserve(struct block_cache *cache, uint64_t bytes)
{
    uint32_t full_since = atomic_load(&cache->full_since);
    int64_t mine;

    if (full_since && block_now() - full_since < FULL_SECONDS)
        return false;
    mine = atomic_fetch_add(&cache->unaccounted, (int64_t)bytes) + (int64_t)bytes;
    if (mine > 0 || full_since)
        account(cache);
    if (atomic_load(&cache->full_since) == 0 && atomic_load(&cache->unaccounted) <= UNACCOUNTED_MAX)
        return true;
    atomic_fetch_sub(&cache->unaccounted, (int64_t)bytes);
    return false;
}
