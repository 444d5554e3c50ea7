/* SPDX-License-Identifier: Apache-2.0 */
/* The HTTP server's worker pool, its stopping and its listening socket. */
#include "http_fixture.h"

/* -- The pool, and stopping --------------------------------------------------------------- */

static void test_full_queue_is_503(void **state)
{
    struct fixture *f = *state;
    int blocked = dial(f), waiting[64];
    struct answer a;

    send_text(blocked, "GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    wait_inside(f, 1);
    for (unsigned i = 0; i < 64; i++) {
        waiting[i] = dial(f);
        send_text(waiting[i], "GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    }
    /* The 64 are queued, in whatever order; one of the next is refused, at the latest the 64th. */
    do {
        int fd = dial(f);
        const struct timeval at_once = {.tv_usec = 200000};

        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &at_once, sizeof(at_once));
        send_text(fd, "GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        a = read_answer(fd);
        if (a.status != 503)
            free(a.text);
    } while (a.status != 503);
    assert_non_null(strstr(a.text, "Retry-After: "));
    free(a.text);
    open_gate(f);
    a = read_answer(blocked);
    assert_int_equal(a.status, 200);
    free(a.text);
    for (unsigned i = 0; i < 64; i++) {
        a = read_answer(waiting[i]);
        assert_true(a.status == 200 || a.status == 503);
        free(a.text);
    }
}

static size_t count(const char *text, const char *part)
{
    size_t nr = 0;

    for (const char *at = text; (at = strstr(at, part)); at++)
        nr++;
    return nr;
}

static void test_quick_requests_need_no_worker(void **state)
{
    static const char *const waiting[] = {"/quick/store", "/quick/never"};
    struct fixture *f = *state;
    int blocked = dial(f), fds[2];
    struct answer a;

    send_text(blocked, "GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    wait_inside(f, 1); /* the only worker */
    for (unsigned i = 0; i < 2; i++) {
        char text[128];

        fds[i] = dial(f);
        snprintf(text, sizeof(text), "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                 waiting[i]);
        send_text(fds[i], text);
    }
    a = request(f, "GET", "/quick/memory", NULL);
    assert_int_equal(a.status, 200);
    free(a.text);
    open_gate(f);
    for (unsigned i = 0; i < 2; i++) {
        a = read_answer(fds[i]);
        assert_int_equal(a.status, 200);
        assert_int_equal(count(a.text, "X-Extra: 42"), 1); /* nothing is left of the first try */
        free(a.text);
    }
    a = read_answer(blocked);
    free(a.text);
}

#define TIMEOUT_S 4 /* of connections; a client on a busy machine gets a turn in that time */

static int setup_with_timeout(void **state)
{
    return start_with(state, 1, 64 << 20, TIMEOUT_S);
}

static void *open_gate_late(void *arg)
{
    sleep(TIMEOUT_S + 2); /* longer than the timeout, which is the point */
    open_gate(arg);
    return NULL;
}

static void test_handler_may_outlast_the_connection_timeout(void **state)
{
    struct fixture *f = *state;
    pthread_t opener;
    struct answer a;

    assert_int_equal(pthread_create(&opener, NULL, open_gate_late, f), 0);
    a = request(f, "GET", "/slow", NULL);
    assert_int_equal(a.status, 200);
    free(a.text);
    pthread_join(opener, NULL);
}

static void *stop_server(void *arg)
{
    struct fixture *f = arg;

    http_server_stop(f->server, 10000);
    f->server = NULL;
    return NULL;
}

static bool refuses_connections(const struct sockaddr_in *sin)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    bool refused = connect(fd, (const struct sockaddr *)sin, sizeof(*sin)) != 0;

    close(fd);
    return refused;
}

static void test_stop_finishes_what_is_in_flight(void **state)
{
    struct fixture *f = *state;
    int fd = dial(f), idle = dial(f);
    pthread_t stopper;
    struct answer a;

    send_text(fd, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n");
    wait_inside(f, 1);
    assert_int_equal(pthread_create(&stopper, NULL, stop_server, f), 0);
    open_gate(f);
    a = read_answer(fd);
    assert_int_equal(a.status, 200);
    free(a.text);
    a = read_answer(idle);
    assert_int_equal(a.status, 0);
    free(a.text);
    pthread_join(stopper, NULL);
}

static void test_stop_cuts_at_its_deadline(void **state)
{
    struct fixture *f = *state;
    struct sockaddr_in sin = {.sin_family = AF_INET};
    int fd = dial(f);
    struct answer a;

    sin.sin_port = htons((uint16_t)atoi(strrchr(http_server_address(f->server), ':') + 1));
    sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    send_text(fd, "PUT /sum/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n");
    send_body(fd, 600000);
    while (__atomic_load_n(&f->received, __ATOMIC_SEQ_CST) == 0)
        usleep(1000);
    http_server_stop(f->server, 50);
    f->server = NULL;
    a = read_answer(fd);
    assert_int_equal(a.status, 0);
    free(a.text);
    assert_true(refuses_connections(&sin));
    assert_int_equal(f->sinks_freed, 1);
}

static void test_bad_listen_addresses(void **state)
{
    static const char *const bad[] = {"",     "127.0.0.1",   "127.0.0.1:",           ":x",
                                      "[::1", "256.0.0.1:0", "127.0.0.1:99999999999"};
    struct http_options options = {.threads = 2,
                                   .workers = 1,
                                   .max_connections = 10,
                                   .connection_timeout_s = 1,
                                   .connection_memory = 65536};
    struct http_server *server;
    struct cairn_error err;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        options.listen = bad[i];
        assert_int_not_equal(http_server_start(&options, routes, 1, &server, &err), CAIRN_OK);
    }
}

static void test_port_in_use_is_said(void **state)
{
    struct fixture *f = *state;
    struct http_options options = {.threads = 2,
                                   .workers = 1,
                                   .max_connections = 10,
                                   .connection_timeout_s = 1,
                                   .connection_memory = 65536};
    struct http_server *server;
    struct cairn_error err;

    options.listen = http_server_address(f->server);
    assert_int_equal(http_server_start(&options, routes, 1, &server, &err), CAIRN_E_IO);
    assert_non_null(strstr(err.message, options.listen));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_full_queue_is_503, setup_one_worker, teardown),
        cmocka_unit_test_setup_teardown(test_quick_requests_need_no_worker, setup_one_worker,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_handler_may_outlast_the_connection_timeout,
                                        setup_with_timeout, teardown),
        HTTP_TEST(test_stop_finishes_what_is_in_flight),
        HTTP_TEST(test_stop_cuts_at_its_deadline),
        cmocka_unit_test(test_bad_listen_addresses),
        HTTP_TEST(test_port_in_use_is_said),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
