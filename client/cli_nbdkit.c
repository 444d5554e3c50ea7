/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One process, three descriptors to poll: our signals, its words, and while it starts its socket.
 * Its words are kept while it starts, for our one message if that fails; later they are passed on
 * to stderr.
 */
#include "cli_nbdkit.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bytes.h"
#include "cleanup.h"
#include "cli.h"

#define PLUGIN_FILE      "nbdkit-cairn-plugin.so"
#define START_DEADLINE_S 600 /* more than requests to the service and a check of a large layer */
#define STOP_DEADLINE_S  600 /* a flush of much memory to a slow disk */
#define START_POLL_MS    5
#define ARGS_MAX         24

/* -- The socket ----------------------------------------------------------------------------- */

static int connect_socket(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof(address)) != 0)
        return -1;
    return steal_fd(&fd);
}

/* A socket that a dead process left is removed; one that answers is not ours to take. */
static int clear_socket(const char *path, struct cairn_error *err)
{
    CLEANUP_CLOSE int fd = connect_socket(path);
    const int refused = errno;
    struct stat st;

    if (fd >= 0)
        return error_set(err, CAIRN_E_CONFLICT, "%s: another process listens there", path);
    if (lstat(path, &st) != 0)
        return CAIRN_OK;
    if (!S_ISSOCK(st.st_mode)) /* connecting to any file is refused */
        return error_set(err, CAIRN_E_CONFLICT, "%s exists and is not a socket", path);
    if (refused == ECONNREFUSED)
        unlink(path);
    return CAIRN_OK;
}

/* -- Starting ------------------------------------------------------------------------------- */

/* From the build tree, from an installation, else by its name, in nbdkit's own folder. */
static char *find_plugin(void)
{
    static const char *const places[] = {"../lib/" PLUGIN_FILE,
                                         "../" CAIRN_LIBDIR "/nbdkit/plugins/" PLUGIN_FILE};
    const char *given = getenv("CAIRN_NBD_PLUGIN");
    char exe[PATH_MAX];
    ssize_t len = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
    char *slash, *path;

    if (given && *given)
        return strdup(given);
    exe[len > 0 ? len : 0] = 0;
    slash = strrchr(exe, '/');
    for (size_t i = 0; slash && i < sizeof(places) / sizeof(places[0]); i++) {
        if (asprintf(&path, "%.*s/%s", (int)(slash - exe), exe, places[i]) < 0)
            return NULL;
        if (access(path, R_OK) == 0)
            return path;
        free(path);
    }
    return strdup("cairn");
}

/* In the child; only what may be done after a fork. */
static void become_nbdkit(const struct nbdkit *n, char *const argv[], pid_t parent, int log_fd,
                          const int kept_fds[2])
{
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);

    setpgid(0, 0); /* ^C is for us, who pass it on */
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(1);
    sigprocmask(SIG_SETMASK, &n->signals, NULL);
    dup2(null_fd, STDIN_FILENO);
    dup2(log_fd, STDOUT_FILENO);
    dup2(log_fd, STDERR_FILENO);
    fcntl(kept_fds[0], F_SETFD, 0);
    fcntl(kept_fds[1], F_SETFD, 0);
    execvp(argv[0], argv);
    dprintf(STDERR_FILENO, "cannot run nbdkit: %s\n", strerror(errno));
    _exit(1);
}

/* name=value, or NULL without value; out of memory shows as an argument too few. */
static char *parameter(const char *name, const char *value)
{
    char *text;

    return value && asprintf(&text, "%s=%s", name, value) >= 0 ? text : NULL;
}

/* NULL-terminated and malloc'ed. */
static void make_args(const struct nbdkit_params *params, const int kept_fds[2],
                      char *args[ARGS_MAX])
{
    char stop_text[16], closed_text[16];
    char *const candidates[] = {
        strdup("nbdkit"),
        strdup("-f"),
        strdup("--unix"),
        strdup(params->socket),
        params->read_only ? strdup("-r") : NULL,
        find_plugin(),
        parameter("ref", params->ref),
        parameter("disk", params->disk),
        parameter("read-only", params->read_only ? "true" : NULL),
        parameter("server", params->server),
        parameter("token-file", params->token_file),
        parameter("cacert", params->cacert),
        parameter("cert", params->cert),
        parameter("key", params->key),
        parameter("insecure-token", params->insecure_token ? "true" : NULL),
        parameter("lease", params->lease),
        parameter("cache", params->cache),
        parameter("cache-size", params->cache_size),
        parameter("stop-fd", (sprintf(stop_text, "%d", kept_fds[0]), stop_text)),
        parameter("closed-fd", (sprintf(closed_text, "%d", kept_fds[1]), closed_text)),
    };
    size_t nr = 0;

    for (size_t i = 0; i < sizeof(candidates) / sizeof(candidates[0]); i++)
        if (candidates[i])
            args[nr++] = candidates[i];
    args[nr] = NULL;
}

