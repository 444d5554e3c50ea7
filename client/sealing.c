/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An options struct may come from a caller that was built with an older header, which knew fewer
 * fields: what lies beyond its struct_size is 0.
 */
#include "sealing.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "checked.h"

static const struct {
    const char *name;
    enum seal_compression type;
} kinds[] = {
    [CAIRN_COMPRESS_NONE] = {"none", SEAL_UNCOMPRESSED},
    [CAIRN_COMPRESS_ZLIB] = {"zlib", SEAL_ZLIB},
    [CAIRN_COMPRESS_ZSTD] = {"zstd", SEAL_ZSTD},
};
#define NR_KINDS (sizeof(kinds) / sizeof(kinds[0]))

const char *sealing_name(enum cairn_compress compress)
{
    return kinds[compress].name;
}

bool sealing_by_name(const char *name, enum cairn_compress *ret_compress)
{
    for (size_t i = 0; name && i < NR_KINDS; i++)
        if (strcmp(kinds[i].name, name) == 0) {
            *ret_compress = (enum cairn_compress)i;
            return true;
        }
    return false;
}

struct seal_options sealing_options(const struct cairn_seal_options *given)
{
    return (struct seal_options){.compression = kinds[given->compress].type, .level = given->level};
}

int sealing_check(const struct cairn_seal_options *options, struct cairn_seal_options *ret_given,
                  struct cairn_error *err)
{
    struct cairn_seal_options given = CAIRN_SEAL_OPTIONS_INIT;
    struct seal_options seal;
    int ret;

    if (options && options->struct_size < sizeof(options->struct_size))
        return error_set(err, CAIRN_E_USAGE, "struct cairn_seal_options: struct_size is %zu",
                         options->struct_size);
    if (options)
        memcpy(&given, options, (size_t)min_u64(options->struct_size, sizeof(given)));
    if ((unsigned)given.compress >= NR_KINDS)
        return error_set(err, CAIRN_E_USAGE, "struct cairn_seal_options: compress is %d",
                         (int)given.compress);
    seal = sealing_options(&given);
    ret = seal_check_options(&seal, err);
    if (ret == CAIRN_OK)
        *ret_given = given;
    return ret;
}

int sealing_write(struct source *src, const char *path, unsigned mode,
                  const struct seal_options *options, struct seal_result *ret_result,
                  struct cairn_error *err)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    struct hostfile out;
    int ret;

    if (fd < 0)
        return error_set_errno(err, errno, "cannot create %s", path);
    ret = hostfile_init(&out, fd, path, err);
    if (ret == CAIRN_OK)
        ret = seal_image(src, &out, options, ret_result, err);
    hostfile_release(&out);
    if (ret != CAIRN_OK)
        unlink(path);
    return ret;
}
