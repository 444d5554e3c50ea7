/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header of an active layer: what create writes, and what open takes.
 *
 * Everything that can change later, the recorded parent and the place of the refcount table, lies
 * in the first 512 bytes, which a disk writes as a whole or not at all; so it is changed in place,
 * as one page of the table cache, at its turn in the write order.
 *
 * Open takes less than a reader does: what this engine would have to keep up to date when it
 * writes, and does not (snapshots, bitmaps, the dirty bit, other widths), is refused by name.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

#include "active_internal.h"
#include "bytes.h"
#include "chain_index.h"
#include "checked.h"
#include "qcow2_header.h"
#include "quote.h"

/* Beneath an active layer lies a chain, which is read as raw bytes and never probed. */
#define BACKING_FORMAT "raw"

/* -- Writing ----------------------------------------------------------------------------------- */

/* Append an extension at *pos. */
static void put_extension(uint8_t *bytes, size_t *pos, uint32_t type, const void *data, size_t len)
{
    bytes_put_be32(bytes + *pos, type);
    bytes_put_be32(bytes + *pos + 4, (uint32_t)len);
    memcpy(bytes + *pos + QCOW2_EXT_HEADER_LEN, data, len);
    *pos += QCOW2_EXT_HEADER_LEN + round_up(len, 8);
}

static void put_parent(const struct active_header *h, uint8_t *bytes, size_t *pos)
{
    char id[DIGEST_STR_MAX] = {0}; /* all zeros while it is pending */
    size_t name_len = strlen(QCOW2_CAIRN_BACKING);

    if (h->parent_state == ACTIVE_PARENT_KNOWN)
        digest_format(&h->parent, id);
    put_extension(bytes, pos, QCOW2_EXT_CAIRN_PARENT, id, QCOW2_CAIRN_PARENT_LEN);
    put_extension(bytes, pos, QCOW2_EXT_BACKING_FORMAT, BACKING_FORMAT, strlen(BACKING_FORMAT));
    *pos += QCOW2_EXT_HEADER_LEN; /* the end: zeros */
    memcpy(bytes + *pos, QCOW2_CAIRN_BACKING, name_len);
    memcpy(bytes + *pos + name_len, id, strlen(id));
    bytes_put_be64(bytes + QCOW2_HDR_BACKING_FILE_OFFSET, *pos);
    bytes_put_be32(bytes + QCOW2_HDR_BACKING_FILE_SIZE, (uint32_t)(name_len + strlen(id)));
}

void active_header_encode(const struct active_header *h, uint8_t bytes[TABLE_PAGE_SIZE])
{
    size_t pos = QCOW2_HDR_FULL_LENGTH;

    memset(bytes, 0, TABLE_PAGE_SIZE);
    bytes_put_be32(bytes + QCOW2_HDR_MAGIC, QCOW2_MAGIC);
    bytes_put_be32(bytes + QCOW2_HDR_VERSION, 3);
    bytes_put_be32(bytes + QCOW2_HDR_CLUSTER_BITS, h->shape.cluster_bits);
    bytes_put_be64(bytes + QCOW2_HDR_SIZE, h->shape.virtual_size);
    bytes_put_be32(bytes + QCOW2_HDR_L1_SIZE, h->shape.l1_size);
    bytes_put_be64(bytes + QCOW2_HDR_L1_TABLE_OFFSET, h->shape.l1_off);
    bytes_put_be64(bytes + QCOW2_HDR_REFCOUNT_TABLE_OFFSET, h->table_off);
    bytes_put_be32(bytes + QCOW2_HDR_REFCOUNT_TABLE_CLUSTERS, h->table_clusters);
    bytes_put_be64(bytes + QCOW2_HDR_INCOMPATIBLE_FEATURES, QCOW2_INCOMPAT_EXTL2);
    bytes_put_be32(bytes + QCOW2_HDR_REFCOUNT_ORDER, QCOW2_V2_REFCOUNT_ORDER);
    bytes_put_be32(bytes + QCOW2_HDR_HEADER_LENGTH, QCOW2_HDR_FULL_LENGTH);
    if (h->parent_state != ACTIVE_NO_PARENT)
        put_parent(h, bytes, &pos);
}

/* -- Which shapes are taken -------------------------------------------------------------------- */

struct rule {
    const char *field;
    uint64_t value, expected;
};

