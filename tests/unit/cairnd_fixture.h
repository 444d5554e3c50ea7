/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A real cairnd for a group of tests, on a free port of 127.0.0.1, with its store in the working
 * folder; it ends with the test program, however that ends.
 */
#ifndef TESTS_UNIT_CAIRND_FIXTURE_H
#define TESTS_UNIT_CAIRND_FIXTURE_H

#include "qemu.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#define CAIRND_START_MS 60000

struct cairnd {
    pid_t pid;
    char url[64];
};

static inline void cairnd_exec(void)
{
    int log = open("cairnd.log", O_WRONLY | O_CREAT | O_APPEND, 0600);

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    execl(CAIRND, CAIRND, "--listen", "127.0.0.1:0", "--store", "fs:store", "--port-file", "port",
          (char *)NULL);
    _exit(127);
}

/* The file appears with all of the address in it. */
static inline bool cairnd_read_port(struct cairnd *cairnd)
{
    FILE *file = fopen("port", "r");
    unsigned port = 0;

    if (!file)
        return false;
    assert_int_equal(fscanf(file, "127.0.0.1:%u", &port), 1);
    fclose(file);
    snprintf(cairnd->url, sizeof(cairnd->url), "http://127.0.0.1:%u", port);
    return true;
}

static inline void cairnd_start(struct cairnd *cairnd)
{
    const struct timespec pause = {.tv_nsec = 10000000};

    cairnd->pid = fork();
    if (cairnd->pid == 0)
        cairnd_exec();
    for (unsigned ms = 0; !cairnd_read_port(cairnd); ms += 10) {
        if (ms > CAIRND_START_MS || waitpid(cairnd->pid, NULL, WNOHANG) != 0)
            sh("cat cairnd.log; false");
        nanosleep(&pause, NULL);
    }
}

/* It must have worked well to its end. */
static inline void cairnd_stop(struct cairnd *cairnd)
{
    int status;

    kill(cairnd->pid, SIGTERM);
    assert_int_equal(waitpid(cairnd->pid, &status, 0), cairnd->pid);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        sh("cat cairnd.log; false");
}

#endif
