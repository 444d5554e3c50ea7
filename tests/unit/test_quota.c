/* SPDX-License-Identifier: Apache-2.0 */
/* Quotas: rules, what counts, and who is refused. */
#include "test.h"

#include <inttypes.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "byte_count.h"
#include "quota.h"
#include "registry_internal.h"
#include "scratch.h"

static struct cairn_error err;

/* -- Numbers and rules --- */

static void test_byte_counts(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {
        {"0", 0},
        {"1", 1},
        {"7k", 7168},
        {"3M", 3 << 20},
        {"2G", UINT64_C(2) << 30},
        {"1t", UINT64_C(1) << 40},
        {"18446744073709551615", UINT64_MAX},
        {"16777215T", UINT64_C(16777215) << 40},
    };
    static const char *const bad[] = {"",          "K",
                                      "1KK",       "-1",
                                      "+1",        "1.5G",
                                      " 1",        "1 ",
                                      "1X",        "0x1",
                                      "1,",        "1e3",
                                      "T1",        "18446744073709551616",
                                      "16777216T", "99999999999999999999K"};
    uint64_t bytes;

    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_true(byte_count_parse(good[i].text, strlen(good[i].text), &bytes));
        assert_true(bytes == good[i].bytes);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        if (byte_count_parse(bad[i], strlen(bad[i]), &bytes))
            print_error("'%s' was taken\n", bad[i]);
        assert_false(byte_count_parse(bad[i], strlen(bad[i]), &bytes));
    }
}

static uint64_t allowed(const char *rules, const char *repo)
{
    CLEANUP(quota_rules_free_p) struct quota_rules *all = NULL;

    assert_int_equal(quota_rules_parse(rules, &all, &err), CAIRN_OK);
    return quota_rules_allowed(all, repo);
}

static void test_first_rule_that_matches_counts(void **state)
{
    const char *rules = "team/big=4T,team/*=1T,*=100G";

    (void)state;
    assert_true(allowed(rules, "team/big") == UINT64_C(4) << 40);
    assert_true(allowed(rules, "team/small") == UINT64_C(1) << 40);
    assert_true(allowed(rules, "other") == UINT64_C(100) << 30);
    assert_true(allowed("5M", "any/thing") == 5 << 20);
    assert_true(allowed("a=1,b=0", "b") == 0);
    assert_true(allowed("a=1", "c") == QUOTA_NONE);
    assert_true(quota_rules_allowed(NULL, "c") == QUOTA_NONE);
}

static void test_bad_rules_are_named(void **state)
{
    static const char *const bad[] = {"",     "x",     "=1",    "a=",       "a=1,",
                                      ",a=1", "A=1",   "a b=1", "a=1=2",    "a=-1",
                                      "a=1Q", "a=1,b", "a=1;b", "a=1,,b=2", "18446744073709551615"};
    CLEANUP(quota_rules_free_p) struct quota_rules *rules = NULL;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        if (quota_rules_parse(bad[i], &rules, &err) != CAIRN_E_USAGE)
            print_error("'%s' was taken\n", bad[i]);
        assert_int_equal(quota_rules_parse(bad[i], &rules, &err), CAIRN_E_USAGE);
        assert_non_null(strstr(err.message, "expected <size> or <pattern>=<size>"));
    }
    assert_int_equal(quota_rules_parse("a=1,team=x", &rules, &err), CAIRN_E_USAGE);
    assert_non_null(strstr(err.message, "\"team=x\""));
}

/* -- Accounts --- */

struct fixture {
    char dir[200];
    struct store *store;
    struct quota *quota;
};

static void open_quota(struct fixture *f, const char *rules, uint64_t max_uploads,
                       uint64_t max_unfinished)
{
    const struct quota_options options = {
        .rules = rules, .max_uploads = max_uploads, .max_unfinished = max_unfinished};

    quota_free(f->quota);
    assert_int_equal(quota_new(f->store, &options, &f->quota, &err), CAIRN_OK);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    char url[220];

    assert_non_null(f);
    snprintf(f->dir, sizeof(f->dir), "%s/cairn-quota-XXXXXX", scratch_base());
    assert_non_null(mkdtemp(f->dir));
    snprintf(url, sizeof(url), "fs:%s", f->dir);
    assert_int_equal(store_open(url, &f->store, &err), CAIRN_OK);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    char command[300];

    quota_free(f->quota);
    store_close(f->store);
    snprintf(command, sizeof(command), "rm -rf '%s'", f->dir);
    assert_int_equal(system(command), 0);
    free(f);
    return 0;
}

static struct digest digest_nr(unsigned nr)
{
    struct digest d;

    digest_of(&nr, sizeof(nr), &d);
    return d;
}

