/* SPDX-License-Identifier: Apache-2.0 */
/* Jobs: one of a kind in a store, seen from two servers, cancelled, interrupted and gone on with.
 */
#include "test.h"

#include <jansson.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "jobs.h"
#include "log.h"
#include "scratch.h"

#define NR_STEPS   1000000u
#define STEP_US    1000
#define DEADLINE_S 30

static struct cairn_error err;

/* -- A kind of job that counts ---------------------------------------------------------------- */

struct counting {
    atomic_uint until; /* ends there; NR_STEPS: only when stopped */
    atomic_uint first; /* where the last run began */
    atomic_uint nr_runs;
    atomic_bool fails;
};

static int parse_counting(void *ctx, const json_t *given, json_t **ret_options,
                          struct cairn_error *e)
{
    json_int_t speed = 1;

    (void)ctx;
    if (json_object_get(given, "speed"))
        speed = json_integer_value(json_object_get(given, "speed"));
    if (speed <= 0)
        return error_set(e, CAIRN_E_USAGE, "speed is not above 0");
    *ret_options = json_pack("{s:I, s:O*}", "speed", speed, "what", json_object_get(given, "what"));
    return *ret_options ? CAIRN_OK : error_no_memory(e, "options");
}

/* Another speed is the same work. */
static bool same_counting(const json_t *a, const json_t *b)
{
    const json_t *x = json_object_get(a, "what"), *y = json_object_get(b, "what");

    return (!x && !y) || json_equal(x, y);
}

static int run_counting(void *ctx, struct job *job, struct cairn_error *e)
{
    struct counting *c = ctx;
    unsigned i = (unsigned)json_integer_value(job_cursor(job));
    int r = CAIRN_OK;

    atomic_store(&c->first, i);
    atomic_fetch_add(&c->nr_runs, 1);
    for (; i < atomic_load(&c->until) && !r; i++) {
        struct job_progress p = {
            .phase = i < 3 ? "first" : "rest", .done = i, .total = NR_STEPS, .unit = "steps"};

        job_set_cursor(job, json_integer(i));
        job_set_result(job, json_pack("{s:i}", "counted", (int)i));
        r = jobs_progress(job, &p, e);
        if (!r)
            r = jobs_pause(job, STEP_US, e);
    }
    if (!r && atomic_load(&c->fails))
        r = error_set(e, CAIRN_E_IO, "the abacus broke");
    return r;
}

/* -- Two servers of one store ----------------------------------------------------------------- */

struct server {
    struct store *store;
    struct counting counting;
    struct job_kind kind;
    struct jobs *jobs;
};

struct fixture {
    char dir[256], url[300];
    struct server a, b;
};

static void start_server(struct fixture *f, struct server *s, const char *name)
{
    assert_int_equal(store_open(f->url, &s->store, &err), CAIRN_OK);
    s->kind.name = "count";
    s->kind.ctx = &s->counting;
    s->kind.parse = parse_counting;
    s->kind.same = same_counting;
    s->kind.run = run_counting;
    assert_int_equal(jobs_new(s->store, name, &s->kind, 1, &s->jobs, &err), CAIRN_OK);
}

static void stop_server(struct server *s)
{
    jobs_free(s->jobs);
    store_close(s->store);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    log_set_level(LOG_LEVEL_ERROR);
    snprintf(f->dir, sizeof(f->dir), "%s/cairn-jobs-XXXXXX", scratch_base());
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->url, sizeof(f->url), "fs:%s", f->dir);
    atomic_store(&f->a.counting.until, NR_STEPS);
    atomic_store(&f->b.counting.until, NR_STEPS);
    start_server(f, &f->a, "alpha[1]");
    start_server(f, &f->b, "beta[2]");
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    char command[300];

    stop_server(&f->a);
    stop_server(&f->b);
    snprintf(command, sizeof(command), "rm -rf '%s'", f->dir);
    assert_int_equal(system(command), 0);
    free(f);
    return 0;
}

