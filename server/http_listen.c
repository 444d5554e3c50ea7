/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The listening socket and the thread that accepts from it.
 *
 * libmicrohttpd 0.9.75 could do both, but stopping is beyond it: MHD_quiesce_daemon and the threads
 * of its pool remove the socket from the same epoll set, and whoever comes second panics. Accepting
 * by ourselves also lets us say clearly why an address cannot be had.
 */
#include "http_request.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cleanup.h"

#define LISTEN_BACKLOG 1024
/* What the kernel holds of a reply that has not been sent: without it megabytes, for each client that
 * does not read.  What is on its way does not count, so a far client gets no less. */
#define UNSENT_MAX (512 << 10)

/* getaddrinfo takes numbers beyond it. */
static bool is_port(const char *text)
{
    size_t len = strlen(text);

    return len > 0 && len <= 5 && strspn(text, "0123456789") == len && atoi(text) <= 65535;
}

/* Split addr:port or [v6]:port. */
static int split_address(const char *text, char host[NI_MAXHOST], char port[NI_MAXSERV],
                         struct cairn_error *err)
{
    const char *colon = strrchr(text, ':');
    size_t len = colon ? (size_t)(colon - text) : 0;

    if (!colon || len >= NI_MAXHOST || !is_port(colon + 1))
        return error_set(err, CAIRN_E_USAGE, "listen address '%s': expected addr:port", text);
    if (len >= 2 && text[0] == '[' && text[len - 1] == ']') {
        text++;
        len -= 2;
    }
    snprintf(host, NI_MAXHOST, "%.*s", (int)len, text);
    snprintf(port, NI_MAXSERV, "%s", colon + 1);
    return CAIRN_OK;
}

static int bind_socket(const struct addrinfo *ai, int *ret_fd)
{
    CLEANUP_CLOSE int fd =
        socket(ai->ai_family, ai->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, ai->ai_protocol);
    const int on = 1, unsent = UNSENT_MAX; /* connections inherit it */

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof(unsent)) != 0 ||
        bind(fd, ai->ai_addr, ai->ai_addrlen) != 0 || listen(fd, LISTEN_BACKLOG) != 0)
        return errno;
    *ret_fd = steal_fd(&fd);
    return 0;
}

int http_listen(const char *address, int *ret_fd, struct cairn_error *err)
{
    const struct addrinfo hints = {
        .ai_socktype = SOCK_STREAM,
        .ai_flags = AI_PASSIVE | AI_NUMERICSERV,
    };
    char host[NI_MAXHOST], port[NI_MAXSERV];
    struct addrinfo *list;
    int failed = split_address(address, host, port, err);

    if (failed)
        return failed;
    failed = getaddrinfo(host[0] ? host : NULL, port, &hints, &list);
    if (failed)
        return error_set(err, CAIRN_E_USAGE, "listen address '%s': %s", address,
                         gai_strerror(failed));
    failed = EADDRNOTAVAIL;
    for (const struct addrinfo *ai = list; ai && failed; ai = ai->ai_next)
        failed = bind_socket(ai, ret_fd);
    freeaddrinfo(list);
    return failed ? error_set_errno(err, failed, "cannot listen on %s", address) : CAIRN_OK;
}

