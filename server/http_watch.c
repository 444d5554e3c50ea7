/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Watching connections: who is waited for, and is it worth waiting?
 *
 * A thread looks at all connections some times per window and asks the kernel what has moved.  The
 * data path is not touched but for the phase of a request, which is one store.  Whose turn it is
 * shows in the kernel's queues: bytes that were sent and not taken wait for the client; where a
 * body is being read and nothing is there to be read, the client is waited for, too.  Time in which
 * it is our turn, because the store is slow or a worker is not free, is not held against anybody.
 *
 * Over a window (min_rate_window_s of such waiting) a client must have moved min_rate bytes a
 * second.  Headers have header_timeout_s from their first byte on, and a request has
 * request_deadline_s in all.  A connection on which nothing is under way is none of our business:
 * libmicrohttpd's timeout closes it.  Of headers that follow another request on the same connection
 * the first byte is noticed if it came after we looked; until then they count as silence.
 *
 * To cut is to shut the socket down, under the lock that closing it takes first: the descriptor is
 * the connection's own.  The connection's thread then finds it at its end; whatever worker is busy
 * with the request finishes, and its reply goes nowhere.  What was not sent is thrown away.
 */
#include "http_watch.h"

#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "checked.h"
#include "clock.h"
#include "log.h"

#define LOOKS_PER_WINDOW     10
#define LOOK_EVERY_MIN_MS    50
#define TCP_CLOSE_WAIT_STATE 8 /* include/net/tcp_states.h of Linux: not for programs by name */
#define LOOK_EVERY_MAX_MS    2000

/* -- The rule ----------------------------------------------------------------------------- */

static void begin_window(struct http_conn *conn)
{
    conn->waited_us = 0;
    conn->moved = 0;
}

static enum http_turn whose_turn(enum http_conn_phase phase, const struct http_sample *s)
{
    if (phase == HTTP_CONN_BODY)
        return s->unread ? HTTP_TURN_NOBODY : HTTP_TURN_SENDS;
    return s->unsent ? HTTP_TURN_TAKES : HTTP_TURN_NOBODY;
}

/* Has the client moved too little, over a whole window in which it was waited for?  Time counts
 * between two looks that both found it to be the client's turn. */
static bool too_slow(const struct http_limits *limits, struct http_conn *conn, enum http_turn turn,
                     const struct http_sample *s)
{
    const uint64_t window_us = limits->min_rate_window_s * UINT64_C(1000000);
    bool slow;

    if (turn != HTTP_TURN_NOBODY && turn == conn->turn)
        conn->waited_us += s->now_us - conn->seen_us;
    conn->moved += turn == HTTP_TURN_TAKES ? s->acked - conn->acked : s->received - conn->received;
    if (limits->min_rate == 0 || conn->waited_us < window_us)
        return false;
    slow = conn->moved / limits->min_rate < conn->waited_us / 1000000;
    begin_window(conn);
    return slow;
}

static bool is_over(uint64_t since_us, uint64_t now_us, unsigned limit_s)
{
    return limit_s > 0 && now_us > since_us && now_us - since_us >= limit_s * UINT64_C(1000000);
}

/* Headers are coming when their request line is there, or when bytes came in while the connection
 * was idle. */
static void note_headers(struct http_conn *conn, enum http_conn_phase phase,
                         const struct http_sample *s)
{
    bool coming = phase == HTTP_CONN_HEADERS ||
                  (phase == HTTP_CONN_IDLE && !conn->busy && s->received > conn->received);

    if (coming && conn->headers_us == 0)
        conn->headers_us = s->now_us;
    if (phase == HTTP_CONN_BODY || phase == HTTP_CONN_ANSWERING)
        conn->headers_us = 0;
    conn->busy = phase != HTTP_CONN_IDLE;
}

static enum http_cut judge(const struct http_limits *limits, struct http_conn *conn,
                           enum http_conn_phase phase, const struct http_sample *s)
{
    enum http_turn turn = whose_turn(phase, s);

    if (phase != HTTP_CONN_IDLE &&
        is_over(conn->request_seen_us, s->now_us, limits->request_deadline_s))
        return HTTP_CUT_DEADLINE;
    if (conn->headers_us && is_over(conn->headers_us, s->now_us, limits->header_timeout_s))
        return HTTP_CUT_HEADERS;
    if (too_slow(limits, conn, turn, s))
        return turn == HTTP_TURN_TAKES ? HTTP_CUT_REPLY : HTTP_CUT_BODY;
    conn->turn = turn;
    return NR_HTTP_CUTS;
}

enum http_cut http_watch_judge(const struct http_limits *limits, struct http_conn *conn,
                               const struct http_sample *s)
{
    enum http_conn_phase phase = atomic_load_explicit(&conn->phase, memory_order_acquire);
    uint64_t request_us = atomic_load_explicit(&conn->request_us, memory_order_relaxed);
    enum http_cut cut;

    if (conn->request_seen_us != request_us) { /* another request than last time */
        conn->request_seen_us = request_us;
        conn->busy = true;
        if (phase != HTTP_CONN_HEADERS)
            conn->headers_us = 0;
        begin_window(conn);
    }
    note_headers(conn, phase, s);
    cut = judge(limits, conn, phase, s);
    conn->seen_us = s->now_us;
    conn->received = s->received;
    conn->acked = s->acked;
    return cut;
}

/* -- Looking ------------------------------------------------------------------------------ */

