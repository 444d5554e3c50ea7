/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program that is killed leaves its temporary file behind, with ".cairn-" in its name; nothing
 * else ever looks at one.
 */
#include "whole_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "quote.h"

static int exists_already(const char *path, struct cairn_error *err)
{
    char quoted[QUOTE_MAX];

    return error_set(err, CAIRN_E_CONFLICT, "%s exists already; remove it or choose another name",
                     quote_str(path, quoted));
}

int whole_file_begin(struct whole_file *file, const char *path, struct cairn_error *err)
{
    const char *slash = strrchr(path, '/');
    int folder_len = slash ? (int)(slash + 1 - path) : 0;
    struct stat st;
    uint64_t random;

    file->path = file->temporary = NULL;
    if (!path[folder_len])
        return error_set(err, CAIRN_E_USAGE, "\"%s\" is not the name of a file", path);
    if (lstat(path, &st) == 0)
        return exists_already(path, err);
    if (getrandom(&random, sizeof(random), 0) != sizeof(random))
        return error_set_errno(err, errno, "cannot get random bytes");
    if (asprintf(&file->temporary, "%.*s.%s.cairn-%016" PRIx64, folder_len, path, path + folder_len,
                 random) < 0) {
        file->temporary = NULL;
        return error_no_memory(err, "a file name");
    }
    file->path = strdup(path);
    return file->path ? CAIRN_OK : error_no_memory(err, "a file name");
}

/* Some file systems cannot rename without replacing, but link. */
static int move_into_place(const char *from, const char *to)
{
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS)
        return -1;
    return link(from, to) == 0 ? unlink(from) : -1;
}

int whole_file_finish(struct whole_file *file, struct cairn_error *err)
{
    char quoted[QUOTE_MAX];

    if (move_into_place(file->temporary, file->path) != 0) {
        if (errno == EEXIST)
            return exists_already(file->path, err);
        return error_set_errno(err, errno, "cannot create %s", quote_str(file->path, quoted));
    }
    free(file->temporary);
    file->temporary = NULL;
    return sync_folder_of(file->path, err);
}

void whole_file_release(struct whole_file *file)
{
    if (file->temporary)
        unlink(file->temporary);
    free(file->temporary);
    free(file->path);
    file->path = file->temporary = NULL;
}

int sync_folder_of(const char *path, struct cairn_error *err)
{
    const char *slash = strrchr(path, '/');
    size_t len = slash ? (size_t)(slash - path) : 0;
    CLEANUP_FREE char *folder = slash ? strndup(path, len ? len : 1) : strdup(".");
    CLEANUP_CLOSE int fd = folder ? open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

    if (!folder)
        return error_no_memory(err, "a file name");
    if (fd < 0 || fsync(fd) != 0)
        return error_set_errno(err, errno, "cannot sync the folder %s", folder);
    return CAIRN_OK;
}