/* -- What is asked for ------------------------------------------------------------------------ */

static json_t *record_of(struct server *s, const char *id)
{
    json_t *record = NULL;

    assert_int_equal(jobs_get(s->jobs, id, &record, &err), CAIRN_OK);
    return record;
}

static bool state_is(struct server *s, const char *id, const char *state)
{
    json_t *record = record_of(s, id);
    bool is = strcmp(json_string_value(json_object_get(record, "state")), state) == 0;

    json_decref(record);
    return is;
}

static void wait_for_state(struct server *s, const char *id, const char *state)
{
    const struct timespec pause = {.tv_nsec = 5000000};
    const time_t deadline = time(NULL) + DEADLINE_S;

    while (!state_is(s, id, state)) {
        assert_true(time(NULL) < deadline);
        nanosleep(&pause, NULL);
    }
}

static void wait_for_run(struct server *s, unsigned nr)
{
    const struct timespec pause = {.tv_nsec = 1000000};

    while (atomic_load(&s->counting.nr_runs) < nr)
        nanosleep(&pause, NULL);
}

static void wait_for_steps(struct server *s, const char *id, json_int_t nr)
{
    const struct timespec pause = {.tv_nsec = 5000000};
    const time_t deadline = time(NULL) + DEADLINE_S;
    json_int_t done = -1;

    while (done < nr) {
        json_t *record = record_of(s, id);

        done = json_integer_value(json_object_get(json_object_get(record, "progress"), "done"));
        json_decref(record);
        assert_true(time(NULL) < deadline);
        nanosleep(&pause, NULL);
    }
}

static void start(struct server *s, const char *options, char id[JOB_ID_MAX])
{
    json_t *json = options ? json_loads(options, 0, NULL) : NULL;

    assert_int_equal(jobs_start(s->jobs, "count", json, id, &err), CAIRN_OK);
    json_decref(json);
}

/* -- Tests ------------------------------------------------------------------------------------ */

static void test_job_runs_to_its_end(void **state)
{
    struct fixture *f = *state;
    char id[JOB_ID_MAX];
    json_t *record;

    atomic_store(&f->a.counting.until, 5);
    start(&f->a, "{\"speed\":7}", id);
    wait_for_state(&f->b, id, "done");
    record = record_of(&f->b, id);
    assert_string_equal(json_string_value(json_object_get(record, "server")), "alpha[1]");
    assert_string_equal(json_string_value(json_object_get(record, "kind")), "count");
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(record, "options"), "speed")), 7);
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(record, "result"), "counted")), 4);
    assert_string_equal(
        json_string_value(json_object_get(json_object_get(record, "progress"), "phase")), "rest");
    assert_non_null(json_object_get(record, "finished"));
    assert_null(json_object_get(record, "cursor"));
    assert_null(json_object_get(record, "error"));
    json_decref(record);
}

static void test_failure_is_recorded(void **state)
{
    struct fixture *f = *state;
    char id[JOB_ID_MAX];
    json_t *record;

    atomic_store(&f->a.counting.until, 1);
    atomic_store(&f->a.counting.fails, true);
    start(&f->a, NULL, id);
    wait_for_state(&f->a, id, "failed");
    record = record_of(&f->a, id);
    assert_string_equal(json_string_value(json_object_get(record, "error")), "the abacus broke");
    json_decref(record);
}

static void test_bad_options_start_nothing(void **state)
{
    struct fixture *f = *state;
    json_t *bad = json_pack("{s:i}", "speed", 0);
    char id[JOB_ID_MAX];

    assert_int_equal(jobs_start(f->a.jobs, "count", bad, id, &err), CAIRN_E_USAGE);
    assert_int_equal(jobs_start(f->a.jobs, "nothing", NULL, id, &err), CAIRN_E_NOT_FOUND);
    assert_int_equal(jobs_start(f->a.jobs, "", NULL, id, &err), CAIRN_E_NOT_FOUND);
    assert_int_equal(atomic_load(&f->a.counting.nr_runs), 0);
    json_decref(bad);
}