static int spawn(struct nbdkit *n, const struct nbdkit_params *params, int log_fd,
                 const int kept_fds[2], struct cairn_error *err)
{
    char *args[ARGS_MAX];
    pid_t parent = getpid();
    pid_t pid;

    make_args(params, kept_fds, args);
    pid = fork();
    if (pid == 0)
        become_nbdkit(n, args, parent, log_fd, kept_fds);
    for (size_t i = 0; args[i]; i++)
        free(args[i]);
    if (pid < 0)
        return error_set_errno(err, errno, "cannot fork");
    n->pid = pid;
    return CAIRN_OK;
}

static int make_pipe(int *ret_read_fd, int *ret_write_fd, struct cairn_error *err)
{
    int fds[2];

    if (pipe2(fds, O_CLOEXEC) != 0)
        return error_set_errno(err, errno, "cannot make a pipe");
    fcntl(fds[0], F_SETFL, O_NONBLOCK);
    *ret_read_fd = fds[0];
    *ret_write_fd = fds[1];
    return CAIRN_OK;
}

static int take_signals(struct nbdkit *n, struct cairn_error *err)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, &n->signals);
    n->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (n->signal_fd < 0)
        return error_set_errno(err, errno, "cannot make a signalfd");
    return CAIRN_OK;
}

int nbdkit_start(struct nbdkit *n, const struct nbdkit_params *params, struct cairn_error *err)
{
    CLEANUP_CLOSE int log_fd = -1;
    CLEANUP_CLOSE int stop_fd = -1;
    CLEANUP_CLOSE int closed_fd = -1;
    int ret;

    *n = (struct nbdkit){.signal_fd = -1, .log_fd = -1, .stop_fd = -1, .closed_fd = -1};
    ret = take_signals(n, err);
    if (ret == CAIRN_OK)
        ret = make_pipe(&n->log_fd, &log_fd, err);
    if (ret == CAIRN_OK)
        ret = make_pipe(&stop_fd, &n->stop_fd, err);
    if (ret == CAIRN_OK)
        ret = make_pipe(&n->closed_fd, &closed_fd, err);
    if (ret == CAIRN_OK)
        ret = clear_socket(params->socket, err);
    if (ret != CAIRN_OK)
        return ret;
    memcpy(n->socket, params->socket, sizeof(n->socket));
    return spawn(n, params, log_fd, (const int[]){stop_fd, closed_fd}, err);
}

/* -- What nbdkit says ----------------------------------------------------------------------- */

/* Of "nbdkit: cairn[1]: error: text" the text is kept; what else it says only for want of an error.
 */
static void end_line(struct nbdkit *n)
{
    const char *error;

    n->line[n->line_len] = 0;
    error = strstr(n->line, "error: ");
    if (n->line_len > 0 && (error || !n->said_error))
        snprintf(n->last_words, sizeof(n->last_words), "%s",
                 error ? error + strlen("error: ") : n->line);
    n->said_error |= error != NULL;
    n->line_len = 0;
}

/* While it starts, its words are kept for our own message; later they are passed on. */
static void take_log(struct nbdkit *n, bool pass_on)
{
    char buf[4096];
    ssize_t len = read(n->log_fd, buf, sizeof(buf));

    if (len <= 0) {
        close(steal_fd(&n->log_fd));
        return;
    }
    if (pass_on)
        (void)!write(STDERR_FILENO, buf, (size_t)len); /* its reader may be gone */
    for (ssize_t i = 0; i < len; i++) {
        if (buf[i] == '\n' || n->line_len == sizeof(n->line) - 1)
            end_line(n);
        if (buf[i] != '\n')
            n->line[n->line_len++] = buf[i];
    }
}

/* All that is left to hear of an nbdkit that has ended. */
static void drain_log(struct nbdkit *n, bool pass_on)
{
    while (n->log_fd >= 0)
        take_log(n, pass_on);
    end_line(n);
}

/* What it had to say although it did start, as ours. */
static void tell_words(struct nbdkit *n)
{
    struct pollfd log = {.fd = n->log_fd, .events = POLLIN};
    char escaped[CLI_ESCAPE_MAX];

    while (log.fd >= 0 && poll(&log, 1, 0) > 0) {
        take_log(n, false);
        log.fd = n->log_fd;
    }
    if (n->said_error)
        fprintf(stderr, "cairn: %s\n", cli_escape(n->last_words, escaped));
    n->said_error = false;
    n->last_words[0] = 0;
}

static int ended_early(struct nbdkit *n, struct cairn_error *err)
{
    if (WIFSIGNALED(n->status))
        return error_set(err, CAIRN_E_IO, "nbdkit was killed by signal %d%s%s", WTERMSIG(n->status),
                         n->last_words[0] ? ", its last words: " : "", n->last_words);
    return error_set(err, CAIRN_E_IO, "%s",
                     n->last_words[0] ? n->last_words : "nbdkit ended without a word");
}

