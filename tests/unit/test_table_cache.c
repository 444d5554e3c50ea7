/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table cache over a file whose writes and synchronisations are recorded: the order in which
 * things reach the disk is what is tested here.
 */
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "table_cache.h"

#define NR_PAGES 1024

struct fixture {
    struct hostfile file;
    struct hostfile_hook hook;
    pthread_mutex_t lock;
    struct table_cache *cache;
    char log[4096]; /* "w<page> " for a write, "s " for an fdatasync, "p<page> " for a hole */
    int fault;      /* errno for the operations of fault_op */
    enum hostfile_op fault_op;
    unsigned nr_freed; /* pages' worth of host clusters */
    int freed_rc;
    void (*on_sync)(struct fixture *f);
};

static int record(void *ctx, const struct hostfile_event *event)
{
    static const char letters[] = {'r', 'w', 's', 't', 'p'};
    struct fixture *f = ctx;
    size_t used = strlen(f->log);

    if (event->op != HOSTFILE_READ && event->op != HOSTFILE_CHANGE)
        snprintf(f->log + used, sizeof(f->log) - used, event->op == HOSTFILE_SYNC ? "%c " : "%c%u ",
                 letters[event->op], (unsigned)(event->host_off / TABLE_PAGE_SIZE));
    if (event->op == HOSTFILE_SYNC && f->on_sync)
        f->on_sync(f);
    return event->op == f->fault_op ? f->fault : 0;
}

static int on_freed(void *ctx, uint64_t host_off, uint64_t len, struct cairn_error *err)
{
    struct fixture *f = ctx;

    (void)host_off;
    f->nr_freed += (unsigned)(len / TABLE_PAGE_SIZE);
    return f->freed_rc ? error_set(err, f->freed_rc, "no") : CAIRN_OK;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    char name[] = "/tmp/cairn-test-XXXXXX";
    int fd = mkostemp(name, O_CLOEXEC);

    if (!f || fd < 0 || unlink(name) || ftruncate(fd, NR_PAGES * TABLE_PAGE_SIZE) ||
        hostfile_init(&f->file, fd, "tables", NULL))
        return -1;
    pthread_mutex_init(&f->lock, NULL);
    f->hook = (struct hostfile_hook){.before = record, .ctx = f};
    f->file.hook = &f->hook;
    *state = f;
    if (table_cache_new(&f->file, &f->lock, 1, &f->cache, NULL))
        return -1;
    table_cache_on_freed(f->cache, on_freed, f);
    pthread_mutex_lock(&f->lock);
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    pthread_mutex_unlock(&f->lock);
    table_cache_free(f->cache);
    hostfile_release(&f->file);
    pthread_mutex_destroy(&f->lock);
    free(f);
    return 0;
}

static struct table_page *get(struct fixture *f, enum table_kind kind, unsigned nr)
{
    struct table_page *page = NULL;

    assert_int_equal(table_get_locked(f->cache, kind, (uint64_t)nr * TABLE_PAGE_SIZE, &page, NULL),
                     0);
    return page;
}

static void set(struct fixture *f, enum table_kind kind, unsigned nr, uint8_t value)
{
    struct table_page *page = get(f, kind, nr);
    uint8_t *bytes;

    assert_int_equal(table_modify_locked(f->cache, page, &bytes, NULL), 0);
    bytes[0] = value;
    table_put_locked(f->cache, page);
}

static uint8_t on_disk(struct fixture *f, unsigned nr)
{
    uint8_t byte;

    assert_int_equal(pread(f->file.fd, &byte, 1, (off_t)nr * TABLE_PAGE_SIZE), 1);
    return byte;
}

static void flush(struct fixture *f)
{
    assert_int_equal(table_flush_locked(f->cache, NULL), 0);
}

/* -- Order ------------------------------------------------------------------------------------- */

static void test_nothing_to_flush_touches_nothing(void **state)
{
    struct fixture *f = *state;

    table_put_locked(f->cache, get(f, TABLE_L2, 1));
    flush(f);
    assert_string_equal(f->log, "");
}

static void test_data_alone_is_one_sync(void **state)
{
    struct fixture *f = *state;

    table_note_data_locked(f->cache);
    flush(f);
    assert_string_equal(f->log, "s ");
    flush(f);
    assert_string_equal(f->log, "s ");
}

static void test_entries_come_after_data_and_counts(void **state)
{
    struct fixture *f = *state;

    set(f, TABLE_L1, 4, 1);
    set(f, TABLE_L2, 3, 1);
    set(f, TABLE_REFBLOCK, 2, 1);
    table_note_data_locked(f->cache);
    flush(f);
    assert_string_equal(f->log, "w2 s w3 w4 s ");
}

static void test_entries_that_depend_on_nothing_wait_for_nothing(void **state)
{
    struct fixture *f = *state;

    set(f, TABLE_L2, 3, 1);
    flush(f);
    assert_string_equal(f->log, "w3 s ");
}

