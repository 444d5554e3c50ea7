/* SPDX-License-Identifier: Apache-2.0 */
/* Connections: how many, whose, and which client is too slow. */
#include "http_fixture.h"

#include "clock.h"
#include "http_watch.h"

#define SECOND UINT64_C(1000000)

static struct cairn_error err;

/* -- Clients --- */

static struct sockaddr_storage address(const char *text)
{
    struct sockaddr_storage ss = {0};
    struct sockaddr_in in = {.sin_family = AF_INET};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6};

    if (inet_pton(AF_INET, text, &in.sin_addr) == 1)
        memcpy(&ss, &in, sizeof(in));
    else if (inet_pton(AF_INET6, text, &in6.sin6_addr) == 1)
        memcpy(&ss, &in6, sizeof(in6));
    return ss;
}

static bool same_client(const char *a, const char *b)
{
    struct sockaddr_storage sa = address(a), sb = address(b);
    struct http_client_key ka = http_client_key_of(&sa), kb = http_client_key_of(&sb);

    return memcmp(&ka, &kb, sizeof(ka)) == 0;
}

static void test_who_is_one_client(void **state)
{
    (void)state;
    assert_true(same_client("192.0.2.1", "192.0.2.1"));
    assert_false(same_client("192.0.2.1", "192.0.2.2"));
    assert_true(same_client("192.0.2.1", "::ffff:192.0.2.1"));
    assert_false(same_client("::ffff:192.0.2.1", "::ffff:192.0.2.2"));
    assert_true(same_client("2001:db8:1:2::1", "2001:db8:1:2:ffff::9"));
    assert_false(same_client("2001:db8:1:2::1", "2001:db8:1:3::1"));
}

static struct http_conns *conns_with(unsigned all, unsigned of_one)
{
    const struct http_limits limits = {.connections = all, .connections_per_client = of_one};
    struct http_conns *conns;

    assert_int_equal(http_conns_new(&limits, &conns, &err), CAIRN_OK);
    return conns;
}

static enum http_conn_refusal admit(struct http_conns *conns, int fd, const char *client)
{
    struct sockaddr_storage ss = address(client);

    return http_conns_admit(conns, fd, &ss);
}

static void test_number_of_connections(void **state)
{
    struct http_conns *conns = conns_with(3, 0);

    (void)state;
    for (int fd = 10; fd < 13; fd++)
        assert_int_equal(admit(conns, fd, "192.0.2.1"), HTTP_CONN_ADMITTED);
    assert_int_equal(admit(conns, 13, "192.0.2.2"), HTTP_CONN_TOO_MANY);
    http_conns_closed(conns, http_conns_started(conns, 11));
    assert_int_equal(admit(conns, 13, "192.0.2.2"), HTTP_CONN_ADMITTED);
    http_conns_dropped(conns, 10);
    assert_int_equal(admit(conns, 5000, "192.0.2.2"), HTTP_CONN_ADMITTED);
    http_conns_free(conns);
}

static void test_number_of_connections_of_one_client(void **state)
{
    struct http_conns *conns = conns_with(0, 2);

    (void)state;
    assert_int_equal(admit(conns, 10, "192.0.2.1"), HTTP_CONN_ADMITTED);
    assert_int_equal(admit(conns, 11, "192.0.2.1"), HTTP_CONN_ADMITTED);
    assert_int_equal(admit(conns, 12, "192.0.2.1"), HTTP_CONN_TOO_MANY_OF_ONE);
    assert_int_equal(admit(conns, 12, "192.0.2.2"), HTTP_CONN_ADMITTED);
    http_conns_closed(conns, http_conns_started(conns, 10));
    assert_int_equal(admit(conns, 10, "192.0.2.1"), HTTP_CONN_ADMITTED);
    http_conns_free(conns);
}

/* One that was accepted and never started is gone when its number comes up again. */
static void test_number_that_comes_up_again(void **state)
{
    struct http_conns *conns = conns_with(2, 2);

    (void)state;
    assert_int_equal(admit(conns, 10, "192.0.2.1"), HTTP_CONN_ADMITTED);
    assert_int_equal(admit(conns, 10, "192.0.2.1"), HTTP_CONN_ADMITTED);
    assert_int_equal(admit(conns, 11, "192.0.2.1"), HTTP_CONN_ADMITTED);
    assert_int_equal(admit(conns, 12, "192.0.2.1"), HTTP_CONN_TOO_MANY);
    assert_null(http_conns_started(conns, 12));
    http_conns_free(conns);
}

