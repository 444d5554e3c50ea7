/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The nbdkit plugin: translation between nbdkit's calls and libcairn's, no logic of its own.
 *
 * One disk is shared by all connections: a flush on one covers what was completed on any, so
 * multi-conn may be promised.  The disk is opened after nbdkit has forked, for libcairn has
 * threads, and closed when the last connection is gone.
 */
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cairn.h"
#include "nbdkit_abort.h"
#include "nbdkit_hangup.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

#define PREFERRED_BLOCK 4096u                /* a subcluster of the active layer */
#define MAXIMUM_BLOCK   (UINT32_C(32) << 20) /* what QEMU takes at most */
#define EXTENTS_AT_ONCE 64
#define EXTENTS_MAX     8192 /* of one answer; the client asks again behind them */

static struct cairn_client_options options = CAIRN_CLIENT_OPTIONS_INIT;
static const char *ref;
static char *folder, *cache_folder; /* absolute, as are … */
static char *token_file, *cacert, *cert, *key;
static int read_only;
static int stop_fd = -1, closed_fd = -1;
static unsigned lease_s = 600;

static struct cairn_client *client;
static struct cairn_disk *disk;

/* -- Errors --------------------------------------------------------------------------------- */

/* The few errors that NBD knows; what is not one of them is an I/O error to a guest. */
static int errno_of(int code)
{
    switch ((enum cairn_code)code) {
    case CAIRN_E_NO_SPACE:
        return ENOSPC;
    case CAIRN_E_NO_MEMORY:
        return ENOMEM;
    case CAIRN_E_DENIED:
        return EPERM;
    case CAIRN_E_USAGE:
        return EINVAL;
    case CAIRN_OK:
    case CAIRN_E_IO:
    case CAIRN_E_CORRUPT:
    case CAIRN_E_UNSUPPORTED:
    case CAIRN_E_LIMIT:
    case CAIRN_E_NOT_FOUND:
    case CAIRN_E_CONFLICT:
    case CAIRN_E_CANCELLED:
    case CAIRN_E_UNAVAILABLE:
        break;
    }
    return EIO;
}

/* Report err and turn code into nbdkit's -1. */
static int outcome(int code, const struct cairn_error *err)
{
    if (code == CAIRN_OK)
        return 0;
    nbdkit_error("%s", err->message);
    nbdkit_set_error(errno_of(code));
    return -1;
}

/* -- Configuration -------------------------------------------------------------------------- */

static int take_path(const char *value, char **path)
{
    free(*path);
    *path = nbdkit_absolute_path(value); /* nbdkit may change its working directory */
    return *path ? 0 : -1;
}

static int take_cache_size(const char *value)
{
    int64_t bytes = nbdkit_parse_size(value);

    if (bytes < 0)
        return -1;
    options.cache_bytes = (uint64_t)bytes;
    return 0;
}

/* The parameters that name files. */
static const struct {
    const char *name;
    char **path;
} paths[] = {
    {"disk", &folder},   {"cache", &cache_folder}, {"token-file", &token_file},
    {"cacert", &cacert}, {"cert", &cert},          {"key", &key},
};
#define NR_PATHS (sizeof(paths) / sizeof(paths[0]))

static int take_bool(const char *value, bool *ret)
{
    int parsed = nbdkit_parse_bool(value);

    *ret = parsed > 0;
    return parsed < 0 ? -1 : 0;
}

static int plugin_config(const char *name, const char *value)
{
    for (size_t i = 0; i < NR_PATHS; i++)
        if (strcmp(name, paths[i].name) == 0)
            return take_path(value, paths[i].path);
    if (strcmp(name, "ref") == 0)
        ref = value;
    else if (strcmp(name, "read-only") == 0)
        return (read_only = nbdkit_parse_bool(value)) < 0 ? -1 : 0;
    else if (strcmp(name, "server") == 0)
        options.server = value;
    else if (strcmp(name, "deadline") == 0)
        return nbdkit_parse_unsigned("deadline", value, &options.deadline_ms);
    else if (strcmp(name, "insecure-token") == 0)
        return take_bool(value, &options.insecure_token);
    else if (strcmp(name, "lease") == 0)
        return nbdkit_parse_unsigned("lease", value, &lease_s);
    else if (strcmp(name, "cache-size") == 0)
        return take_cache_size(value);
    else if (strcmp(name, "stop-fd") == 0)
        return nbdkit_parse_int("stop-fd", value, &stop_fd);
    else if (strcmp(name, "closed-fd") == 0)
        return nbdkit_parse_int("closed-fd", value, &closed_fd);
    else {
        nbdkit_error("unknown parameter '%s'; see nbdkit-cairn-plugin(1)", name);
        return -1;
    }
    return 0;
}

static int plugin_config_complete(void)
{
    if (ref || folder)
        return 0;
    nbdkit_error("a disk is missing: give ref=REF for a read-only disk, disk=DIR for a disk "
                 "folder, or both to make the folder");
    return -1;
}

