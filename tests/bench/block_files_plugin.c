/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An nbdkit plugin that tests/bench/depth measures Cairn against: the same blocks from the same
 * files of the block cache, by the same system call, and nothing else.  A list that was made
 * beforehand says where each cluster is; nothing is looked up, checked, counted or fetched.  What
 * depth costs here it costs in the kernel.
 *
 * list=FILE: the number of files, their paths, and for each cluster of the disk, in order, the
 * number of its file and its offset in that layer; separated by white space.  All of it must be in
 * the cache.
 */
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>

#include "block_cache_internal.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

#define CLUSTER_SIZE   65536u
#define CLUSTER_BLOCKS (CLUSTER_SIZE / BLOCK_SIZE)

struct file {
    int fd;
    uint64_t slots_off;
};

struct cluster {
    int fd;
    uint64_t slot_off; /* of its first block */
};

static const char *list_path;
static struct file *files;
static unsigned nr_files;
static struct cluster *clusters;
static uint64_t nr_clusters;

static int plugin_config(const char *name, const char *value)
{
    if (strcmp(name, "list") != 0) {
        nbdkit_error("unknown parameter '%s', list expected", name);
        return -1;
    }
    list_path = value;
    return 0;
}

static int plugin_config_complete(void)
{
    if (list_path)
        return 0;
    nbdkit_error("list=FILE is missing");
    return -1;
}

/* -- The list ------------------------------------------------------------------------------- */

static bool open_file(const char *path, struct file *ret_file)
{
    uint8_t bytes[BLOCKS_HEADER_SIZE];
    struct blocks_header h;

    ret_file->fd = open(path, O_RDONLY | O_NOATIME | O_CLOEXEC);
    if (ret_file->fd < 0 || pread(ret_file->fd, bytes, sizeof(bytes), 0) != sizeof(bytes) ||
        !blocks_header_decode(bytes, &h))
        return false;
    ret_file->slots_off = blocks_slots_off(h.layer_size);
    return true;
}

static bool read_files(FILE *list)
{
    char path[4096];

    if (fscanf(list, "%u", &nr_files) != 1 || !(files = calloc(nr_files, sizeof(*files))))
        return false;
    for (unsigned i = 0; i < nr_files; i++)
        if (fscanf(list, "%4095s", path) != 1 || !open_file(path, &files[i]))
            return false;
    return true;
}

static bool read_clusters(FILE *list)
{
    uint64_t host_off, max = 0;
    unsigned file;

    while (fscanf(list, "%u %" SCNu64, &file, &host_off) == 2) {
        if (nr_clusters == max) {
            max = max ? 2 * max : 1024;
            clusters = reallocarray(clusters, max, sizeof(*clusters));
        }
        if (!clusters || file >= nr_files || host_off % BLOCK_SIZE != 0)
            return false;
        clusters[nr_clusters++] = (struct cluster){
            files[file].fd, files[file].slots_off + host_off / BLOCK_SIZE * SLOT_SIZE};
    }
    return feof(list) && nr_clusters > 0;
}

static int plugin_after_fork(void)
{
    FILE *list = fopen(list_path, "re");
    bool ok = list && read_files(list) && read_clusters(list);

    if (list)
        fclose(list);
    free(files);
    if (ok)
        return 0;
    nbdkit_error("%s: is no list of clusters in files of a block cache that can be opened",
                 list_path);
    return -1;
}

static void plugin_unload(void)
{
    free(clusters); /* the files end with the process */
}

/* -- The disk ------------------------------------------------------------------------------- */

static void *plugin_open(int readonly)
{
    (void)readonly;
    return NBDKIT_HANDLE_NOT_NEEDED;
}

static int64_t plugin_get_size(void *handle)
{
    (void)handle;
    return (int64_t)(nr_clusters * CLUSTER_SIZE);
}

static int plugin_can_multi_conn(void *handle)
{
    (void)handle;
    return 1;
}

static int read_blocks(const struct cluster *cluster, unsigned first, unsigned nr, char *buf)
{
    uint8_t sums[CLUSTER_BLOCKS][SLOT_HEADER];
    struct iovec iov[2 * CLUSTER_BLOCKS];

    for (unsigned i = 0; i < nr; i++) {
        iov[2 * i] = (struct iovec){sums[i], SLOT_HEADER};
        iov[2 * i + 1] = (struct iovec){buf + (size_t)i * BLOCK_SIZE, BLOCK_SIZE};
    }
    if (preadv(cluster->fd, iov, (int)(2 * nr),
               (off_t)(cluster->slot_off + (uint64_t)first * SLOT_SIZE)) ==
        (ssize_t)((size_t)nr * SLOT_SIZE))
        return 0;
    nbdkit_error("a file of the block cache cannot be read, or ends early");
    nbdkit_set_error(EIO);
    return -1;
}

static int plugin_pread(void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
    (void)handle;
    (void)flags;
    if (count % BLOCK_SIZE != 0 || offset % BLOCK_SIZE != 0) {
        nbdkit_error("%" PRIu32 " bytes at %" PRIu64 " are not whole blocks", count, offset);
        nbdkit_set_error(EINVAL);
        return -1;
    }
    for (uint32_t done = 0; done < count;) {
        uint64_t at = offset + done;
        unsigned first = (unsigned)(at % CLUSTER_SIZE / BLOCK_SIZE);
        unsigned nr =
            (unsigned)min_u64(CLUSTER_BLOCKS - first, (uint64_t)(count - done) / BLOCK_SIZE);

        if (read_blocks(&clusters[at / CLUSTER_SIZE], first, nr, (char *)buf + done) != 0)
            return -1;
        done += nr * BLOCK_SIZE;
    }
    return 0;
}

static struct nbdkit_plugin plugin = {
    .name = "block-files",
    .version = CAIRN_VERSION,
    .unload = plugin_unload,
    .config = plugin_config,
    .config_complete = plugin_config_complete,
    .after_fork = plugin_after_fork,
    .open = plugin_open,
    .get_size = plugin_get_size,
    .can_multi_conn = plugin_can_multi_conn,
    .pread = plugin_pread,
};

struct nbdkit_plugin *plugin_init(void); /* which the macro defines */
NBDKIT_REGISTER_PLUGIN(plugin)
