/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nbdkit does not tell plugins the sockets of its clients, but they are the sockets of this process
 * that have the name of a listening one.  A thread waits for the signal to stop, and then hangs up
 * again and again, for a client may be just on its way in.  At first clients have time to take the
 * answers that are on their way; from one that does not take them it hangs up altogether, or nbdkit
 * would wait for it for ever.
 */
#include "nbdkit_hangup.h"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define AGAIN_MS    50
#define PATIENCE_MS 10000

static pthread_t thread;
static bool started;
static int signal_fd;   /* the pipe */
static int end_fd = -1; /* readable once the thread has to end */

/* A connection that came in over a Unix socket with a name.  Of the control socket too: whoever
 * asked there for something long has to be told. */
static bool is_client(int fd)
{
    struct sockaddr_un address;
    socklen_t len = sizeof(address);
    int listening = 1;
    socklen_t listening_len = sizeof(listening);

    return getsockname(fd, (struct sockaddr *)&address, &len) == 0 &&
           address.sun_family == AF_UNIX && len > sizeof(sa_family_t) &&
           getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &listening_len) == 0 && !listening;
}

static void hang_up(int how)
{
    DIR *dir = opendir("/proc/self/fd");
    struct dirent *de;

    while (dir && (de = readdir(dir))) {
        int fd = atoi(de->d_name);

        if (de->d_name[0] != '.' && is_client(fd))
            shutdown(fd, how);
    }
    if (dir)
        closedir(dir);
}

static void *run(void *arg)
{
    struct pollfd fds[] = {
        {.fd = end_fd, .events = POLLIN},
        {.fd = signal_fd, .events = POLLIN},
    };

    (void)arg;
    poll(fds, 2, -1);
    for (unsigned waited_ms = 0; !fds[0].revents; waited_ms += AGAIN_MS) {
        nbdkit_shutdown();
        hang_up(waited_ms < PATIENCE_MS ? SHUT_RD : SHUT_RDWR);
        poll(fds, 1, AGAIN_MS);
    }
    return NULL;
}

int hangup_start(int stop_fd)
{
    sigset_t all, before;
    int error;

    signal_fd = stop_fd;
    end_fd = eventfd(0, EFD_CLOEXEC);
    if (end_fd < 0)
        return errno;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&thread, NULL, run, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    started = error == 0;
    return error;
}

void hangup_end(void)
{
    if (!started)
        return;
    eventfd_write(end_fd, 1);
    pthread_join(thread, NULL);
    close(end_fd);
    started = false;
}
