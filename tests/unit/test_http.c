/* SPDX-License-Identifier: Apache-2.0 */
/* Targets, replies and bodies of the HTTP server, over real sockets. */
#include "http_fixture.h"

/* -- Targets ------------------------------------------------------------------------------ */

static void test_path_and_query_are_decoded_once(void **state)
{
    struct answer a = request(*state, "GET", "/text/a%20b%2541/c+d?x=1&q=sha256%3Aab+c%26", NULL);

    assert_int_equal(a.status, 200);
    assert_string_equal(a.body, "path=/text/a b%41/c+d q=sha256:ab+c&");
    assert_non_null(strstr(a.text, "X-Extra: 42\r\n"));
    free(a.text);
    a = request(*state, "GET", "http://host:99/text/z", NULL);
    assert_string_equal(a.body, "path=/text/z q=(none)");
    free(a.text);
}

static void test_hostile_targets_are_refused(void **state)
{
    assert_status(*state, "GET", "/text/%00", 400);
    assert_status(*state, "GET", "/text/%", 400);
    assert_status(*state, "GET", "/text/%4", 400);
    assert_status(*state, "GET", "/text/%zz", 400);
    assert_status(*state, "GET", "/text/../echo", 400);
    assert_status(*state, "GET", "/text/%2e%2e/echo", 400);
    assert_status(*state, "GET", "/text/%2E", 400);
    assert_status(*state, "GET", "/text/a%0ab", 400);
    assert_status(*state, "GET", "/text/?q=%zz", 400);
    assert_status(*state, "GET", "*", 400);
    assert_status(*state, "GET", "text", 400);
    assert_status(*state, "GET", "/nothing", 404);
    assert_status(*state, "GET", "/text", 404);
    assert_status(*state, "GET", "/echo/x", 404);
}

static void test_long_target_is_414(void **state)
{
    char target[9000];

    memset(target, 'a', sizeof(target));
    memcpy(target, "/text/", 6);
    target[sizeof(target) - 1] = 0;
    assert_status(*state, "GET", target, 414);
}

static void test_wrong_method_is_405_with_allow(void **state)
{
    struct answer a = request(*state, "DELETE", "/echo", NULL);

    assert_int_equal(a.status, 405);
    assert_non_null(strstr(a.text, "Allow: POST, PUT\r\n"));
    assert_non_null(strstr(a.body, "\"code\":\"UNSUPPORTED\""));
    free(a.text);
    assert_status(*state, "BREW", "/echo", 501);
    assert_status(*state, "OPTIONS", "/echo", 501);
}

static void test_request_id_is_kept_or_made(void **state)
{
    struct answer a = request(*state, "GET", "/text/", "X-Request-Id: my-id.1\r\n");

    assert_non_null(strstr(a.text, "X-Request-Id: my-id.1\r\n"));
    free(a.text);
    a = request(*state, "GET", "/text/", "X-Request-Id: not \"sane\"\r\n");
    assert_null(strstr(a.text, "sane"));
    assert_non_null(strstr(a.text, "X-Request-Id: "));
    free(a.text);
}

/* -- Admission ---------------------------------------------------------------------------- */

static void assert_answer(struct answer a, unsigned status, const char *text)
{
    assert_int_equal(a.status, status);
    assert_non_null(strstr(a.text, text));
    free(a.text);
}

static void test_who_is_not_admitted_gets_no_handler(void **state)
{
    struct fixture *f = *state;

    assert_answer(request(f, "GET", "/text/", NULL), 401, "who are you?");
    assert_answer(request(f, "GET", "/text/", "X-User: mallory\r\n"), 403, "DENIED");
    assert_answer(request(f, "GET", "/text/", "X-User: alice\r\n"), 200, "user=alice");
    assert_answer(upload(f, "PUT", "/echo", 100), 401, "who are you?");
    assert_answer(upload(f, "PUT", "/sum/", 1000000), 401, "who are you?");
    assert_int_equal(f->received, 0);
    assert_int_equal(*f->asked, 5);
}

static void test_admission_is_asked_once_a_request(void **state)
{
    struct fixture *f = *state;

    assert_answer(request(f, "PUT", "/sum/collect", "X-User: a\r\nContent-Length: 4\r\n\r\nhi"),
                  201, "received 0");
    assert_int_equal(*f->asked, 1);
    assert_answer(request(f, "POST", "/echo", "X-User: a\r\nContent-Length: 4\r\n\r\nhi"), 200,
                  "\r\n\r\nhi");
    assert_int_equal(*f->asked, 2);
    assert_status(f, "GET", "/nothing", 404); /* there is nothing to ask about */
    assert_int_equal(*f->asked, 2);
}