/* Charge for, make and settle the link nr of a repository. */
static int add_link(struct fixture *f, const char *repo, unsigned nr, uint64_t size)
{
    const struct digest d = digest_nr(nr);
    struct quota_charge charge;
    int r = quota_charge(f->quota, repo, &d, size, &charge, &err);

    if (r)
        return r;
    assert_int_equal(registry_show_blob(f->store, repo, &d, size, &err), CAIRN_OK);
    quota_settle(f->quota, &charge, true);
    return r;
}

static void remove_link(struct fixture *f, const char *repo, unsigned nr)
{
    const struct digest d = digest_nr(nr);
    char key[REGISTRY_KEY_MAX];

    assert_int_equal(store_delete(f->store, registry_repo_key(repo, "_blobs", &d, key), &err),
                     CAIRN_OK);
}

static uint64_t used(struct fixture *f, const char *repo)
{
    struct quota_usage usage;

    assert_int_equal(quota_usage(f->quota, repo, &usage, &err), CAIRN_OK);
    return usage.used;
}

static void test_exactly_what_is_allowed_fits(void **state)
{
    struct fixture *f = *state;

    open_quota(f, "a=100", 0, 0);
    assert_int_equal(add_link(f, "a", 1, 60), CAIRN_OK);
    assert_int_equal(add_link(f, "a", 2, 41), CAIRN_E_DENIED);
    assert_string_equal(err.message,
                        "repository a holds 60 bytes and may hold 100: 41 more do not fit");
    assert_int_equal(add_link(f, "a", 2, 40), CAIRN_OK);
    assert_int_equal(add_link(f, "a", 3, 1), CAIRN_E_DENIED);
    assert_int_equal(add_link(f, "a", 4, 0), CAIRN_OK);
    assert_int_equal(used(f, "a"), 100);
}

static void test_huge_sizes_do_not_wrap(void **state)
{
    struct fixture *f = *state;
    uint64_t room;

    open_quota(f, "a=100", 0, 0);
    assert_int_equal(add_link(f, "a", 1, 60), CAIRN_OK);
    assert_int_equal(add_link(f, "a", 2, UINT64_MAX), CAIRN_E_DENIED);
    assert_int_equal(add_link(f, "a", 2, UINT64_MAX - 59), CAIRN_E_DENIED);
    assert_int_equal(quota_begin_upload(f->quota, "a", UINT64_MAX - 10, &err), CAIRN_E_DENIED);
    assert_int_equal(quota_grow_upload(f->quota, "a", UINT64_MAX - 5, 10, &room, &err),
                     CAIRN_E_DENIED);
    /* links that were there before there was a quota */
    open_quota(f, NULL, 0, 0);
    assert_int_equal(add_link(f, "b", 1, UINT64_MAX - 1), CAIRN_OK);
    assert_int_equal(add_link(f, "b", 2, UINT64_MAX - 1), CAIRN_OK);
    open_quota(f, "b=16777215T", 0, 0);
    assert_true(used(f, "b") == UINT64_MAX);
    assert_int_equal(quota_begin_upload(f->quota, "b", 1, &err), CAIRN_E_DENIED);
}

static void test_a_blob_counts_once(void **state)
{
    struct fixture *f = *state;

    open_quota(f, "100", 0, 0);
    assert_int_equal(add_link(f, "a", 1, 80), CAIRN_OK);
    assert_int_equal(add_link(f, "a", 1, 80), CAIRN_OK); /* it is there */
    assert_int_equal(used(f, "a"), 80);
    assert_int_equal(add_link(f, "b", 1, 80), CAIRN_OK); /* and counts in each repository */
    assert_int_equal(used(f, "b"), 80);
}

static void test_nested_repositories_have_their_own(void **state)
{
    struct fixture *f = *state;

    open_quota(f, "100", 0, 0);
    assert_int_equal(add_link(f, "a", 1, 80), CAIRN_OK);
    assert_int_equal(add_link(f, "a/b", 2, 80), CAIRN_OK);
    assert_int_equal(used(f, "a"), 80);
}

static void test_removed_links_give_their_bytes_back(void **state)
{
    struct fixture *f = *state;

    open_quota(f, "100", 0, 0);
    assert_int_equal(add_link(f, "a", 1, 60), CAIRN_OK);
    assert_int_equal(add_link(f, "a", 2, 40), CAIRN_OK);
    assert_int_equal(quota_begin_upload(f->quota, "a", 60, &err), CAIRN_E_DENIED);
    remove_link(f, "a", 1);
    assert_int_equal(quota_begin_upload(f->quota, "a", 60, &err), CAIRN_OK); /* at once */
    assert_int_equal(add_link(f, "a", 3, 60), CAIRN_OK);
}

