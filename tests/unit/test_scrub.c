/* SPDX-License-Identifier: Apache-2.0 */
/* Scrubbing over a store that fails as told: what is damage and what is not, and what happens to a
 * blob while it is put aside. */
#include "test.h"

#include <jansson.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "jobs.h"
#include "log.h"
#include "registry.h"
#include "scratch.h"
#include "scrub_internal.h"
#include "store_backend.h"

#define DEADLINE_S 30

static struct cairn_error err;

/* -- A store that fails as told --------------------------------------------------------------- */

typedef void (*move_hook)(struct store *store, const char *from);

/* The job's thread meets them. */
static struct {
    const struct store_ops *inner;
    atomic_uint failing_opens; /* so many more of blobs fail … */
    atomic_int open_code;      /* … with this */
    _Atomic(move_hook) before_move;
} faults;

static int faulty_open_fd(struct store *store, const char *key, int *ret_fd, uint64_t *ret_size,
                          struct cairn_error *e)
{
    if (strncmp(key, "repos/", 6) != 0 && atomic_load(&faults.failing_opens) > 0) {
        atomic_fetch_sub(&faults.failing_opens, 1);
        return error_set(e, (enum cairn_code)atomic_load(&faults.open_code), "a cable is loose");
    }
    return faults.inner->open_fd(store, key, ret_fd, ret_size, e);
}

static int faulty_move(struct store *store, const char *from, const char *to,
                       enum store_put_mode mode, struct cairn_error *e)
{
    move_hook hook = atomic_exchange(&faults.before_move, NULL);

    if (hook)
        hook(store, from);
    return faults.inner->move(store, from, to, mode, e);
}

/* -- A server --------------------------------------------------------------------------------- */

struct fixture {
    char dir[256], url[300];
    struct store *store;
    struct store_ops ops;
    struct quarantine *quarantine;
    struct scrub *scrub;
    struct job_kind kind;
    struct jobs *jobs;
    json_t *job; /* the last one's record */
};

/* Any thread may call it. */
static atomic_uint nr_forgotten;

static void count_forgotten(void *ctx, const struct digest *blob)
{
    (void)ctx;
    (void)blob;
    atomic_fetch_add(&nr_forgotten, 1);
}

static int setup(void **state)
{
    const struct quarantine_forget forget = {.forget = count_forgotten};
    const struct scrub_options options = {.rate = 0};
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    log_set_level(LOG_LEVEL_ERROR);
    snprintf(f->dir, sizeof(f->dir), "%s/cairn-scrub-XXXXXX", scratch_base());
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->url, sizeof(f->url), "fs:%s", f->dir);
    assert_int_equal(store_open(f->url, &f->store, &err), CAIRN_OK);
    atomic_store(&faults.failing_opens, 0);
    atomic_store(&faults.before_move, NULL);
    faults.inner = f->store->ops;
    f->ops = *f->store->ops;
    f->ops.open_fd = faulty_open_fd;
    f->ops.move = faulty_move;
    f->store->ops = &f->ops;
    assert_int_equal(quarantine_new(f->store, &forget, &f->quarantine, &err), CAIRN_OK);
    assert_int_equal(scrub_new(f->store, f->quarantine, &options, &f->scrub, &err), CAIRN_OK);
    f->kind = scrub_job_kind(f->scrub);
    assert_int_equal(jobs_new(f->store, "test[1]", &f->kind, 1, &f->jobs, &err), CAIRN_OK);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    char command[300];

    json_decref(f->job);
    jobs_free(f->jobs);
    scrub_free(f->scrub);
    quarantine_free(f->quarantine);
    store_close(f->store);
    snprintf(command, sizeof(command), "rm -rf '%s'", f->dir);
    assert_int_equal(system(command), 0);
    free(f);
    return 0;
}

/* A blob of that text, which repository r may see; what is stored is content. */
static struct digest put_blob(struct fixture *f, const char *text, const char *content)
{
    char key[REGISTRY_KEY_MAX], hex[DIGEST_HEX_LEN + 1];
    struct digest digest;

