/* SPDX-License-Identifier: Apache-2.0 */
/* An HTTP server with handlers of many kinds, and a client on plain sockets.  Every request asks
 * for `Connection: close` unless it is about keeping it. */
#ifndef TESTS_UNIT_HTTP_FIXTURE_H
#define TESTS_UNIT_HTTP_FIXTURE_H

#include "test.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "http.h"
#include "log.h"
#include "nowait.h"

struct gate {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned inside;
    bool open;
};

struct fixture {
    struct http_server *server;
    struct gate gate;
    unsigned sinks_freed;
    unsigned streams_freed;
    uint64_t received; /* by sinks */
    unsigned *asked;   /* how often admit_named was */
};

/* -- Handlers under test ------------------------------------------------------------------ */

static inline unsigned char pattern(uint64_t off)
{
    return (unsigned char)((off * 31 + (off >> 8)) % 251);
}

static inline void handle_echo(void *ctx, const struct http_request *req, struct http_reply *reply)
{
    size_t len;
    const void *body = http_body(req, &len);
    char *copy = malloc(len + 1);

    (void)ctx;
    assert_non_null(copy);
    memcpy(copy, body, len);
    http_reply_buffer(reply, 200, "text/plain", copy, len);
}

static inline void handle_text(void *ctx, const struct http_request *req, struct http_reply *reply)
{
    const char *q = http_query(req, "q");
    char *text;
    int len = asprintf(&text, "path=%s q=%s%s%s", http_path(req), q ? q : "(none)",
                       *http_user(req) ? " user=" : "", http_user(req));

    (void)ctx;
    http_reply_header(reply, "X-Extra", "%d", 42);
    http_reply_buffer(reply, 200, "text/plain", text, (size_t)len);
}

static inline int read_pattern(void *ctx, void *buf, size_t len, uint64_t off,
                               struct cairn_error *err)
{
    const uint64_t *fail_at = ctx;

    for (size_t i = 0; i < len; i++) {
        if (off + i == *fail_at)
            return error_set(err, CAIRN_E_CORRUPT, "byte %llu is bad", (unsigned long long)off + i);
        ((unsigned char *)buf)[i] = pattern(off + i);
    }
    return CAIRN_OK;
}

static inline uint64_t query_number(const struct http_request *req, const char *name,
                                    uint64_t otherwise)
{
    const char *text = http_query(req, name);

    return text ? strtoull(text, NULL, 10) : otherwise;
}

static struct fixture *current; /* for the free callbacks */

static inline void free_stream(void *ctx)
{
    __atomic_add_fetch(&current->streams_freed, 1, __ATOMIC_SEQ_CST);
    free(ctx);
}

static inline void handle_stream(void *ctx, const struct http_request *req,
                                 struct http_reply *reply)
{
    uint64_t *fail_at = malloc(sizeof(*fail_at));
    const struct http_stream stream = {read_pattern, free_stream, fail_at};

    (void)ctx;
    *fail_at = query_number(req, "fail", UINT64_MAX);
    http_reply_stream(reply, 200, "application/octet-stream", &stream, query_number(req, "len", 0));
}

static inline int read_chunk(void *ctx, void *buf, size_t len, size_t *ret_len,
                             struct cairn_error *err)
{
    uint64_t *left = ctx;

    (void)err;
    *ret_len = len < 1000 ? len : 1000; /* less than asked for, to see it handled */
    if (*ret_len > *left)
        *ret_len = *left;
    memset(buf, 'c', *ret_len);
    *left -= *ret_len;
    return CAIRN_OK;
}

static inline void handle_chunks(void *ctx, const struct http_request *req,
                                 struct http_reply *reply)
{
    uint64_t *left = malloc(sizeof(*left));
    const struct http_chunks chunks = {read_chunk, free_stream, left};

    (void)ctx;
    *left = query_number(req, "len", 0);
    http_reply_chunked(reply, 200, "text/plain", &chunks);
}