static void test_one_of_a_kind_runs_in_a_store(void **state)
{
    struct fixture *f = *state;
    char id[JOB_ID_MAX], other[JOB_ID_MAX];

    start(&f->a, NULL, id);
    assert_int_equal(jobs_start(f->b.jobs, "count", NULL, other, &err), CAIRN_E_CONFLICT);
    assert_string_equal(other, id);
    assert_non_null(strstr(err.message, id));
    assert_int_equal(jobs_start(f->a.jobs, "count", NULL, other, &err), CAIRN_E_CONFLICT);
    assert_string_equal(other, id);
    wait_for_steps(&f->b, id, 3);
    assert_int_equal(jobs_cancel(f->a.jobs, id, &err), CAIRN_OK);
    wait_for_state(&f->b, id, "cancelled");
    start(&f->b, NULL, other);
    assert_string_not_equal(other, id);
}

static void test_cancelled_from_another_server(void **state)
{
    struct fixture *f = *state;
    char id[JOB_ID_MAX], next[JOB_ID_MAX];

    start(&f->a, NULL, id);
    assert_int_equal(jobs_cancel(f->b.jobs, id, &err), CAIRN_OK);
    wait_for_state(&f->b, id, "cancelled");
    assert_int_equal(jobs_cancel(f->b.jobs, id, &err), CAIRN_E_CONFLICT);
    assert_non_null(strstr(err.message, "cancelled"));
    assert_int_equal(jobs_cancel(f->b.jobs, "count-0", &err), CAIRN_E_NOT_FOUND);
    start(&f->b, NULL, next); /* from the beginning: it was not interrupted */
    wait_for_run(&f->b, 1);
    assert_int_equal(atomic_load(&f->b.counting.first), 0);
}

static void test_stopped_server_interrupts_and_another_goes_on(void **state)
{
    struct fixture *f = *state;
    char id[JOB_ID_MAX], again[JOB_ID_MAX];
    json_t *record;

    start(&f->a, NULL, id);
    wait_for_steps(&f->b, id, 3);
    stop_server(&f->a);
    assert_true(state_is(&f->b, id, "interrupted"));
    start(&f->b, "{\"speed\":9}", again); /* the same work, faster */
    assert_string_equal(again, id);
    wait_for_run(&f->b, 1);
    assert_true(atomic_load(&f->b.counting.first) >= 3);
    record = record_of(&f->b, id);
    assert_string_equal(json_string_value(json_object_get(record, "server")), "beta[2]");
    assert_int_equal(json_integer_value(json_object_get(record, "restarts")), 1);
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(record, "options"), "speed")), 9);
    json_decref(record);
    start_server(f, &f->a, "alpha[1]");
}

static void test_other_work_does_not_go_on_with_it(void **state)
{
    struct fixture *f = *state;
    char id[JOB_ID_MAX], other[JOB_ID_MAX], again[JOB_ID_MAX];

    start(&f->a, NULL, id);
    wait_for_steps(&f->b, id, 3);
    stop_server(&f->a);
    atomic_store(&f->b.counting.until, 2);
    start(&f->b, "{\"what\":\"sheep\"}", other);
    assert_string_not_equal(other, id);
    wait_for_state(&f->b, other, "done");
    assert_int_equal(atomic_load(&f->b.counting.first), 0);
    start(&f->b, NULL, again); /* and it is still there to go on with */
    assert_string_equal(again, id);
    wait_for_state(&f->b, id, "done");
    start_server(f, &f->a, "alpha[1]");
}

static void test_interrupted_job_can_be_cancelled(void **state)
{
    struct fixture *f = *state;
    char id[JOB_ID_MAX], next[JOB_ID_MAX];

    start(&f->a, NULL, id);
    wait_for_steps(&f->b, id, 3);
    stop_server(&f->a);
    assert_int_equal(jobs_cancel(f->b.jobs, id, &err), CAIRN_OK);
    assert_true(state_is(&f->b, id, "cancelled"));
    start(&f->b, NULL, next);
    assert_string_not_equal(next, id);
    start_server(f, &f->a, "alpha[1]");
}

