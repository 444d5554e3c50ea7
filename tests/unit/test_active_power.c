/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Power cuts.  A random workload on an active layer is recorded: everything that was done to the
 * file, in order.  Then, for many points of that record, the file is made that a power cut there
 * could have left: all that came before the last completed fdatasync, and of what came after it
 * each sector or not, at random.  Whatever file comes out, it has to pass qemu-img check (leaks are
 * allowed), have the size that it was last given, before or after, and every guest sector has to
 * hold what was flushed, or something written later.
 *
 * CAIRN_TEST_SEED gives the seed, CAIRN_TEST_CUTS the number of cuts for each kind of layer.
 */
#include "test.h"

#include <fcntl.h>
#include <inttypes.h>
#include <time.h>

#include "active_internal.h"
#include "bytes.h"
#include "checked.h"
#include "qemu.h"

#define SECTOR     512
#define NR_SECTORS 8192
#define LEAST      2000 /* sectors of the disk when it is smallest */
#define NR_OPS     600
#define IMAGE      "cut.qcow2"

struct recorded {
    enum hostfile_op op;
    uint64_t off, len;
    uint8_t *data;
};

/* A value that a sector was given: 0 for zeros. */
struct given {
    unsigned op; /* number of the operation */
    size_t at;   /* number of events recorded before */
    uint32_t value;
};

struct history {
    struct given *given;
    size_t nr, max;
};

/* A flush: what operations before it gave is durable once the event `ended` is reached. */
struct flushed {
    unsigned op;
    size_t ended;
};

struct run {
    uint64_t rng;
    struct active *a;
    uint8_t *start; /* the file before the first event */
    size_t start_len;
    struct recorded *events;
    size_t nr_events, max_events;
    struct flushed flushes[NR_OPS];
    size_t nr_flushes;
    struct history sectors[NR_SECTORS];
    struct history size; /* in sectors */
    uint64_t nr_sectors; /* of the disk now */
    uint32_t last_value;
    unsigned nr_ops;
};

static uint64_t below(struct run *run, uint64_t n)
{
    run->rng ^= run->rng >> 12;
    run->rng ^= run->rng << 25;
    run->rng ^= run->rng >> 27;
    return (run->rng * UINT64_C(0x2545f4914f6cdd1d) >> 11) % n;
}

static void *grow(void *array, size_t nr, size_t *max, size_t size)
{
    if (nr < *max)
        return array;
    *max = *max ? *max * 2 : 16;
    array = reallocarray(array, *max, size);
    assert_non_null(array);
    return array;
}

/* -- Recording --------------------------------------------------------------------------------- */

static int record(void *ctx, const struct hostfile_event *event)
{
    struct run *run = ctx;
    struct recorded *e;
    size_t done = 0;

    if (event->op == HOSTFILE_READ || event->op == HOSTFILE_CHANGE)
        return 0;
    run->events = grow(run->events, run->nr_events, &run->max_events, sizeof(*e));
    e = &run->events[run->nr_events++];
    *e = (struct recorded){.op = event->op, .off = event->host_off, .len = event->len};
    if (event->op == HOSTFILE_WRITE) {
        e->data = malloc(event->len);
        assert_non_null(e->data);
        for (int i = 0; i < event->nr_iov; i++) {
            memcpy(e->data + done, event->iov[i].iov_base, event->iov[i].iov_len);
            done += event->iov[i].iov_len;
        }
    }
    return 0;
}

static void add_to(struct history *h, const struct run *run, uint32_t value)
{
    h->given = grow(h->given, h->nr, &h->max, sizeof(*h->given));
    h->given[h->nr++] = (struct given){run->nr_ops, run->nr_events, value};
}

static void give(struct run *run, uint64_t first, uint64_t nr, uint32_t value)
{
    for (uint64_t i = first; i < first + nr; i++)
        add_to(&run->sectors[i], run, value);
}

static void fill(uint8_t *to, uint64_t sector, uint32_t value)
{
    for (size_t i = 0; i < SECTOR / 8; i++)
        bytes_put_le64(to + 8 * i, value ? (uint64_t)value << 32 | (sector << 8 | i) : 0);
}

static void do_write(struct run *run, uint64_t first, uint64_t nr)
{
    uint8_t *buf = malloc(nr * SECTOR);
    uint32_t value = ++run->last_value;

    assert_non_null(buf);
    for (uint64_t i = 0; i < nr; i++)
        fill(buf + i * SECTOR, first + i, value);
    give(run, first, nr, value);
    assert_int_equal(active_pwrite(run->a, buf, nr * SECTOR, first * SECTOR, NULL), 0);
    free(buf);
}