#define CONFIG_HELP                                                                                \
    "[ref=]<REF>        A disk of the service, read-only; with disk=, what to make it from.\n"     \
    "disk=<DIR>         The disk folder to write to.\n"                                            \
    "read-only=<BOOL>   Only read from it (default: false).\n"                                     \
    "server=<URL>       The service (default: $CAIRN_SERVER, http://127.0.0.1:7117).\n"            \
    "deadline=<MS>      For one read, retries included (default: 30000).\n"                        \
    "token-file=<FILE>  A token for it (default: $CAIRN_TOKEN, $CAIRN_TOKEN_FILE).\n"              \
    "cacert=<FILE>      Authorities of its certificate (default: $CAIRN_CACERT).\n"                \
    "cert=<FILE>        This host's certificate (default: $CAIRN_CERT).\n"                         \
    "key=<FILE>         And its key (default: $CAIRN_KEY).\n"                                      \
    "insecure-token=<BOOL>  Send the token without TLS to another host (default: false).\n"        \
    "lease=<SECONDS>    How long the service keeps the chain without hearing of us; 0: no lease\n" \
    "                   (default: 600).\n"                                                         \
    "cache=<DIR>        This host's block cache, shared by all disks (default: $CAIRN_CACHE).\n"   \
    "cache-size=<SIZE>  What it may take on the disk (default: 10G)."

/* -- Life ----------------------------------------------------------------------------------- */

/* Each layer that is read through the block cache is an open file. */
static void raise_file_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* nbdkit has no word between a debug message and an error that reaches the log. */
static void tell_lease(void *ctx, const char *message)
{
    (void)ctx;
    nbdkit_error("%s", message);
}

static int hold_lease(struct cairn_error *err)
{
    struct cairn_lease_options lease = CAIRN_LEASE_OPTIONS_INIT;

    lease.ttl_s = lease_s;
    lease.tell = tell_lease;
    return lease_s > 0 ? cairn_disk_hold_lease(disk, &lease, err) : CAIRN_OK;
}

static int open_disk(struct cairn_error *err)
{
    int ret;

    raise_file_limit();
    options.cache = cache_folder;
    options.token_file = token_file;
    options.cacert = cacert;
    options.cert = cert;
    options.key = key;
    ret = cairn_client_new(&options, &client, err);

    if (ret == CAIRN_OK && !folder)
        ret = cairn_disk_open_ref(client, ref, &disk, err);
    else if (ret == CAIRN_OK && read_only)
        ret = cairn_disk_open_folder_read_only(client, folder, ref, &disk, err);
    else if (ret == CAIRN_OK)
        ret = cairn_disk_open_folder(client, folder, ref, &disk, err);
    if (ret == CAIRN_OK)
        ret = hold_lease(err);
    if (ret == CAIRN_OK && folder)
        ret = cairn_disk_serve_control(disk, err);
    return ret;
}

static void tell_notice(void)
{
    const char *notice = cairn_disk_notice(disk);

    if (notice)
        nbdkit_error("%s", notice);
}

/* Whoever started nbdkit learns by a byte on closed-fd that the last flush succeeded. */
static void tell_flushed(int code, const struct cairn_error *err)
{
    if (code != CAIRN_OK)
        nbdkit_error("the disk's last flush failed: %s", err->message);
    else if (closed_fd >= 0 && write(closed_fd, "\n", 1) != 1)
        nbdkit_error("cannot write to closed-fd %d: %s", closed_fd, strerror(errno));
}

static void flush_before_abort(void)
{
    struct cairn_error err;

    tell_flushed(cairn_disk_flush(disk, &err), &err);
}

static int plugin_after_fork(void)
{
    struct cairn_error err;
    int error;

    if (outcome(open_disk(&err), &err) != 0)
        return -1;
    tell_notice();
    error = abort_guard_start(flush_before_abort);
    if (error == 0 && stop_fd >= 0)
        error = hangup_start(stop_fd);
    if (error == 0)
        return 0;
    nbdkit_error("cannot start a thread: %s", strerror(error));
    return -1;
}

static void plugin_cleanup(void)
{
    struct cairn_error err;
    int ret;

    hangup_end();
    abort_guard_end();
    ret = cairn_disk_close(disk, &err);
    disk = NULL;
    cairn_client_free(client);
    client = NULL;
    tell_flushed(ret, &err);
}

static void plugin_unload(void)
{
    for (size_t i = 0; i < NR_PATHS; i++)
        free(*paths[i].path);
}

static void *plugin_open(int readonly)
{
    (void)readonly;
    return NBDKIT_HANDLE_NOT_NEEDED;
}

/* -- What the disk is ----------------------------------------------------------------------- */

static int64_t plugin_get_size(void *handle)
{
    (void)handle;
    return (int64_t)cairn_disk_size(disk);
}

static int plugin_can_write(void *handle)
{
    (void)handle;
    return !cairn_disk_read_only(disk);
}

static int yes(void *handle)
{
    (void)handle;
    return 1;
}

static int plugin_can_fua(void *handle)
{
    (void)handle;
    return NBDKIT_FUA_NATIVE;
}

