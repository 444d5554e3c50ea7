/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remote against a server that misbehaves on purpose: each test says in a function what the server
 * does with a request.
 */
#include "test.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "remote.h"
#include "remote_auth.h"
#include "scratch.h"

#define ETAG "\"sha256:abc\""

struct server;
/* Answer one request on fd; false: close the connection. */
typedef bool (*answer_fn)(struct server *server, int fd, const char *request);

struct server {
    int listener;
    unsigned port;
    pthread_t thread;
    atomic_bool stop;
    answer_fn answer;
    atomic_int nr_requests, nr_connections;
    char last_request[4096];
};

static void send_text(int fd, const char *text)
{
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

/* Read up to the end of the head; false at end of file or when the test is over. */
static bool read_head(struct server *server, int fd, char *buf, size_t room)
{
    size_t len = 0;

    while (len + 1 < room) {
        struct pollfd pfd = {.fd = fd, .events = POLLIN};
        ssize_t n;

        if (atomic_load(&server->stop))
            return false;
        if (poll(&pfd, 1, 20) != 1)
            continue;
        n = recv(fd, buf + len, 1, 0);
        if (n != 1)
            return false;
        buf[++len] = 0;
        if (len >= 4 && strcmp(buf + len - 4, "\r\n\r\n") == 0)
            return true;
    }
    return false;
}

static void serve(struct server *server, int fd)
{
    char head[4096];

    while (read_head(server, fd, head, sizeof(head))) {
        memcpy(server->last_request, head, sizeof(head));
        atomic_fetch_add(&server->nr_requests, 1);
        if (!server->answer(server, fd, head))
            break;
    }
    close(fd);
}

static void *server_main(void *arg)
{
    struct server *server = arg;

    while (!atomic_load(&server->stop)) {
        struct pollfd pfd = {.fd = server->listener, .events = POLLIN};

        if (poll(&pfd, 1, 20) != 1)
            continue;
        atomic_fetch_add(&server->nr_connections, 1);
        serve(server, accept(server->listener, NULL, NULL));
    }
    return NULL;
}

static void server_start(struct server *server, answer_fn answer)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(addr);

    memset(server, 0, sizeof(*server));
    server->answer = answer;
    server->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(server->listener, (struct sockaddr *)&addr, sizeof(addr)), 0);
    assert_int_equal(listen(server->listener, 16), 0);
    assert_int_equal(getsockname(server->listener, (struct sockaddr *)&addr, &len), 0);
    server->port = ntohs(addr.sin_port);
    assert_int_equal(pthread_create(&server->thread, NULL, server_main, server), 0);
}

static void server_stop(struct server *server)
{
    atomic_store(&server->stop, true);
    pthread_join(server->thread, NULL);
    close(server->listener);
}

static struct remote *connect_to(const char *servers, unsigned deadline_ms)
{
    const struct remote_options options = {.servers = servers, .deadline_ms = deadline_ms};
    struct remote *remote;

    assert_int_equal(remote_new(&options, &remote, NULL), CAIRN_OK);
    return remote;
}

static struct remote *connect_server(const struct server *server, unsigned deadline_ms)
{
    char url[64];

    snprintf(url, sizeof(url), "http://127.0.0.1:%u", server->port);
    return connect_to(url, deadline_ms);
}

/* -- Ranged reads --------------------------------------------------------------------------- */

static void send_range(int fd, const char *content_range, const char *etag, size_t announced,
                       const char *body)
{
    char head[512];

    snprintf(head, sizeof(head),
             "HTTP/1.1 206 Partial Content\r\nContent-Range: %s\r\nETag: %s\r\n"
             "Content-Length: %zu\r\n\r\n%s",
             content_range, etag, announced, body);
    send_text(fd, head);
}

/* What a test's server says to a read of bytes 4096 to 4103. */
static bool answer_right(struct server *server, int fd, const char *request)
{
    (void)server;
    assert_non_null(strstr(request, "Range: bytes=4096-4103\r\n"));
    send_range(fd, "bytes 4096-4103/8192", ETAG, 8, "ABCDEFGH");
    return true;
}

