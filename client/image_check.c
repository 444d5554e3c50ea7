/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checking and repairing a local image: opening and locking it, one check or two with a repair
 * between them, and the outcome as JSON.  What is checked: engine/qcow2_check.h.
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
#include "qcow2_check.h"

CLEANUP_DEFINE(json_t *, json_decref)

struct image_check {
    const char *what; /* for progress */
    cairn_progress_fn progress;
    void *progress_ctx;
    struct hostfile file;
    json_t *findings; /* of the latest check */
    struct qcow2_check_result result;
};

static json_t *number(uint64_t value)
{
    return json_integer((json_int_t)min_u64(value, INT64_MAX));
}

static int pass_progress(void *arg, uint64_t done, uint64_t total)
{
    const struct image_check *c = arg;

    return c->progress ? c->progress(c->progress_ctx, c->what, done, total) : 0;
}

static void take_finding(void *arg, const struct qcow2_finding *finding)
{
    struct image_check *c = arg;
    json_t *item =
        json_pack("{s:s, s:o, s:o}", "kind", qcow2_check_kind_name(finding->kind), "count",
                  number(finding->nr), "text", json_text(finding->text, strlen(finding->text)));

    if (finding->host_off != QCOW2_CHECK_NO_OFFSET)
        json_object_set_new(item, "host-offset", number(finding->host_off));
    if (finding->guest_off != QCOW2_CHECK_NO_OFFSET)
        json_object_set_new(item, "guest-offset", number(finding->guest_off));
    json_array_append_new(c->findings, item);
}

/* Only a file that is there, and nothing that one waits on; the lock says that nobody writes. */
static int open_file(struct image_check *c, const char *path, bool writable,
                     struct cairn_error *err)
{
    int fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    uint64_t size;
    int ret;

    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot open", path);
    ret = hostfile_init(&c->file, fd, path, err);
    if (ret == CAIRN_OK && writable)
        ret = hostfile_size(&c->file, &size, err); /* regular files only: it may have to grow */
    if (ret == CAIRN_OK)
        ret = writable ? hostfile_lock(&c->file, err) : hostfile_lock_reading(&c->file, err);
    return ret;
}

/* The file as it is now.  The check borrows the source. */
static int check_once(struct image_check *c, struct source **ret_src,
                      struct qcow2_check **ret_check, struct cairn_error *err)
{
    const struct qcow2_check_options options = {
        .found = take_finding, .progress = pass_progress, .arg = c};
    int fd = fcntl(c->file.fd, F_DUPFD_CLOEXEC, 0); /* the source closes its descriptor */
    int ret;

    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot duplicate its descriptor", c->file.name);
    json_array_clear(c->findings);
    ret = source_from_fd(fd, c->file.name, ret_src, err);
    if (ret == CAIRN_OK)
        ret = qcow2_check_new(*ret_src, &options, ret_check, err);
    if (ret == CAIRN_OK)
        c->result = *qcow2_check_get_result(*ret_check);
    return ret;
}

static int look(struct image_check *c, enum qcow2_repair_mode mode, struct cairn_error *err)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(qcow2_check_free_p) struct qcow2_check *check = NULL;
    int ret = check_once(c, &src, &check, err);

    return ret == CAIRN_OK ? qcow2_repair(check, &c->file, mode, err) : ret;
}

/* -- The outcome ------------------------------------------------------------------------------- */

static const char *state_of(const struct qcow2_check_result *r)
{
    if (r->check_errors)
        return "check-errors";
    if (r->corruptions || r->overlaps || r->marked_corrupt)
        return "corruptions";
    return r->leaks ? "leaks" : "clean";
}

static uint64_t fixed(uint64_t before, uint64_t after)
{
    return before > after ? before - after : 0;
}

static json_t *outcome(const struct image_check *c, const struct qcow2_check_result *before)
{
    const struct qcow2_check_result *r = &c->result;

    return json_pack(
        "{s:o, s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:b, s:b, s:O, "
        "s:o}",
        "filename", json_text(c->file.name, strlen(c->file.name)), "format", "qcow2", "state",
        state_of(r), "check-errors", number(r->check_errors), "corruptions", number(r->corruptions),
        "leaks", number(r->leaks), "overlaps", number(r->overlaps), "corruptions-fixed",
        number(fixed(before->corruptions, r->corruptions)), "leaks-fixed",
        number(fixed(before->leaks, r->leaks)), "image-end-offset", number(r->image_end_offset),
        "total-clusters", number(r->total_clusters), "allocated-clusters",
        number(r->allocated_clusters), "fragmented-clusters", number(r->fragmented_clusters),
        "compressed-clusters", number(r->compressed_clusters), "dirty", r->dirty, "marked-corrupt",
        r->marked_corrupt, "findings", c->findings, "findings-omitted",
        number(fixed(r->findings, QCOW2_CHECK_FINDINGS_MAX)));
}

static int check_and_repair(struct image_check *c, enum qcow2_repair_mode mode, char **ret_json,
                            struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *root = NULL;
    struct qcow2_check_result before;
    int ret;

    json_memory_begin();
    ret = look(c, mode, err);
    before = c->result;
    if (ret == CAIRN_OK && mode != QCOW2_REPAIR_NONE)
        ret = look(c, QCOW2_REPAIR_NONE, err);
    if (ret != CAIRN_OK)
        return ret;
    root = outcome(c, &before);
    return json_memory_dump(root, JSON_COMPACT, ret_json, err);
}

static enum qcow2_repair_mode repair_mode(enum cairn_repair repair)
{
    switch (repair) {
    case CAIRN_REPAIR_LEAKS:
        return QCOW2_REPAIR_LEAKS;
    case CAIRN_REPAIR_ALL:
        return QCOW2_REPAIR_ALL;
    case CAIRN_REPAIR_NONE:
        break;
    }
    return QCOW2_REPAIR_NONE;
}

int cairn_image_check(const char *file, const char *format_name, enum cairn_repair repair,
                      cairn_progress_fn progress, void *progress_ctx, char **ret_json,
                      struct cairn_error *err)
{
    struct image_check c = {.what = "check",
                            .progress = progress,
                            .progress_ctx = progress_ctx,
                            .file = {.fd = -1},
                            .findings = json_array()};
    enum qcow2_repair_mode mode = repair_mode(repair);
    enum layer_format format;
    int ret = local_format(file, format_name, &format, err);

    if (ret == CAIRN_OK && format != LAYER_QCOW2)
        ret = error_set(err, CAIRN_E_UNSUPPORTED, "%s: a raw image has nothing to check", file);
    if (ret == CAIRN_OK && !c.findings)
        ret = error_no_memory(err, "JSON");
    if (ret == CAIRN_OK)
        ret = open_file(&c, file, mode != QCOW2_REPAIR_NONE, err);
    if (ret == CAIRN_OK)
        ret = check_and_repair(&c, mode, ret_json, err);
    hostfile_release(&c.file);
    json_decref(c.findings);
    return ret;
}