#define FILE_LEN 100000u

static inline void handle_file(void *ctx, const struct http_request *req, struct http_reply *reply)
{
    int fd = memfd_create("file", MFD_CLOEXEC);

    (void)ctx;
    for (unsigned i = 0; i < FILE_LEN / 10; i++)
        assert_int_equal(write(fd, "0123456789", 10), 10);
    http_reply_fd(reply, 206, "text/plain", fd, query_number(req, "off", 0),
                  query_number(req, "len", 10));
}

static inline void pass_gate(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    gate->inside++;
    pthread_cond_broadcast(&gate->changed);
    while (!gate->open)
        pthread_cond_wait(&gate->changed, &gate->lock);
    pthread_mutex_unlock(&gate->lock);
}

static inline void handle_slow(void *ctx, const struct http_request *req, struct http_reply *reply)
{
    (void)req;
    pass_gate(&((struct fixture *)ctx)->gate);
    http_reply_status(reply, 200);
}

/* /quick/memory needs to wait for nothing, /quick/store does, and takes the refusal for a failure.
 */
static inline void handle_quick(void *ctx, const struct http_request *req, struct http_reply *reply)
{
    struct cairn_error err;

    (void)ctx;
    http_reply_header(reply, "X-Extra", "%d", 42);
    if (strcmp(http_path(req), "/quick/store") == 0 && nowait_check(&err))
        http_reply_failure(reply, &err);
    else
        http_reply_status(reply, 200);
}

static inline bool is_quick(const struct http_request *req)
{
    return strcmp(http_path(req), "/quick/never") != 0;
}

static inline int take_piece(void *ctx, const void *buf, size_t len, struct cairn_error *err)
{
    struct fixture *f = ctx;

    for (size_t i = 0; i < len; i++) {
        if (((const unsigned char *)buf)[i] != pattern(f->received + i))
            return error_set(err, CAIRN_E_CORRUPT, "byte %zu differs", i);
    }
    __atomic_add_fetch(&f->received, len, __ATOMIC_SEQ_CST);
    return CAIRN_OK;
}

/* Waits for the gate. */
static inline int take_piece_slowly(void *ctx, const void *buf, size_t len, struct cairn_error *err)
{
    pass_gate(&((struct fixture *)ctx)->gate);
    return take_piece(ctx, buf, len, err);
}

static inline int fail_piece(void *ctx, const void *buf, size_t len, struct cairn_error *err)
{
    (void)ctx;
    (void)buf;
    (void)len;
    return error_set(err, CAIRN_E_NO_SPACE, "the disk is full");
}

static inline void free_sink(void *ctx)
{
    __atomic_add_fetch(&((struct fixture *)ctx)->sinks_freed, 1, __ATOMIC_SEQ_CST);
}

static inline void begin_sum(void *ctx, struct http_request *req, struct http_reply *reply)
{
    const struct http_sink sink = {take_piece, free_sink, ctx};
    const struct http_sink failing = {fail_piece, free_sink, ctx};
    const struct http_sink slow = {take_piece_slowly, free_sink, ctx};

    if (strcmp(http_path(req), "/sum/refuse") == 0)
        http_reply_error(reply, 409, "CONFLICT", "not now");
    else if (strcmp(http_path(req), "/sum/fail") == 0)
        http_stream_body(req, &failing);
    else if (strcmp(http_path(req), "/sum/slow") == 0)
        http_stream_body(req, &slow);
    else if (strcmp(http_path(req), "/sum/collect") == 0)
        http_collect_body(req, 100);
    else
        http_stream_body(req, &sink);
}

static inline void handle_sum(void *ctx, const struct http_request *req, struct http_reply *reply)
{
    struct fixture *f = ctx;
    char *text;
    int len = asprintf(&text, "received %llu", (unsigned long long)f->received);

    assert_true(http_sink_ctx(req) == ctx || strcmp(http_path(req), "/sum/collect") == 0);
    http_reply_buffer(reply, 201, "text/plain", text, (size_t)len);
}