static bool answer_short_body(struct server *server, int fd, const char *request)
{
    (void)server, (void)request;
    send_range(fd, "bytes 4096-4103/8192", ETAG, 7, "ABCDEFG");
    return true;
}

static bool answer_cut_body(struct server *server, int fd, const char *request)
{
    (void)request;
    if (atomic_load(&server->nr_requests) > 1)
        return answer_right(server, fd, request);
    send_range(fd, "bytes 4096-4103/8192", ETAG, 8, "XYZ");
    return false;
}

static bool answer_long_body(struct server *server, int fd, const char *request)
{
    (void)server, (void)request;
    send_range(fd, "bytes 4096-4103/8192", ETAG, 9, "ABCDEFGHI");
    return true;
}

static bool answer_other_range(struct server *server, int fd, const char *request)
{
    (void)server, (void)request;
    send_range(fd, "bytes 0-7/8192", ETAG, 8, "ABCDEFGH");
    return true;
}

static bool answer_other_etag(struct server *server, int fd, const char *request)
{
    (void)server, (void)request;
    send_range(fd, "bytes 4096-4103/8192", "\"other\"", 8, "ABCDEFGH");
    return true;
}

static bool answer_whole(struct server *server, int fd, const char *request)
{
    (void)server, (void)request;
    send_text(fd, "HTTP/1.1 200 OK\r\nETag: " ETAG "\r\nContent-Length: 8\r\n\r\nABCDEFGH");
    return true;
}

static bool answer_not_found(struct server *server, int fd, const char *request)
{
    static const char body[] = "{\"errors\":[{\"code\":\"NAME_UNKNOWN\","
                               "\"message\":\"no such\\ndisk\\u001b[1m\"}]}";
    char text[512];

    (void)server, (void)request;
    snprintf(text, sizeof(text), "HTTP/1.1 404 Not Found\r\nContent-Length: %zu\r\n\r\n%s",
             strlen(body), body);
    send_text(fd, text);
    return true;
}

static bool answer_nothing(struct server *server, int fd, const char *request)
{
    char c;

    (void)request;
    while (!atomic_load(&server->stop)) {
        struct pollfd pfd = {.fd = fd, .events = POLLIN};

        if (poll(&pfd, 1, 20) == 1 && recv(fd, &c, 1, 0) <= 0)
            return false;
    }
    return false;
}