/* -- Replies ------------------------------------------------------------------------------ */

static void assert_pattern(const struct answer *a, uint64_t len)
{
    assert_int_equal(a->body_len, len);
    for (uint64_t i = 0; i < len; i++)
        assert_int_equal((unsigned char)a->body[i], pattern(i));
}

static void test_short_and_long_streams(void **state)
{
    static const unsigned long lens[] = {0, 1, 1 << 20, (1 << 20) + 1, 5000001};
    struct fixture *f = *state;
    char target[64];

    for (unsigned i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
        struct answer a;

        snprintf(target, sizeof(target), "/stream?len=%lu", lens[i]);
        a = request(f, "GET", target, NULL);
        assert_int_equal(a.status, 200);
        assert_pattern(&a, lens[i]);
        free(a.text);
        wait_until_freed(&f->streams_freed, i + 1);
    }
}

static void test_stream_failing_early_is_an_error_status(void **state)
{
    assert_status(*state, "GET", "/stream?len=1000&fail=999", 500);
    assert_status(*state, "GET", "/stream?len=5000000&fail=1000", 500);
}

static void test_stream_failing_late_is_cut(void **state)
{
    struct answer a = request(*state, "GET", "/stream?len=5000000&fail=4000000", NULL);

    assert_int_equal(a.status, 200);
    assert_true(a.body_len < 5000000);
    assert_non_null(strstr(a.text, "Content-Length: 5000000\r\n"));
    free(a.text);
}

static void test_chunked_reply(void **state)
{
    struct answer a = request(*state, "GET", "/chunks?len=1000000", NULL);
    size_t nr = 0;

    assert_int_equal(a.status, 200);
    assert_non_null(strstr(a.text, "Transfer-Encoding: chunked\r\n"));
    for (size_t i = 0; i < a.body_len; i++)
        nr += a.body[i] == 'c';
    assert_true(nr >= 1000000); /* chunk sizes in hex may have a c in them */
    assert_string_equal(a.body + a.body_len - 5, "0\r\n\r\n");
    free(a.text);
}

static void test_file_part(void **state)
{
    struct answer a = request(*state, "GET", "/file?off=3&len=4", NULL);

    assert_int_equal(a.status, 206);
    assert_string_equal(a.body, "3456");
    free(a.text);
    a = request(*state, "GET", "/file?off=10&len=0", NULL);
    assert_non_null(strstr(a.text, "Content-Length: 0\r\n"));
    free(a.text);
    a = request(*state, "GET", "/file?off=7&len=90000", NULL); /* by sendfile */
    assert_int_equal(a.body_len, 90000);
    for (size_t i = 0; i < 90000; i++)
        assert_int_equal(a.body[i], '0' + (i + 7) % 10);
    free(a.text);
}

static void test_small_file_part_that_is_not_there_is_an_error_status(void **state)
{
    struct answer a = request(*state, "GET", "/file?off=99998&len=4", NULL);

    assert_int_equal(a.status, 500);
    assert_non_null(strstr(a.body, "2 of 4 bytes"));
    free(a.text);
}

static void test_head_has_the_headers_and_no_body(void **state)
{
    static const char *const targets[] = {"/stream?len=123&fail=0", "/file?len=10", "/text/x"};
    static const char *const lengths[] = {"Content-Length: 123\r\n", "Content-Length: 10\r\n",
                                          "Content-Length: 21\r\n"};

    for (size_t i = 0; i < 3; i++) {
        struct answer a = request(*state, "HEAD", targets[i], NULL);

        assert_int_equal(a.body_len, 0);
        assert_non_null(strstr(a.text, lengths[i]));
        assert_non_null(strstr(a.text, "Content-Type: "));
        free(a.text);
    }
    assert_status(*state, "HEAD", "/chunks?len=5", 200);
}

