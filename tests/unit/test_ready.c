/* SPDX-License-Identifier: Apache-2.0 */
/* /readyz over a store that fails, is full, or does not answer. */
#include "test.h"

#include <jansson.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "http_request.h"
#include "ready.h"
#include "store_backend.h"

#define PERIOD_MS   1
#define PATIENCE_MS 60000 /* more than a busy machine takes for nothing */
#define DEADLINE_MS 50

struct fake_store {
    struct store store;
    pthread_mutex_t lock; /* protects all below */
    pthread_cond_t changed;
    int code;
    bool hangs;
    unsigned inside, tries;
};

static int fake_probe(struct store *store, struct store_space *ret_space, struct cairn_error *err)
{
    struct fake_store *fake = (struct fake_store *)store;

    SCOPED_LOCK(&fake->lock);
    fake->inside++;
    fake->tries++;
    pthread_cond_broadcast(&fake->changed);
    while (fake->hangs)
        pthread_cond_wait(&fake->changed, &fake->lock);
    fake->inside--;
    *ret_space = (struct store_space){.size = 1000, .free = 10};
    return fake->code ? error_set(err, fake->code, "the fake says no") : CAIRN_OK;
}

static const struct store_ops fake_ops = {.probe = fake_probe};

struct fixture {
    struct fake_store fake;
    struct ready *ready;
    struct http_server server;
};

static int start(void **state, unsigned deadline_ms)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct ready_options options = {.period_ms = PERIOD_MS, .deadline_ms = deadline_ms};
    struct cairn_error err;

    assert_non_null(f);
    f->fake.store.ops = &fake_ops;
    pthread_mutex_init(&f->fake.lock, NULL);
    pthread_cond_init(&f->fake.changed, NULL);
    options.store = &f->fake.store;
    assert_int_equal(workers_new(1, 1, &f->server.workers, &err), CAIRN_OK);
    assert_int_equal(ready_new(&options, &f->ready, &err), CAIRN_OK);
    *state = f;
    return 0;
}

static int setup(void **state)
{
    return start(state, PATIENCE_MS);
}

static int setup_impatient(void **state)
{
    return start(state, DEADLINE_MS);
}

static void set_fake(struct fixture *f, int code, bool hangs)
{
    unsigned tries;

    SCOPED_LOCK(&f->fake.lock);
    f->fake.code = code;
    f->fake.hangs = hangs;
    pthread_cond_broadcast(&f->fake.changed);
    /* Two that began from here on: then the result of one is known. */
    tries = f->fake.tries + (hangs ? 1 : 2);
    while (f->fake.tries < tries && !(hangs && f->fake.inside))
        pthread_cond_wait(&f->fake.changed, &f->fake.lock);
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    set_fake(f, CAIRN_OK, false);
    ready_free(f->ready);
    workers_free(f->server.workers);
    pthread_cond_destroy(&f->fake.changed);
    pthread_mutex_destroy(&f->fake.lock);
    free(f);
    return 0;
}

/* The status; *ret_json: the body. */
static unsigned ask(struct fixture *f, json_t **ret_json)
{
    struct http_request req = {.server = &f->server};
    struct http_reply reply;
    unsigned status;

    http_reply_init(&reply, "id");
    ready_handle(f->ready, &req, &reply);
    status = reply.status;
    *ret_json = json_loadb(reply.buf, (size_t)reply.len, 0, NULL);
    assert_non_null(*ret_json);
    http_reply_release(&reply);
    return status;
}

static void assert_ready(struct fixture *f, unsigned status, const char *text, const char *part,
                         const char *state, const char *reason)
{
    json_t *json;
    const char *is_state, *is_status, *is_reason = "";

    assert_int_equal(ask(f, &json), status);
    assert_int_equal(json_unpack(json, "{s:s, s:{s:{s:s, s?s}}}", "status", &is_status, "parts",
                                 part, "state", &is_state, "reason", &is_reason),
                     0);
    assert_string_equal(is_status, text);
    assert_string_equal(is_state, state);
    assert_non_null(strstr(is_reason, reason));
    json_decref(json);
}

static void test_a_store_that_answers_is_ready(void **state)
{
    assert_ready(*state, 200, "ready", "store", "ok", "");
}

static void test_a_store_that_fails_is_unready_until_it_does_not(void **state)
{
    set_fake(*state, CAIRN_E_IO, false);
    assert_ready(*state, 503, "unready", "store", "failed", "the fake says no");
    set_fake(*state, CAIRN_OK, false);
    assert_ready(*state, 200, "ready", "store", "ok", "");
}

static void test_a_full_store_is_degraded(void **state)
{
    set_fake(*state, CAIRN_E_NO_SPACE, false);
    assert_ready(*state, 200, "degraded", "store", "degraded", "the fake says no");
}

static void wait_for_status(struct fixture *f, unsigned status)
{
    unsigned is_status = 0;
    json_t *json;

    while (is_status != status) {
        is_status = ask(f, &json);
        json_decref(json);
        usleep(1000);
    }
}

static void test_a_store_that_hangs_is_unready_and_costs_one_thread(void **state)
{
    struct fixture *f = *state;

    set_fake(f, CAIRN_OK, true);
    wait_for_status(f, 503);
    assert_ready(f, 503, "unready", "store", "failed", "has not answered");
    pthread_mutex_lock(&f->fake.lock);
    assert_int_equal(f->fake.inside, 1);
    pthread_mutex_unlock(&f->fake.lock);
    set_fake(f, CAIRN_OK, false);
    wait_for_status(f, 200);
}

static void test_a_server_that_stops_is_unready(void **state)
{
    struct fixture *f = *state;

    ready_stop(f->ready);
    assert_ready(f, 503, "unready", "server", "failed", "stopping");
    assert_ready(f, 503, "unready", "store", "ok", "");
}

struct stuck {
    struct work work;
    struct fake_store *fake;
};

static void run_stuck(struct work *work, bool cancelled)
{
    struct fake_store *fake = ((struct stuck *)work)->fake;

    SCOPED_LOCK(&fake->lock);
    fake->inside += 100;
    pthread_cond_broadcast(&fake->changed);
    while (fake->hangs && !cancelled)
        pthread_cond_wait(&fake->changed, &fake->lock);
    fake->inside -= 100;
}

static void test_a_full_queue_is_unready(void **state)
{
    struct fixture *f = *state;
    struct stuck busy = {{NULL, run_stuck}, &f->fake}, waiting = busy;

    set_fake(f, CAIRN_OK, true);
    assert_true(workers_submit(f->server.workers, &busy.work, WORK_NEW));
    pthread_mutex_lock(&f->fake.lock);
    while (f->fake.inside < 100)
        pthread_cond_wait(&f->fake.changed, &f->fake.lock);
    pthread_mutex_unlock(&f->fake.lock);
    assert_true(workers_submit(f->server.workers, &waiting.work, WORK_NEW));
    assert_ready(f, 503, "unready", "workers", "failed", "1 requests wait");
    set_fake(f, CAIRN_OK, false);
    workers_stop(f->server.workers); /* both have run */
    assert_ready(f, 200, "ready", "workers", "ok", "");
}

#define READY_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        READY_TEST(test_a_store_that_answers_is_ready),
        READY_TEST(test_a_store_that_fails_is_unready_until_it_does_not),
        READY_TEST(test_a_full_store_is_degraded),
        cmocka_unit_test_setup_teardown(test_a_store_that_hangs_is_unready_and_costs_one_thread,
                                        setup_impatient, teardown),
        READY_TEST(test_a_server_that_stops_is_unready),
        READY_TEST(test_a_full_queue_is_unready),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
