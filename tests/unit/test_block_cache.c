/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host's block cache: what it gives is right or missing, whatever happened to the folder.
 */
#include "test.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "block_cache_internal.h"
#include "block_read.h"
#include "bytes.h"

#define MIB ((uint64_t)1 << 20)

struct fixture {
    char folder[64];
    struct block_cache *cache;
};

static void assert_ok(int code, const struct cairn_error *err)
{
    if (code != CAIRN_OK)
        fail_msg("%d: %s", code, err->message);
}

static struct digest layer_digest(unsigned n)
{
    struct digest d = {{(uint8_t)(n + 1), 7}};

    return d;
}

/* What layer n holds at an offset. */
static uint8_t byte_at(unsigned layer, uint64_t off)
{
    uint64_t x =
        (off / 8 + 1) * UINT64_C(0x9e3779b97f4a7c15) ^ layer * UINT64_C(0xd6e8feb86659fd93);

    return (uint8_t)((x ^ x >> 29) >> (off % 8 * 8));
}

static void fill_bytes(unsigned layer, uint8_t *buf, size_t len, uint64_t off)
{
    for (size_t i = 0; i < len; i++)
        buf[i] = byte_at(layer, off + i);
}

static void assert_bytes(unsigned layer, const uint8_t *buf, size_t len, uint64_t off)
{
    for (size_t i = 0; i < len; i++)
        if (buf[i] != byte_at(layer, off + i))
            fail_msg("layer %u: byte %" PRIu64 " is wrong", layer, off + i);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct cairn_error err;

    snprintf(f->folder, sizeof(f->folder), "/tmp/cairn-blocks-XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    assert_ok(block_cache_open(f->folder, BLOCK_CACHE_BYTES_MIN, &f->cache, &err), &err);
    *state = f;
    return 0;
}

static void for_each_file(const char *folder, void (*fn)(const char *path))
{
    DIR *dir = opendir(folder);
    struct dirent *entry;
    char path[400];

    while ((entry = readdir(dir))) {
        snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
        if (entry->d_name[0] != '.')
            fn(path);
    }
    closedir(dir);
}

static void remove_file(const char *path)
{
    unlink(path);
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    block_cache_unref(f->cache);
    for_each_file(f->folder, remove_file);
    rmdir(f->folder);
    free(f);
    return 0;
}

static struct block_layer *open_layer(struct block_cache *cache, unsigned n, uint64_t size)
{
    struct digest d = layer_digest(n);
    struct block_layer *layer;
    struct cairn_error err;
    bool keep;

    assert_ok(block_cache_layer(cache, &d, size, &layer, &keep, &err), &err);
    assert_true(keep);
    return layer;
}

static void put(struct block_layer *layer, unsigned n, uint64_t first, unsigned nr)
{
    static uint8_t buf[BLOCK_SET_MAX * BLOCK_SIZE];

    fill_bytes(n, buf, (size_t)nr * BLOCK_SIZE, first * BLOCK_SIZE);
    block_layer_write(layer, buf, first, nr);
}

/* How many of the range's blocks are missing; the others are right. */
static unsigned get(struct block_layer *layer, unsigned n, size_t len, uint64_t off)
{
    static uint8_t buf[BLOCK_SET_MAX * BLOCK_SIZE];
    struct block_set missing;
    unsigned nr = block_layer_read(layer, buf, len, off, &missing);

    for (unsigned i = 0; i < missing.nr; i++) {
        uint64_t from = max_u64((missing.first + i) * BLOCK_SIZE, off);
        uint64_t to = min_u64((missing.first + i + 1) * BLOCK_SIZE, off + len);

        if (!block_set_has(&missing, i))
            assert_bytes(n, buf + (from - off), (size_t)(to - from), from);
    }
    return nr;
}

/* -- One file --------------------------------------------------------------------------------- */

static void what_was_kept_is_there(void **state)
{
    struct fixture *f = *state;
    CLEANUP(block_layer_unref_p) struct block_layer *layer = open_layer(f->cache, 0, 10 * MIB);

    assert_int_equal(get(layer, 0, 3 * BLOCK_SIZE, 0), 3);
    put(layer, 0, 1, 1);
    assert_int_equal(get(layer, 0, 3 * BLOCK_SIZE, 0), 2);
    assert_int_equal(get(layer, 0, BLOCK_SIZE, BLOCK_SIZE), 0);
    put(layer, 0, 0, 256);
    assert_int_equal(get(layer, 0, BLOCK_SPAN, 1000), 0);
}

static void any_alignment_reads_right(void **state)
{
    struct fixture *f = *state;
    CLEANUP(block_layer_unref_p) struct block_layer *layer = open_layer(f->cache, 3, MIB + 1234);

    put(layer, 3, 0, 256);
    put(layer, 3, 256, 1); /* the last, in part */
    for (unsigned i = 0; i < 2000; i++) {
        uint64_t off = i * 7919u % (MIB + 1234);
        size_t len = (size_t)min_u64(1 + i * 104729u % 20000, MIB + 1234 - off);

        assert_int_equal(get(layer, 3, len, off), 0);
    }
}

static void layers_are_apart(void **state)
{
    struct fixture *f = *state;
    CLEANUP(block_layer_unref_p) struct block_layer *a = open_layer(f->cache, 0, MIB);
    CLEANUP(block_layer_unref_p) struct block_layer *b = open_layer(f->cache, 1, MIB);

    put(a, 0, 0, 256);
    assert_int_equal(get(b, 1, BLOCK_SPAN, 0), 255);
    assert_int_equal(get(a, 0, BLOCK_SPAN, 0), 0);
}

static void another_handle_finds_it(void **state)
{
    struct fixture *f = *state;
    struct block_layer *layer = open_layer(f->cache, 0, MIB);
    CLEANUP(block_cache_unref_p) struct block_cache *second = NULL;
    struct cairn_error err;

    put(layer, 0, 5, 10);
    block_layer_unref(layer);
    assert_ok(block_cache_open(f->folder, BLOCK_CACHE_BYTES_MIN, &second, &err), &err);
    layer = open_layer(second, 0, MIB);
    assert_int_equal(get(layer, 0, 10 * BLOCK_SIZE, 5 * BLOCK_SIZE), 0);
    block_layer_unref(layer);
}

/* -- A hostile folder ------------------------------------------------------------------------- */

static void flip(const char *path, uint64_t off)
{
    int fd = open(path, O_RDWR);
    uint8_t b;

    assert_int_equal(pread(fd, &b, 1, (off_t)off), 1);
    b ^= 0x10;
    assert_int_equal(pwrite(fd, &b, 1, (off_t)off), 1);
    close(fd);
}

static char *path_of(const struct fixture *f, unsigned n, char path[200])
{
    struct digest d = layer_digest(n);
    char hex[DIGEST_HEX_LEN + 1];

    snprintf(path, 200, "%s/%s.blocks", f->folder, digest_format_hex(&d, hex));
    return path;
}

static void every_flipped_bit_is_a_miss(void **state)
{
    struct fixture *f = *state;
    CLEANUP(block_layer_unref_p) struct block_layer *layer = open_layer(f->cache, 0, MIB);
    struct block_cache_stats stats;
    char path[200];

    for (unsigned i = 0; i < SLOT_SIZE; i += 37) {
        put(layer, 0, 9, 1);
        flip(path_of(f, 0, path), slot_off(layer, 9) + i);
        assert_int_equal(get(layer, 0, BLOCK_SIZE, 9 * BLOCK_SIZE), 1);
    }
    block_cache_get_stats(f->cache, &stats);
    assert_true(stats.bad >= SLOT_SIZE / 37);
}

static void a_block_in_another_place_is_a_miss(void **state)
{
    struct fixture *f = *state;
    CLEANUP(block_layer_unref_p) struct block_layer *layer = open_layer(f->cache, 0, MIB);
    CLEANUP(block_layer_unref_p) struct block_layer *other = open_layer(f->cache, 1, MIB);
    uint8_t slot[SLOT_SIZE];

    put(layer, 0, 9, 1);
    assert_int_equal(pread(layer->fd, slot, sizeof(slot), (off_t)slot_off(layer, 9)), SLOT_SIZE);
    assert_int_equal(pwrite(layer->fd, slot, sizeof(slot), (off_t)slot_off(layer, 10)), SLOT_SIZE);
    assert_int_equal(pwrite(other->fd, slot, sizeof(slot), (off_t)slot_off(other, 9)), SLOT_SIZE);
    assert_int_equal(get(layer, 0, BLOCK_SIZE, 10 * BLOCK_SIZE), 1);
    assert_int_equal(get(other, 1, BLOCK_SIZE, 9 * BLOCK_SIZE), 1);
}

static void a_truncated_file_is_a_miss(void **state)
{
    struct fixture *f = *state;
    CLEANUP(block_layer_unref_p) struct block_layer *layer = open_layer(f->cache, 0, MIB);

    put(layer, 0, 0, 256);
    assert_int_equal(ftruncate(layer->fd, (off_t)slot_off(layer, 9) + 100), 0);
    assert_int_equal(get(layer, 0, 20 * BLOCK_SIZE, 0), 11);
    assert_int_equal(ftruncate(layer->fd, 0), 0);
    assert_int_equal(get(layer, 0, 20 * BLOCK_SIZE, 0), 20);
}

/* A file whose header says something else is replaced; what was in it is gone. */
static void a_wrong_header_is_replaced(void **state)
{
    struct fixture *f = *state;
    char path[200];

    for (unsigned i = 0; i < 64; i += 3) {
        struct block_layer *layer = open_layer(f->cache, 0, MIB);

        put(layer, 0, 0, 4);
        block_layer_unref(layer);
        flip(path_of(f, 0, path), i);
        layer = open_layer(f->cache, 0, MIB);
        assert_int_equal(get(layer, 0, 4 * BLOCK_SIZE, 0), 4);
        block_layer_unref(layer);
    }
}

static void a_folder_of_others_is_refused(void **state)
{
    struct fixture *f = *state;
    struct block_cache *cache;
    struct cairn_error err;

    assert_int_equal(chmod(f->folder, 0777), 0);
    assert_int_equal(block_cache_open(f->folder, BLOCK_CACHE_BYTES_MIN, &cache, &err),
                     CAIRN_E_DENIED);
    assert_int_equal(block_cache_open(f->folder, 1, &cache, &err), CAIRN_E_USAGE);
}

/* -- Its bound -------------------------------------------------------------------------------- */

static uint64_t folder_bytes;

static void add_bytes(const char *path)
{
    struct stat st;

    assert_int_equal(stat(path, &st), 0);
    folder_bytes += (uint64_t)st.st_blocks * 512;
}

static uint64_t count_folder(const char *folder)
{
    folder_bytes = 0;
    for_each_file(folder, add_bytes);
    return folder_bytes;
}

static void the_folder_stays_within_its_bound(void **state)
{
    struct fixture *f = *state;
    struct block_layer *layers[4];
    uint64_t most = 0;

    for (unsigned n = 0; n < 4; n++)
        layers[n] = open_layer(f->cache, n, 64 * MIB);
    for (unsigned i = 0; i < 64; i++)
        for (unsigned n = 0; n < 4; n++) {
            put(layers[n], n, i * 256, 256);
            most = max_u64(most, count_folder(f->folder));
        }
    assert_true(most <= BLOCK_CACHE_BYTES_MIN + 2 * MIB);
    assert_true(most >= BLOCK_CACHE_BYTES_MIN / 2);
    for (unsigned n = 0; n < 4; n++) {
        for (unsigned i = 0; i < 64; i++)
            get(layers[n], n, BLOCK_SPAN, i * MIB);
        block_layer_unref(layers[n]);
    }
}

/* What is written by many that do not live long counts, too. */
static void short_lived_processes_keep_within_the_bound(void **state)
{
    struct fixture *f = *state;
    struct cairn_error err;

    for (unsigned i = 0; i < 200; i++) {
        struct block_cache *cache;
        struct block_layer *layer;

        assert_ok(block_cache_open(f->folder, BLOCK_CACHE_BYTES_MIN, &cache, &err), &err);
        layer = open_layer(cache, 0, 256 * MIB);
        put(layer, 0, i * 256, 224);
        block_layer_unref(layer);
        block_cache_unref(cache);
    }
    assert_true(count_folder(f->folder) <= BLOCK_CACHE_BYTES_MIN + 2 * MIB);
}

/* Nor do files pile up in which nothing was ever kept. */
static void files_that_hold_nothing_go(void **state)
{
    struct fixture *f = *state;
    struct block_layer *layer, *open = open_layer(f->cache, 199, MIB);
    char path[200];

    for (unsigned n = 0; n < 100; n++)
        block_layer_unref(open_layer(f->cache, n, MIB));
    layer = open_layer(f->cache, 200, 128 * MIB);
    assert_int_equal(access(path_of(f, 7, path), F_OK), 0);
    for (unsigned i = 0; i < 100; i++)
        put(layer, 200, i * 256, 256);
    for (unsigned n = 0; n < 100; n++)
        assert_int_not_equal(access(path_of(f, n, path), F_OK), 0);
    assert_int_equal(access(path_of(f, 199, path), F_OK), 0);
    block_layer_unref(open);
    block_layer_unref(layer);
}

/* The stamps decide: what is stamped older goes first. */
static void what_was_used_least_recently_goes(void **state)
{
    struct fixture *f = *state;
    CLEANUP(block_layer_unref_p) struct block_layer *layer = open_layer(f->cache, 0, 256 * MIB);
    uint8_t old[STAMP_SIZE];

    for (unsigned i = 0; i < 50; i++)
        put(layer, 0, i * 256, 256);
    for (unsigned s = 0; s < 25; s++) {
        bytes_put_le32(old, s == 7 ? block_now() : 1000 + s);
        assert_int_equal(pwrite(layer->fd, old, sizeof(old), BLOCKS_HEADER_SIZE + s * STAMP_SIZE),
                         sizeof(old));
    }
    for (unsigned i = 50; i < 80; i++)
        put(layer, 0, i * 256, 256);
    assert_int_equal(get(layer, 0, BLOCK_SPAN, 0), 255);
    assert_int_equal(get(layer, 0, BLOCK_SPAN, 14 * MIB), 0);
    assert_int_equal(get(layer, 0, BLOCK_SPAN, 79 * MIB), 0);
}

/* -- Reading runs ----------------------------------------------------------------------------- */

/* Two layers of 4 MiB; the guest sees them interleaved. */
#define LAYER_BYTES (4 * MIB + 700)

struct service {
    struct block_cache *cache;
    struct block_layer *layers[2];
    unsigned *fetched[2]; /* by block; shared between processes */
    atomic_uint nr_requests, fail;
    const struct extent *run;
    size_t nr_run;
    useconds_t delay;
};

static struct block_layer *serve_open(void *ctx, uint32_t ordinal, bool *ret_borrowed)
{
    struct service *s = ctx;

    *ret_borrowed = true;
    return s->layers[ordinal];
}

static uint64_t serve_size(void *ctx, uint32_t ordinal)
{
    (void)ctx;
    (void)ordinal;
    return LAYER_BYTES;
}

static int serve_layer(void *ctx, uint32_t ordinal, void *buf, size_t len, uint64_t host_off,
                       struct cairn_error *err)
{
    struct service *s = ctx;

    atomic_fetch_add(&s->nr_requests, 1);
    if (atomic_load(&s->fail))
        return error_set(err, CAIRN_E_UNAVAILABLE, "no service");
    usleep(s->delay);
    assert_true(range_in(host_off, len, LAYER_BYTES));
    fill_bytes(ordinal, buf, len, host_off);
    for (uint64_t b = host_off / BLOCK_SIZE; b * BLOCK_SIZE < host_off + len; b++)
        __atomic_fetch_add(&s->fetched[ordinal][b], 1, __ATOMIC_RELAXED);
    return CAIRN_OK;
}

static int serve_guest(void *ctx, void *buf, size_t len, uint64_t guest_off,
                       struct cairn_error *err)
{
    struct service *s = ctx;
    uint8_t *to = buf;

    atomic_fetch_add(&s->nr_requests, 1);
    if (atomic_load(&s->fail))
        return error_set(err, CAIRN_E_UNAVAILABLE, "no service");
    usleep(s->delay);
    for (size_t i = 0; i < s->nr_run; i++) {
        const struct extent *e = &s->run[i];
        uint64_t from = max_u64(e->guest_off, guest_off);
        uint64_t end = min_u64(e->guest_off + e->len, guest_off + len);

        for (uint64_t off = from; off < end; off++) {
            uint64_t host = e->host_off + (off - e->guest_off);

            to[off - guest_off] = host < LAYER_BYTES ? byte_at(e->layer, host) : 0;
            if (host % BLOCK_SIZE == 0 && host + BLOCK_SIZE <= e->host_off + (end - e->guest_off))
                __atomic_fetch_add(&s->fetched[e->layer][host / BLOCK_SIZE], 1, __ATOMIC_RELAXED);
        }
    }
    return CAIRN_OK;
}

static struct block_fetch fetch_of(struct service *s)
{
    return (struct block_fetch){
        .open = serve_open,
        .layer_size = serve_size,
        .layer = serve_layer,
        .guest = serve_guest,
        .ctx = s,
    };
}

static void service_start(struct service *s, struct block_cache *cache)
{
    memset(s, 0, sizeof(*s));
    s->cache = cache;
    for (unsigned n = 0; n < 2; n++) {
        s->layers[n] = open_layer(cache, n, LAYER_BYTES);
        s->fetched[n] = mmap(NULL, 8192 * sizeof(unsigned), PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        assert_ptr_not_equal(s->fetched[n], MAP_FAILED);
    }
}

static void service_stop(struct service *s)
{
    for (unsigned n = 0; n < 2; n++) {
        block_layer_unref(s->layers[n]);
        munmap(s->fetched[n], 8192 * sizeof(unsigned));
    }
}

/* Guest 64 KiB clusters, in turn of layer 0 and 1. */
static size_t interleave(struct extent *run, size_t nr)
{
    for (size_t i = 0; i < nr; i++)
        run[i] = (struct extent){.guest_off = i << 16,
                                 .len = 1 << 16,
                                 .host_off = i / 2 << 16,
                                 .layer = i % 2,
                                 .kind = EXTENT_DATA};
    return nr;
}

static void assert_run(const struct extent *run, size_t nr, const uint8_t *buf)
{
    for (size_t i = 0; i < nr; i++) {
        size_t inside = run[i].host_off < LAYER_BYTES
                            ? (size_t)min_u64(run[i].len, LAYER_BYTES - run[i].host_off)
                            : 0;

        assert_bytes(run[i].layer, buf, inside, run[i].host_off);
        for (size_t j = inside; j < run[i].len; j++)
            assert_int_equal(buf[j], 0);
        buf += run[i].len;
    }
}

static void a_run_over_many_layers_is_one_request(void **state)
{
    struct fixture *f = *state;
    struct service s;
    struct extent run[16];
    struct block_fetch fetch;
    struct cairn_error err;
    uint8_t *buf = malloc(MIB);

    service_start(&s, f->cache);
    fetch = fetch_of(&s);
    s.run = run;
    s.nr_run = interleave(run, 16);
    assert_false(block_read_cached(&fetch, run, 16, buf));
    assert_ok(block_read_run(&fetch, run, 16, buf, &err), &err);
    assert_run(run, 16, buf);
    assert_int_equal(s.nr_requests, 1);
    memset(buf, 0xaa, MIB);
    assert_true(block_read_cached(&fetch, run, 16, buf));
    assert_run(run, 16, buf);
    assert_ok(block_read_run(&fetch, run, 16, buf, &err), &err);
    assert_int_equal(s.nr_requests, 1);
    free(buf);
    service_stop(&s);
}

/* Pieces of one layer that adjoin for the guest, in blocks that adjoin, with something between. */
static void clusters_smaller_than_a_block_read_right(void **state)
{
    static const uint64_t first_end[] = {3584, 4096, 4608}, second_off[] = {4096, 4608, 8192, 8704};
    struct fixture *f = *state;
    struct service s;
    struct block_fetch fetch;
    struct cairn_error err;
    uint8_t *buf = malloc(MIB);

    service_start(&s, f->cache);
    fetch = fetch_of(&s);
    for (unsigned i = 0; i < 3 * 4; i++) {
        uint64_t base = (uint64_t)i << 16, end = second_off[i / 3] < 8192 ? 8192 : 12288;
        struct extent run[] = {
            {.len = first_end[i % 3], .host_off = base, .kind = EXTENT_DATA},
            {.guest_off = first_end[i % 3],
             .len = end - second_off[i / 3],
             .host_off = base + second_off[i / 3],
             .kind = EXTENT_DATA},
        };

        s.run = run;
        s.nr_run = 2;
        for (int turn = 0; turn < 2; turn++) {
            memset(buf, 0xaa, MIB);
            assert_ok(block_read_run(&fetch, run, 2, buf, &err), &err);
            assert_run(run, 2, buf);
            assert_int_equal(buf[run[0].len + run[1].len], 0xaa);
        }
    }
    free(buf);
    service_stop(&s);
}

static void zeros_follow_the_end_of_a_layer(void **state)
{
    struct fixture *f = *state;
    struct service s;
    struct extent e = {.len = 64 << 10, .host_off = 4 * MIB - 512, .layer = 1, .kind = EXTENT_DATA};
    struct block_fetch fetch;
    struct cairn_error err;
    uint8_t *buf = malloc(e.len);

    service_start(&s, f->cache);
    fetch = fetch_of(&s);
    for (int i = 0; i < 2; i++) {
        assert_ok(block_read_run(&fetch, &e, 1, buf, &err), &err);
        assert_run(&e, 1, buf);
        assert_int_equal(s.nr_requests, 1);
    }
    free(buf);
    service_stop(&s);
}

static void a_failed_fetch_is_an_error_and_tried_again(void **state)
{
    struct fixture *f = *state;
    struct service s;
    struct extent run[16];
    struct block_fetch fetch;
    struct cairn_error err;
    uint8_t *buf = malloc(MIB);

    service_start(&s, f->cache);
    fetch = fetch_of(&s);
    s.run = run;
    s.nr_run = interleave(run, 16);
    s.fail = 1;
    assert_int_equal(block_read_run(&fetch, run, 16, buf, &err), CAIRN_E_UNAVAILABLE);
    assert_int_equal(block_read_run(&fetch, run, 1, buf, &err), CAIRN_E_UNAVAILABLE);
    s.fail = 0;
    assert_ok(block_read_run(&fetch, run, 16, buf, &err), &err);
    assert_run(run, 16, buf);
    free(buf);
    service_stop(&s);
}

/* -- Many at once ----------------------------------------------------------------------------- */

#define NR_READS 300

/* Random reads of a run of 16 clusters, each checked. */
static void read_at_random(struct service *s, uint64_t rng)
{
    struct block_fetch fetch = fetch_of(s);
    uint8_t *buf = malloc(MIB);
    struct cairn_error err;

    for (unsigned i = 0; i < NR_READS; i++) {
        struct extent part[16];
        size_t first, nr;

        rng = rng * UINT64_C(6364136223846793005) + 1442695040888963407;
        first = rng >> 60;
        nr = 1 + (rng >> 33) % (16 - first);
        memcpy(part, s->run + first, nr * sizeof(*part));
        if (rng >> 20 & 1)
            extent_trim_front(&part[0], BLOCK_SIZE * (rng >> 40 & 15));
        assert_ok(block_read_run(&fetch, part, nr, buf, &err), &err);
        assert_run(part, nr, buf);
    }
    free(buf);
}

struct reader {
    pthread_t thread;
    struct service *s;
    uint64_t seed;
};

static void *read_in_thread(void *arg)
{
    struct reader *r = arg;

    read_at_random(r->s, r->seed);
    return NULL;
}

static void read_in_threads(struct service *s, unsigned nr, uint64_t seed)
{
    struct reader readers[8];

    for (unsigned i = 0; i < nr; i++) {
        readers[i] = (struct reader){.s = s, .seed = seed + i};
        assert_int_equal(pthread_create(&readers[i].thread, NULL, read_in_thread, &readers[i]), 0);
    }
    for (unsigned i = 0; i < nr; i++)
        pthread_join(readers[i].thread, NULL);
}

static void assert_fetched_once(const struct service *s, unsigned nr_blocks)
{
    for (unsigned n = 0; n < 2; n++)
        for (unsigned b = 0; b < nr_blocks; b++)
            assert_int_equal(s->fetched[n][b], 1);
}

static void threads_fetch_each_block_once(void **state)
{
    struct fixture *f = *state;
    struct service s;
    struct extent run[16];

    service_start(&s, f->cache);
    s.run = run;
    s.nr_run = interleave(run, 16);
    s.delay = 500;
    read_in_threads(&s, 8, 1);
    assert_fetched_once(&s, 8 * 16);
    service_stop(&s);
}

static void processes_fetch_each_block_once(void **state)
{
    struct fixture *f = *state;
    struct service s;
    struct extent run[16];
    pid_t pids[4];

    service_start(&s, f->cache);
    s.run = run;
    s.nr_run = interleave(run, 16);
    s.delay = 500;
    for (unsigned i = 0; i < 4; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            struct service mine = s;
            struct cairn_error err;

            if (block_cache_open(f->folder, BLOCK_CACHE_BYTES_MIN, &mine.cache, &err) != CAIRN_OK)
                _exit(3);
            for (unsigned n = 0; n < 2; n++)
                mine.layers[n] = open_layer(mine.cache, n, LAYER_BYTES);
            read_in_threads(&mine, 3, 100 * i);
            _exit(0);
        }
    }
    for (unsigned i = 0; i < 4; i++) {
        int status;

        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        assert_int_equal(status, 0);
    }
    assert_fetched_once(&s, 8 * 16);
    service_stop(&s);
}

/* A process that dies with a claim leaves nothing to wait for. */
static void a_claim_ends_with_its_process(void **state)
{
    struct fixture *f = *state;
    struct service s;
    struct extent e = {.len = 1 << 16, .kind = EXTENT_DATA};
    struct block_fetch fetch;
    struct cairn_error err;
    uint8_t *buf = malloc(e.len);
    int ready[2];
    char byte;
    pid_t pid;

    service_start(&s, f->cache);
    assert_int_equal(pipe(ready), 0);
    pid = fork();
    if (pid == 0) {
        struct block_cache *cache;
        struct block_claim claim;

        if (block_cache_open(f->folder, BLOCK_CACHE_BYTES_MIN, &cache, &err) != CAIRN_OK ||
            !block_claim_try(open_layer(cache, 0, LAYER_BYTES), 0, 16, &claim) ||
            write(ready[1], "", 1) != 1)
            _exit(3);
        pause();
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    {
        struct block_claim claim;

        assert_false(block_claim_try(s.layers[0], 3, 1, &claim));
        block_claim_end(&claim);
    }
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    fetch = fetch_of(&s);
    assert_ok(block_read_run(&fetch, &e, 1, buf, &err), &err);
    assert_run(&e, 1, buf);
    assert_int_equal(s.nr_requests, 1);
    close(ready[0]);
    close(ready[1]);
    free(buf);
    service_stop(&s);
}

/* A process that is stopped with claims costs one wait, not one for each of them. */
static void a_stopped_process_is_waited_for_once(void **state)
{
    struct fixture *f = *state;
    CLEANUP(block_cache_unref_p) struct block_cache *other = NULL;
    struct block_claim claims[3];
    struct block_layer *theirs, *ours = open_layer(f->cache, 0, LAYER_BYTES);
    struct cairn_error err;

    assert_ok(block_cache_open(f->folder, BLOCK_CACHE_BYTES_MIN, &other, &err), &err);
    theirs = open_layer(other, 0, LAYER_BYTES);
    for (unsigned i = 0; i < 3; i++)
        assert_true(block_claim_try(theirs, 100 * i, 10, &claims[i]));
    assert_true(block_claim_wait(ours, 50, 10, 20));
    assert_false(block_claim_wait(ours, 0, 10, 20));
    /* Would take longer than any test. */
    assert_false(block_claim_wait(ours, 100, 10, UINT_MAX));
    assert_false(block_claim_wait(ours, 205, 1, UINT_MAX));
    for (unsigned i = 0; i < 3; i++)
        block_claim_end(&claims[i]);
    block_layer_unref(theirs);
    block_layer_unref(ours);
}

/* Readers, writers and the evictor in many processes, killed at random: only right bytes. */
static void kills_and_evictions_never_show(void **state)
{
    struct fixture *f = *state;

    for (unsigned round = 0; round < 6; round++) {
        pid_t pids[3];

        for (unsigned i = 0; i < 3; i++) {
            pids[i] = fork();
            if (pids[i] == 0) {
                struct block_cache *cache;
                struct block_layer *layer;
                struct cairn_error err;
                uint64_t rng = round * 10 + i;

                if (block_cache_open(f->folder, BLOCK_CACHE_BYTES_MIN, &cache, &err) != CAIRN_OK)
                    _exit(3);
                for (;;) {
                    unsigned n;

                    rng = rng * UINT64_C(6364136223846793005) + 1442695040888963407;
                    n = (unsigned)(rng >> 60) % 3;
                    layer = open_layer(cache, n, 64 * MIB);
                    if (rng >> 50 & 1)
                        put(layer, n, (rng >> 40) % 64 * 256, 64);
                    else
                        get(layer, n, BLOCK_SPAN, (rng >> 40) % 63 * MIB + 5000);
                    block_layer_unref(layer);
                }
            }
        }
        usleep(250000);
        for (unsigned i = 0; i < 3; i++) {
            int status;

            kill(pids[i], SIGKILL);
            waitpid(pids[i], &status, 0);
            assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        }
        assert_true(count_folder(f->folder) <= BLOCK_CACHE_BYTES_MIN + 4 * UINT64_C(16) * MIB);
    }
}

static void every_instruction_set_sums_alike(void **state)
{
    block_sum_fn *sum = block_sum_choose();
    uint8_t block[BLOCK_SIZE];

    (void)state;
    for (unsigned n = 0; n < 64; n++) {
        uint64_t seed = UINT64_C(0x9e3779b97f4a7c15) * n;

        for (unsigned i = 0; i < BLOCK_SIZE; i++)
            block[i] = byte_at(n, i);
        assert_int_equal(sum(block, seed), block_sum_portable(block, seed));
        block[n * 64]++;
        assert_int_equal(sum(block, seed), block_sum_portable(block, seed));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_was_kept_is_there, setup, teardown),
        cmocka_unit_test_setup_teardown(any_alignment_reads_right, setup, teardown),
        cmocka_unit_test_setup_teardown(layers_are_apart, setup, teardown),
        cmocka_unit_test(every_instruction_set_sums_alike),
        cmocka_unit_test_setup_teardown(another_handle_finds_it, setup, teardown),
        cmocka_unit_test_setup_teardown(every_flipped_bit_is_a_miss, setup, teardown),
        cmocka_unit_test_setup_teardown(a_block_in_another_place_is_a_miss, setup, teardown),
        cmocka_unit_test_setup_teardown(a_truncated_file_is_a_miss, setup, teardown),
        cmocka_unit_test_setup_teardown(a_wrong_header_is_replaced, setup, teardown),
        cmocka_unit_test_setup_teardown(a_folder_of_others_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(the_folder_stays_within_its_bound, setup, teardown),
        cmocka_unit_test_setup_teardown(short_lived_processes_keep_within_the_bound, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(files_that_hold_nothing_go, setup, teardown),
        cmocka_unit_test_setup_teardown(what_was_used_least_recently_goes, setup, teardown),
        cmocka_unit_test_setup_teardown(a_run_over_many_layers_is_one_request, setup, teardown),
        cmocka_unit_test_setup_teardown(clusters_smaller_than_a_block_read_right, setup, teardown),
        cmocka_unit_test_setup_teardown(zeros_follow_the_end_of_a_layer, setup, teardown),
        cmocka_unit_test_setup_teardown(a_failed_fetch_is_an_error_and_tried_again, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(threads_fetch_each_block_once, setup, teardown),
        cmocka_unit_test_setup_teardown(processes_fetch_each_block_once, setup, teardown),
        cmocka_unit_test_setup_teardown(a_claim_ends_with_its_process, setup, teardown),
        cmocka_unit_test_setup_teardown(a_stopped_process_is_waited_for_once, setup, teardown),
        cmocka_unit_test_setup_teardown(kills_and_evictions_never_show, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
