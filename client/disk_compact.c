/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A sealed layer is the file that the guest's writes have made; it is read as a level of the disk
 * until the published chain takes its place.  What is published is written beside it, under a name
 * that nothing depends on: whenever it is lost, or was not finished, it is made again from the
 * sealed layer, with the same bytes for the same options.  So it needs no place in disk.json, no
 * order among the renames of a snapshot, and no reader that knows compressed clusters; it costs
 * that both exist until the layer is published, which they would, too, if one replaced the other
 * while the disk has it open.
 */
#include "disk_compact.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>

struct told_progress {
    struct cairn_client *client;
    char what[DISK_SEALED_NAME_MAX + 8];
};

static int tell_progress(void *arg, uint64_t done, uint64_t total)
{
    const struct told_progress *told = arg;

    return client_progress(told->client, told->what, done, total, NULL);
}

static int open_sealed(struct disk_folder *folder, uint32_t number, struct source **ret_src,
                       struct cairn_error *err)
{
    char name[DISK_SEALED_NAME_MAX];
    int fd = openat(disk_folder_fd(folder), disk_sealed_name(number, name),
                    O_RDONLY | O_NOFOLLOW | O_CLOEXEC);

    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot open", name);
    return source_from_fd(fd, name, ret_src, err);
}

int disk_compact(struct disk_folder *folder, uint32_t number, const struct seal_options *options,
                 struct cairn_client *client, bool *ret_made, struct cairn_error *err)
{
    char name[DISK_SEALED_NAME_MAX];
    CLEANUP_FREE char *path = disk_folder_path(folder, disk_compact_name(number, name));
    CLEANUP(source_free_p) struct source *src = NULL;
    struct told_progress told = {.client = client};
    struct seal_options with_progress = *options;
    struct seal_result result;
    struct cairn_error why;
    int ret;

    *ret_made = false;
    if (!path)
        return error_no_memory(err, "a path");
    ret = open_sealed(folder, number, &src, err);
    if (ret != CAIRN_OK)
        return ret;
    snprintf(told.what, sizeof(told.what), "seal sealed-%" PRIu32, number);
    with_progress.progress = tell_progress;
    with_progress.progress_arg = &told;
    disk_folder_remove(folder, name);
    ret = sealing_write(src, path, 0600, &with_progress, &result, &why);
    *ret_made = ret == CAIRN_OK;
    if (ret == CAIRN_E_NO_SPACE)
        return CAIRN_OK;
    if (ret != CAIRN_OK && err)
        *err = why;
    return ret;
}