static bool answer_busy_once(struct server *server, int fd, const char *request)
{
    if (atomic_load(&server->nr_requests) > 1)
        return answer_right(server, fd, request);
    send_text(fd, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
    return true;
}

/* As cairnd turns connections away. */
static bool answer_too_many_once(struct server *server, int fd, const char *request)
{
    if (atomic_load(&server->nr_requests) > 1)
        return answer_right(server, fd, request);
    send_text(fd,
              "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nConnection: close\r\n\r\n{}");
    return false;
}

/* Read 8 bytes at off from a server that answers so; buf must be filled on success only. */
static int read_from(answer_fn answer, uint64_t off, char buf[9], struct cairn_error *err)
{
    struct server server;
    struct remote *remote;
    int ret;

    memset(buf, 0, 9);
    server_start(&server, answer);
    remote = connect_server(&server, 30000);
    ret = remote_read_range(remote, "/v2/a/blobs/x", ETAG, buf, 8, off, err);
    remote_free(remote);
    server_stop(&server);
    return ret;
}

static void test_range_is_read(void **state)
{
    struct cairn_error err;
    char buf[9];

    (void)state;
    assert_int_equal(read_from(answer_right, 4096, buf, &err), CAIRN_OK);
    assert_string_equal(buf, "ABCDEFGH");
}

static void test_short_body_is_refused(void **state)
{
    struct cairn_error err;
    char buf[9];

    (void)state;
    assert_int_equal(read_from(answer_short_body, 4096, buf, &err), CAIRN_E_CORRUPT);
    assert_non_null(strstr(err.message, "7 bytes, expected 8"));
}

static void test_cut_body_is_read_again(void **state)
{
    struct cairn_error err;
    char buf[9];

    (void)state;
    assert_int_equal(read_from(answer_cut_body, 4096, buf, &err), CAIRN_OK);
    assert_string_equal(buf, "ABCDEFGH");
}

static void test_long_body_is_refused(void **state)
{
    struct cairn_error err;
    char buf[9];

    (void)state;
    assert_int_equal(read_from(answer_long_body, 4096, buf, &err), CAIRN_E_CORRUPT);
    assert_non_null(strstr(err.message, "more than"));
}

static void test_other_range_is_refused(void **state)
{
    struct cairn_error err;
    char buf[9];

    (void)state;
    assert_int_equal(read_from(answer_other_range, 4096, buf, &err), CAIRN_E_CORRUPT);
    assert_non_null(strstr(err.message, "bytes 0-7"));
}

static void test_other_etag_is_a_conflict(void **state)
{
    struct cairn_error err;
    char buf[9];

    (void)state;
    assert_int_equal(read_from(answer_other_etag, 4096, buf, &err), CAIRN_E_CONFLICT);
    assert_non_null(strstr(err.message, "\"other\""));
}

static void test_whole_is_taken_at_the_start_only(void **state)
{
    struct cairn_error err;
    char buf[9];

    (void)state;
    assert_int_equal(read_from(answer_whole, 0, buf, &err), CAIRN_OK);
    assert_string_equal(buf, "ABCDEFGH");
    assert_int_equal(read_from(answer_whole, 4096, buf, &err), CAIRN_E_CORRUPT);
}

static void test_error_body_becomes_one_printable_line(void **state)
{
    struct cairn_error err;
    char buf[9];

    (void)state;
    assert_int_equal(read_from(answer_not_found, 4096, buf, &err), CAIRN_E_NOT_FOUND);
    assert_non_null(strstr(err.message, "no such?disk?[1m, NAME_UNKNOWN"));
}

static void test_busy_server_is_asked_again(void **state)
{
    struct cairn_error err;
    char buf[9];

    (void)state;
    assert_int_equal(read_from(answer_busy_once, 4096, buf, &err), CAIRN_OK);
    assert_string_equal(buf, "ABCDEFGH");
    assert_int_equal(read_from(answer_too_many_once, 4096, buf, &err), CAIRN_OK);
    assert_string_equal(buf, "ABCDEFGH");
}

/* -- Deadlines and servers ------------------------------------------------------------------ */

static void test_stalled_server_hits_the_deadline(void **state)
{
    struct server server;
    struct cairn_error err;
    struct remote *remote;
    char buf[8];

    (void)state;
    server_start(&server, answer_nothing);
    remote = connect_server(&server, 300);
    assert_int_equal(remote_read_range(remote, "/x", NULL, buf, 8, 0, &err), CAIRN_E_UNAVAILABLE);
    remote_free(remote);
    server_stop(&server);
}

static void test_dead_server_gives_way_to_the_next(void **state)
{
    struct server dead, alive;
    char urls[128], buf[9] = "";
    struct cairn_error err;
    struct remote *remote;

    (void)state;
    server_start(&dead, answer_right);
    server_stop(&dead);
    server_start(&alive, answer_right);
    snprintf(urls, sizeof(urls), "http://127.0.0.1:%u/,http://127.0.0.1:%u", dead.port, alive.port);
    remote = connect_to(urls, 30000);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(remote_read_range(remote, "/x", ETAG, buf, 8, 4096, &err), CAIRN_OK);
        assert_string_equal(buf, "ABCDEFGH");
    }
    assert_int_equal(atomic_load(&alive.nr_requests), 3);
    remote_free(remote);
    server_stop(&alive);
}

static void test_connection_is_kept(void **state)
{
    struct server server;
    struct cairn_error err;
    struct remote *remote;
    char buf[9] = "";

    (void)state;
    server_start(&server, answer_right);
    remote = connect_server(&server, 30000);
    for (int i = 0; i < 20; i++)
        assert_int_equal(remote_read_range(remote, "/x", ETAG, buf, 8, 4096, &err), CAIRN_OK);
    assert_int_equal(atomic_load(&server.nr_connections), 1);
    remote_free(remote);
    server_stop(&server);
}

/* -- Any request ---------------------------------------------------------------------------- */

