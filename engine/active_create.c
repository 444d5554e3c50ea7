/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A new active layer: header, refcount table, one refcount block, an L1 table of zeros.
 *
 * It is written under a temporary name in the same folder, made durable, and then linked to its
 * own name, which fails if that is taken; so at no instant is there half an image under the name.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "active_internal.h"
#include "bytes.h"
#include "chain_index.h"
#include "checked.h"
#include "cleanup.h"

#define DEFAULT_CLUSTER_BITS 17
#define TEMPORARY_TRIES      100

enum first_clusters {
    CLUSTER_HEADER,
    CLUSTER_REFTABLE,
    CLUSTER_REFBLOCK,
    CLUSTER_L1,
};

static uint64_t l1_entries(uint64_t virtual_size, unsigned cluster_bits)
{
    return div_round_up(virtual_size, UINT64_C(1) << (2 * cluster_bits - 4));
}

int active_check_size(uint64_t virtual_size, unsigned cluster_bits, struct cairn_error *err)
{
    if (virtual_size % 512 != 0)
        return error_set(err, CAIRN_E_USAGE, "virtual size %" PRIu64 " is not a multiple of 512",
                         virtual_size);
    if (virtual_size > CHAIN_VIRTUAL_SIZE_MAX ||
        l1_entries(virtual_size, cluster_bits) * QCOW2_L1E_SIZE > QCOW2_L1_BYTES_MAX)
        return error_set(err, CAIRN_E_LIMIT,
                         "virtual size %" PRIu64 " is too large for clusters of %" PRIu64 " bytes",
                         virtual_size, UINT64_C(1) << cluster_bits);
    return CAIRN_OK;
}

int active_plan(const struct active_options *options, struct active_header *ret_h,
                struct cairn_error *err)
{
    unsigned bits = options->cluster_bits ? options->cluster_bits : DEFAULT_CLUSTER_BITS;
    uint64_t nr_l1;
    int rc;

    if (bits < QCOW2_CLUSTER_BITS_MIN_EXTL2 || bits > QCOW2_CLUSTER_BITS_MAX)
        return error_set(err, CAIRN_E_USAGE, "cluster_bits is %u, expected %d to %d", bits,
                         QCOW2_CLUSTER_BITS_MIN_EXTL2, QCOW2_CLUSTER_BITS_MAX);
    rc = active_check_size(options->virtual_size, bits, err);
    if (rc)
        return rc;
    nr_l1 = l1_entries(options->virtual_size, bits);
    *ret_h = (struct active_header){
        .shape = {.virtual_size = options->virtual_size,
                  .l1_off = (uint64_t)CLUSTER_L1 << bits,
                  .l1_size = (uint32_t)max_u64(nr_l1, 1), /* QEMU wants a table to be there */
                  .cluster_bits = bits},
        .table_off = (uint64_t)CLUSTER_REFTABLE << bits,
        .table_clusters = 1,
        .parent_state = options->parent           ? ACTIVE_PARENT_KNOWN
                        : options->parent_pending ? ACTIVE_PARENT_PENDING
                                                  : ACTIVE_NO_PARENT,
    };
    if (options->parent)
        ret_h->parent = *options->parent;
    return CAIRN_OK;
}

/* Clusters that a new file has; one refcount block counts them all, for an L1 table of the largest
 * size takes 2,048 clusters where a block counts 8,192, and fewer of larger ones. */
static uint64_t nr_clusters(const struct active_header *h)
{
    uint64_t l1_bytes = (uint64_t)h->shape.l1_size * QCOW2_L1E_SIZE;

    return CLUSTER_L1 + div_round_up(l1_bytes, UINT64_C(1) << h->shape.cluster_bits);
}

static int write_refblock(struct hostfile *file, const struct active_header *h,
                          struct cairn_error *err)
{
    uint64_t size = UINT64_C(1) << h->shape.cluster_bits;
    CLEANUP_FREE uint8_t *bytes = calloc(1, size);