static void test_every_kind_in_its_turn(void **state)
{
    struct fixture *f = *state;

    set(f, TABLE_L2, 5, 1);
    set(f, TABLE_HEADER, 0, 1);
    set(f, TABLE_REFTABLE, 1, 1);
    set(f, TABLE_REFBLOCK, 2, 1);
    flush(f);
    assert_string_equal(f->log, "w2 s w1 s w0 s w5 s ");
}

static void test_clusters_become_free_after_the_entries_are_durable(void **state)
{
    struct fixture *f = *state;

    set(f, TABLE_L2, 3, 1);
    assert_int_equal(table_reserve_frees_locked(f->cache, 2, NULL), 0);
    table_free_locked(f->cache, 100 * TABLE_PAGE_SIZE, 2 * TABLE_PAGE_SIZE);
    table_free_locked(f->cache, 102 * TABLE_PAGE_SIZE, TABLE_PAGE_SIZE);
    assert_int_equal(f->nr_freed, 0);
    flush(f);
    assert_string_equal(f->log, "w3 s p100 ");
    assert_int_equal(f->nr_freed, 3);
}

/* -- Changes beside a commit ------------------------------------------------------------------- */

static void change_during_sync(struct fixture *f)
{
    f->on_sync = NULL;
    pthread_mutex_lock(&f->lock);
    set(f, TABLE_L2, 3, 2);
    pthread_mutex_unlock(&f->lock);
}

static void test_a_commit_writes_what_was_there_when_it_began(void **state)
{
    struct fixture *f = *state;

    set(f, TABLE_REFBLOCK, 2, 1);
    set(f, TABLE_L2, 3, 1);
    f->on_sync = change_during_sync;
    flush(f);
    assert_int_equal(on_disk(f, 3), 1);
    assert_true(table_dirty_locked(f->cache));
    flush(f);
    assert_int_equal(on_disk(f, 3), 2);
    assert_string_equal(f->log, "w2 s w3 s w3 s ");
}

/* -- Failures ---------------------------------------------------------------------------------- */

static void test_what_could_not_be_written_is_written_later(void **state)
{
    struct fixture *f = *state;
    struct cairn_error err;

    set(f, TABLE_REFBLOCK, 2, 1);
    set(f, TABLE_L2, 3, 1);
    assert_int_equal(table_reserve_frees_locked(f->cache, 1, NULL), 0);
    table_free_locked(f->cache, 100 * TABLE_PAGE_SIZE, TABLE_PAGE_SIZE);
    f->fault = ENOSPC;
    f->fault_op = HOSTFILE_WRITE;
    assert_int_equal(table_flush_locked(f->cache, &err), CAIRN_E_NO_SPACE);
    assert_int_equal(f->nr_freed, 0);
    f->fault = 0;
    f->log[0] = 0;
    flush(f);
    assert_string_equal(f->log, "w2 s w3 s p100 ");
    assert_int_equal(f->nr_freed, 1);
}

static void test_a_failed_sync_is_final(void **state)
{
    struct fixture *f = *state;
    struct table_page *page;
    struct cairn_error err;
    uint8_t *bytes;

    set(f, TABLE_L2, 3, 1);
    f->fault = EIO;
    f->fault_op = HOSTFILE_SYNC;
    assert_int_equal(table_flush_locked(f->cache, &err), CAIRN_E_IO);
    f->fault = 0;
    assert_int_equal(table_flush_locked(f->cache, &err), CAIRN_E_IO);
    assert_non_null(strstr(err.message, "failed flush"));
    page = get(f, TABLE_L2, 3);
    assert_int_equal(table_modify_locked(f->cache, page, &bytes, &err), CAIRN_E_IO);
    table_put_locked(f->cache, page);
}

static void test_a_page_that_cannot_be_read(void **state)
{
    struct fixture *f = *state;
    struct table_page *page = NULL;
    struct cairn_error err;

    f->fault = EIO;
    f->fault_op = HOSTFILE_READ;
    assert_int_equal(table_get_locked(f->cache, TABLE_L2, 0, &page, &err), CAIRN_E_IO);
    f->fault = 0;
    table_put_locked(f->cache, get(f, TABLE_L2, 0));
    assert_int_equal(table_get_locked(f->cache, TABLE_L2, NR_PAGES * TABLE_PAGE_SIZE, &page, &err),
                     CAIRN_E_CORRUPT);
}

static void test_one_place_has_one_kind(void **state)
{
    struct fixture *f = *state;
    struct table_page *page = NULL;
    struct cairn_error err;

    table_put_locked(f->cache, get(f, TABLE_L2, 7));
    assert_int_equal(table_get_locked(f->cache, TABLE_REFBLOCK, 7 * TABLE_PAGE_SIZE, &page, &err),
                     CAIRN_E_CORRUPT);
    assert_string_equal(err.message, "tables: two tables overlap at 0x7000");
}

