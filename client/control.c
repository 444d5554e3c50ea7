/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control protocol: a Unix stream socket of mode 0600, one request a connection, JSON objects,
 * one a line, of at most 64 KiB.
 *
 *   asked     {"op":"info"}
 *             {"op":"snapshot","ref":"repo:tag","compress":"zstd","level":n}   the last two may be
 *                                                                              missing
 *   answered  {"progress":{"what":"…","done":n,"total":n}}   any number, at least one a second
 *             {"result":…}                                   info: an object; snapshot: a ref,
 *             {"result":…,"notice":"…"}                      and perhaps what the user should know
 *             {"error":{"code":n,"errno":n,"message":"…"}}   codes of cairn_error.h
 *
 * Whoever asked for a snapshot and hangs up has cancelled it.
 *
 * One thread accepts, each connection has a thread, and a snapshot runs in one more, so that its
 * connection can be watched meanwhile: the snapshot itself never touches the socket.  All waits on
 * the peer have deadlines.
 *
 * A socket's path is limited to 107 bytes; a longer folder is reached by /proc/self/fd.
 */
#include "control.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "disk.h"
#include "json_memory.h"
#include "quote.h"
#include "sealing.h"

#define LINE_MAX_BYTES   ((size_t)64 << 10)
#define CONNECTIONS_MAX  16
#define PEER_DEADLINE_S  10 /* to send a request, to take an answer */
#define ANSWER_SILENCE_S 30 /* an asker hears something every second */
#define PROGRESS_MS      250

/* -- Sockets and lines ---------------------------------------------------------------------- */

/* In the folder, by its path, or by folder_fd if that is too long. */
static void make_address(const char *folder, int folder_fd, struct sockaddr_un *ret_address)
{
    int n;

    memset(ret_address, 0, sizeof(*ret_address));
    ret_address->sun_family = AF_UNIX;
    n = snprintf(ret_address->sun_path, sizeof(ret_address->sun_path), "%s/" DISK_FOLDER_CONTROL,
                 folder);
    if (n >= (int)sizeof(ret_address->sun_path))
        snprintf(ret_address->sun_path, sizeof(ret_address->sun_path),
                 "/proc/self/fd/%d/" DISK_FOLDER_CONTROL, folder_fd);
}

static void set_deadlines(int fd, int receive_s)
{
    const struct timeval receive = {.tv_sec = receive_s}, send = {.tv_sec = PEER_DEADLINE_S};

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &receive, sizeof(receive));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &send, sizeof(send));
}

static int closed(struct cairn_error *err)
{
    return error_set(err, CAIRN_E_UNAVAILABLE, "control socket: closed by the other side");
}

/* Takes over the reference to json; NULL is out of memory. */
static int send_line(int fd, json_t *json, struct cairn_error *err)
{
    CLEANUP_FREE char *text = NULL;
    int ret = json_memory_dump(json, JSON_COMPACT, &text, err);
    size_t len, sent = 0;

    json_decref(json);
    if (ret != CAIRN_OK)
        return ret;
    len = strlen(text);
    text[len++] = '\n'; /* in the place of its zero */
    while (sent < len) {
        ssize_t n = send(fd, text + sent, len - sent, MSG_NOSIGNAL);

        if (n < 0 && errno == EPIPE)
            return closed(err);
        if (n < 0 && errno != EINTR)
            return error_set_errno(err, errno, "cannot send to the control socket");
        if (n > 0)
            sent += (size_t)n;
    }
    return CAIRN_OK;
}

struct line_reader {
    int fd;
    size_t used;
    char buf[LINE_MAX_BYTES];
};

static int parse_line(const char *line, size_t len, json_t **ret_json, struct cairn_error *err)
{
    int ret = json_memory_load(line, len, JSON_REJECT_DUPLICATES, ret_json, NULL, err);

    if (ret != CAIRN_OK || json_is_object(*ret_json))
        return ret;
    json_decref(*ret_json);
    return error_set(err, CAIRN_E_CORRUPT, "control socket: expected a JSON object on a line");
}

