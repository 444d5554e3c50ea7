/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nbdkit as a child of the cairn command: started with the cairn plugin, watched, ended.
 */
#ifndef CLIENT_CLI_NBDKIT_H
#define CLIENT_CLI_NBDKIT_H

#include <signal.h>
#include <stdbool.h>
#include <sys/un.h>

#include "error.h"

#define NBDKIT_SOCKET_MAX sizeof(((struct sockaddr_un *)0)->sun_path)

struct nbdkit_params {
    const char *ref, *disk, *server;              /* each may be NULL */
    const char *cache, *cache_size;               /* as given, or NULL */
    const char *token_file, *cacert, *cert, *key; /* as given, or NULL */
    const char *lease;                            /* likewise */
    bool insecure_token;
    bool read_only;
    char socket[NBDKIT_SOCKET_MAX]; /* absolute */
};

struct nbdkit {
    sigset_t signals; /* as they were before */
    int signal_fd;
    int log_fd;                     /* what it says */
    int stop_fd;                    /* to be closed when it has to end */
    int closed_fd;                  /* a byte, once the disk is flushed and closed */
    char socket[NBDKIT_SOCKET_MAX]; /* empty: there is none of ours */
    pid_t pid;                      /* 0: it has ended, and been waited for */
    int status;                     /* then: as waitpid gives it */

    size_t line_len; /* of its words that do not end in a newline yet */
    char line[CAIRN_ERROR_MESSAGE_MAX];
    char last_words[CAIRN_ERROR_MESSAGE_MAX]; /* the last error, else the last line */
    bool said_error;
};

/* From here on SIGINT, SIGTERM, SIGHUP and SIGCHLD are taken by the functions below. */
int nbdkit_start(struct nbdkit *n, const struct nbdkit_params *params, struct cairn_error *err);

/* Until an NBD server answers on the socket: then the disk is open. */
int nbdkit_wait_ready(struct nbdkit *n, const struct nbdkit_params *params,
                      struct cairn_error *err);

/* Until it has ended, which a signal to us makes it do, or stop at once.  OK: it was asked to, and
 * the disk was flushed and closed. */
int nbdkit_wait_ended(struct nbdkit *n, bool stop, struct cairn_error *err);

/* Once it has ended, or was never started. */
void nbdkit_release(struct nbdkit *n);

#endif