/* -- Waiting -------------------------------------------------------------------------------- */

static uint64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* Reap nbdkit if it has ended; true if we are asked to stop. */
static bool take_signal(struct nbdkit *n)
{
    struct signalfd_siginfo info;
    bool stop = false;

    while (read(n->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
        stop |= info.ssi_signo != SIGCHLD;
    if (n->pid && waitpid(n->pid, &n->status, WNOHANG) == n->pid)
        n->pid = 0;
    return stop;
}

/* One turn of waiting, also for extra_fd (-1: none); true if we are asked to stop. */
static bool turn(struct nbdkit *n, int extra_fd, int timeout_ms, bool pass_on)
{
    struct pollfd fds[] = {
        {.fd = n->signal_fd, .events = POLLIN},
        {.fd = n->log_fd, .events = POLLIN},
        {.fd = extra_fd, .events = POLLIN},
    };

    poll(fds, 3, timeout_ms);
    if (fds[1].revents)
        take_log(n, pass_on);
    return fds[0].revents && take_signal(n);
}

/* Leave an NBD server politely (NBD_OPT_ABORT), so that it does not log a broken connection. */
static void leave_server(int fd)
{
    unsigned char bytes[20];

    bytes_put_be32(bytes, 1 /* fixed newstyle */);
    memcpy(bytes + 4, "IHAVEOPT", 8);
    bytes_put_be32(bytes + 12, 2 /* abort */);
    bytes_put_be32(bytes + 16, 0 /* no data */);
    if (send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL) == sizeof(bytes)) {
        struct pollfd answer = {.fd = fd, .events = POLLIN};

        poll(&answer, 1, 1000);
    }
}

/* Is it this process that listens where fd is connected to? */
static bool listens(pid_t pid, int fd)
{
    struct ucred peer;
    socklen_t len = sizeof(peer);

    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 && peer.pid == pid;
}

/* Has the server greeted on fd?  Any bytes that it sends first are its greeting. */
static bool greeted(int fd)
{
    char greeting[18];

    return recv(fd, greeting, sizeof(greeting), 0) >= 8 && memcmp(greeting, "NBDMAGIC", 8) == 0;
}

int nbdkit_wait_ready(struct nbdkit *n, const struct nbdkit_params *params, struct cairn_error *err)
{
    uint64_t deadline = now_ms() + START_DEADLINE_S * 1000;
    CLEANUP_CLOSE int fd = -1;

    while (n->pid && now_ms() < deadline) {
        if (fd < 0)
            fd = connect_socket(params->socket);
        if (fd >= 0 && !listens(n->pid, fd)) /* another one was faster; ours is about to say so */
            close(steal_fd(&fd));
        if (fd >= 0 && greeted(fd)) {
            leave_server(fd);
            tell_words(n);
            return CAIRN_OK;
        }
        if (turn(n, fd, fd < 0 ? START_POLL_MS : 1000, false))
            return error_set(err, CAIRN_E_CANCELLED, "interrupted");
    }
    if (n->pid)
        return error_set(err, CAIRN_E_UNAVAILABLE, "nbdkit did not answer on %s within %d s",
                         params->socket, START_DEADLINE_S);
    drain_log(n, false);
    return ended_early(n, err);
}

int nbdkit_wait_ended(struct nbdkit *n, bool stop, struct cairn_error *err)
{
    uint64_t deadline = UINT64_MAX;
    char byte;

    while (n->pid) {
        if (stop && deadline == UINT64_MAX) {
            kill(n->pid, SIGTERM);        /* also while it starts */
            close(steal_fd(&n->stop_fd)); /* also if clients are connected */
            deadline = now_ms() + STOP_DEADLINE_S * 1000;
        }
        if (now_ms() > deadline)
            kill(n->pid, SIGKILL);
        stop |= turn(n, -1, 1000, true);
    }
    drain_log(n, true);
    if (deadline == UINT64_MAX)
        return ended_early(n, err);
    if (read(n->closed_fd, &byte, 1) == 1) /* though it may have been aborted later */
        return CAIRN_OK;
    if (WIFSIGNALED(n->status))
        return ended_early(n, err);
    return error_set(err, CAIRN_E_IO, "the disk was not closed well: %s",
                     n->last_words[0] ? n->last_words : "nbdkit did not say why");
}

void nbdkit_release(struct nbdkit *n)
{
    if (n->socket[0])
        clear_socket(n->socket, NULL);
    cleanup_close(&n->stop_fd);
    cleanup_close(&n->signal_fd);
    cleanup_close(&n->log_fd);
    cleanup_close(&n->closed_fd);
}