/* X-User names who asks; nobody and somebody called mallory are refused, the latter wordlessly. */
static inline bool admit_named(void *ctx, struct http_request *req, struct http_reply *reply)
{
    const char *user = http_header(req, "X-User");

    __atomic_add_fetch((unsigned *)ctx, 1, __ATOMIC_SEQ_CST);
    http_set_user(req, user ? user : "");
    if (!user)
        http_reply_error(reply, 401, "UNAUTHORIZED", "who are you?");
    return user && strcmp(user, "mallory") != 0;
}

/* -- Server and client -------------------------------------------------------------------- */

static struct http_route routes[] = {
    {.path = "/echo", .methods = HTTP_POST | HTTP_PUT, .body_max = 3000000, .handle = handle_echo},
    {.path = "/text/", .methods = HTTP_GET | HTTP_HEAD, .handle = handle_text},
    {.path = "/quick/", .methods = HTTP_GET, .handle = handle_quick, .quick = is_quick},
    {.path = "/stream", .methods = HTTP_GET | HTTP_HEAD, .handle = handle_stream},
    {.path = "/chunks", .methods = HTTP_GET | HTTP_HEAD, .handle = handle_chunks},
    {.path = "/file", .methods = HTTP_GET | HTTP_HEAD, .handle = handle_file},
    {.path = "/slow", .methods = HTTP_GET, .handle = handle_slow},
    {.path = "/sum/",
     .methods = HTTP_PUT | HTTP_POST | HTTP_PATCH,
     .begin = begin_sum,
     .handle = handle_sum},
};

/* Long enough for a client that gets no turn on a busy machine. */
#define PATIENCE_S 60

static inline int start_options(void **state, const struct http_options *changes)
{
    const struct http_options options = {
        .listen = "127.0.0.1:0",
        .threads = 2,
        .workers = changes->workers,
        .max_connections = 200,
        .connection_timeout_s = changes->connection_timeout_s,
        .connection_memory = 256 << 10,
        .reply_memory = changes->reply_memory,
        .admission = changes->admission,
        .conns = changes->conns,
    };
    struct fixture *f = calloc(1, sizeof(*f));
    struct cairn_error err;

    assert_non_null(f);
    current = f;
    pthread_mutex_init(&f->gate.lock, NULL);
    pthread_cond_init(&f->gate.changed, NULL);
    for (size_t i = 0; i < sizeof(routes) / sizeof(routes[0]); i++)
        routes[i].ctx = f;
    log_set_level(LOG_LEVEL_ERROR);
    assert_int_equal(
        http_server_start(&options, routes, sizeof(routes) / sizeof(routes[0]), &f->server, &err),
        CAIRN_OK);
    *state = f;
    return 0;
}

static inline int start_with(void **state, unsigned workers, size_t reply_memory,
                             unsigned timeout_s)
{
    const struct http_options changes = {
        .workers = workers,
        .reply_memory = reply_memory,
        .connection_timeout_s = timeout_s,
    };

    return start_options(state, &changes);
}

static inline int setup(void **state)
{
    return start_with(state, 4, 64 << 20, PATIENCE_S);
}

static inline int setup_admitting(void **state)
{
    static unsigned asked;
    const struct http_options changes = {
        .workers = 4,
        .reply_memory = 64 << 20,
        .connection_timeout_s = PATIENCE_S,
        .admission = {admit_named, &asked},
    };

    asked = 0;
    start_options(state, &changes);
    ((struct fixture *)*state)->asked = &asked;
    return 0;
}

static inline int setup_one_worker(void **state)
{
    return start_with(state, 1, 64 << 20, PATIENCE_S);
}

static inline int teardown(void **state)
{
    struct fixture *f = *state;

    http_server_stop(f->server, 5000);
    pthread_cond_destroy(&f->gate.changed);
    pthread_mutex_destroy(&f->gate.lock);
    free(f);
    return 0;
}