static int check_shape(const char *name, const struct qcow2_header *hdr, struct cairn_error *err)
{
    const struct rule rules[] = {
        {"version", hdr->version, 3},
        {"incompatible_features", hdr->incompatible_features, QCOW2_INCOMPAT_EXTL2},
        {"autoclear_features", hdr->autoclear_features, 0},
        {"refcount_order", hdr->refcount_order, QCOW2_V2_REFCOUNT_ORDER},
        {"nb_snapshots", hdr->nb_snapshots, 0},
        {"bitmaps extension", hdr->has_bitmaps, 0},
        {"encryption header extension", hdr->has_crypto_header, 0},
        {"external data file name", hdr->data_file.len, 0},
        {"size modulo 512", hdr->size % 512, 0},
    };

    for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
        if (rules[i].value != rules[i].expected)
            return error_set(err, CAIRN_E_UNSUPPORTED,
                             "%s: %s is 0x%" PRIx64 ", an active layer has 0x%" PRIx64, name,
                             rules[i].field, rules[i].value, rules[i].expected);
    }
    if (hdr->size > CHAIN_VIRTUAL_SIZE_MAX)
        return error_set(err, CAIRN_E_LIMIT, "%s: size is %" PRIu64 ", the limit %" PRIu64, name,
                         hdr->size, CHAIN_VIRTUAL_SIZE_MAX);
    return CAIRN_OK;
}

static bool is_foreign(const struct qcow2_header *hdr)
{
    const size_t prefix_len = strlen(QCOW2_CAIRN_BACKING);
    const struct qcow2_blob *backing = &hdr->backing_file;

    return backing->len > 0 && !hdr->has_parent && !hdr->parent_pending &&
           (backing->len < prefix_len ||
            memcmp(backing->data, QCOW2_CAIRN_BACKING, prefix_len) != 0);
}

/* The backing name says the same as the extension, or there is neither. */
static int read_parent(const char *name, const struct qcow2_header *hdr, struct active_header *h,
                       struct cairn_error *err)
{
    const size_t prefix_len = strlen(QCOW2_CAIRN_BACKING);
    const struct qcow2_blob *backing = &hdr->backing_file;
    char id[DIGEST_STR_MAX] = {0}, quoted[QUOTE_MAX];

    if (hdr->has_parent)
        digest_format(&hdr->parent, id);
    if (backing->len == 0 && !hdr->has_parent) {
        h->parent_state = ACTIVE_NO_PARENT;
        return CAIRN_OK;
    }
    if (backing->len != prefix_len + strlen(id) ||
        memcmp(backing->data, QCOW2_CAIRN_BACKING, prefix_len) != 0 ||
        memcmp(backing->data + prefix_len, id, strlen(id)) != 0)
        return error_set(err, CAIRN_E_UNSUPPORTED,
                         "%s: the backing file name is %s, an active layer has \"%s%s\"", name,
                         quote_bytes(backing->data, backing->len, quoted), QCOW2_CAIRN_BACKING, id);
    h->parent_state = hdr->has_parent ? ACTIVE_PARENT_KNOWN : ACTIVE_PARENT_PENDING;
    h->parent = hdr->parent;
    return CAIRN_OK;
}

static int take_header(struct source *src, const struct qcow2_header *hdr, bool foreign_backing,
                       struct active_header *ret_h, struct cairn_error *err)
{
    struct active_header h = {
        .shape = {.virtual_size = hdr->size,
                  .l1_off = hdr->l1_table_offset,
                  .l1_size = hdr->l1_size,
                  .cluster_bits = hdr->cluster_bits},
        .table_off = hdr->refcount_table_offset,
        .table_clusters = hdr->refcount_table_clusters,
    };
    int rc = qcow2_header_check_supported(src, hdr, err);

    if (!rc)
        rc = check_shape(src->name, hdr, err);
    if (!rc)
        rc = qcow2_header_check_tables(src, hdr, err);
    if (!rc && foreign_backing && is_foreign(hdr))
        h.parent_state = ACTIVE_PARENT_FOREIGN;
    else if (!rc)
        rc = read_parent(src->name, hdr, &h, err);
    if (!rc)
        *ret_h = h;
    return rc;
}

int active_header_read(struct hostfile *file, bool foreign_backing, struct active_header *ret_h,
                       struct cairn_error *err)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    struct qcow2_header hdr;
    int fd = fcntl(file->fd, F_DUPFD_CLOEXEC, 0);
    int rc;

    if (fd < 0)
        return error_set_errno(err, errno, "%s: cannot duplicate the descriptor", file->name);
    rc = source_from_fd(fd, file->name, &src, err);
    if (!rc)
        rc = qcow2_header_read(src, &hdr, err);
    if (rc)
        return rc;
    rc = take_header(src, &hdr, foreign_backing, ret_h, err);
    qcow2_header_release(&hdr);
    return rc;
}