/* -- The bound --------------------------------------------------------------------------------- */

static void test_memory_stays_bounded(void **state)
{
    struct fixture *f = *state;
    struct table_stats stats;

    for (unsigned i = 0; i < NR_PAGES; i++)
        set(f, i % 2 ? TABLE_L2 : TABLE_REFBLOCK, i, (uint8_t)(i | 1));
    table_get_stats_locked(f->cache, &stats);
    assert_true(stats.bytes < 80 * (TABLE_PAGE_SIZE + 256));
    flush(f);
    for (unsigned i = 0; i < NR_PAGES; i++)
        assert_int_equal(on_disk(f, i), (uint8_t)(i | 1));
}

static void test_eviction_keeps_the_order(void **state)
{
    struct fixture *f = *state;

    for (unsigned i = 0; i < 60; i++)
        set(f, TABLE_L2, 2 + i, 1);
    set(f, TABLE_REFBLOCK, 1, 1);
    for (unsigned i = 60; i < 70; i++)
        set(f, TABLE_L2, 2 + i, 1);
    assert_memory_equal(f->log, "w1 s w2 ", 8);
}

static void test_full_of_changes_that_cannot_be_written(void **state)
{
    struct fixture *f = *state;
    struct cairn_error err;
    int rc = 0;

    f->fault = ENOSPC;
    f->fault_op = HOSTFILE_WRITE;
    for (unsigned i = 0; i < NR_PAGES && !rc; i++) {
        struct table_page *page = get(f, TABLE_L2, i);
        uint8_t *bytes;

        rc = table_modify_locked(f->cache, page, &bytes, &err);
        table_put_locked(f->cache, page);
    }
    assert_int_equal(rc, CAIRN_E_NO_SPACE);
    table_put_locked(f->cache, get(f, TABLE_L2, NR_PAGES - 1)); /* reading goes on */
}

static void test_forgotten_pages_are_read_anew(void **state)
{
    struct fixture *f = *state;
    struct table_page *page;
    uint8_t *bytes;

    set(f, TABLE_L2, 3, 1);
    page = get(f, TABLE_L2, 3);
    table_forget_locked(f->cache, 3 * TABLE_PAGE_SIZE, TABLE_PAGE_SIZE);
    assert_int_equal(table_modify_locked(f->cache, page, &bytes, NULL), CAIRN_E_CORRUPT);
    table_put_locked(f->cache, page);
    page = get(f, TABLE_L2, 3);
    assert_int_equal(table_bytes_locked(page)[0], 0);
    table_put_locked(f->cache, page);
    flush(f);
    assert_string_equal(f->log, "");
}

/* -- Group commit ------------------------------------------------------------------------------ */

static void *flush_thread(void *arg)
{
    struct fixture *f = arg;
    intptr_t rc;

    pthread_mutex_lock(&f->lock);
    table_note_data_locked(f->cache);
    rc = table_flush_locked(f->cache, NULL);
    pthread_mutex_unlock(&f->lock);
    return (void *)rc;
}

static void test_flushes_that_come_during_a_commit_share_the_next(void **state)
{
    enum { NR = 16 };
    struct fixture *f = *state;
    struct table_stats stats;
    pthread_t threads[NR];

    pthread_mutex_unlock(&f->lock);
    for (unsigned i = 0; i < NR; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, flush_thread, f), 0);
    for (unsigned i = 0; i < NR; i++) {
        void *rc;

        pthread_join(threads[i], &rc);
        assert_null(rc);
    }
    pthread_mutex_lock(&f->lock);
    table_get_stats_locked(f->cache, &stats);
    assert_true(stats.nr_syncs >= 1 && stats.nr_syncs <= NR);
    assert_int_equal(stats.nr_syncs, stats.nr_commits);
    assert_false(table_dirty_locked(f->cache));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_nothing_to_flush_touches_nothing),
        TEST(test_data_alone_is_one_sync),
        TEST(test_entries_come_after_data_and_counts),
        TEST(test_entries_that_depend_on_nothing_wait_for_nothing),
        TEST(test_every_kind_in_its_turn),
        TEST(test_clusters_become_free_after_the_entries_are_durable),
        TEST(test_a_commit_writes_what_was_there_when_it_began),
        TEST(test_what_could_not_be_written_is_written_later),
        TEST(test_a_failed_sync_is_final),
        TEST(test_a_page_that_cannot_be_read),
        TEST(test_one_place_has_one_kind),
        TEST(test_memory_stays_bounded),
        TEST(test_eviction_keeps_the_order),
        TEST(test_full_of_changes_that_cannot_be_written),
        TEST(test_forgotten_pages_are_read_anew),
        TEST(test_flushes_that_come_during_a_commit_share_the_next),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