    digest_of(text, strlen(text), &digest);
    assert_int_equal(store_put(f->store, registry_blob_key(&digest, key), content, strlen(content),
                               STORE_PUT_REPLACE, &err),
                     CAIRN_OK);
    snprintf(key, sizeof(key), "repos/r/_blobs/%s", digest_format_hex(&digest, hex));
    assert_int_equal(store_put(f->store, key, "1", 1, STORE_PUT_REPLACE, &err), CAIRN_OK);
    return digest;
}

/* Run one to its end; how it ended. */
static const char *scrub(struct fixture *f)
{
    const struct timespec pause = {.tv_nsec = 2000000};
    const time_t deadline = time(NULL) + DEADLINE_S;
    char id[JOB_ID_MAX];
    const char *state = "running";

    assert_int_equal(jobs_start(f->jobs, "scrub", NULL, id, &err), CAIRN_OK);
    while (strcmp(state, "running") == 0) {
        nanosleep(&pause, NULL);
        assert_true(time(NULL) < deadline);
        json_decref(f->job);
        assert_int_equal(jobs_get(f->jobs, id, &f->job, &err), CAIRN_OK);
        state = json_string_value(json_object_get(f->job, "state"));
    }
    return state;
}

static const json_t *result(const struct fixture *f)
{
    return json_object_get(f->job, "result");
}

static size_t nr_damaged(const struct fixture *f)
{
    return json_array_size(json_object_get(result(f), "damaged"));
}

static bool is_stored(struct fixture *f, const struct digest *blob)
{
    char key[REGISTRY_KEY_MAX];
    uint64_t size;

    return store_head(f->store, registry_blob_key(blob, key), &size, &err) == CAIRN_OK;
}

/* -- Tests ------------------------------------------------------------------------------------ */

static void test_good_blobs_stay(void **state)
{
    struct fixture *f = *state;
    struct digest blob = put_blob(f, "hello", "hello"), empty = put_blob(f, "", "");

    assert_string_equal(scrub(f), "done");
    assert_int_equal(nr_damaged(f), 0);
    assert_int_equal(json_integer_value(json_object_get(result(f), "blobs")), 2);
    assert_int_equal(json_integer_value(json_object_get(result(f), "bytes")), 5);
    assert_true(is_stored(f, &blob) && is_stored(f, &empty));
}

static void test_one_failure_to_read_is_no_damage(void **state)
{
    struct fixture *f = *state;
    struct digest blob = put_blob(f, "hello", "hello");

    atomic_store(&faults.failing_opens, 1);
    atomic_store(&faults.open_code, CAIRN_E_IO);
    assert_string_equal(scrub(f), "done");
    assert_int_equal(atomic_load(&faults.failing_opens), 0);
    assert_int_equal(nr_damaged(f), 0);
    assert_true(is_stored(f, &blob));
}

static void test_unreadable_blob_is_damaged(void **state)
{
    struct fixture *f = *state;
    struct digest blob = put_blob(f, "hello", "hello");
    const json_t *item;

    atomic_store(&faults.failing_opens, 4); /* twice where it was, twice where it was moved to */
    atomic_store(&faults.open_code, CAIRN_E_IO);
    assert_string_equal(scrub(f), "done");
    assert_int_equal(nr_damaged(f), 1);
    item = json_array_get(json_object_get(result(f), "damaged"), 0);
    assert_non_null(
        strstr(json_string_value(json_object_get(item, "problem")), "a cable is loose"));
    assert_false(is_stored(f, &blob));
    assert_int_equal(quarantine_check(f->store, &blob, &err), CAIRN_E_NOT_FOUND);
    /* The cable is in its place again. */
    assert_string_equal(scrub(f), "done");
    assert_int_equal(nr_damaged(f), 0);
    assert_int_equal(json_array_size(json_object_get(result(f), "putBack")), 1);
    assert_true(is_stored(f, &blob));
    assert_int_equal(quarantine_check(f->store, &blob, &err), CAIRN_OK);
}

static void test_store_that_does_not_answer_is_no_damage(void **state)
{
    struct fixture *f = *state;
    struct digest blob = put_blob(f, "hello", "hello");

    atomic_store(&faults.failing_opens, 1000);
    atomic_store(&faults.open_code, CAIRN_E_UNAVAILABLE);
    assert_string_equal(scrub(f), "failed");
    assert_int_equal(nr_damaged(f), 0);
    assert_true(is_stored(f, &blob));
}

