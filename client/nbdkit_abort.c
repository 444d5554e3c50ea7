/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nbdkit (1.32) aborts when a client goes away while several answers to it are on their way: after
 * the first that could not be sent, the others find no socket, which an assertion forbids.  So a
 * guest that is killed, or does I/O while the disk is detached, would take with it whatever was
 * acknowledged and not flushed.
 *
 * A signal handler may do next to nothing, so it wakes a thread that waits for that, and waits
 * until the thread is done, or for a deadline.  All threads that abort wait: the first to return
 * from its handler ends the process.
 */
#include "nbdkit_abort.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define LAST_DEADLINE_MS 60000

static pthread_t thread;
static atomic_int thread_id;
static bool started;
static int wake_fd = -1, done_fd = -1;
static atomic_bool tripped;
static void (*last_deed)(void);

static void on_abort(int signal_nr)
{
    struct pollfd done = {.fd = done_fd, .events = POLLIN};
    const uint64_t one = 1;

    (void)signal_nr;
    atomic_store(&tripped, true);
    if (gettid() != atomic_load(&thread_id) && write(wake_fd, &one, sizeof(one)) == sizeof(one))
        poll(&done, 1, LAST_DEADLINE_MS);
}

static void *run(void *arg)
{
    eventfd_t value;

    (void)arg;
    atomic_store(&thread_id, gettid());
    while (eventfd_read(wake_fd, &value) != 0 && errno == EINTR)
        ;
    if (atomic_load(&tripped))
        last_deed();
    eventfd_write(done_fd, 1);
    return NULL;
}

static int start_thread(void)
{
    sigset_t all, before;
    int error;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&thread, NULL, run, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

int abort_guard_start(void (*last)(void))
{
    const struct sigaction action = {.sa_handler = on_abort};
    int error;

    last_deed = last;
    wake_fd = eventfd(0, EFD_CLOEXEC);
    done_fd = eventfd(0, EFD_CLOEXEC);
    if (wake_fd < 0 || done_fd < 0)
        return errno;
    error = start_thread();
    started = error == 0;
    if (started)
        sigaction(SIGABRT, &action, NULL);
    return error;
}

bool abort_guard_tripped(void)
{
    return atomic_load(&tripped);
}

void abort_guard_end(void)
{
    if (!started)
        return;
    signal(SIGABRT, SIG_DFL);
    eventfd_write(wake_fd, 1);
    pthread_join(thread, NULL);
    close(wake_fd);
    close(done_fd);
    started = false;
}
