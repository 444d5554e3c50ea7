/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pulling a disk's content into one file: the guest ranges that hold data are found through the
 * chain index first, then several threads read them and write them where they belong.  What reads
 * as zeros is not written: it is unallocated in a qcow2 file and a hole in a raw one.
 */
#include "pull.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>

#include "active.h"
#include "checked.h"
#include "crew.h"
#include "remote_disk.h"
#include "remote_internal.h"
#include "whole_file.h"

#define BATCH 256

struct range {
    uint64_t guest_off, len;
};

/* The disk that is copied: a remote chain, or an internal snapshot of one. */
struct content {
    uint64_t size;
    int (*map)(void *ctx, uint64_t guest_off, uint64_t len, struct extent *ret_extents, size_t max,
               size_t *ret_nr, struct cairn_error *err);
    int (*pread)(void *ctx, void *buf, size_t len, uint64_t guest_off, struct cairn_error *err);
    void *ctx;
};

struct copy {
    struct cairn_client *client;
    struct content content;
    int (*write)(void *out, const void *buf, size_t len, uint64_t guest_off,
                 struct cairn_error *err);
    void *out;

    struct range *ranges; /* that hold data, in order */
    size_t nr_ranges, room;
    uint64_t total_bytes;
    atomic_uint_fast64_t done_bytes;

    pthread_mutex_t lock; /* of next */
    size_t next_range;
    uint64_t next_in_range;
};

/* -- What to copy --------------------------------------------------------------------------- */

static int add_range(struct copy *c, uint64_t guest_off, uint64_t len, struct cairn_error *err)
{
    struct range *last = c->nr_ranges ? &c->ranges[c->nr_ranges - 1] : NULL;

    c->total_bytes += len;
    if (last && last->guest_off + last->len == guest_off) {
        last->len += len;
        return CAIRN_OK;
    }
    if (c->nr_ranges == c->room) {
        size_t room = c->room ? 2 * c->room : 64;
        void *ranges = realloc(c->ranges, room * sizeof(c->ranges[0]));

        if (!ranges)
            return error_no_memory(err, "a list of extents");
        c->ranges = ranges;
        c->room = room;
    }
    c->ranges[c->nr_ranges++] = (struct range){guest_off, len};
    return CAIRN_OK;
}

static int find_data(struct copy *c, struct cairn_error *err)
{
    uint64_t size = c->content.size;
    struct extent batch[BATCH];
    size_t nr;

    for (uint64_t at = 0; at < size;) {
        int ret = c->content.map(c->content.ctx, at, size - at, batch, BATCH, &nr, err);

        for (size_t i = 0; ret == CAIRN_OK && i < nr; i++) {
            if (!extent_reads_zero(batch[i].kind))
                ret = add_range(c, batch[i].guest_off, batch[i].len, err);
            at = batch[i].guest_off + batch[i].len;
        }
        if (ret == CAIRN_OK)
            ret = client_progress(c->client, "map", at, size, err);
        if (ret != CAIRN_OK)
            return ret;
    }
    return CAIRN_OK;
}

/* -- Copying -------------------------------------------------------------------------------- */

static bool next_piece(struct copy *c, struct range *ret_piece)
{
    SCOPED_LOCK(&c->lock);
    const struct range *range;

    if (c->next_range == c->nr_ranges)
        return false;
    range = &c->ranges[c->next_range];
    ret_piece->guest_off = range->guest_off + c->next_in_range;
    ret_piece->len = min_u64(PULL_PIECE_BYTES, range->len - c->next_in_range);
    c->next_in_range += ret_piece->len;
    if (c->next_in_range == range->len) {
        c->next_range++;
        c->next_in_range = 0;
    }
    return true;
}

static int copy_piece(void *ctx, struct cairn_error *err)
{
    CLEANUP_FREE void *buf = malloc(PULL_PIECE_BYTES);
    struct copy *c = ctx;
    struct range piece;
    int ret;

    if (!buf)
        return error_no_memory(err, "a buffer");
    if (!next_piece(c, &piece))
        return CREW_NONE_LEFT;
    ret = c->content.pread(c->content.ctx, buf, piece.len, piece.guest_off, err);
    if (ret == CAIRN_OK)
        ret = c->write(c->out, buf, piece.len, piece.guest_off, err);
    if (ret == CAIRN_OK)
        ret = client_progress(c->client, "pull",
                              atomic_fetch_add(&c->done_bytes, piece.len) + piece.len,
                              c->total_bytes, err);
    return ret;
}

static int copy_all(struct copy *c, struct cairn_error *err)
{
    int ret = find_data(c, err);

    if (ret == CAIRN_OK)
        ret = crew_run(PULL_WORKERS, copy_piece, c, err);
    free(c->ranges);
    return ret;
}

/* -- Into a qcow2 file ---------------------------------------------------------------------- */

static int write_active(void *out, const void *buf, size_t len, uint64_t guest_off,
                        struct cairn_error *err)
{
    return active_pwrite(out, buf, len, guest_off, err);
}

static int fill_flat(struct copy *c, const char *path, struct cairn_error *err)
{
    const struct active_options options = {.virtual_size = c->content.size};
    struct active *active;
    int ret = active_create(path, &options, &active, err);
    int closed;

    if (ret != CAIRN_OK)
        return ret;
    c->write = write_active;
    c->out = active;
    ret = copy_all(c, err);
    if (ret == CAIRN_OK)
        ret = active_seal(active, err);
    closed = active_close(active, ret == CAIRN_OK ? err : NULL);
    return ret == CAIRN_OK ? closed : ret;
}