/* -- Slow clients --- */

static const struct http_limits limits = {
    .min_rate = 1000, .min_rate_window_s = 10, .header_timeout_s = 20, .request_deadline_s = 500};

/* A connection on which seconds pass. */
struct line {
    struct http_conn conn;
    struct http_sample s;
};

static void begin(struct line *l)
{
    memset(l, 0, sizeof(*l));
    l->s.now_us = 1000 * SECOND;
}

static void begin_request(struct line *l, enum http_conn_phase phase)
{
    atomic_store(&l->conn.request_us, l->s.now_us);
    atomic_store(&l->conn.phase, phase);
}

/* Let seconds pass, with so many bytes in each; what came of it. */
static enum http_cut pass(struct line *l, unsigned seconds, uint64_t received, uint64_t acked)
{
    enum http_cut cut = NR_HTTP_CUTS;

    for (unsigned i = 0; i < seconds && cut == NR_HTTP_CUTS; i++) {
        l->s.now_us += SECOND;
        l->s.received += received;
        l->s.acked += acked;
        cut = http_watch_judge(&limits, &l->conn, &l->s);
    }
    return cut;
}

static void test_idle_connections_are_left_alone(void **state)
{
    struct line l;

    (void)state;
    begin(&l);
    assert_int_equal(pass(&l, 10000, 0, 0), NR_HTTP_CUTS);
    begin_request(&l, HTTP_CONN_ANSWERING);
    assert_int_equal(pass(&l, 1, 500, 0), NR_HTTP_CUTS);
    atomic_store(&l.conn.phase, HTTP_CONN_IDLE);
    assert_int_equal(pass(&l, 1, 500, 0), NR_HTTP_CUTS); /* its body's end */
    assert_int_equal(pass(&l, 10000, 0, 0), NR_HTTP_CUTS);
}

static void test_headers_have_their_time(void **state)
{
    struct line l;

    (void)state;
    begin(&l);
    assert_int_equal(pass(&l, 100, 0, 0), NR_HTTP_CUTS);
    assert_int_equal(pass(&l, 20, 1, 0), NR_HTTP_CUTS);
    assert_int_equal(pass(&l, 1, 1, 0), HTTP_CUT_HEADERS);
    begin(&l);
    assert_int_equal(pass(&l, 19, 1, 0), NR_HTTP_CUTS);
    begin_request(&l, HTTP_CONN_ANSWERING); /* just in time */
    assert_int_equal(pass(&l, 100, 0, 0), NR_HTTP_CUTS);
}

static void test_a_request_line_does_not_buy_time(void **state)
{
    struct line l;

    (void)state;
    begin(&l);
    assert_int_equal(pass(&l, 15, 1, 0), NR_HTTP_CUTS);
    begin_request(&l, HTTP_CONN_HEADERS);
    assert_int_equal(pass(&l, 5, 1, 0), NR_HTTP_CUTS);
    assert_int_equal(pass(&l, 1, 1, 0), HTTP_CUT_HEADERS);
}

static void test_headers_of_a_second_request(void **state)
{
    struct line l;

    (void)state;
    begin(&l);
    begin_request(&l, HTTP_CONN_IDLE); /* over before anybody looked */
    assert_int_equal(pass(&l, 1, 300, 0), NR_HTTP_CUTS);
    assert_int_equal(pass(&l, 100, 0, 0), NR_HTTP_CUTS);
    assert_int_equal(pass(&l, 20, 1, 0), NR_HTTP_CUTS);
    assert_int_equal(pass(&l, 1, 1, 0), HTTP_CUT_HEADERS);
}

static void test_slow_body(void **state)
{
    struct line l;

    (void)state;
    begin(&l);
    begin_request(&l, HTTP_CONN_BODY);
    assert_int_equal(pass(&l, 100, 1000, 0), NR_HTTP_CUTS); /* as much as it must be */
    assert_int_equal(pass(&l, 21, 999, 0), HTTP_CUT_BODY);
}

static void test_body_that_we_do_not_read(void **state)
{
    struct line l;

    (void)state;
    begin(&l);
    begin_request(&l, HTTP_CONN_BODY);
    l.s.unread = true;
    assert_int_equal(pass(&l, 400, 0, 0), NR_HTTP_CUTS);
}