static int plugin_block_size(void *handle, uint32_t *minimum, uint32_t *preferred,
                             uint32_t *maximum)
{
    (void)handle;
    *minimum = 1;
    *preferred = PREFERRED_BLOCK;
    *maximum = MAXIMUM_BLOCK;
    return 0;
}

/* -- Input and output ----------------------------------------------------------------------- */

static int plugin_pread(void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
    struct cairn_error err;

    (void)handle;
    (void)flags;
    return outcome(cairn_disk_pread(disk, buf, count, offset, &err), &err);
}

/* A change that succeeded, and its flush if it was asked for. */
static int changed(int code, uint32_t flags, struct cairn_error *err)
{
    if (code == CAIRN_OK && flags & NBDKIT_FLAG_FUA)
        code = cairn_disk_flush(disk, err);
    if (code == CAIRN_OK && abort_guard_tripped()) { /* the last flush may have been before */
        nbdkit_set_error(ESHUTDOWN);
        return -1;
    }
    return outcome(code, err);
}

static int plugin_pwrite(void *handle, const void *buf, uint32_t count, uint64_t offset,
                         uint32_t flags)
{
    struct cairn_error err;

    (void)handle;
    return changed(cairn_disk_pwrite(disk, buf, count, offset, &err), flags, &err);
}

static int plugin_flush(void *handle, uint32_t flags)
{
    struct cairn_error err;

    (void)handle;
    (void)flags;
    return outcome(cairn_disk_flush(disk, &err), &err);
}

static int plugin_trim(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    struct cairn_error err;

    (void)handle;
    return changed(cairn_disk_discard(disk, count, offset, &err), flags, &err);
}

/* Only whole subclusters are zeroed by metadata alone; the ends of other ranges are written, and
 * may have to be fetched first. */
static bool zero_is_fast(uint32_t count, uint64_t offset)
{
    uint64_t end = offset + count;

    return offset % PREFERRED_BLOCK == 0 &&
           (end % PREFERRED_BLOCK == 0 || end == cairn_disk_size(disk));
}

static int plugin_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    bool may_trim = flags & NBDKIT_FLAG_MAY_TRIM;
    struct cairn_error err;

    (void)handle;
    if (flags & NBDKIT_FLAG_FAST_ZERO && !zero_is_fast(count, offset)) {
        nbdkit_set_error(EOPNOTSUPP);
        return -1;
    }
    return changed(cairn_disk_zero(disk, count, offset, may_trim, &err), flags, &err);
}

/* -- Extents -------------------------------------------------------------------------------- */

static uint32_t type_of(const struct cairn_extent *e)
{
    return (e->flags & CAIRN_EXTENT_HOLE ? NBDKIT_EXTENT_HOLE : 0u) |
           (e->flags & CAIRN_EXTENT_ZERO ? NBDKIT_EXTENT_ZERO : 0u);
}

static int add_extents(struct nbdkit_extents *list, const struct cairn_extent *extents, size_t nr)
{
    for (size_t i = 0; i < nr; i++)
        if (nbdkit_add_extent(list, extents[i].guest_off, extents[i].len, type_of(&extents[i])) !=
            0)
            return -1;
    return 0;
}

static int plugin_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                          struct nbdkit_extents *list)
{
    uint64_t end = offset + count;
    size_t max = flags & NBDKIT_FLAG_REQ_ONE ? 1 : EXTENTS_MAX;

    (void)handle;
    for (size_t done = 0, nr; offset < end && done < max; done += nr) {
        struct cairn_extent extents[EXTENTS_AT_ONCE];
        struct cairn_error err;
        int ret =
            cairn_disk_extents(disk, offset, end - offset, extents, EXTENTS_AT_ONCE, &nr, &err);

        if (ret != CAIRN_OK)
            return outcome(ret, &err);
        if (add_extents(list, extents, nr) != 0)
            return -1;
        offset = extents[nr - 1].guest_off + extents[nr - 1].len;
    }
    return 0;
}

static struct nbdkit_plugin plugin = {
    .name = "cairn",
    .longname = "Cairn disks",
    .version = CAIRN_VERSION,
    .description = "disks that are chains of QCOW2 layers, kept by a cairnd service",
    .unload = plugin_unload,
    .config = plugin_config,
    .config_complete = plugin_config_complete,
    .config_help = CONFIG_HELP,
    .magic_config_key = "ref",
    .after_fork = plugin_after_fork,
    .cleanup = plugin_cleanup,
    .open = plugin_open,
    .get_size = plugin_get_size,
    .can_write = plugin_can_write,
    .can_flush = yes,
    .can_trim = yes,
    .can_zero = yes,
    .can_fast_zero = yes,
    .can_extents = yes,
    .can_multi_conn = yes,
    .can_fua = plugin_can_fua,
    .block_size = plugin_block_size,
    .pread = plugin_pread,
    .pwrite = plugin_pwrite,
    .flush = plugin_flush,
    .trim = plugin_trim,
    .zero = plugin_zero,
    .extents = plugin_extents,
};

struct nbdkit_plugin *plugin_init(void); /* which the macro defines */
NBDKIT_REGISTER_PLUGIN(plugin)
