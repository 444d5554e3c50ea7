/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An active layer that was not closed cleanly, checked before it is written to again.
 *
 * A crash leaves leaked clusters at worst (DESIGN 4.6): they are given back.  Whatever else the
 * check finds is damage that no crash of ours explains.  The disk is not opened then: writing on
 * could destroy what can still be saved, and which repair is right is not for a program to guess.
 *
 * Killed in the middle of the repair, the layer has fewer leaks than before, and the folder still
 * bears its mark (disk_folder.h), so that the next open goes on.
 *
 * Where there is no memory for the check, the disk is opened without it, which is no worse than
 * how a disk that was closed cleanly is opened; the mark stays until a check has been made.
 */
#include "disk_recover.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "client.h"
#include "hostfile.h"
#include "qcow2_check.h"

#define WAS_NOT_CLOSED "%s: was not closed cleanly; "

struct recovery {
    struct cairn_client *client;
    char damage[CAIRN_ERROR_MESSAGE_MAX / 2]; /* the first finding that is no leak */
    uint64_t nr_damages, leaks;
};

static void take_finding(void *arg, const struct qcow2_finding *finding)
{
    struct recovery *r = arg;

    if (finding->kind != QCOW2_CHECK_LEAK && !r->damage[0])
        snprintf(r->damage, sizeof(r->damage), "%s", finding->text);
}

static int pass_progress(void *arg, uint64_t done, uint64_t total)
{
    const struct recovery *r = arg;

    return client_progress(r->client, "check " DISK_FOLDER_ACTIVE, done, total, NULL);
}

static int open_layer(const char *path, struct hostfile *file, struct source **ret_src,
                      struct cairn_error *err)
{
    int fd = open(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    int ret;

    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot open", path);
    ret = hostfile_init(file, fd, path, err);
    if (ret == CAIRN_OK)
        ret = hostfile_lock(file, err);
    if (ret != CAIRN_OK)
        return ret;
    fd = fcntl(file->fd, F_DUPFD_CLOEXEC, 0); /* the source closes its descriptor */
    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot duplicate its descriptor", path);
    return source_from_fd(fd, path, ret_src, err);
}

static int refuse_damage(const struct recovery *r, const char *path, struct cairn_error *err)
{
    return error_set(err, CAIRN_E_CORRUPT,
                     WAS_NOT_CLOSED "it is damaged, and was left as it is; copy it, then "
                                    "`cairn image check --repair all %s`: errors besides leaks: "
                                    "%" PRIu64 "%s%s",
                     path, path, r->nr_damages, r->damage[0] ? ", the first: " : "", r->damage);
}

static int check_and_free_leaks(struct recovery *r, const char *path, struct hostfile *file,
                                struct cairn_error *err)
{
    const struct qcow2_check_options options = {
        .found = take_finding, .progress = pass_progress, .arg = r};
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(qcow2_check_free_p) struct qcow2_check *check = NULL;
    const struct qcow2_check_result *found;
    int ret = open_layer(path, file, &src, err);

    if (ret == CAIRN_OK)
        ret = qcow2_check_new(src, &options, &check, err);
    if (ret != CAIRN_OK)
        return ret;
    found = qcow2_check_get_result(check);
    r->nr_damages = found->corruptions + found->overlaps + found->check_errors;
    r->leaks = found->leaks;
    if (r->nr_damages > 0)
        return refuse_damage(r, path, err);
    return qcow2_repair(check, file, QCOW2_REPAIR_LEAKS, err);
}

/* For people to read later: a full disk, which may keep it from being written, keeps nobody from
 * using the disk. */
static void record(struct cairn_disk *disk, uint64_t leaks)
{
    struct disk_state state = *disk_folder_state(disk->folder);

    state.last_repair = (struct disk_repair){.time = time(NULL), .leaks = leaks};
    if (disk_folder_prepare(disk->folder, &state, NULL) == CAIRN_OK)
        disk_folder_commit(disk->folder, NULL);
}

static int notice(struct cairn_disk *disk, const char *path, const struct recovery *r,
                  struct cairn_error *err)
{
    int len = r->leaks > 0
                  ? asprintf(&disk->notice, WAS_NOT_CLOSED "%" PRIu64 " leaked %s freed", path,
                             r->leaks, r->leaks == 1 ? "cluster" : "clusters")
                  : asprintf(&disk->notice, WAS_NOT_CLOSED "checked, nothing to repair", path);

    if (len >= 0)
        return CAIRN_OK;
    disk->notice = NULL;
    return error_no_memory(err, "a message");
}

static int notice_unchecked(struct cairn_disk *disk, const char *path,
                            const struct cairn_error *why, struct cairn_error *err)
{
    disk->unchecked = true;
    if (asprintf(&disk->notice, WAS_NOT_CLOSED "it could not be checked: %s", path, why->message) >=
        0)
        return CAIRN_OK;
    disk->notice = NULL;
    return error_no_memory(err, "a message");
}

int disk_recover(struct cairn_disk *disk, struct cairn_error *err)
{
    CLEANUP_FREE char *path = disk_folder_path(disk->folder, DISK_FOLDER_ACTIVE);
    struct hostfile file = {.fd = -1};
    struct cairn_error why;
    struct recovery r = {.client = disk->client};
    int ret;

    if (!path)
        return error_no_memory(err, "a path");
    ret = check_and_free_leaks(&r, path, &file, &why);
    hostfile_release(&file);
    if (ret == CAIRN_E_NO_MEMORY || ret == CAIRN_E_LIMIT)
        return notice_unchecked(disk, path, &why, err);
    if (ret != CAIRN_OK) {
        if (err)
            *err = why;
        return ret;
    }
    record(disk, r.leaks);
    return notice(disk, path, &r, err);
}
