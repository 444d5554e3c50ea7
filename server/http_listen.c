/* SPDX-License-Identifier: Apache-2.0 */
/* The listening socket: bound by us, so that an address that cannot be had is said clearly. */
#include "http_internal.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cleanup.h"

#define LISTEN_BACKLOG 1024

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
    const int on = 1;

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
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