/* -- Into a raw file ------------------------------------------------------------------------ */

struct raw_file {
    int fd;
    const char *path;
};

static int write_raw(void *out, const void *buf, size_t len, uint64_t guest_off,
                     struct cairn_error *err)
{
    const struct raw_file *raw = out;

    for (size_t done = 0; done < len;) {
        ssize_t n =
            pwrite(raw->fd, (const char *)buf + done, len - done, (off_t)(guest_off + done));

        if (n < 0 && errno != EINTR)
            return error_set_errno(err, errno, "cannot write %s", raw->path);
        done += n > 0 ? (size_t)n : 0;
    }
    return CAIRN_OK;
}

static int fill_raw(struct copy *c, const char *path, struct cairn_error *err)
{
    CLEANUP_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    struct raw_file raw = {fd, path};
    int ret;

    if (fd < 0)
        return error_set_errno(err, errno, "cannot create %s", path);
    if (ftruncate(fd, (off_t)c->content.size) != 0)
        return error_set_errno(err, errno, "cannot set the size of %s", path);
    c->write = write_raw;
    c->out = &raw;
    ret = copy_all(c, err);
    if (ret == CAIRN_OK && fsync(fd) != 0)
        ret = error_set_errno(err, errno, "cannot sync %s", path);
    return ret;
}

/* -- The whole ------------------------------------------------------------------------------ */

static int map_disk(void *ctx, uint64_t guest_off, uint64_t len, struct extent *ret_extents,
                    size_t max, size_t *ret_nr, struct cairn_error *err)
{
    return remote_disk_map(ctx, guest_off, len, ret_extents, max, ret_nr, err);
}

static int read_disk(void *ctx, void *buf, size_t len, uint64_t guest_off, struct cairn_error *err)
{
    return remote_disk_pread(ctx, buf, len, guest_off, err);
}

static int map_internal(void *ctx, uint64_t guest_off, uint64_t len, struct extent *ret_extents,
                        size_t max, size_t *ret_nr, struct cairn_error *err)
{
    return remote_internal_map(ctx, guest_off, len, ret_extents, max, ret_nr, err);
}

static int read_internal(void *ctx, void *buf, size_t len, uint64_t guest_off,
                         struct cairn_error *err)
{
    return remote_internal_pread(ctx, buf, len, guest_off, err);
}

static int fill(struct cairn_client *client, const struct content *content, bool raw,
                const char *path, struct cairn_error *err)
{
    struct copy c = {.client = client, .content = *content, .lock = PTHREAD_MUTEX_INITIALIZER};
    int ret = raw ? fill_raw(&c, path, err) : fill_flat(&c, path, err);

    pthread_mutex_destroy(&c.lock);
    return ret;
}

/* snapshot NULL: the disk itself. */
static int fill_from(struct cairn_client *client, const struct ref *ref, const char *snapshot,
                     bool raw, const char *path, struct cairn_error *err)
{
    CLEANUP(remote_disk_unref_p) struct remote_disk *disk = NULL;
    CLEANUP(remote_internal_free_p) struct remote_internal *internal = NULL;
    struct content content;
    int ret = snapshot ? remote_internal_open(client, ref, snapshot, &internal, err)
                       : remote_disk_open(client, ref, NULL, &disk, err);

    if (ret != CAIRN_OK)
        return ret;
    if (snapshot)
        content =
            (struct content){remote_internal_size(internal), map_internal, read_internal, internal};
    else
        content = (struct content){remote_disk_size(disk), map_disk, read_disk, disk};
    return fill(client, &content, raw, path, err);
}

static int pull_content(struct cairn_client *client, const struct ref *ref, const char *snapshot,
                        bool raw, const char *out, struct cairn_error *err)
{
    CLEANUP(whole_file_release) struct whole_file file = {0};
    int ret = whole_file_begin(&file, out, err);

    if (ret == CAIRN_OK)
        ret = fill_from(client, ref, snapshot, raw, file.temporary, err);
    return ret == CAIRN_OK ? whole_file_finish(&file, err) : ret;
}

int cairn_pull(struct cairn_client *client, const char *ref_text, enum cairn_pull_mode mode,
               const char *out, struct cairn_error *err)
{
    struct ref ref;
    int ret = ref_parse(ref_text, &ref, err);

    if (ret != CAIRN_OK)
        return ret;
    switch (mode) {
    case CAIRN_PULL_FLAT:
        return pull_content(client, &ref, NULL, false, out, err);
    case CAIRN_PULL_RAW:
        return pull_content(client, &ref, NULL, true, out, err);
    case CAIRN_PULL_CHAIN:
        return pull_chain(client, &ref, out, err);
    }
    return error_set(err, CAIRN_E_USAGE, "pull mode %d is not known", (int)mode);
}

int cairn_pull_internal(struct cairn_client *client, const char *ref_text, const char *snapshot,
                        enum cairn_pull_mode mode, const char *out, struct cairn_error *err)
{
    struct ref ref;
    int ret = ref_parse(ref_text, &ref, err);

    if (ret != CAIRN_OK)
        return ret;
    if (mode != CAIRN_PULL_FLAT && mode != CAIRN_PULL_RAW)
        return error_set(err, CAIRN_E_USAGE, "an internal snapshot is pulled into one file");
    return pull_content(client, &ref, snapshot, mode == CAIRN_PULL_RAW, out, err);
}