static void test_links_of_another_server_count(void **state)
{
    struct fixture *f = *state;
    const struct quota_options options = {.rules = "100"};
    struct quota *other;

    open_quota(f, "100", 0, 0);
    assert_int_equal(quota_new(f->store, &options, &other, &err), CAIRN_OK);
    assert_int_equal(add_link(f, "a", 1, 30), CAIRN_OK); /* remembered here from now on */
    {
        struct fixture elsewhere = {.store = f->store, .quota = other};

        assert_int_equal(add_link(&elsewhere, "a", 2, 60), CAIRN_OK);
    }
    assert_int_equal(add_link(f, "a", 3, 11), CAIRN_E_DENIED);
    assert_int_equal(add_link(f, "a", 3, 10), CAIRN_OK);
    quota_free(other);
}

static void test_a_link_without_its_size_counts_its_blob(void **state)
{
    struct fixture *f = *state;
    const struct digest d = digest_nr(1);
    char key[REGISTRY_KEY_MAX];

    open_quota(f, "100", 0, 0);
    assert_int_equal(store_put(f->store, registry_repo_key("a", "_blobs", &d, key), "?", 1,
                               STORE_PUT_IF_ABSENT, &err),
                     CAIRN_OK);
    assert_int_equal(used(f, "a"), 0); /* a link to nothing */
    assert_int_equal(
        store_put(f->store, registry_blob_key(&d, key), "12345", 5, STORE_PUT_IF_ABSENT, &err),
        CAIRN_OK);
    open_quota(f, "100", 0, 0);
    assert_int_equal(used(f, "a"), 5);
}

static void test_charges_in_flight_count(void **state)
{
    struct fixture *f = *state;
    const struct digest first = digest_nr(1), second = digest_nr(2);
    struct quota_charge one, two, again;

    open_quota(f, "100", 0, 0);
    assert_int_equal(quota_charge(f->quota, "a", &first, 60, &one, &err), CAIRN_OK);
    assert_int_equal(quota_charge(f->quota, "a", &second, 60, &two, &err), CAIRN_E_DENIED);
    assert_int_equal(quota_charge(f->quota, "a", &first, 60, &again, &err), CAIRN_OK);
    quota_settle(f->quota, &again, false);
    quota_settle(f->quota, &one, false); /* its link could not be made */
    assert_int_equal(quota_charge(f->quota, "a", &second, 60, &two, &err), CAIRN_OK);
    quota_settle(f->quota, &two, false);
    assert_int_equal(used(f, "a"), 0);
}

/* Each thread makes links of 10 bytes until it is refused. */
static void *fill(void *arg)
{
    static atomic_uint next_nr;
    struct fixture *f = arg;
    struct cairn_error error;
    uintptr_t made = 0;

    for (;;) {
        const struct digest d = digest_nr(atomic_fetch_add(&next_nr, 1));
        struct quota_charge charge;

        if (quota_charge(f->quota, "a", &d, 10, &charge, &error))
            break;
        made += registry_show_blob(f->store, "a", &d, 10, &error) == CAIRN_OK;
        quota_settle(f->quota, &charge, true);
    }
    return (void *)made; /* NOLINT: a number */
}

static void test_racing_threads_fill_it_exactly(void **state)
{
    struct fixture *f = *state;
    pthread_t threads[8];
    uintptr_t made = 0;
    void *result;

    open_quota(f, "2005", 0, 0);
    for (int i = 0; i < 8; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, fill, f), 0);
    for (int i = 0; i < 8; i++) {
        pthread_join(threads[i], &result);
        made += (uintptr_t)result;
    }
    assert_int_equal(made, 200);
    assert_int_equal(used(f, "a"), 2000);
}

/* -- Unfinished uploads --- */

static void new_upload(struct fixture *f, const char *repo, char id[STORE_UPLOAD_ID_MAX],
                       size_t len)
{
    static const char bytes[1000];

    assert_int_equal(quota_begin_upload(f->quota, repo, 0, &err), CAIRN_OK);
    assert_int_equal(store_upload_new(f->store, repo, id, &err), CAIRN_OK);
    assert_int_equal(store_upload_append(f->store, id, 0, bytes, len, &err), CAIRN_OK);
}

static void test_number_of_uploads(void **state)
{
    struct fixture *f = *state;
    char ids[3][STORE_UPLOAD_ID_MAX];

    open_quota(f, NULL, 3, 0);
    for (int i = 0; i < 3; i++)
        new_upload(f, "a", ids[i], 1);
    assert_int_equal(quota_begin_upload(f->quota, "a", 0, &err), CAIRN_E_DENIED);
    assert_non_null(strstr(err.message, "3 unfinished uploads, limit 3"));
    assert_int_equal(quota_begin_upload(f->quota, "b", 0, &err), CAIRN_OK);
    assert_int_equal(store_upload_abort(f->store, ids[1], &err), CAIRN_OK);
    assert_int_equal(quota_begin_upload(f->quota, "a", 0, &err), CAIRN_OK); /* at once */
}