/* False: the kernel does not say. */
static bool look_at(const struct http_conn *conn, struct http_sample *ret_sample)
{
    struct tcp_info info = {0};
    socklen_t len = sizeof(info);
    int unread = 0;

    if (getsockopt(conn->fd, IPPROTO_TCP, TCP_INFO, &info, &len) != 0)
        return false;
    if ((atomic_load_explicit(&conn->phase, memory_order_relaxed) == HTTP_CONN_BODY ||
         info.tcpi_state == TCP_CLOSE_WAIT_STATE) &&
        ioctl(conn->fd, FIONREAD, &unread) != 0)
        return false;
    *ret_sample = (struct http_sample){
        .now_us = clock_now_us(),
        .received = info.tcpi_bytes_received,
        .acked = info.tcpi_bytes_acked,
        .unsent = info.tcpi_unacked > 0 || info.tcpi_notsent_bytes > 0,
        .unread = unread > 0,
        .closed = info.tcpi_state == TCP_CLOSE_WAIT_STATE,
    };
    return true;
}

/* A line for each reason, however many there were: whoever makes us cut does not fill the log. */
static void log_cuts(const unsigned cuts[NR_HTTP_CUTS])
{
    static const char *const reasons[NR_HTTP_CUTS] = {
        [HTTP_CUT_HEADERS] = "the headers of a request took longer than header-timeout",
        [HTTP_CUT_BODY] = "a body came more slowly than min-rate",
        [HTTP_CUT_REPLY] = "a reply was fetched more slowly than min-rate",
        [HTTP_CUT_DEADLINE] = "a request took longer than request-deadline",
    };

    for (unsigned i = 0; i < NR_HTTP_CUTS; i++)
        if (cuts[i] > 0)
            log_event(LOG_LEVEL_INFO, "connections-cut", "%u: %s", cuts[i], reasons[i]);
}

/* libmicrohttpd 0.9.75 misses it now and then that a client has closed.  Seen twice, where it is
 * not our turn, the connection waits for nothing. */
static bool is_forgotten(struct http_conn *conn, const struct http_sample *s)
{
    bool closed = s->closed && !s->unread && !s->unsent &&
                  atomic_load_explicit(&conn->phase, memory_order_relaxed) != HTTP_CONN_ANSWERING;
    bool again = closed && conn->closed;

    conn->closed = closed;
    return again;
}

static void end_locked(struct http_conn *conn)
{
    const struct linger at_once = {.l_onoff = 1};

    conn->cut = true;
    setsockopt(conn->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    shutdown(conn->fd, SHUT_RDWR);
}

static void look_at_all(struct http_conns *conns)
{
    unsigned cuts[NR_HTTP_CUTS] = {0};

    pthread_mutex_lock(&conns->lock);
    for (size_t fd = 0; fd < conns->room; fd++) {
        struct http_conn *conn = conns->by_fd[fd];
        struct http_sample sample;
        enum http_cut why;

        if (!conn || !conn->started || conn->cut || !look_at(conn, &sample))
            continue;
        why = http_watch_judge(&conns->limits, conn, &sample);
        if (why != NR_HTTP_CUTS) {
            cuts[why]++;
            conns->cuts[why]++;
        }
        if (why != NR_HTTP_CUTS || is_forgotten(conn, &sample))
            end_locked(conn);
    }
    pthread_mutex_unlock(&conns->lock);
    log_cuts(cuts);
}

/* The shortest of the limits that there are. */
static unsigned look_every_ms(const struct http_limits *limits)
{
    const unsigned all[] = {limits->min_rate ? limits->min_rate_window_s : 0,
                            limits->header_timeout_s, limits->request_deadline_s};
    uint64_t ms = LOOK_EVERY_MAX_MS;

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        if (all[i] > 0)
            ms = min_u64(ms, all[i] * UINT64_C(1000) / LOOKS_PER_WINDOW);
    return (unsigned)max_u64(ms, LOOK_EVERY_MIN_MS);
}

static void *watch(void *arg)
{
    struct http_conns *conns = arg;
    struct pollfd stop = {.fd = conns->stop_fd, .events = POLLIN};
    const int every_ms = (int)look_every_ms(&conns->limits);

    while (poll(&stop, 1, every_ms) <= 0)
        look_at_all(conns);
    return NULL;
}

int http_watch_start(struct http_conns *conns, struct cairn_error *err)
{
    const struct http_limits *limits = &conns->limits;
    CLEANUP_CLOSE int stop_fd = -1;
    int failed;

    conns->stop_fd = -1;
    if (!limits->min_rate && !limits->header_timeout_s && !limits->request_deadline_s)
        return CAIRN_OK;
    stop_fd = eventfd(0, EFD_CLOEXEC);
    if (stop_fd < 0)
        return error_set_errno(err, errno, "cannot make an event descriptor");
    conns->stop_fd = stop_fd;
    failed = pthread_create(&conns->thread, NULL, watch, conns);
    if (failed) {
        conns->stop_fd = -1;
        return error_set_errno(err, failed, "cannot start the thread that watches connections");
    }
    steal_fd(&stop_fd);
    return CAIRN_OK;
}

void http_watch_stop(struct http_conns *conns)
{
    if (conns->stop_fd < 0)
        return;
    eventfd_write(conns->stop_fd, 1);
    pthread_join(conns->thread, NULL);
    close(conns->stop_fd);
    conns->stop_fd = -1;
}