static int receive_more(struct line_reader *r, struct cairn_error *err)
{
    ssize_t n;

    if (r->used == sizeof(r->buf))
        return error_set(err, CAIRN_E_LIMIT, "control socket: a line of more than %zu bytes",
                         sizeof(r->buf));
    do
        n = recv(r->fd, r->buf + r->used, sizeof(r->buf) - r->used, 0);
    while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return error_set(err, CAIRN_E_UNAVAILABLE, "control socket: no answer in time");
    if (n == 0 || (n < 0 && errno == ECONNRESET))
        return closed(err);
    if (n < 0)
        return error_set_errno(err, errno, "cannot read from the control socket");
    r->used += (size_t)n;
    return CAIRN_OK;
}

static int receive_line(struct line_reader *r, json_t **ret_json, struct cairn_error *err)
{
    char *end;
    size_t len;
    int ret;

    while (!(end = memchr(r->buf, '\n', r->used))) {
        ret = receive_more(r, err);
        if (ret != CAIRN_OK)
            return ret;
    }
    len = (size_t)(end - r->buf);
    ret = parse_line(r->buf, len, ret_json, err);
    r->used -= len + 1;
    memmove(r->buf, end + 1, r->used);
    return ret;
}

/* Threads of a library take none of the program's signals. */
static int start_thread(pthread_t *ret_thread, void *(*run)(void *), void *arg,
                        struct cairn_error *err)
{
    sigset_t all, before;
    int code;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    code = pthread_create(ret_thread, NULL, run, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0)
        return error_set_errno(err, code, "cannot start a thread");
    return CAIRN_OK;
}

/* -- The side that answers ------------------------------------------------------------------ */

struct control {
    struct cairn_disk *disk;
    int listen_fd;
    int stop_fd; /* readable for ever once it is time to stop */
    pthread_t acceptor;

    pthread_mutex_t lock;
    pthread_cond_t idle;
    unsigned nr_connections;
    struct connection *slots[CONNECTIONS_MAX]; /* NULL: free */
};

struct connection {
    struct control *control;
    struct connection **slot; /* where control has it */
    struct line_reader reader;
};

/* A snapshot that runs in its own thread, watched by its connection's. */
struct operation {
    struct cairn_disk *disk;
    const char *ref;
    struct cairn_seal_options options;
    struct cairn_client *client; /* like the disk's, with our progress */
    atomic_bool cancelled;
    int done_fd; /* readable once what follows is set */

    int code;
    struct cairn_error err;
    char *ret_ref, *notice;

    pthread_mutex_t lock; /* what is below */
    char what[128];
    uint64_t done, total;
};

static json_t *error_json(const struct cairn_error *err)
{
    /* A cut message may end in the middle of a character; jansson takes only whole ones. */
    json_t *message = json_string(err->message);

    if (!message) {
        char quoted[QUOTE_MAX];

        message = json_string(quote_str(err->message, quoted));
    }
    return json_pack("{s:{s:i, s:i, s:o}}", "error", "code", (int)err->code, "errno",
                     err->sys_errno, "message", message);
}