static void test_bytes_of_unfinished_uploads(void **state)
{
    struct fixture *f = *state;
    char ids[2][STORE_UPLOAD_ID_MAX];
    uint64_t room;

    open_quota(f, NULL, 0, 1000);
    new_upload(f, "a", ids[0], 600);
    new_upload(f, "a", ids[1], 100);
    open_quota(f, NULL, 0, 1000); /* that counts them now */
    assert_int_equal(quota_grow_upload(f->quota, "a", 100, 300, &room, &err), CAIRN_OK);
    assert_int_equal(room, 400);
    assert_int_equal(quota_grow_upload(f->quota, "a", 100, 301, &room, &err), CAIRN_E_DENIED);
    assert_int_equal(store_upload_append(f->store, ids[1], 100, ids, 100, &err), CAIRN_OK);
    open_quota(f, NULL, 0, 800);
    assert_int_equal(quota_begin_upload(f->quota, "a", 0, &err), CAIRN_E_DENIED);
    /* what is there may be ended all the same */
    assert_int_equal(quota_grow_upload(f->quota, "a", 600, 0, &room, &err), CAIRN_OK);
    assert_int_equal(room, 600);
}

static void test_room_of_an_upload(void **state)
{
    struct fixture *f = *state;
    uint64_t room;

    open_quota(f, "a=1000", 0, 0);
    assert_int_equal(add_link(f, "a", 1, 400), CAIRN_OK);
    assert_int_equal(quota_grow_upload(f->quota, "a", 100, 0, &room, &err), CAIRN_OK);
    assert_int_equal(room, 600);
    assert_int_equal(quota_grow_upload(f->quota, "a", 100, 500, &room, &err), CAIRN_OK);
    assert_int_equal(quota_grow_upload(f->quota, "a", 100, 501, &room, &err), CAIRN_E_DENIED);
    assert_int_equal(quota_grow_upload(f->quota, "b", 100, 501, &room, &err), CAIRN_OK);
    assert_true(room == UINT64_MAX);
}

static void test_usage(void **state)
{
    struct fixture *f = *state;
    struct quota_usage usage;
    char id[STORE_UPLOAD_ID_MAX];

    open_quota(f, "a=1000", 0, 0);
    new_upload(f, "a", id, 7);
    assert_int_equal(add_link(f, "a", 1, 400), CAIRN_OK);
    assert_int_equal(add_link(f, "a", 2, 50), CAIRN_OK);
    assert_int_equal(quota_usage(f->quota, "a", &usage, &err), CAIRN_OK);
    assert_int_equal(usage.used, 450);
    assert_int_equal(usage.allowed, 1000);
    assert_int_equal(usage.nr_blobs, 2);
    assert_int_equal(usage.nr_uploads, 1);
    assert_int_equal(quota_usage(f->quota, "b", &usage, &err), CAIRN_OK);
    assert_true(usage.allowed == QUOTA_NONE);
}

/* Where a sanitizer allocates, mallinfo2 tells nothing. */
static void test_names_that_hold_nothing_take_no_memory(void **state)
{
    struct fixture *f = *state;
    struct mallinfo2 before;
    char repo[32];

    open_quota(f, "1000", 0, 0);
    assert_int_equal(used(f, "none"), 0);
    before = mallinfo2();
    for (unsigned i = 0; i < 2000; i++) {
        snprintf(repo, sizeof(repo), "none%u", i);
        assert_int_equal(used(f, repo), 0);
    }
    assert_true(mallinfo2().uordblks < before.uordblks + 64 * 1024);
}

#define QUOTA_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_byte_counts),
        cmocka_unit_test(test_first_rule_that_matches_counts),
        cmocka_unit_test(test_bad_rules_are_named),
        QUOTA_TEST(test_exactly_what_is_allowed_fits),
        QUOTA_TEST(test_huge_sizes_do_not_wrap),
        QUOTA_TEST(test_a_blob_counts_once),
        QUOTA_TEST(test_nested_repositories_have_their_own),
        QUOTA_TEST(test_removed_links_give_their_bytes_back),
        QUOTA_TEST(test_links_of_another_server_count),
        QUOTA_TEST(test_a_link_without_its_size_counts_its_blob),
        QUOTA_TEST(test_charges_in_flight_count),
        QUOTA_TEST(test_racing_threads_fill_it_exactly),
        QUOTA_TEST(test_number_of_uploads),
        QUOTA_TEST(test_bytes_of_unfinished_uploads),
        QUOTA_TEST(test_room_of_an_upload),
        QUOTA_TEST(test_usage),
        QUOTA_TEST(test_names_that_hold_nothing_take_no_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