int http_socket_name(int fd, char *buf, size_t len, struct cairn_error *err)
{
    char host[NI_MAXHOST], port[NI_MAXSERV];
    struct sockaddr_storage ss;
    socklen_t ss_len = sizeof(ss);

    if (getsockname(fd, (struct sockaddr *)&ss, &ss_len) != 0 ||
        getnameinfo((struct sockaddr *)&ss, ss_len, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return error_set_errno(err, errno, "cannot name the listening socket");
    snprintf(buf, len, ss.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
    return CAIRN_OK;
}

/* -- Accepting ---------------------------------------------------------------------------- */

#define OUT_OF_FILES_WAIT_MS 20

struct http_acceptor {
    int listen_fd, stop_fd; /* ours */
    struct http_server *server;
    unsigned next;
    pthread_t thread;
};

/*
 * Say why, as well as that can be said to somebody who has not asked anything yet: closing may
 * overtake it.  Not under TLS, where it would be taken for noise.
 */
static void turn_away(const struct http_acceptor *a, int fd, enum http_conn_refusal refusal)
{
    static const char *const replies[NR_HTTP_CONN_REFUSALS] = {
        [HTTP_CONN_TOO_MANY] =
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
            "Retry-After: 1\r\nConnection: close\r\n\r\n{\"errors\":[{\"code\":\"UNAVAILABLE\","
            "\"message\":\"there are too many connections, try again later\"}]}",
        [HTTP_CONN_TOO_MANY_OF_ONE] =
            "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\n"
            "Retry-After: 1\r\nConnection: close\r\n\r\n{\"errors\":[{\"code\":\"TOOMANYREQUESTS\","
            "\"message\":\"there are too many connections from this address\"}]}",
    };
    const char *reply = a->server->tls ? NULL : replies[refusal];

    if (reply)
        send(fd, reply, strlen(reply), MSG_DONTWAIT | MSG_NOSIGNAL);
    close(fd);
}

/* Connections go to libmicrohttpd's threads in turn; one that it does not want it closes. */
static void hand_over(struct http_acceptor *a, int fd, const struct sockaddr_storage *ss,
                      socklen_t len)
{
    struct http_server *server = a->server;
    enum http_conn_refusal refusal =
        server->conns ? http_conns_admit(server->conns, fd, ss) : HTTP_CONN_ADMITTED;

    if (refusal != HTTP_CONN_ADMITTED) {
        turn_away(a, fd, refusal);
        return;
    }
    if (MHD_add_connection(server->daemons[a->next], fd, (const struct sockaddr *)ss, len) !=
            MHD_YES &&
        server->conns)
        http_conns_dropped(server->conns, fd);
    a->next = (a->next + 1) % server->nr_daemons;
}

/* Everything that waits.  False when it makes no sense to try again at once. */
static bool accept_all(struct http_acceptor *a)
{
    for (;;) {
        struct sockaddr_storage ss;
        socklen_t len = sizeof(ss);
        int fd = accept4(a->listen_fd, (struct sockaddr *)&ss, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd >= 0)
            hand_over(a, fd, &ss, len);
        else if (errno == EAGAIN)
            return true;
        else if (errno != EINTR && errno != ECONNABORTED)
            return false; /* no descriptors, no memory */
    }
}

static void *acceptor_main(void *arg)
{
    struct http_acceptor *a = arg;
    struct pollfd fds[] = {
        {.fd = a->stop_fd, .events = POLLIN},
        {.fd = a->listen_fd, .events = POLLIN},
    };

    while (poll(fds, 2, -1) < 0 || fds[0].revents == 0) {
        if (!accept_all(a) && poll(fds, 1, OUT_OF_FILES_WAIT_MS) > 0)
            break;
    }
    return NULL;
}

int http_acceptor_start(int listen_fd, struct http_server *server,
                        struct http_acceptor **ret_acceptor, struct cairn_error *err)
{
    CLEANUP_FREE struct http_acceptor *a = calloc(1, sizeof(*a));
    CLEANUP_CLOSE int stop_fd = eventfd(0, EFD_CLOEXEC);
    int failed;

    if (!a)
        return error_no_memory(err, "the HTTP server");
    if (stop_fd < 0)
        return error_set_errno(err, errno, "cannot make an event descriptor");
    *a = (struct http_acceptor){.listen_fd = listen_fd, .stop_fd = stop_fd, .server = server};
    failed = pthread_create(&a->thread, NULL, acceptor_main, a);
    if (failed)
        return error_set_errno(err, failed, "cannot start the thread that accepts");
    steal_fd(&stop_fd);
    *ret_acceptor = steal_ptr(a);
    return CAIRN_OK;
}

void http_acceptor_stop(struct http_acceptor *a)
{
    if (!a)
        return;
    eventfd_write(a->stop_fd, 1);
    pthread_join(a->thread, NULL);
    close(a->listen_fd);
    close(a->stop_fd);
    free(a);
}