static bool answer_cut(struct server *server, int fd, const char *request)
{
    (void)server, (void)fd, (void)request;
    return false;
}

static void test_what_may_not_be_repeated_is_not(void **state)
{
    const struct remote_request request = {.method = "POST", .path = "/x"};
    struct remote_answer answer;
    struct server server;
    struct cairn_error err;
    struct remote *remote;

    (void)state;
    server_start(&server, answer_cut);
    remote = connect_server(&server, 30000);
    assert_int_equal(remote_request(remote, &request, &answer, &err), CAIRN_E_UNAVAILABLE);
    assert_int_equal(atomic_load(&server.nr_requests), 1);
    remote_free(remote);
    server_stop(&server);
}

static bool answer_json(struct server *server, int fd, const char *request)
{
    (void)server, (void)request;
    send_text(fd,
              "HTTP/1.1 200 OK\r\nContent-Length: 13\r\nLocation: /next\r\n\r\n{\"a\":[1,2,3]}");
    return true;
}

static void test_json_is_parsed(void **state)
{
    const struct remote_request request = {.method = "GET", .path = "/x"};
    struct remote_answer answer;
    struct server server;
    struct cairn_error err;
    struct remote *remote;
    json_t *json;

    (void)state;
    server_start(&server, answer_json);
    remote = connect_server(&server, 30000);
    assert_int_equal(remote_request(remote, &request, &answer, &err), CAIRN_OK);
    assert_int_equal(remote_answer_json(&answer, "thing", &json, &err), CAIRN_OK);
    remote_answer_release(&answer);
    assert_int_equal(json_array_size(json_object_get(json, "a")), 3);
    json_decref(json);
    remote_free(remote);
    server_stop(&server);
}

static void test_body_has_a_bound(void **state)
{
    const struct remote_request request = {.method = "GET", .path = "/x", .body_max = 5};
    struct remote_answer answer;
    struct server server;
    struct cairn_error err;
    struct remote *remote;

    (void)state;
    server_start(&server, answer_json);
    remote = connect_server(&server, 30000);
    assert_int_equal(remote_request(remote, &request, &answer, &err), CAIRN_E_LIMIT);
    remote_free(remote);
    server_stop(&server);
}

static int give_up(void *ctx, struct cairn_error *err)
{
    (void)ctx;
    return error_set(err, CAIRN_E_CANCELLED, "enough");
}

static void test_poll_cancels_a_wait(void **state)
{
    struct remote_options options = {.poll = give_up};
    struct server server;
    struct cairn_error err;
    struct remote *remote;
    char url[64], buf[8];

    (void)state;
    server_start(&server, answer_nothing);
    snprintf(url, sizeof(url), "http://127.0.0.1:%u", server.port);
    options.servers = url;
    assert_int_equal(remote_new(&options, &remote, NULL), CAIRN_OK);
    assert_int_equal(remote_read_range(remote, "/x", NULL, buf, 8, 0, &err), CAIRN_E_CANCELLED);
    assert_string_equal(err.message, "enough");
    remote_free(remote);
    server_stop(&server);
}

static void test_foreign_location_is_not_followed(void **state)
{
    const struct remote_request request = {.method = "GET", .path = "http://example.org/secret"};
    struct remote *remote = connect_to("http://127.0.0.1:1", 1000);
    struct remote_answer answer;
    struct cairn_error err;

    (void)state;
    assert_int_equal(remote_request(remote, &request, &answer, &err), CAIRN_E_UNSUPPORTED);
    remote_free(remote);
}

static void test_token_is_sent(void **state)
{
    struct remote_options options = {.token = "secret", .deadline_ms = 30000};
    struct remote_request request = {.method = "GET", .path = "/x"};
    struct remote_answer answer;
    struct server server;
    struct remote *remote;
    char url[64];

    (void)state;
    server_start(&server, answer_json);
    snprintf(url, sizeof(url), "http://127.0.0.1:%u", server.port);
    options.servers = url;
    assert_int_equal(remote_new(&options, &remote, NULL), CAIRN_OK);
    assert_int_equal(remote_request(remote, &request, &answer, NULL), CAIRN_OK);
    assert_string_equal(answer.location, "/next");
    remote_answer_release(&answer);
    remote_free(remote);
    server_stop(&server);
    assert_non_null(strstr(server.last_request, "Authorization: Bearer secret\r\n"));
}