static void put_right_one(struct store *store, const char *key)
{
    assert_int_equal(store_put(store, key, "hello", 5, STORE_PUT_REPLACE, &err), CAIRN_OK);
}

/* Collected and pushed again between reading and moving: what is moved is good. */
static void test_good_blob_that_was_moved_goes_back(void **state)
{
    struct fixture *f = *state;
    struct digest blob = put_blob(f, "hello", "hullo");

    atomic_store(&faults.before_move, put_right_one);
    assert_string_equal(scrub(f), "done");
    assert_null(atomic_load(&faults.before_move));
    assert_int_equal(nr_damaged(f), 0);
    assert_true(is_stored(f, &blob));
    assert_int_equal(quarantine_check(f->store, &blob, &err), CAIRN_OK);
}

static void delete_it(struct store *store, const char *key)
{
    assert_int_equal(store_delete(store, key, &err), CAIRN_OK);
}

static void test_blob_that_was_deleted_is_no_damage(void **state)
{
    struct fixture *f = *state;
    struct digest blob = put_blob(f, "hello", "hullo");

    atomic_store(&faults.before_move, delete_it);
    assert_string_equal(scrub(f), "done");
    assert_int_equal(nr_damaged(f), 0);
    assert_int_equal(quarantine_check(f->store, &blob, &err), CAIRN_OK);
}

static void test_healed_blob_ends_its_record(void **state)
{
    struct fixture *f = *state;
    struct digest blob = put_blob(f, "hello", "hullo");

    assert_string_equal(scrub(f), "done");
    assert_int_equal(nr_damaged(f), 1);
    put_blob(f, "hello", "hello");
    assert_string_equal(scrub(f), "done"); /* also if whoever put it did not end the record */
    assert_int_equal(nr_damaged(f), 0);
    assert_int_equal(quarantine_check(f->store, &blob, &err), CAIRN_OK);
    put_blob(f, "hello", "hallo"); /* and damaged again */
    assert_string_equal(scrub(f), "done");
    assert_int_equal(nr_damaged(f), 1);
    assert_int_equal(quarantine_check(f->store, &blob, &err), CAIRN_E_NOT_FOUND);
}

/* Whoever may see it is gone: it need not be healed. */
static void test_damaged_blob_that_nobody_needs_is_forgotten(void **state)
{
    struct fixture *f = *state;
    struct digest blob = put_blob(f, "hello", "hullo");
    char key[REGISTRY_KEY_MAX], hex[DIGEST_HEX_LEN + 1];

    assert_string_equal(scrub(f), "done");
    assert_int_equal(nr_damaged(f), 1);
    snprintf(key, sizeof(key), "repos/r/_blobs/%s", digest_format_hex(&blob, hex));
    assert_int_equal(store_delete(f->store, key, &err), CAIRN_OK);
    assert_string_equal(scrub(f), "done");
    assert_int_equal(nr_damaged(f), 0);
}

/* Another server learns of it, though it is healed by then. */
static void test_other_servers_are_told_also_when_it_is_healed(void **state)
{
    const struct quarantine_forget forget = {.forget = count_forgotten};
    const struct timespec pause = {.tv_nsec = 2000000};
    const time_t deadline = time(NULL) + DEADLINE_S;
    struct fixture *f = *state;
    struct digest blob = put_blob(f, "hello", "hullo");
    struct quarantine *other;

    assert_string_equal(scrub(f), "done");
    put_blob(f, "hello", "hello");
    assert_int_equal(quarantine_end(f->store, &blob, &err), CAIRN_OK);
    quarantine_free(f->quarantine); /* so that it is the other's call that counts */
    f->quarantine = NULL;
    atomic_store(&nr_forgotten, 0);
    assert_int_equal(quarantine_new(f->store, &forget, &other, &err), CAIRN_OK);
    while (atomic_load(&nr_forgotten) == 0) {
        assert_true(time(NULL) < deadline);
        nanosleep(&pause, NULL);
    }
    quarantine_free(other);
}