/* In a process of its own, which is killed.  It is made while there are no threads. */
static pid_t start_and_hang(struct fixture *f, char id[JOB_ID_MAX])
{
    int told[2];
    pid_t child;

    stop_server(&f->a);
    stop_server(&f->b);
    assert_int_equal(pipe(told), 0);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        static struct server s;

        atomic_store(&s.counting.until, NR_STEPS);
        start_server(f, &s, "gamma[3]");
        start(&s, NULL, id);
        if (write(told[1], id, JOB_ID_MAX) != JOB_ID_MAX)
            _exit(1);
        for (;;)
            pause();
    }
    close(told[1]);
    assert_int_equal(read(told[0], id, JOB_ID_MAX), JOB_ID_MAX);
    close(told[0]);
    start_server(f, &f->a, "alpha[1]");
    start_server(f, &f->b, "beta[2]");
    return child;
}

static void test_killed_server_leaves_an_interrupted_job(void **state)
{
    struct fixture *f = *state;
    char id[JOB_ID_MAX], again[JOB_ID_MAX];
    pid_t child = start_and_hang(f, id);

    wait_for_steps(&f->a, id, 3);
    assert_true(state_is(&f->a, id, "running"));
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_true(state_is(&f->a, id, "interrupted"));
    start(&f->a, NULL, again);
    assert_string_equal(again, id);
    wait_for_run(&f->a, 1);
    assert_true(atomic_load(&f->a.counting.first) >= 3);
}

static void test_cancel_of_a_dying_server_is_remembered(void **state)
{
    struct fixture *f = *state;
    char id[JOB_ID_MAX], next[JOB_ID_MAX];
    pid_t child = start_and_hang(f, id);

    assert_int_equal(kill(child, SIGSTOP), 0);
    assert_int_equal(jobs_cancel(f->a.jobs, id, &err), CAIRN_OK);
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_true(state_is(&f->a, id, "cancelled"));
    start(&f->a, NULL, next);
    assert_string_not_equal(next, id);
    assert_true(state_is(&f->a, id, "cancelled"));
}

/* Schedulers look at once when their server starts. */
static void test_interrupted_job_is_taken_up_by_itself(void **state)
{
    struct fixture *f = *state;
    char id[JOB_ID_MAX];

    start(&f->a, "{\"speed\":3}", id);
    wait_for_steps(&f->b, id, 3);
    stop_server(&f->a);
    f->a.kind.resumes = true;
    start_server(f, &f->a, "alpha[1]");
    wait_for_run(&f->a, 2);
    assert_true(atomic_load(&f->a.counting.first) >= 3);
    wait_for_state(&f->b, id, "running");
}

static void test_interrupted_job_of_other_work_is_taken_up_by_itself(void **state)
{
    struct fixture *f = *state;
    char id[JOB_ID_MAX];

    start(&f->a, "{\"what\":\"sheep\"}", id);
    wait_for_steps(&f->b, id, 3);
    stop_server(&f->a);
    f->a.kind.resumes = true;
    start_server(f, &f->a, "alpha[1]");
    wait_for_run(&f->a, 2);
    assert_true(atomic_load(&f->a.counting.first) >= 3);
    wait_for_state(&f->b, id, "running");
}

/* Of another version, perhaps.  The work is the same. */
static void test_options_that_mean_nothing_keep_no_job_from_going_on(void **state)
{
    static const char record[] = "{\"id\":\"count-0\",\"state\":\"interrupted\",\"cursor\":3,"
                                 "\"options\":{\"speed\":-1}}";
    struct fixture *f = *state;

    stop_server(&f->a);
    assert_int_equal(
        store_put(f->b.store, "jobs/count-0", record, strlen(record), STORE_PUT_IF_ABSENT, &err),
        CAIRN_OK);
    f->a.kind.resumes = true;
    start_server(f, &f->a, "alpha[1]");
    wait_for_run(&f->a, 1);
    assert_int_equal(atomic_load(&f->a.counting.first), 3);
    wait_for_state(&f->b, "count-0", "running");
}

