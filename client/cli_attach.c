/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `cairn attach`: runs nbdkit with the cairn plugin as a child, for as long as the disk is
 * attached.
 *
 * nbdkit holds the disk.  This process waits until its socket answers, prints the URI, passes on
 * nbdkit's messages and signals, and tells by its exit code whether the last flush succeeded, which
 * the plugin says with a byte on a pipe.  If this process is killed, nbdkit ends as if it had
 * been asked to (by the kernel's signal, and by the end of a pipe); if nbdkit dies, this process
 * ends with what it said last.
 *
 * The socket is DIR/nbd.sock.  A socket's path is limited to 107 bytes: in a longer folder, and for
 * a disk without one, it is in a private folder of its own in $XDG_RUNTIME_DIR or /tmp.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "cli.h"
#include "cli_nbdkit.h"
#include "error.h"
#include "service_notify.h"

struct attach {
    struct nbdkit_params params;
    const char *given_socket; /* NULL: none */
    char *made_dir;           /* the disk folder if it was made here, else NULL */
    char *private_dir;        /* of the socket, or NULL */
    char *pid_file;           /* NULL: not detached */
    struct nbdkit nbdkit;
};

/* -- Paths ---------------------------------------------------------------------------------- */

static int make_private_dir(struct attach *a, struct cairn_error *err)
{
    const char *base = getenv("XDG_RUNTIME_DIR");

    if (asprintf(&a->private_dir, "%s/cairn-XXXXXX", base && *base ? base : "/tmp") < 0) {
        a->private_dir = NULL;
        return error_no_memory(err, "a path");
    }
    if (!mkdtemp(a->private_dir))
        return error_set_errno(err, errno, "%s: cannot make a folder for the socket",
                               a->private_dir);
    if (snprintf(a->params.socket, sizeof(a->params.socket), "%s/nbd.sock", a->private_dir) <
        (int)sizeof(a->params.socket))
        return CAIRN_OK;
    return error_set(err, CAIRN_E_USAGE, "%s: too long for a socket's path; give --socket",
                     a->private_dir);
}

/* A folder for a new disk is made here already, for the socket is in it, if its path fits. */
static int enter_folder(struct attach *a, struct cairn_error *err)
{
    CLEANUP_FREE char *folder = NULL;

    if (a->params.ref && !a->params.read_only && mkdir(a->params.disk, 0700) == 0)
        a->made_dir = strdup(a->params.disk);
    folder = realpath(a->params.disk, NULL);
    if (!folder)
        return error_set_errno(err, errno, "%s: cannot open the disk folder", a->params.disk);
    if (!a->given_socket && strlen(folder) + sizeof("/nbd.sock") <= sizeof(a->params.socket))
        sprintf(a->params.socket, "%s/nbd.sock", folder);
    return CAIRN_OK;
}

/* nbdkit may run in another working directory. */
static int choose_given_socket(struct attach *a, struct cairn_error *err)
{
    const char *given = a->given_socket;
    CLEANUP_FREE char *cwd = given[0] == '/' ? NULL : getcwd(NULL, 0);

    if (given[0] != '/' && !cwd)
        return error_set_errno(err, errno, "cannot tell the working directory");
    if (snprintf(a->params.socket, sizeof(a->params.socket), "%s%s%s", cwd ? cwd : "",
                 cwd ? "/" : "", given) < (int)sizeof(a->params.socket))
        return CAIRN_OK;
    return error_set(err, CAIRN_E_USAGE, "--socket %s: the absolute path has more than %zu bytes",
                     given, sizeof(a->params.socket) - 1);
}

static int choose_socket(struct attach *a, struct cairn_error *err)
{
    int ret = CAIRN_OK;

    if (a->params.disk)
        ret = enter_folder(a, err);
    if (ret != CAIRN_OK || a->params.socket[0])
        return ret;
    return a->given_socket ? choose_given_socket(a, err) : make_private_dir(a, err);
}

/* `nbd+unix:///?socket=…`, whatever bytes the path has. */
#define URI_MAX (3 * NBDKIT_SOCKET_MAX + 32)
static void format_uri(const char *path, char uri[URI_MAX])
{
    static const char plain[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/";
    char *out = uri + sprintf(uri, "nbd+unix:///?socket=");

    for (; *path; path++)
        out += strchr(plain, *path) ? sprintf(out, "%c", *path)
                                    : sprintf(out, "%%%02X", (unsigned)(unsigned char)*path);
}

/* -- Detaching ------------------------------------------------------------------------------ */

/* In the process that was called: wait for the other one to say its URI or to fail, which it tells
 * on our stderr. */
static int await_daemon(pid_t pid, int fd)
{
    char buf[URI_MAX];
    size_t len = 0;
    ssize_t n;
    int status;

    while (len < sizeof(buf) && (n = read(fd, buf + len, sizeof(buf) - len)) > 0)
        len += (size_t)n;
    if (len > 0)
        return fwrite(buf, 1, len, stdout) == len && fflush(stdout) == 0 ? 0 : 1;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

static int write_pid_file(struct attach *a, struct cairn_error *err)
{
    CLEANUP_CLOSE int fd = -1;

    if (asprintf(&a->pid_file, "%s/attach.pid", a->params.disk ? a->params.disk : a->private_dir) <
        0) {
        a->pid_file = NULL;
        return error_no_memory(err, "a path");
    }
    fd = open(a->pid_file, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0 || dprintf(fd, "%d\n", (int)getpid()) < 0)
        return error_set_errno(err, errno, "%s: cannot write", a->pid_file);
    return CAIRN_OK;
}

/* From here on nobody reads what we say, but perhaps the log. */
static int detach_stdio(const struct attach *a, struct cairn_error *err)
{
    CLEANUP_CLOSE int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    CLEANUP_CLOSE int log_fd = -1;
    CLEANUP_FREE char *path = NULL;

    if (a->params.disk && asprintf(&path, "%s/attach.log", a->params.disk) < 0)
        return error_no_memory(err, "a path");
    if (path)
        log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (null_fd < 0 || (path && log_fd < 0))
        return error_set_errno(err, errno, "%s: cannot open", path ? path : "/dev/null");
    dup2(null_fd, STDIN_FILENO);
    dup2(null_fd, STDOUT_FILENO);
    dup2(path ? log_fd : null_fd, STDERR_FILENO);
    return CAIRN_OK;
}

static int detach(struct attach *a, int ready_fd, const char *uri, struct cairn_error *err)
{
    int ret = a->params.disk || a->private_dir ? write_pid_file(a, err) : CAIRN_OK;

    if (ret == CAIRN_OK)
        ret = detach_stdio(a, err);
    if (ret == CAIRN_OK && dprintf(ready_fd, "%s\n", uri) < 0)
        ret = error_set_errno(err, errno, "cannot tell the URI");
    close(ready_fd);
    return ret;
}

/* -- The command ---------------------------------------------------------------------------- */

/* ready_fd: where the process that was called waits; -1: we are it. */
static int announce(struct attach *a, int ready_fd, struct cairn_error *err)
{
    char uri[URI_MAX];

    format_uri(a->params.socket, uri);
    if (ready_fd >= 0)
        return detach(a, ready_fd, uri, err);
    if (printf("%s\n", uri) < 0 || fflush(stdout) != 0)
        return error_set_errno(err, errno, "cannot print the URI");
    return CAIRN_OK;
}

static int start(struct attach *a, struct cairn_error *err)
{
    int ret = nbdkit_start(&a->nbdkit, &a->params, err);

    return ret == CAIRN_OK ? nbdkit_wait_ready(&a->nbdkit, &a->params, err) : ret;
}

/* What went wrong first is what is told. */
static int run(struct attach *a, int ready_fd, struct cairn_error *err)
{
    int ret = choose_socket(a, err);

    if (ret != CAIRN_OK)
        return ret;
    ret = start(a, err);
    if (ret == CAIRN_OK) {
        free(steal_ptr(a->made_dir)); /* it is a disk's now */
        ret = announce(a, ready_fd, err);
    }
    if (ret == CAIRN_OK)
        service_notify("READY=1");
    if (ret == CAIRN_OK)
        ret = nbdkit_wait_ended(&a->nbdkit, false, err);
    else
        nbdkit_wait_ended(&a->nbdkit, true, NULL);
    nbdkit_release(&a->nbdkit);
    return ret;
}

static void clean_up(struct attach *a)
{
    if (a->pid_file)
        unlink(a->pid_file);
    if (a->private_dir)
        rmdir(a->private_dir);
    if (a->made_dir)
        rmdir(a->made_dir);
    free(a->pid_file);
    free(a->private_dir);
    free(a->made_dir);
}

/* The exit code. */
static int attach(struct attach *a, int ready_fd)
{
    struct cairn_error err;
    int ret = run(a, ready_fd, &err);

    clean_up(a);
    return ret == CAIRN_OK ? 0 : cli_fail(&err);
}

static int attach_detached(struct attach *a)
{
    int fds[2];
    pid_t pid;
    int ret;

    if (pipe2(fds, O_CLOEXEC) != 0 || (pid = fork()) < 0) {
        fprintf(stderr, "cairn: cannot detach: %s\n", strerror(errno));
        return 1;
    }
    if (pid == 0) {
        close(fds[0]);
        setsid();
        return attach(a, fds[1]);
    }
    close(fds[1]);
    ret = await_daemon(pid, fds[0]);
    close(fds[0]);
    return ret;
}

int cli_attach(int argc, char **argv)
{
    struct attach a = {.given_socket = NULL};
    bool daemon = false;
    const struct cli_option options[] = {
        {"disk", "DIR", &a.params.disk, NULL, "the disk folder to write to"},
        {"read-only", NULL, NULL, &a.params.read_only, "refuse writes; without DIR, REF itself"},
        {"socket", "PATH", &a.given_socket, NULL, "listen there (default: DIR/nbd.sock)"},
        {"cache", "DIR", &a.params.cache, NULL,
         "this host's block cache, shared by all disks (default: $CAIRN_CACHE)"},
        {"cache-size", "SIZE", &a.params.cache_size, NULL,
         "what it may take on the disk (default: 10G)"},
        {"lease", "SECONDS", &a.params.lease, NULL,
         "how long the service keeps the chain when it hears nothing more of this host (default: "
         "600; 0: no lease)"},
        {"daemon", NULL, NULL, &daemon, "detach once the socket answers"},
        {0},
    };
    const struct cli_spec spec = {
        .name = "attach",
        .min_operands = 0,
        .max_operands = 1,
        .options = options,
        .help = "Exports the disk over NBD on a Unix socket and prints its URI once it answers.  "
                "If\n"
                "DIR does not exist or is empty, a new disk on top of REF is made in it; REF may "
                "be\n"
                "left out for a DIR that holds a disk.  SIGINT and SIGTERM flush the disk and let\n"
                "go.  With --daemon, the process to send them to is in DIR/attach.pid.",
    };
    struct cli_common common;
    int ret;

    if (!cli_parse(&spec, argc, argv, &common, &ret))
        return ret;
    a.params.ref = common.nr_operands > 0 ? common.operands[0] : NULL;
    a.params.server = common.server;
    a.params.token_file = common.token_file;
    a.params.cacert = common.cacert;
    a.params.cert = common.cert;
    a.params.key = common.key;
    a.params.insecure_token = common.insecure_token;
    signal(SIGPIPE, SIG_IGN); /* whoever reads what we say may leave before the disk does */
    if (!a.params.disk && !a.params.ref)
        return cli_usage("attach", "a REF or --disk DIR is missing");
    if (!a.params.disk && !a.params.read_only)
        return cli_usage("attach", "give --disk DIR to write to, or --read-only");
    return daemon ? attach_detached(&a) : attach(&a, -1);
}