    if (!bytes)
        return error_no_memory(err, "a refcount block");
    for (uint64_t i = 0; i < nr_clusters(h); i++)
        bytes_put_be16(bytes + 2 * i, 1);
    return hostfile_pwrite(FAULT_AT(file, FAULT_CREATE_REFBLOCK), bytes, size,
                           (uint64_t)CLUSTER_REFBLOCK << h->shape.cluster_bits, err);
}

static int write_image(struct hostfile *file, const struct active_header *h,
                       struct cairn_error *err)
{
    unsigned bits = h->shape.cluster_bits;
    uint8_t bytes[TABLE_PAGE_SIZE];
    int rc = hostfile_zero(FAULT_AT(file, FAULT_CREATE_ZEROS), nr_clusters(h) << bits, 0, err);

    if (!rc)
        rc = write_refblock(file, h, err);
    if (rc)
        return rc;
    memset(bytes, 0, sizeof(bytes));
    bytes_put_be64(bytes, (uint64_t)CLUSTER_REFBLOCK << bits);
    rc = hostfile_pwrite(FAULT_AT(file, FAULT_CREATE_REFTABLE), bytes, sizeof(bytes), h->table_off,
                         err);
    if (rc)
        return rc;
    active_header_encode(h, bytes);
    rc = hostfile_pwrite(FAULT_AT(file, FAULT_CREATE_HEADER), bytes, sizeof(bytes), 0, err);
    return rc ? rc : hostfile_sync(FAULT_AT(file, FAULT_CREATE_SYNC), err);
}

/* A new file beside path, with a name of its own. */
static int open_temporary(const char *path, char **ret_name, int *ret_fd, struct cairn_error *err)
{
    static atomic_uint serial;

    for (int i = 0; i < TEMPORARY_TRIES; i++) {
        CLEANUP_FREE char *name = NULL;
        int fd;

        if (asprintf(&name, "%s.new-%ld-%u", path, (long)getpid(), atomic_fetch_add(&serial, 1)) <
            0) {
            name = NULL;
            return error_no_memory(err, "a file name");
        }
        fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0) {
            *ret_name = steal_ptr(name);
            *ret_fd = fd;
            return CAIRN_OK;
        }
        if (errno != EEXIST)
            return error_set_errno(err, errno, "cannot create %s", name);
    }
    return error_set(err, CAIRN_E_CONFLICT, "cannot create a temporary file beside %s: all exist",
                     path);
}

static int publish(struct hostfile *file, const char *temporary, const char *path,
                   struct cairn_error *err)
{
    int rc = hostfile_link(FAULT_AT(file, FAULT_CREATE_LINK), temporary, path, err);

    if (rc)
        return rc;
    rc = hostfile_sync_folder(FAULT_AT(file, FAULT_CREATE_SYNC_FOLDER), path, err);
    if (rc)
        unlink(path);
    return rc;
}

/* Write the image into fd, which is the file's from here on, and give it its name. */
static int write_and_publish(int fd, const char *temporary, const char *path,
                             const struct active_header *h, struct cairn_error *err)
{
    struct hostfile file;
    int rc = hostfile_init(&file, fd, path, err);

    if (rc)
        return rc;
    rc = write_image(&file, h, err);
    if (!rc)
        rc = publish(&file, temporary, path, err);
    hostfile_release(&file);
    return rc;
}

int active_create(const char *path, const struct active_options *options,
                  struct active **ret_active, struct cairn_error *err)
{
    CLEANUP_FREE char *temporary = NULL;
    struct active_header h;
    int fd = -1;
    int rc = active_plan(options, &h, err);

    if (!rc)
        rc = open_temporary(path, &temporary, &fd, err);
    if (rc)
        return rc;
    rc = write_and_publish(fd, temporary, path, &h, err);
    unlink(temporary);
    if (rc)
        return rc;
    rc = active_open(path, options, ret_active, err);
    if (rc && rc != CAIRN_E_CONFLICT) /* else it is in use already */
        unlink(path);
    return rc;
}