static void test_damaged_record_still_counts_as_one(void **state)
{
    struct fixture *f = *state;
    struct digest blob = put_blob(f, "hello", "hullo");
    char key[QUARANTINE_KEY_MAX];

    assert_string_equal(scrub(f), "done");
    quarantine_blob_key(&blob, key);
    strcpy(strrchr(key, '.'), ".json");
    assert_int_equal(store_put(f->store, key, "{", 1, STORE_PUT_REPLACE, &err), CAIRN_OK);
    assert_int_equal(quarantine_check(f->store, &blob, &err), CAIRN_E_NOT_FOUND);
    assert_string_equal(scrub(f), "done");
    assert_int_equal(nr_damaged(f), 1);
}

static void test_a_record_that_ended_before_time_began_has_not_ended(void **state)
{
    static const char text[] = "{\"ended\":-9223372036854775808}";
    struct fixture *f = *state;
    struct digest blob = put_blob(f, "hello", "hullo");
    char key[QUARANTINE_KEY_MAX];

    assert_string_equal(scrub(f), "done");
    quarantine_blob_key(&blob, key);
    strcpy(strrchr(key, '.'), ".json");
    assert_int_equal(store_put(f->store, key, text, strlen(text), STORE_PUT_REPLACE, &err),
                     CAIRN_OK);
    assert_int_equal(quarantine_check(f->store, &blob, &err), CAIRN_E_NOT_FOUND);
    assert_string_equal(scrub(f), "done");
    assert_int_equal(nr_damaged(f), 1);
}

/* What a job's record could not hold. */
static void test_a_result_names_so_many_tags_at_most(void **state)
{
    struct scrub_run run = {.result = json_object()};
    size_t nr = 0, more = 0;
    json_t *item;
    size_t i;

    (void)state;
    for (i = 0; i < 3; i++) {
        json_t *tags = json_array();

        for (unsigned k = 0; k < 9000; k++)
            assert_int_equal(json_array_append_new(tags, json_sprintf("r:t%u", k)), 0);
        assert_int_equal(scrub_note(&run, "damaged", json_pack("{s:o}", "tags", tags), &err),
                         CAIRN_OK);
    }
    json_array_foreach(json_object_get(run.result, "damaged"), i, item)
    {
        nr += json_array_size(json_object_get(item, "tags"));
        more += (size_t)json_integer_value(json_object_get(item, "moreTags"));
    }
    assert_int_equal(nr, 20000);
    assert_int_equal(more, 7000);
    json_decref(run.result);
}

static void test_foreign_files_are_left_alone(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(store_put(f->store, "blobs/sha256/ab/note", "x", 1, STORE_PUT_REPLACE, &err),
                     CAIRN_OK);
    assert_int_equal(store_put(f->store, "quarantine/note.json", "x", 1, STORE_PUT_REPLACE, &err),
                     CAIRN_OK);
    assert_int_equal(store_put(f->store, "index/ab/note", "x", 1, STORE_PUT_REPLACE, &err),
                     CAIRN_OK);
    assert_string_equal(scrub(f), "done");
    assert_int_equal(nr_damaged(f), 0);
    assert_int_equal(json_integer_value(json_object_get(result(f), "blobs")), 0);
}

#define SCRUB_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCRUB_TEST(test_good_blobs_stay),
        SCRUB_TEST(test_one_failure_to_read_is_no_damage),
        SCRUB_TEST(test_unreadable_blob_is_damaged),
        SCRUB_TEST(test_store_that_does_not_answer_is_no_damage),
        SCRUB_TEST(test_good_blob_that_was_moved_goes_back),
        SCRUB_TEST(test_blob_that_was_deleted_is_no_damage),
        SCRUB_TEST(test_healed_blob_ends_its_record),
        SCRUB_TEST(test_damaged_blob_that_nobody_needs_is_forgotten),
        SCRUB_TEST(test_other_servers_are_told_also_when_it_is_healed),
        SCRUB_TEST(test_damaged_record_still_counts_as_one),
        SCRUB_TEST(test_a_record_that_ended_before_time_began_has_not_ended),
        SCRUB_TEST(test_a_result_names_so_many_tags_at_most),
        SCRUB_TEST(test_foreign_files_are_left_alone),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