static int take_name(void *id, const char *name, bool is_prefix, struct cairn_error *e)
{
    (void)is_prefix;
    (void)e;
    snprintf(id, JOB_ID_MAX, "%s", name);
    return 0;
}

static void test_interval_starts_a_job(void **state)
{
    struct fixture *f = *state;
    char id[JOB_ID_MAX] = "";

    stop_server(&f->a);
    f->a.kind.interval_s = 3600;
    atomic_store(&f->a.counting.until, 2);
    start_server(f, &f->a, "alpha[1]");
    wait_for_run(&f->a, 1);
    assert_int_equal(store_list(f->b.store, "jobs/", NULL, take_name, id, &err), 0);
    wait_for_state(&f->b, id, "done");
    stop_server(&f->a);
    start_server(f, &f->a, "alpha[1]");
    stop_server(&f->a); /* it has looked once: an hour has not passed */
    assert_int_equal(atomic_load(&f->a.counting.nr_runs), 1);
    start_server(f, &f->a, "alpha[1]");
}

static int take_first(void *id, const char *name, bool is_prefix, struct cairn_error *e)
{
    take_name(id, name, is_prefix, e);
    return 1;
}

/* A clock was wrong: what is dated far ahead is neither the last nor in the way of the next. */
static void test_a_record_of_the_future_stops_no_interval(void **state)
{
    static const char record[] =
        "{\"id\":\"count-29990101-000000-000-0000\",\"state\":\"done\",\"options\":{\"speed\":1},"
        "\"started\":\"2999-01-01T00:00:00Z\",\"finished\":\"2999-01-01T00:00:01Z\"}";
    struct fixture *f = *state;
    char id[JOB_ID_MAX];

    stop_server(&f->a);
    assert_int_equal(store_put(f->b.store, "jobs/count-29990101-000000-000-0000", record,
                               strlen(record), STORE_PUT_IF_ABSENT, &err),
                     CAIRN_OK);
    f->a.kind.interval_s = 3600;
    atomic_store(&f->a.counting.until, 2);
    start_server(f, &f->a, "alpha[1]");
    wait_for_run(&f->a, 1);
    assert_int_equal(store_list(f->b.store, "jobs/", NULL, take_first, id, &err), 1);
    wait_for_state(&f->b, id, "done");
    stop_server(&f->a);
    start_server(f, &f->a, "alpha[1]");
    stop_server(&f->a); /* it has looked once: an hour has not passed */
    assert_int_equal(atomic_load(&f->a.counting.nr_runs), 1);
    start_server(f, &f->a, "alpha[1]");
}

static int count_records(void *arg, const char *name, bool is_prefix, struct cairn_error *e)
{
    (void)name;
    (void)is_prefix;
    (void)e;
    ++*(unsigned *)arg;
    return 0;
}

static void test_old_records_are_removed(void **state)
{
    struct fixture *f = *state;
    char id[JOB_ID_MAX], first[JOB_ID_MAX] = "";
    unsigned nr = 0;
    json_t *record;

    atomic_store(&f->a.counting.until, 0);
    for (unsigned i = 0; i < 55; i++) {
        start(&f->a, NULL, id);
        if (!i)
            strcpy(first, id);
        wait_for_state(&f->a, id, "done");
    }
    assert_int_equal(store_list(f->a.store, "jobs/", NULL, count_records, &nr, &err), 0);
    assert_in_range(nr, 50, 51);
    assert_int_equal(jobs_get(f->a.jobs, first, &record, &err), CAIRN_E_NOT_FOUND);
}