/* Tell an error, of a message without quotes, without taking memory. */
static void send_refusal(int fd, const struct cairn_error *err)
{
    char line[CAIRN_ERROR_MESSAGE_MAX + 64];
    int len =
        snprintf(line, sizeof(line), "{\"error\":{\"code\":%d,\"errno\":%d,\"message\":\"%s\"}}\n",
                 (int)err->code, err->sys_errno, err->message);

    send(fd, line, (size_t)len, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static int on_progress(void *ctx, const char *what, uint64_t done_bytes, uint64_t total_bytes)
{
    struct operation *op = ctx;

    pthread_mutex_lock(&op->lock);
    snprintf(op->what, sizeof(op->what), "%s", what);
    op->done = done_bytes;
    op->total = total_bytes;
    pthread_mutex_unlock(&op->lock);
    return atomic_load(&op->cancelled);
}

static json_t *progress_json(struct operation *op)
{
    SCOPED_LOCK(&op->lock);
    return json_pack("{s:{s:s, s:I, s:I}}", "progress", "what", op->what, "done",
                     (json_int_t)op->done, "total", (json_int_t)op->total);
}

static void *operation_main(void *arg)
{
    struct operation *op = arg;

    op->code = disk_snapshot(op->disk, op->client, op->ref, &op->options, &op->ret_ref, &op->notice,
                             &op->err);
    eventfd_write(op->done_fd, 1);
    return NULL;
}

static int operation_init(struct operation *op, struct cairn_disk *disk, const char *ref,
                          const struct cairn_seal_options *options, struct cairn_error *err)
{
    memset(op, 0, sizeof(*op));
    op->disk = disk;
    op->ref = ref;
    op->options = *options;
    snprintf(op->what, sizeof(op->what), "snapshot");
    pthread_mutex_init(&op->lock, NULL);
    op->done_fd = eventfd(0, EFD_CLOEXEC);
    if (op->done_fd < 0)
        return error_set_errno(err, errno, "cannot make an eventfd");
    return client_new_like(disk->client, on_progress, op, &op->client, err);
}

static void operation_release(struct operation *op)
{
    cleanup_close(&op->done_fd);
    cairn_client_free(op->client);
    pthread_mutex_destroy(&op->lock);
    free(op->ret_ref);
    free(op->notice);
}

/* False: nobody hears it. */
static bool send_progress(int fd, struct operation *op)
{
    int ret = send_line(fd, progress_json(op), NULL);

    return ret == CAIRN_OK || ret == CAIRN_E_NO_MEMORY;
}

/* Until the operation is done; sends progress, and cancels when nobody waits for it any more. */
static void watch(struct connection *conn, struct operation *op)
{
    struct pollfd fds[] = {
        {.fd = op->done_fd, .events = POLLIN},
        {.fd = conn->reader.fd, .events = POLLRDHUP},
        {.fd = conn->control->stop_fd, .events = POLLIN},
    };

    for (;;) {
        int n = poll(fds, sizeof(fds) / sizeof(fds[0]), PROGRESS_MS);

        if (fds[0].revents)
            return;
        if (n > 0 || !send_progress(conn->reader.fd, op)) {
            atomic_store(&op->cancelled, true);
            fds[1].fd = fds[2].fd = -1;
        }
    }
}

static int run_snapshot(struct connection *conn, const char *ref,
                        const struct cairn_seal_options *options, json_t **ret_result,
                        struct cairn_error *err)
{
    struct operation op;
    pthread_t thread;
    int ret = operation_init(&op, conn->control->disk, ref, options, err);

    if (ret == CAIRN_OK)
        ret = start_thread(&thread, operation_main, &op, err);
    if (ret == CAIRN_OK) {
        watch(conn, &op);
        pthread_join(thread, NULL);
        ret = op.code;
        if (ret == CAIRN_OK)
            *ret_result = json_pack("{s:s, s:s*}", "result", op.ret_ref, "notice", op.notice);
        else
            *err = op.err;
    }
    operation_release(&op);
    return ret;
}

static int run_info(struct connection *conn, json_t **ret_result, struct cairn_error *err)
{
    CLEANUP_FREE char *text = NULL;
    json_t *info;
    int ret = cairn_disk_info(conn->control->disk, &text, err);

    if (ret == CAIRN_OK)
        ret = json_memory_load(text, strlen(text), 0, &info, NULL, err);
    if (ret == CAIRN_OK)
        *ret_result = json_pack("{s:o}", "result", info);
    return ret;
}

static int take_options(const json_t *request, struct cairn_seal_options *ret_options,
                        struct cairn_error *err)
{
    const json_t *compress = json_object_get(request, "compress");
    char quoted[QUOTE_MAX];

    *ret_options = (struct cairn_seal_options)CAIRN_SEAL_OPTIONS_INIT;
    ret_options->level = (int)json_integer_value(json_object_get(request, "level"));
    if (!compress || sealing_by_name(json_string_value(compress), &ret_options->compress))
        return CAIRN_OK;
    return error_set(
        err, CAIRN_E_USAGE, "control socket: field \"compress\" is %s, expected none, zlib or zstd",
        json_is_string(compress) ? quote_str(json_string_value(compress), quoted) : "no text");
}

static int run_request(struct connection *conn, const json_t *request, json_t **ret_result,
                       struct cairn_error *err)
{
    const char *op = json_string_value(json_object_get(request, "op"));
    const char *ref = json_string_value(json_object_get(request, "ref"));
    struct cairn_seal_options options;
    char quoted[QUOTE_MAX];
    int ret;

    if (op && strcmp(op, "info") == 0)
        return run_info(conn, ret_result, err);
    if (!op || strcmp(op, "snapshot") != 0)
        return error_set(err, CAIRN_E_USAGE,
                         "control socket: field \"op\" is %s, expected "
                         "\"snapshot\" or \"info\"",
                         op ? quote_str(op, quoted) : "missing");
    if (!ref)
        return error_set(err, CAIRN_E_USAGE, "control socket: field \"ref\" is missing");
    ret = take_options(request, &options, err);
    return ret == CAIRN_OK ? run_snapshot(conn, ref, &options, ret_result, err) : ret;
}

static void serve(struct connection *conn)
{
    json_t *request = NULL, *answer = NULL;
    struct cairn_error err;
    int ret = receive_line(&conn->reader, &request, &err);

    if (ret == CAIRN_OK) {
        ret = run_request(conn, request, &answer, &err);
        json_decref(request);
    }
    ret = send_line(conn->reader.fd, ret == CAIRN_OK ? answer : error_json(&err), &err);
    if (ret == CAIRN_E_NO_MEMORY)
        send_refusal(conn->reader.fd, &err);
}

static void *connection_main(void *arg)
{
    struct connection *conn = arg;
    struct control *control = conn->control;

    set_deadlines(conn->reader.fd, PEER_DEADLINE_S);
    serve(conn);
    pthread_mutex_lock(&control->lock);
    *conn->slot = NULL;
    close(conn->reader.fd);
    free(conn);
    if (--control->nr_connections == 0)
        pthread_cond_signal(&control->idle);
    pthread_mutex_unlock(&control->lock);
    return NULL;
}

static struct connection **free_slot_locked(struct control *control)
{
    for (size_t i = 0; i < CONNECTIONS_MAX; i++)
        if (!control->slots[i])
            return &control->slots[i];
    return NULL;
}

static int start_connection_locked(struct control *control, struct connection *conn,
                                   struct cairn_error *err)
{
    pthread_t thread;
    int ret;

    conn->slot = free_slot_locked(control);
    if (!conn->slot)
        return error_set(err, CAIRN_E_LIMIT, "control socket: %d connections are open already",
                         CONNECTIONS_MAX);
    ret = start_thread(&thread, connection_main, conn, err);
    if (ret != CAIRN_OK)
        return ret;
    pthread_detach(thread);
    *conn->slot = conn;
    control->nr_connections++;
    return CAIRN_OK;
}

static int start_connection(struct control *control, int fd, struct cairn_error *err)
{
    CLEANUP_FREE struct connection *conn = malloc(sizeof(*conn));
    int ret;

    if (!conn)
        return error_no_memory(err, "a connection to the control socket");
    conn->control = control;
    conn->reader.fd = fd;
    conn->reader.used = 0;
    pthread_mutex_lock(&control->lock);
    ret = start_connection_locked(control, conn, err);
    pthread_mutex_unlock(&control->lock);
    if (ret == CAIRN_OK)
        steal_ptr(conn);
    return ret;
}

/* Owns fd. */
static void take_connection(struct control *control, int fd)
{
    struct cairn_error err;

    if (start_connection(control, fd, &err) == CAIRN_OK)
        return;
    send_refusal(fd, &err);
    close(fd);
}

static void *acceptor_main(void *arg)
{
    struct control *control = arg;
    struct pollfd fds[] = {
        {.fd = control->stop_fd, .events = POLLIN},
        {.fd = control->listen_fd, .events = POLLIN},
    };

    for (;;) {
        int fd;

        poll(fds, 2, -1);
        if (fds[0].revents)
            return NULL;
        fd = accept4(control->listen_fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0)
            take_connection(control, fd);
        else if (errno != EAGAIN && errno != EINTR)
            poll(fds, 1, PROGRESS_MS); /* no descriptors left: not at full speed */
    }
}

/* The folder is locked, so that a socket that is there already is a dead process's. */
static int listen_in_folder(struct control *control, struct cairn_error *err)
{
    struct disk_folder *folder = control->disk->folder;
    CLEANUP_FREE char *path = disk_folder_path(folder, ".");
    struct sockaddr_un address;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    control->listen_fd = fd;
    if (!path)
        return error_no_memory(err, "a path");
    disk_folder_remove(folder, DISK_FOLDER_CONTROL);
    make_address(path, disk_folder_fd(folder), &address);
    /* A socket's file gets the mode that the socket has. */
    if (fd < 0 || fchmod(fd, 0600) != 0 ||
        bind(fd, (const struct sockaddr *)&address, sizeof(address)) != 0 ||
        listen(fd, CONNECTIONS_MAX) != 0)
        return error_set_errno(err, errno, "%s/" DISK_FOLDER_CONTROL ": cannot listen", path);
    return CAIRN_OK;
}

static void control_free(struct control *control)
{
    if (control->listen_fd >= 0)
        close(control->listen_fd);
    if (control->stop_fd >= 0)
        close(control->stop_fd);
    pthread_cond_destroy(&control->idle);
    pthread_mutex_destroy(&control->lock);
    free(control);
}
CLEANUP_DEFINE(struct control *, control_free)

int control_start(struct cairn_disk *disk, struct control **ret_control, struct cairn_error *err)
{
    CLEANUP(control_free_p) struct control *control = calloc(1, sizeof(*control));
    int ret;

    if (!control)
        return error_no_memory(err, "a control socket");
    control->disk = disk;
    control->listen_fd = -1;
    pthread_mutex_init(&control->lock, NULL);
    pthread_cond_init(&control->idle, NULL);
    control->stop_fd = eventfd(0, EFD_CLOEXEC);
    if (control->stop_fd < 0)
        return error_set_errno(err, errno, "cannot make an eventfd");
    ret = listen_in_folder(control, err);
    if (ret == CAIRN_OK)
        ret = start_thread(&control->acceptor, acceptor_main, control, err);
    if (ret == CAIRN_OK)
        *ret_control = steal_ptr(control);
    return ret;
}

void control_stop(struct control *control)
{
    if (!control)
        return;
    disk_folder_remove(control->disk->folder, DISK_FOLDER_CONTROL);
    eventfd_write(control->stop_fd, 1);
    pthread_join(control->acceptor, NULL);
    pthread_mutex_lock(&control->lock);
    for (size_t i = 0; i < CONNECTIONS_MAX; i++)
        if (control->slots[i]) /* it may be waiting for a request */
            shutdown(control->slots[i]->reader.fd, SHUT_RD);
    while (control->nr_connections > 0)
        pthread_cond_wait(&control->idle, &control->lock);
    pthread_mutex_unlock(&control->lock);
    control_free(control);
}

/* -- The side that asks --------------------------------------------------------------------- */

/* *ret_fd is -1 if nobody listens. */
static int connect_to(const char *folder, int *ret_fd, struct cairn_error *err)
{
    CLEANUP_CLOSE int folder_fd = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    CLEANUP_CLOSE int fd = -1;
    struct sockaddr_un address;

    *ret_fd = -1;
    if (folder_fd < 0)
        return CAIRN_OK; /* opening the folder will tell why */
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return error_set_errno(err, errno, "cannot make a socket");
    set_deadlines(fd, ANSWER_SILENCE_S);
    make_address(folder, folder_fd, &address);
    if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0)
        *ret_fd = steal_fd(&fd);
    else if (errno != ENOENT && errno != ECONNREFUSED)
        return error_set_errno(err, errno, "%s/" DISK_FOLDER_CONTROL ": cannot connect", folder);
    return CAIRN_OK;
}

static int take_error(const json_t *error, struct cairn_error *err)
{
    json_int_t code = json_integer_value(json_object_get(error, "code"));
    json_int_t sys_errno = json_integer_value(json_object_get(error, "errno"));
    const char *message = json_string_value(json_object_get(error, "message"));
    int ret;

    if (code >= CAIRN_OK || code < CAIRN_E_DENIED)
        code = CAIRN_E_IO;
    ret = error_set(err, (enum cairn_code)code, "%s", message ? message : "no message");
    if (err && sys_errno > 0 && sys_errno < 4096)
        err->sys_errno = (int)sys_errno;
    return ret;
}

static int take_progress(struct cairn_client *client, const json_t *progress,
                         struct cairn_error *err)
{
    const char *what = json_string_value(json_object_get(progress, "what"));
    json_int_t done = json_integer_value(json_object_get(progress, "done"));
    json_int_t total = json_integer_value(json_object_get(progress, "total"));

    return client_progress(client, what ? what : "", done > 0 ? (uint64_t)done : 0,
                           total > 0 ? (uint64_t)total : 0, err);
}

/* Lines until the last one, which has a "result"; *ret_answer: a new reference to it. */
static int take_answer(struct cairn_client *client, struct line_reader *reader, json_t **ret_answer,
                       struct cairn_error *err)
{
    for (;;) {
        json_t *line, *part;
        int ret = receive_line(reader, &line, err);

        if (ret != CAIRN_OK)
            return ret;
        if ((part = json_object_get(line, "error")))
            ret = take_error(part, err);
        else if ((part = json_object_get(line, "progress")))
            ret = take_progress(client, part, err);
        if (ret == CAIRN_OK && json_object_get(line, "result")) {
            *ret_answer = line;
            return CAIRN_OK;
        }
        json_decref(line);
        if (ret != CAIRN_OK)
            return ret;
    }
}

/* Takes over the reference to request. */
static int ask(struct cairn_client *client, const char *folder, json_t *request, bool *ret_running,
               json_t **ret_answer, struct cairn_error *err)
{
    CLEANUP_FREE struct line_reader *reader = NULL;
    CLEANUP_CLOSE int fd = -1;
    int ret = connect_to(folder, &fd, err);

    *ret_running = ret != CAIRN_OK || fd >= 0;
    if (ret != CAIRN_OK || fd < 0) {
        json_decref(request);
        return ret;
    }
    ret = send_line(fd, request, err);
    if (ret != CAIRN_OK && ret != CAIRN_E_UNAVAILABLE) /* who hangs up may have said why */
        return ret;
    reader = malloc(sizeof(*reader));
    if (!reader)
        return error_no_memory(err, "an answer");
    reader->fd = fd;
    reader->used = 0;
    return take_answer(client, reader, ret_answer, err);
}

/* *ret_copy is NULL if there is no such text. */
static int copy_text(const json_t *answer, const char *field, char **ret_copy,
                     struct cairn_error *err)
{
    const char *text = json_string_value(json_object_get(answer, field));

    *ret_copy = text ? strdup(text) : NULL;
    return text && !*ret_copy ? error_no_memory(err, "an answer") : CAIRN_OK;
}

static int take_snapshot(const json_t *answer, char **ret_ref, char **ret_notice,
                         struct cairn_error *err)
{
    CLEANUP_FREE char *ref = NULL;
    int ret = copy_text(answer, "result", &ref, err);

    if (ret == CAIRN_OK && !ref)
        ret = error_set(err, CAIRN_E_CORRUPT, "control socket: \"result\" is no ref");
    if (ret == CAIRN_OK)
        ret = copy_text(answer, "notice", ret_notice, err);
    if (ret == CAIRN_OK)
        *ret_ref = steal_ptr(ref);
    return ret;
}

int control_ask_snapshot(struct cairn_client *client, const char *folder, const char *ref,
                         const struct cairn_seal_options *options, bool *ret_running,
                         char **ret_ref, char **ret_notice, struct cairn_error *err)
{
    json_t *request = json_pack("{s:s, s:s, s:s, s:i}", "op", "snapshot", "ref", ref, "compress",
                                sealing_name(options->compress), "level", options->level);
    json_t *answer = NULL;
    int ret = ask(client, folder, request, ret_running, &answer, err);

    if (ret != CAIRN_OK || !*ret_running)
        return ret;
    ret = take_snapshot(answer, ret_ref, ret_notice, err);
    json_decref(answer);
    return ret;
}

int control_ask_info(struct cairn_client *client, const char *folder, bool *ret_running,
                     char **ret_json, struct cairn_error *err)
{
    json_t *answer = NULL;
    int ret = ask(client, folder, json_pack("{s:s}", "op", "info"), ret_running, &answer, err);

    if (ret != CAIRN_OK || !*ret_running)
        return ret;
    ret = json_memory_dump(json_object_get(answer, "result"), JSON_COMPACT | JSON_ENCODE_ANY,
                           ret_json, err);
    json_decref(answer);
    return ret;
}