static void do_discard(struct run *run, uint64_t first, uint64_t nr)
{
    uint64_t cluster = active_cluster_size(run->a) / SECTOR;
    uint64_t end = first + nr;
    uint64_t from = round_up(first, cluster);
    uint64_t to = end == run->nr_sectors ? end : round_down(end, cluster);

    if (from < to)
        give(run, from, to - from, 0);
    assert_int_equal(active_discard(run->a, nr * SECTOR, first * SECTOR, NULL), 0);
}

static void do_flush(struct run *run)
{
    assert_int_equal(active_flush(run->a, NULL), 0);
    run->flushes[run->nr_flushes++] = (struct flushed){run->nr_ops, run->nr_events};
}

/* What is cut off is gone, and the disk durable as it is. */
static void do_resize(struct run *run)
{
    uint64_t nr = NR_SECTORS - (below(run, 2) ? below(run, NR_SECTORS - LEAST) : 0);

    add_to(&run->size, run, (uint32_t)nr);
    if (nr < run->nr_sectors)
        give(run, nr, run->nr_sectors - nr, 0);
    assert_int_equal(active_resize(run->a, nr * SECTOR, UINT64_MAX, NULL), 0);
    run->nr_sectors = nr;
    run->flushes[run->nr_flushes++] = (struct flushed){run->nr_ops + 1, run->nr_events};
}

static void do_something(struct run *run)
{
    uint64_t what = below(run, 10);
    uint64_t nr = 1 + below(run, below(run, 4) ? 40 : LEAST);
    uint64_t first = below(run, run->nr_sectors - nr);

    run->nr_ops++;
    if (below(run, 40) == 0) {
        do_resize(run);
    } else if (what < 5) {
        do_write(run, first, nr);
    } else if (what < 6) {
        give(run, first, nr, 0);
        assert_int_equal(active_zero(run->a, nr * SECTOR, first * SECTOR, below(run, 2), NULL), 0);
    } else if (what < 8) {
        do_discard(run, first, nr);
    } else {
        do_flush(run);
    }
}

static void record_workload(struct run *run, const struct active_options *options)
{
    struct hostfile_hook hook = {.before = record, .ctx = run};

    unlink(IMAGE);
    assert_int_equal(active_create(IMAGE, options, &run->a, NULL), 0);
    run->start = load_file(IMAGE, &run->start_len);
    run->a->file.hook = &hook;
    for (unsigned i = 0; i < NR_OPS; i++)
        do_something(run);
    assert_int_equal(active_close(run->a, NULL), 0);
}

/* -- Cutting ----------------------------------------------------------------------------------- */

static void redo(int fd, const struct recorded *e, uint64_t from, uint64_t len)
{
    static const uint8_t zeros[SECTOR];

    if (e->op == HOSTFILE_TRUNCATE)
        assert_int_equal(ftruncate(fd, (off_t)e->off), 0);
    else if (e->op == HOSTFILE_WRITE)
        assert_int_equal(pwrite(fd, e->data + from, len, (off_t)(e->off + from)), len);
    for (; e->op == HOSTFILE_PUNCH && len > 0; from += SECTOR, len -= SECTOR)
        assert_int_equal(pwrite(fd, zeros, SECTOR, (off_t)(e->off + from)), SECTOR);
}

/* Sectors of a write that was not made durable: all, none, or some of them. */
static void redo_in_part(struct run *run, int fd, const struct recorded *e)
{
    uint64_t how = below(run, 3);

    if (e->op == HOSTFILE_TRUNCATE && how > 0)
        redo(fd, e, 0, 0);
    for (uint64_t from = 0; from < e->len; from += SECTOR) {
        if (how == 1 || (how == 2 && below(run, 2)))
            redo(fd, e, from, min_u64(SECTOR, e->len - from));
    }
}

static void make_image(struct run *run, size_t cut)
{
    int fd = open(IMAGE, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    size_t synced = cut, i;

    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, run->start, run->start_len, 0), run->start_len);
    while (synced > 0 && run->events[synced - 1].op != HOSTFILE_SYNC)
        synced--;
    for (i = 0; i < synced; i++)
        redo(fd, &run->events[i], 0, run->events[i].len);
    for (; i < cut; i++)
        redo_in_part(run, fd, &run->events[i]);
    close(fd);
}

