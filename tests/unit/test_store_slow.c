/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "histogram.h"
#include "scratch.h"
#include "store_backend.h"

#define DELAY_MS 20

struct fixture {
    char dir[256], url[300];
    struct store *near, *far; /* the same folder */
};

static struct cairn_error err;

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    snprintf(f->dir, sizeof(f->dir), "%s/cairn-store-XXXXXX", scratch_base());
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->url, sizeof(f->url), "fs:%s", f->dir);
    assert_int_equal(store_open(f->url, &f->near, &err), CAIRN_OK);
    snprintf(f->url, sizeof(f->url), "slow:%d:fs:%s", DELAY_MS, f->dir);
    assert_int_equal(store_open(f->url, &f->far, &err), CAIRN_OK);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    char command[300];

    store_close(f->near);
    store_close(f->far);
    snprintf(command, sizeof(command), "rm -rf '%s'", f->dir);
    assert_int_equal(system(command), 0);
    free(f);
    return 0;
}

static void put_text(struct store *store, const char *key, const char *text)
{
    assert_int_equal(store_put(store, key, text, strlen(text), STORE_PUT_IF_ABSENT, &err),
                     CAIRN_OK);
}

static uint64_t nr_calls(const struct store *store, enum store_call call)
{
    return histogram_total(&store->counts.latency[call]);
}

static void assert_took_round_trips(uint64_t since_us, unsigned nr)
{
    assert_true(clock_now_us() - since_us >= nr * DELAY_MS * UINT64_C(1000));
}

/* -- slow: ------------------------------------------------------------------------------------ */

static void test_shows_the_store_behind(void **state)
{
    const struct fixture *f = *state;
    uint64_t size;
    size_t len;
    void *buf;

    put_text(f->far, "repos/a", "text");
    assert_int_equal(store_head(f->near, "repos/a", &size, &err), CAIRN_OK);
    assert_int_equal(store_get(f->far, "repos/a", 10, &buf, &len, &err), CAIRN_OK);
    assert_int_equal(len, 4);
    assert_memory_equal(buf, "text", 4);
    free(buf);
    assert_int_equal(store_cas(f->far, "repos/tag", NULL, "one", &err), CAIRN_OK);
    assert_int_equal(store_cas(f->far, "repos/tag", NULL, "two", &err), CAIRN_E_CONFLICT);
    assert_int_equal(store_delete(f->far, "repos/a", &err), CAIRN_OK);
    assert_int_equal(store_head(f->far, "repos/a", &size, &err), CAIRN_E_NOT_FOUND);
}

static void test_each_call_takes_a_round_trip(void **state)
{
    const struct fixture *f = *state;
    uint64_t since_us = clock_now_us(), size;

    put_text(f->far, "repos/a", "text");
    assert_took_round_trips(since_us, 1);
    since_us = clock_now_us();
    assert_int_equal(store_head(f->far, "repos/a", &size, &err), CAIRN_OK);
    assert_took_round_trips(since_us, 1);
}

static void test_each_read_of_a_source_takes_one(void **state)
{
    const struct fixture *f = *state;
    struct source *src;
    uint64_t since_us;
    char byte;

    put_text(f->near, "blobs/a", "text");
    since_us = clock_now_us();
    assert_int_equal(store_open_source(f->far, "blobs/a", &src, &err), CAIRN_OK);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(source_pread(src, &byte, 1, i, &err), CAIRN_OK);
    assert_took_round_trips(since_us, 4);
    source_free(src);
}

static void test_has_no_descriptors(void **state)
{
    const struct fixture *f = *state;
    uint64_t size;
    int fd = 0;

    put_text(f->near, "blobs/a", "text");
    assert_int_equal(store_open_fd(f->far, "blobs/a", &fd, &size, &err), CAIRN_OK);
    assert_int_equal(fd, -1);
}