static void test_connection_is_kept(void **state)
{
    int fd = dial(*state);
    struct answer a;

    send_text(fd, "GET /text/1 HTTP/1.1\r\nHost: x\r\n\r\n"
                  "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"
                  "PUT /sum/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
                  "GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
                  "PUT /sum/refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
                  "GET /text/2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    a = read_answer(fd);
    assert_non_null(strstr(a.text, "path=/text/1"));
    assert_non_null(strstr(a.text, "body"));
    assert_non_null(strstr(a.text, "received 0"));
    assert_non_null(strstr(a.text, "path=/text/2"));
    free(a.text);
}

/* -- Bodies ------------------------------------------------------------------------------- */

static void test_collected_body(void **state)
{
    struct answer a = upload(*state, "POST", "/echo", 2500000);

    assert_int_equal(a.status, 200);
    assert_pattern(&a, 2500000);
    free(a.text);
}

static void test_collected_body_too_large_is_413(void **state)
{
    struct answer a = upload(*state, "POST", "/echo", 3000001);

    assert_int_equal(a.status, 413);
    free(a.text);
    a = upload(*state, "PUT", "/sum/collect", 101);
    assert_int_equal(a.status, 413);
    free(a.text);
    a = request(*state, "POST", "/echo",
                "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n");
    assert_int_equal(a.status, 200);
    assert_string_equal(a.body, "hello world");
    free(a.text);
}

static void test_chunked_collected_body_has_the_same_limit(void **state)
{
    int fd = dial(*state);
    struct answer a;

    send_text(fd, "PUT /sum/collect HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                  "Transfer-Encoding: chunked\r\n\r\n65\r\n");
    send_body(fd, 101);
    send_text(fd, "\r\n0\r\n\r\n");
    a = read_answer(fd);
    assert_int_equal(a.status, 413);
    free(a.text);
}

static void test_streamed_bodies(void **state)
{
    static const uint64_t lens[] = {0, 1, 262144, 262145, 524288, 7000001};
    struct fixture *f = *state;

    for (unsigned i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
        char expected[64];
        struct answer a;

        f->received = 0;
        a = upload(f, i % 2 ? "PUT" : "PATCH", "/sum/", lens[i]);
        snprintf(expected, sizeof(expected), "received %llu", (unsigned long long)lens[i]);
        assert_int_equal(a.status, 201);
        assert_string_equal(a.body, expected);
        free(a.text);
        wait_until_freed(&f->sinks_freed, i + 1);
    }
}

static void test_expect_continue(void **state)
{
    struct answer a;
    char line[64] = "";
    int fd = dial(*state);

    send_text(fd, "PUT /sum/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                  "Content-Length: 1\r\nExpect: 100-continue\r\n\r\n");
    assert_true(recv(fd, line, sizeof(line) - 1, 0) > 0);
    assert_string_equal(line, "HTTP/1.1 100 Continue\r\n\r\n");
    send_body(fd, 1);
    a = read_answer(fd);
    assert_int_equal(a.status, 201);
    free(a.text);
}

static void test_refusal_comes_before_continue(void **state)
{
    struct answer a =
        request(*state, "PUT", "/sum/refuse", "Content-Length: 100\r\nExpect: 100-continue\r\n");

    assert_int_equal(a.status, 409);
    free(a.text);
}

static void test_refusal_of_a_short_body_reaches_the_client(void **state)
{
    struct answer a = upload(*state, "PUT", "/sum/refuse", 500000);

    assert_int_equal(a.status, 409);
    free(a.text);
    a = upload(*state, "PUT", "/nothing", 500000);
    assert_int_equal(a.status, 404);
    free(a.text);
}

static void test_failing_sink_is_the_reply(void **state)
{
    struct fixture *f = *state;
    struct answer a = upload(f, "PUT", "/sum/fail", 3000000);

    assert_int_equal(a.status, 507);
    assert_non_null(strstr(a.body, "the disk is full"));
    assert_non_null(strstr(a.body, "\"reason\":\"no-space\""));
    free(a.text);
    a = upload(f, "PUT", "/sum/fail", 1);
    assert_int_equal(a.status, 507);
    free(a.text);
    wait_until_freed(&f->sinks_freed, 2);
}

static void test_get_with_a_body_is_refused(void **state)
{
    struct answer a = request(*state, "GET", "/text/", "Content-Length: 3\r\n\r\nabc");

    assert_int_equal(a.status, 400);
    free(a.text);
}

static void test_client_gone_in_mid_body(void **state)
{
    struct fixture *f = *state;
    int fd = dial(f);

    send_text(fd, "PUT /sum/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n");
    send_body(fd, 1000000);
    close(fd);
    wait_until_freed(&f->sinks_freed, 1);
    assert_true(__atomic_load_n(&f->received, __ATOMIC_SEQ_CST) <= 1000000);
}

static int setup_impatient(void **state)
{
    return start_with(state, 4, 64 << 20, 1);
}

static void test_silent_client_times_out(void **state)
{
    struct fixture *f = *state;
    int fd = dial(f);

    send_text(fd, "PUT /sum/ HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nx");
    wait_until_freed(&f->sinks_freed, 1);
    close(fd);
}

static void test_client_gone_in_mid_reply(void **state)
{
    struct fixture *f = *state;
    int fd = dial(f);
    char byte;

    send_text(fd, "GET /stream?len=50000000 HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_int_equal(recv(fd, &byte, 1, 0), 1);
    close(fd);
    wait_until_freed(&f->streams_freed, 1);
}

static unsigned first_status(int fd)
{
    char line[13] = "";

    assert_int_equal(recv(fd, line, 12, MSG_WAITALL), 12);
    return (unsigned)atoi(line + strlen("HTTP/1.1 "));
}

/* A long reply takes two buffers of 256 KiB. */
#define NR_LONG_REPLIES 4

static int setup_four_long_replies(void **state)
{
    return start_with(state, 4, NR_LONG_REPLIES * (512u << 10), PATIENCE_S);
}

static void test_replies_that_nobody_fetches_are_bounded(void **state)
{
    struct fixture *f = *state;
    int fds[NR_LONG_REPLIES + 1];

    for (unsigned i = 0; i <= NR_LONG_REPLIES; i++) {
        fds[i] = dial(f);
        send_text(fds[i], "GET /stream?len=50000000 HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_int_equal(first_status(fds[i]), i < NR_LONG_REPLIES ? 200 : 503);
    }
    assert_status(f, "GET", "/text/", 200); /* small ones get through */
    for (unsigned i = 0; i <= NR_LONG_REPLIES; i++)
        close(fds[i]);
    wait_until_freed(&f->streams_freed, NR_LONG_REPLIES + 1);
    assert_status(f, "GET", "/stream?len=1000000", 200);
}

static void test_many_connections_at_once(void **state)
{
    int fds[60];

    for (unsigned i = 0; i < 60; i++) {
        fds[i] = dial(*state);
        send_text(fds[i], "GET /stream?len=2000000 HTTP/1.1\r\nHost: x\r\n"
                          "Connection: close\r\n\r\n");
    }
    for (unsigned i = 0; i < 60; i++) {
        struct answer a = read_answer(fds[i]);

        assert_pattern(&a, 2000000);
        free(a.text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        HTTP_TEST(test_path_and_query_are_decoded_once),
        HTTP_TEST(test_hostile_targets_are_refused),
        HTTP_TEST(test_long_target_is_414),
        HTTP_TEST(test_wrong_method_is_405_with_allow),
        HTTP_TEST(test_request_id_is_kept_or_made),
        HTTP_TEST(test_short_and_long_streams),
        HTTP_TEST(test_stream_failing_early_is_an_error_status),
        HTTP_TEST(test_stream_failing_late_is_cut),
        HTTP_TEST(test_chunked_reply),
        HTTP_TEST(test_file_part),
        HTTP_TEST(test_small_file_part_that_is_not_there_is_an_error_status),
        HTTP_TEST(test_head_has_the_headers_and_no_body),
        HTTP_TEST(test_connection_is_kept),
        HTTP_TEST(test_collected_body),
        HTTP_TEST(test_collected_body_too_large_is_413),
        HTTP_TEST(test_chunked_collected_body_has_the_same_limit),
        HTTP_TEST(test_streamed_bodies),
        HTTP_TEST(test_expect_continue),
        HTTP_TEST(test_refusal_comes_before_continue),
        HTTP_TEST(test_refusal_of_a_short_body_reaches_the_client),
        HTTP_TEST(test_failing_sink_is_the_reply),
        HTTP_TEST(test_get_with_a_body_is_refused),
        HTTP_TEST(test_client_gone_in_mid_body),
        cmocka_unit_test_setup_teardown(test_who_is_not_admitted_gets_no_handler, setup_admitting,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_admission_is_asked_once_a_request, setup_admitting,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_silent_client_times_out, setup_impatient, teardown),
        HTTP_TEST(test_client_gone_in_mid_reply),
        cmocka_unit_test_setup_teardown(test_replies_that_nobody_fetches_are_bounded,
                                        setup_four_long_replies, teardown),
        HTTP_TEST(test_many_connections_at_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