/* May it have this value?  What the last flush before the cut found, or anything since. */
static bool may_have(const struct run *run, const struct history *h, size_t cut, uint32_t value)
{
    unsigned flush_op = 0;
    size_t i = h->nr;

    for (size_t f = 0; f < run->nr_flushes && run->flushes[f].ended <= cut; f++)
        flush_op = run->flushes[f].op;
    while (i > 0) {
        const struct given *g = &h->given[--i];

        if (g->at <= cut && g->value == value)
            return true;
        if (g->op < flush_op)
            return false; /* older ones were overwritten durably */
    }
    return value == 0;
}

static uint64_t checked_size(const struct run *run, const struct active *a, size_t cut)
{
    uint64_t nr = active_virtual_size(a) / SECTOR;

    if (!may_have(run, &run->size, cut, (uint32_t)nr) && nr != NR_SECTORS)
        fail_msg("cut at %zu: the disk has %" PRIu64 " sectors", cut, nr);
    return nr;
}

static void check_image(struct run *run, const struct active_options *options, size_t cut)
{
    static uint8_t buf[NR_SECTORS * SECTOR], expected[SECTOR];
    struct active *a = NULL;
    struct cairn_error err;
    uint64_t nr;

    sh("qemu-img check " IMAGE " || test $? = 3");
    if (active_open(IMAGE, options, &a, &err))
        fail_msg("cut at %zu: %s", cut, err.message);
    nr = checked_size(run, a, cut);
    if (active_pread(a, buf, nr * SECTOR, 0, &err))
        fail_msg("cut at %zu: %s", cut, err.message);
    for (uint64_t i = 0; i < nr; i++) {
        uint32_t value = (uint32_t)(bytes_get_le64(buf + i * SECTOR) >> 32);

        fill(expected, i, value);
        if (memcmp(buf + i * SECTOR, expected, SECTOR) != 0 ||
            !may_have(run, &run->sectors[i], cut, value))
            fail_msg("cut at %zu of %zu: sector %" PRIu64 " holds version %u", cut, run->nr_events,
                     i, value);
    }
    active_close(a, NULL);
}

static void free_run(struct run *run)
{
    for (size_t i = 0; i < run->nr_events; i++)
        free(run->events[i].data);
    for (size_t i = 0; i < NR_SECTORS; i++)
        free(run->sectors[i].given);
    free(run->size.given);
    free(run->events);
    free(run->start);
    free(run);
}

static uint64_t number(const char *variable, uint64_t otherwise)
{
    const char *text = getenv(variable);

    return text ? strtoull(text, NULL, 10) : otherwise;
}

/* What lies beneath: zeros, by name. */
static int read_zeros(void *ctx, void *buf, size_t len, uint64_t guest_off, struct cairn_error *err)
{
    (void)ctx;
    (void)guest_off;
    (void)err;
    memset(buf, 0, len);
    return CAIRN_OK;
}

static void cut_the_power(unsigned cluster_bits, struct active_backing backing)
{
    struct active_options options = {.virtual_size = NR_SECTORS * SECTOR,
                                     .cluster_bits = cluster_bits,
                                     .cache_bytes = 1,
                                     .backing = backing};
    uint64_t seed = number("CAIRN_TEST_SEED", (uint64_t)time(NULL));
    uint64_t nr_cuts = number("CAIRN_TEST_CUTS", 60);
    struct run *run = calloc(1, sizeof(*run));

    assert_non_null(run);
    run->nr_sectors = NR_SECTORS;
    run->rng = (seed + cluster_bits) * UINT64_C(0x9e3779b97f4a7c15) | 1;
    print_message("CAIRN_TEST_SEED=%" PRIu64 "\n", seed);
    record_workload(run, &options);
    for (uint64_t i = 0; i < nr_cuts; i++) {
        size_t cut = (size_t)below(run, run->nr_events + 1);

        make_image(run, cut);
        check_image(run, &options, cut);
    }
    print_message("%" PRIu64 " cuts in %zu events, 0 failures\n", nr_cuts, run->nr_events);
    free_run(run);
}

static void test_power_cuts_with_large_clusters(void **state)
{
    (void)state;
    cut_the_power(17, (struct active_backing){.pread = NULL});
}

static void test_power_cuts_with_small_clusters(void **state)
{
    (void)state;
    cut_the_power(14, (struct active_backing){.pread = NULL});
}

static void test_power_cuts_over_a_base(void **state)
{
    (void)state;
    cut_the_power(17, (struct active_backing){.pread = read_zeros});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_power_cuts_with_large_clusters),
        cmocka_unit_test(test_power_cuts_with_small_clusters),
        cmocka_unit_test(test_power_cuts_over_a_base),
    };

    return cmocka_run_group_tests(tests, qemu_setup, qemu_teardown);
}