static void test_refuses_bad_urls(void **state)
{
    static const char *const bad[] = {
        "slow:",
        "slow:10",
        "slow:10:",
        "slow::fs:/tmp",
        "slow:-1:fs:/tmp",
        "slow:60001:fs:/tmp",
        "slow:1000000:fs:/tmp",
        "slow:1:slow:1:fs:/tmp",
        "slow:1:tape:/tmp",
    };
    struct store *store;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(store_open(bad[i], &store, &err), CAIRN_E_USAGE);
}

/* -- Figures ---------------------------------------------------------------------------------- */

static void test_calls_and_bytes_are_counted(void **state)
{
    const struct fixture *f = *state;
    const struct store_counts *counts = &f->near->counts;
    struct source *src;
    size_t len;
    void *buf;
    char bytes[3];

    put_text(f->near, "blobs/a", "text");
    put_text(f->near, "index/a", "index");
    assert_int_equal(counts->written_bytes, 9);
    assert_int_equal(nr_calls(f->near, STORE_CALL_PUT), 2);
    assert_int_equal(store_get(f->near, "index/a", 10, &buf, &len, &err), CAIRN_OK);
    free(buf);
    assert_int_equal(counts->read_bytes[STORE_OBJECTS_INDEX], 5);
    assert_int_equal(store_open_source(f->near, "blobs/a", &src, &err), CAIRN_OK);
    assert_int_equal(source_pread(src, bytes, 3, 1, &err), CAIRN_OK);
    source_free(src);
    assert_int_equal(counts->read_bytes[STORE_OBJECTS_BLOBS], 3);
    assert_int_equal(nr_calls(f->near, STORE_CALL_OPEN), 1);
    assert_int_equal(nr_calls(f->near, STORE_CALL_READ), 1);
}

static void test_reads_through_a_descriptor_are_counted(void **state)
{
    const struct fixture *f = *state;
    struct source *src;
    uint64_t size;
    char bytes[4];
    int fd;

    put_text(f->near, "blobs/a", "text");
    assert_int_equal(store_open_fd(f->near, "blobs/a", &fd, &size, &err), CAIRN_OK);
    assert_int_equal(store_fd_source(f->near, "blobs/a", fd, "a", &src, &err), CAIRN_OK);
    assert_int_equal(source_pread(src, bytes, 4, 0, &err), CAIRN_OK);
    store_note_sent(f->near, "blobs/a", 2);
    assert_int_equal(f->near->counts.read_bytes[STORE_OBJECTS_BLOBS], 6);
    source_free(src);
}

static void test_only_what_went_wrong_is_a_failure(void **state)
{
    const struct fixture *f = *state;
    const struct store_counts *counts = &f->near->counts;
    struct source *src;
    char path[300], byte;
    uint64_t size;

    assert_int_equal(store_head(f->near, "blobs/a", &size, &err), CAIRN_E_NOT_FOUND);
    assert_int_equal(counts->failures[STORE_CALL_HEAD], 0);
    put_text(f->near, "blobs/a", "text");
    assert_int_equal(store_open_source(f->near, "blobs/a", &src, &err), CAIRN_OK);
    snprintf(path, sizeof(path), "%s/blobs/a", f->dir);
    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(source_pread(src, &byte, 1, 0, &err), CAIRN_E_IO);
    assert_int_equal(counts->failures[STORE_CALL_READ], 1);
    assert_int_equal(counts->read_bytes[STORE_OBJECTS_BLOBS], 0);
    source_free(src);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_shows_the_store_behind, setup, teardown),
        cmocka_unit_test_setup_teardown(test_each_call_takes_a_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_each_read_of_a_source_takes_one, setup, teardown),
        cmocka_unit_test_setup_teardown(test_has_no_descriptors, setup, teardown),
        cmocka_unit_test(test_refuses_bad_urls),
        cmocka_unit_test_setup_teardown(test_calls_and_bytes_are_counted, setup, teardown),
        cmocka_unit_test_setup_teardown(test_reads_through_a_descriptor_are_counted, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_only_what_went_wrong_is_a_failure, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