static void test_hostile_ids_are_unknown(void **state)
{
    struct fixture *f = *state;
    const char *const ids[] = {"", "x", "../x-y", "count-1.cancel", "count-1/x", "COUNT-1"};
    json_t *record;

    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
        assert_int_equal(jobs_get(f->a.jobs, ids[i], &record, &err), CAIRN_E_NOT_FOUND);
        assert_int_equal(jobs_cancel(f->a.jobs, ids[i], &err), CAIRN_E_NOT_FOUND);
    }
}

static void test_damaged_record_is_named_and_in_nobodys_way(void **state)
{
    struct fixture *f = *state;
    char id[JOB_ID_MAX];
    json_t *record;

    assert_int_equal(
        store_put(f->a.store, "jobs/count-1", "{\"state\":5}", 11, STORE_PUT_IF_ABSENT, &err),
        CAIRN_OK);
    assert_int_equal(jobs_get(f->a.jobs, "count-1", &record, &err), CAIRN_E_CORRUPT);
    assert_non_null(strstr(err.message, "count-1"));
    atomic_store(&f->a.counting.until, 1);
    start(&f->a, NULL, id);
    wait_for_state(&f->a, id, "done");
}

/* Else who goes on with it would write the other's record. */
static void test_record_in_anothers_place_is_damaged(void **state)
{
    static const char record[] = "{\"id\":\"count-1\",\"state\":\"interrupted\",\"options\":{}}";
    struct fixture *f = *state;
    char id[JOB_ID_MAX];
    json_t *none;

    assert_int_equal(
        store_put(f->a.store, "jobs/count-0", record, strlen(record), STORE_PUT_IF_ABSENT, &err),
        CAIRN_OK);
    assert_int_equal(jobs_get(f->a.jobs, "count-0", &none, &err), CAIRN_E_CORRUPT);
    start(&f->a, NULL, id);
    assert_string_not_equal(id, "count-1");
}

static void test_record_that_is_too_large_is_in_nobodys_way(void **state)
{
    const size_t len = ((size_t)16 << 20) + 1;
    struct fixture *f = *state;
    CLEANUP_FREE char *bytes = calloc(1, len);
    char id[JOB_ID_MAX];

    assert_non_null(bytes);
    assert_int_equal(store_put(f->a.store, "jobs/count-1", bytes, len, STORE_PUT_IF_ABSENT, &err),
                     CAIRN_OK);
    atomic_store(&f->a.counting.until, 1);
    start(&f->a, NULL, id);
    wait_for_state(&f->a, id, "done");
}

#define JOBS_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        JOBS_TEST(test_job_runs_to_its_end),
        JOBS_TEST(test_failure_is_recorded),
        JOBS_TEST(test_bad_options_start_nothing),
        JOBS_TEST(test_one_of_a_kind_runs_in_a_store),
        JOBS_TEST(test_cancelled_from_another_server),
        JOBS_TEST(test_stopped_server_interrupts_and_another_goes_on),
        JOBS_TEST(test_other_work_does_not_go_on_with_it),
        JOBS_TEST(test_interrupted_job_can_be_cancelled),
        JOBS_TEST(test_killed_server_leaves_an_interrupted_job),
        JOBS_TEST(test_cancel_of_a_dying_server_is_remembered),
        JOBS_TEST(test_interrupted_job_is_taken_up_by_itself),
        JOBS_TEST(test_interrupted_job_of_other_work_is_taken_up_by_itself),
        JOBS_TEST(test_options_that_mean_nothing_keep_no_job_from_going_on),
        JOBS_TEST(test_interval_starts_a_job),
        JOBS_TEST(test_a_record_of_the_future_stops_no_interval),
        JOBS_TEST(test_old_records_are_removed),
        JOBS_TEST(test_hostile_ids_are_unknown),
        JOBS_TEST(test_damaged_record_is_named_and_in_nobodys_way),
        JOBS_TEST(test_record_in_anothers_place_is_damaged),
        JOBS_TEST(test_record_that_is_too_large_is_in_nobodys_way),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