static inline int dial(const struct fixture *f)
{
    const struct timeval timeout = {.tv_sec = 20};
    struct sockaddr_in sin = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    sin.sin_port = htons((uint16_t)atoi(strrchr(http_server_address(f->server), ':') + 1));
    sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
    assert_int_equal(connect(fd, (struct sockaddr *)&sin, sizeof(sin)), 0);
    return fd;
}

/* False if the server has closed. */
static inline bool send_all(int fd, const void *buf, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = send(fd, (const char *)buf + done, len - done, MSG_NOSIGNAL);

        if (n <= 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

static inline void send_text(int fd, const char *text)
{
    assert_true(send_all(fd, text, strlen(text)));
}

struct answer {
    unsigned status;
    char *text; /* headers and body */
    char *body;
    size_t body_len;
};

static inline struct answer read_answer(int fd)
{
    struct answer a = {0};
    size_t len = 0, max = 1 << 16;
    ssize_t n;

    a.text = malloc(max + 1);
    while ((n = recv(fd, a.text + len, max - len, 0)) > 0) {
        len += (size_t)n;
        if (len == max)
            a.text = realloc(a.text, (max *= 2) + 1);
        assert_non_null(a.text);
    }
    close(fd);
    a.text[len] = 0;
    a.body = strstr(a.text, "\r\n\r\n");
    if (a.body) {
        a.body += 4;
        a.body_len = len - (size_t)(a.body - a.text);
        a.status = (unsigned)atoi(a.text + strlen("HTTP/1.1 "));
    }
    return a;
}

static inline struct answer request(const struct fixture *f, const char *method, const char *target,
                                    const char *headers)
{
    char head[10000];
    int fd = dial(f);

    snprintf(head, sizeof(head), "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n", method,
             target, headers ? headers : "");
    send_text(fd, head);
    return read_answer(fd);
}

static inline void assert_status(const struct fixture *f, const char *method, const char *target,
                                 unsigned status)
{
    struct answer a = request(f, method, target, NULL);

    if (a.status != status)
        print_error("%s %s: %s\n", method, target, a.text);
    assert_int_equal(a.status, status);
    free(a.text);
}

/* Send len bytes of the pattern as a body, as far as the server takes them. */
static inline void send_body(int fd, uint64_t len)
{
    static unsigned char buf[65536];

    for (uint64_t off = 0; off < len;) {
        size_t n = len - off < sizeof(buf) ? (size_t)(len - off) : sizeof(buf);

        for (size_t i = 0; i < n; i++)
            buf[i] = pattern(off + i);
        if (!send_all(fd, buf, n))
            return;
        off += n;
    }
}

static inline struct answer upload(const struct fixture *f, const char *method, const char *path,
                                   uint64_t len)
{
    char head[300];
    int fd = dial(f);

    snprintf(head, sizeof(head),
             "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %llu\r\n\r\n",
             method, path, (unsigned long long)len);
    send_text(fd, head);
    send_body(fd, len);
    return read_answer(fd);
}

static inline void wait_inside(struct fixture *f, unsigned nr)
{
    pthread_mutex_lock(&f->gate.lock);
    while (f->gate.inside < nr)
        pthread_cond_wait(&f->gate.changed, &f->gate.lock);
    pthread_mutex_unlock(&f->gate.lock);
}

static inline void open_gate(struct fixture *f)
{
    pthread_mutex_lock(&f->gate.lock);
    f->gate.open = true;
    pthread_cond_broadcast(&f->gate.changed);
    pthread_mutex_unlock(&f->gate.lock);
}

static inline void wait_until_freed(const unsigned *counter, unsigned nr)
{
    while (__atomic_load_n(counter, __ATOMIC_SEQ_CST) < nr)
        usleep(1000);
}

#define HTTP_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

#endif