static void test_slow_reader(void **state)
{
    struct line l;

    (void)state;
    begin(&l);
    begin_request(&l, HTTP_CONN_ANSWERING);
    l.s.unsent = true;
    assert_int_equal(pass(&l, 100, 0, 1000), NR_HTTP_CUTS);
    assert_int_equal(pass(&l, 21, 0, 999), HTTP_CUT_REPLY);
    /* also when the reply is all in the kernel's hands */
    begin(&l);
    begin_request(&l, HTTP_CONN_ANSWERING);
    l.s.unsent = true;
    assert_int_equal(pass(&l, 5, 0, 0), NR_HTTP_CUTS);
    atomic_store(&l.conn.phase, HTTP_CONN_IDLE);
    assert_int_equal(pass(&l, 6, 0, 0), HTTP_CUT_REPLY);
}

static void test_slow_answer_is_not_the_clients(void **state)
{
    struct line l;

    (void)state;
    begin(&l);
    begin_request(&l, HTTP_CONN_ANSWERING);
    assert_int_equal(pass(&l, 400, 0, 0), NR_HTTP_CUTS);
    for (int i = 0; i < 40; i++) { /* a little of it now and then */
        l.s.unsent = i % 2;
        assert_int_equal(pass(&l, 1, 0, 1), NR_HTTP_CUTS);
    }
}

static void test_deadline_of_a_request(void **state)
{
    struct line l;

    (void)state;
    begin(&l);
    begin_request(&l, HTTP_CONN_BODY);
    assert_int_equal(pass(&l, 499, 5000, 0), NR_HTTP_CUTS);
    assert_int_equal(pass(&l, 1, 5000, 0), HTTP_CUT_DEADLINE);
    begin(&l);
    begin_request(&l, HTTP_CONN_ANSWERING);
    assert_int_equal(pass(&l, 500, 0, 0), HTTP_CUT_DEADLINE);
}

static void test_no_limits(void **state)
{
    const struct http_limits none = {0};
    struct line l;

    (void)state;
    begin(&l);
    begin_request(&l, HTTP_CONN_BODY);
    for (int i = 0; i < 1000; i++) {
        l.s.now_us += 3600 * SECOND;
        assert_int_equal(http_watch_judge(&none, &l.conn, &l.s), NR_HTTP_CUTS);
    }
}

/* -- Whose turn it is --- */

static bool somebody_is_in(struct http_conns *conns, enum http_conn_phase phase)
{
    SCOPED_LOCK(&conns->lock);

    for (size_t fd = 0; fd < conns->room; fd++)
        if (conns->by_fd[fd] && atomic_load(&conns->by_fd[fd]->phase) == phase)
            return true;
    return false;
}

/* All of a body has come, and its sink takes its time: nobody waits for the client. */
static void test_a_slow_sink_is_not_the_clients(void **state)
{
    struct http_conns *conns = conns_with(10, 0);
    const struct http_options options = {
        .workers = 2, .reply_memory = 64 << 20, .connection_timeout_s = PATIENCE_S, .conns = conns};
    const uint64_t until_us = clock_now_us() + PATIENCE_S * SECOND;
    struct fixture *f;
    struct answer a;
    int fd;

    (void)state;
    start_options((void **)&f, &options);
    fd = dial(f);
    send_text(fd, "PUT /sum/slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                  "Content-Length: 300000\r\n\r\n");
    send_body(fd, 300000);
    wait_inside(f, 1);
    while (!somebody_is_in(conns, HTTP_CONN_ANSWERING)) {
        assert_true(clock_now_us() < until_us);
        usleep(1000);
    }
    open_gate(f);
    a = read_answer(fd);
    assert_int_equal(a.status, 201);
    assert_string_equal(a.body, "received 300000");
    free(a.text);
    teardown((void **)&f);
    http_conns_free(conns);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_who_is_one_client),
        cmocka_unit_test(test_number_of_connections),
        cmocka_unit_test(test_number_of_connections_of_one_client),
        cmocka_unit_test(test_number_that_comes_up_again),
        cmocka_unit_test(test_idle_connections_are_left_alone),
        cmocka_unit_test(test_headers_have_their_time),
        cmocka_unit_test(test_a_request_line_does_not_buy_time),
        cmocka_unit_test(test_headers_of_a_second_request),
        cmocka_unit_test(test_slow_body),
        cmocka_unit_test(test_body_that_we_do_not_read),
        cmocka_unit_test(test_slow_reader),
        cmocka_unit_test(test_slow_answer_is_not_the_clients),
        cmocka_unit_test(test_deadline_of_a_request),
        cmocka_unit_test(test_no_limits),
        cmocka_unit_test(test_a_slow_sink_is_not_the_clients),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