/* -- A token in a file -- */

struct token_file {
    char path[100];
    struct server server;
    struct remote *remote;
};

static void write_token(const struct token_file *f, const char *text)
{
    FILE *file = fopen(f->path, "w");

    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

/* What the service takes is the token `new`. */
static bool answer_new_token(struct server *server, int fd, const char *request)
{
    (void)server;
    if (!strstr(request, "Authorization: Bearer new\r\n"))
        send_text(fd, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n");
    else if (strstr(request, "Range: bytes="))
        send_range(fd, "bytes 10-14/100", ETAG, 5, "right");
    else
        send_text(fd, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
    return true;
}

static void token_file_start(struct token_file *f, const char *text)
{
    struct remote_options options = {.token_file = f->path, .deadline_ms = 30000};
    char url[64];

    snprintf(f->path, sizeof(f->path), "%s/cairn-token-XXXXXX", scratch_base());
    close(mkstemp(f->path));
    write_token(f, text);
    server_start(&f->server, answer_new_token);
    snprintf(url, sizeof(url), "http://127.0.0.1:%u", f->server.port);
    options.servers = url;
    assert_int_equal(remote_new(&options, &f->remote, NULL), CAIRN_OK);
}

static void token_file_stop(struct token_file *f)
{
    remote_free(f->remote);
    server_stop(&f->server);
    unlink(f->path);
}

static unsigned status_of_request(struct remote *remote, const char *method)
{
    const struct remote_request request = {.method = method,
                                           .path = "/x",
                                           .body = "ab",
                                           .body_len = strcmp(method, "GET") == 0 ? 0 : 2};
    struct remote_answer answer;
    unsigned status;

    assert_int_equal(remote_request(remote, &request, &answer, NULL), CAIRN_OK);
    status = answer.status;
    remote_answer_release(&answer);
    return status;
}

static void test_a_token_that_is_refused_is_read_again(void **state)
{
    struct token_file f;

    (void)state;
    token_file_start(&f, "old\n");
    assert_int_equal(status_of_request(f.remote, "GET"), 401);
    assert_int_equal(f.server.nr_requests, 1); /* the file has nothing new */
    write_token(&f, "  new\n\n");
    assert_int_equal(status_of_request(f.remote, "GET"), 200);
    assert_int_equal(f.server.nr_requests, 3);
    assert_int_equal(status_of_request(f.remote, "GET"), 200);
    assert_int_equal(f.server.nr_requests, 4);
    token_file_stop(&f);
}

/* Ranged reads keep what they have set on their handle. */
static void test_a_ranged_read_takes_the_new_token(void **state)
{
    struct token_file f;
    struct cairn_error err;
    char buf[5];

    (void)state;
    token_file_start(&f, "old");
    assert_int_equal(remote_read_range(f.remote, "/blob", ETAG, buf, 5, 10, &err), CAIRN_E_DENIED);
    write_token(&f, "new");
    assert_int_equal(remote_read_range(f.remote, "/blob", ETAG, buf, 5, 10, &err), CAIRN_OK);
    assert_memory_equal(buf, "right", 5);
    token_file_stop(&f);
}

/* A request that was refused for its token did nothing. */
static void test_what_may_not_be_repeated_is_sent_with_the_new_token(void **state)
{
    struct token_file f;

    (void)state;
    token_file_start(&f, "old");
    write_token(&f, "new");
    assert_int_equal(status_of_request(f.remote, "POST"), 200);
    assert_int_equal(f.server.nr_requests, 2);
    token_file_stop(&f);
}

static void test_a_token_file_that_became_unreadable_is_no_failure_of_its_own(void **state)
{
    struct token_file f;

    (void)state;
    token_file_start(&f, "old");
    write_token(&f, "two words");
    assert_int_equal(status_of_request(f.remote, "GET"), 401);
    token_file_stop(&f);
}

static void test_token_files_hold_one_token(void **state)
{
    static const char *const bad[] = {"", " \n", "a b", "a\nb\n", "a\x01", "\xc3\xa4"};
    struct token_file f;
    struct remote_auth *auth;
    struct cairn_error err;

    (void)state;
    snprintf(f.path, sizeof(f.path), "%s/cairn-token-XXXXXX", scratch_base());
    close(mkstemp(f.path));
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        write_token(&f, bad[i]);
        assert_int_equal(remote_auth_read(f.path, &auth, &err), CAIRN_E_USAGE);
        assert_non_null(strstr(err.message, f.path));
    }
    unlink(f.path);
    assert_int_equal(remote_auth_read(f.path, &auth, &err), CAIRN_E_NOT_FOUND);
}

static void test_tokens_stay_within_the_host_or_tls(void **state)
{
    static const char *const kept[] = {"https://example.com",    "http://127.0.0.1:7117",
                                       "http://localhost",       "http://LOCALHOST:1/x",
                                       "http://127.1.2.3/",      "http://[::1]:7117",
                                       "HTTPS://203.0.113.1:443"};
    static const char *const exposed[] = {"http://example.com",
                                          "http://203.0.113.1:7117",
                                          "http://127.example.com",
                                          "http://127.0.0.1.evil.com",
                                          "http://localhost.evil.com",
                                          "http://localhost@evil.com",
                                          "http://127.0.0.1:1@evil.com",
                                          "http://[::2]",
                                          "http://[::1].evil.com",
                                          "HTTP://evil.com",
                                          "http://"};

    (void)state;
    for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++)
        if (remote_auth_exposed(kept[i]))
            fail_msg("%s", kept[i]);
    for (size_t i = 0; i < sizeof(exposed) / sizeof(exposed[0]); i++)
        if (!remote_auth_exposed(exposed[i]))
            fail_msg("%s", exposed[i]);
}

static void test_bad_options_are_refused(void **state)
{
    static const struct remote_options bad[] = {
        {.servers = "ftp://127.0.0.1"},
        {.servers = " , "},
        {.servers = "http://127.0.0.1/?x=y"},
        {.servers = "http://127.0.0.1", .token = "two\r\nlines"},
        {.servers = "http://127.0.0.1", .key = "/dev/null"},
        {.servers = "http://203.0.113.1", .token = "secret"},
        {.servers = "https://203.0.113.1,http://203.0.113.2", .token = "secret"},
    };
    struct remote *remote;
    struct cairn_error err;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(remote_new(&bad[i], &remote, &err), CAIRN_E_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_range_is_read),
        cmocka_unit_test(test_short_body_is_refused),
        cmocka_unit_test(test_cut_body_is_read_again),
        cmocka_unit_test(test_long_body_is_refused),
        cmocka_unit_test(test_other_range_is_refused),
        cmocka_unit_test(test_other_etag_is_a_conflict),
        cmocka_unit_test(test_whole_is_taken_at_the_start_only),
        cmocka_unit_test(test_error_body_becomes_one_printable_line),
        cmocka_unit_test(test_busy_server_is_asked_again),
        cmocka_unit_test(test_stalled_server_hits_the_deadline),
        cmocka_unit_test(test_dead_server_gives_way_to_the_next),
        cmocka_unit_test(test_connection_is_kept),
        cmocka_unit_test(test_what_may_not_be_repeated_is_not),
        cmocka_unit_test(test_json_is_parsed),
        cmocka_unit_test(test_body_has_a_bound),
        cmocka_unit_test(test_poll_cancels_a_wait),
        cmocka_unit_test(test_foreign_location_is_not_followed),
        cmocka_unit_test(test_token_is_sent),
        cmocka_unit_test(test_a_token_that_is_refused_is_read_again),
        cmocka_unit_test(test_a_ranged_read_takes_the_new_token),
        cmocka_unit_test(test_what_may_not_be_repeated_is_sent_with_the_new_token),
        cmocka_unit_test(test_a_token_file_that_became_unreadable_is_no_failure_of_its_own),
        cmocka_unit_test(test_token_files_hold_one_token),
        cmocka_unit_test(test_tokens_stay_within_the_host_or_tls),
        cmocka_unit_test(test_bad_options_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
