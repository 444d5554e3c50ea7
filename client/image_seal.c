/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sealing a local image: engine/seal.h on a file that nobody writes to, into one that appears when
 * it is complete.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <string.h>

#include "cairn.h"
#include "checked.h"
#include "json_memory.h"
#include "json_text.h"
#include "local_chain.h"
#include "sealing.h"
#include "whole_file.h"

CLEANUP_DEFINE(json_t *, json_decref)

struct passed_progress {
    cairn_progress_fn fn;
    void *ctx;
};

static int pass_progress(void *arg, uint64_t done, uint64_t total)
{
    const struct passed_progress *progress = arg;

    return progress->fn ? progress->fn(progress->ctx, "seal", done, total) : 0;
}

/* Only a file that is there, and nothing that one waits on.  The lock says that nobody writes; it
 * belongs to the open file, and goes with the last descriptor of it, which is the source's. */
static int open_locked(const char *path, struct source **ret_src, struct cairn_error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    struct hostfile file;
    int ret;

    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot open", path);
    ret = hostfile_init(&file, fd, path, err);
    if (ret == CAIRN_OK)
        ret = hostfile_lock_reading(&file, err);
    if (ret == CAIRN_OK)
        ret = source_from_fd(steal_fd(&file.fd), path, ret_src, err);
    hostfile_release(&file);
    return ret;
}

static json_t *number(uint64_t value)
{
    return json_integer((json_int_t)min_u64(value, INT64_MAX));
}

static int describe(const char *file, const char *out, const struct cairn_seal_options *given,
                    const struct seal_result *r, char **ret_json, struct cairn_error *err)
{
    CLEANUP(json_decref_p)
    json_t *root =
        json_pack("{s:o, s:o, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "file",
                  json_text(file, strlen(file)), "output", json_text(out, strlen(out)), "compress",
                  sealing_name(given->compress), "bytesBefore", number(r->old_bytes), "bytesAfter",
                  number(r->new_bytes), "clustersDropped", number(r->dropped_clusters), "zeroBytes",
                  number(r->zero_bytes), "dataClusters", number(r->data_clusters),
                  "compressedClusters", number(r->compressed_clusters), "snapshotsDropped",
                  number(r->dropped_snapshots), "bitmapsDropped", number(r->dropped_bitmaps));

    return json_memory_dump(root, JSON_COMPACT, ret_json, err);
}

static int seal_into(const char *file, const char *out, const struct seal_options *options,
                     struct seal_result *ret_result, struct cairn_error *err)
{
    CLEANUP(whole_file_release) struct whole_file whole = {0};
    CLEANUP(source_free_p) struct source *src = NULL;
    int ret = open_locked(file, &src, err);

    if (ret == CAIRN_OK)
        ret = whole_file_begin(&whole, out, err);
    if (ret == CAIRN_OK)
        ret = sealing_write(src, whole.temporary, 0666, options, ret_result, err);
    if (ret == CAIRN_OK)
        ret = whole_file_finish(&whole, err);
    return ret;
}

int cairn_image_seal(const char *file, const char *format_name, const char *out,
                     const struct cairn_seal_options *options, cairn_progress_fn progress,
                     void *progress_ctx, char **ret_json, struct cairn_error *err)
{
    struct passed_progress passed = {progress, progress_ctx};
    struct cairn_seal_options given;
    struct seal_options seal;
    struct seal_result result;
    enum layer_format format;
    int ret = local_format(file, format_name, &format, err);

    if (ret == CAIRN_OK && format != LAYER_QCOW2)
        ret = error_set(err, CAIRN_E_UNSUPPORTED,
                        "%s: a raw image cannot be sealed; convert it to qcow2 first", file);
    if (ret == CAIRN_OK)
        ret = sealing_check(options, &given, err);
    if (ret != CAIRN_OK)
        return ret;
    seal = sealing_options(&given);
    seal.progress = pass_progress;
    seal.progress_arg = &passed;
    ret = seal_into(file, out, &seal, &result, err);
    return ret == CAIRN_OK ? describe(file, out, &given, &result, ret_json, err) : ret;
}
