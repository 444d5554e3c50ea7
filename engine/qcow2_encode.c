/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A header and its extensions as bytes: version 3, with what sealing keeps (seal.h): the recorded
 * parent, the backing file's format and its name, in this order, which is the active layer's.
 */
#include "bytes.h"
#include "qcow2_header.h"

struct encoder {
    uint8_t *bytes;
    size_t used, size;
    bool full;
};

static void put(struct encoder *e, const void *data, size_t len, size_t padded)
{
    if (e->full || !range_in(e->used, padded, e->size)) {
        e->full = true;
        return;
    }
    if (len > 0)
        memcpy(e->bytes + e->used, data, len);
    e->used += padded;
}

static void put_extension(struct encoder *e, uint32_t type, const void *data, uint32_t len)
{
    uint8_t head[QCOW2_EXT_HEADER_LEN];

    bytes_put_be32(head, type);
    bytes_put_be32(head + 4, len);
    put(e, head, sizeof(head), sizeof(head));
    put(e, data, len, round_up(len, 8));
}

static void put_parent(struct encoder *e, const struct qcow2_header *hdr)
{
    char id[DIGEST_STR_MAX] = {0}; /* all zeros while it is pending */

    if (hdr->has_parent)
        digest_format(&hdr->parent, id);
    put_extension(e, QCOW2_EXT_CAIRN_PARENT, id, QCOW2_CAIRN_PARENT_LEN);
}

static void put_fields(uint8_t *bytes, const struct qcow2_header *hdr)
{
    bytes_put_be32(bytes + QCOW2_HDR_MAGIC, QCOW2_MAGIC);
    bytes_put_be32(bytes + QCOW2_HDR_VERSION, 3);
    bytes_put_be32(bytes + QCOW2_HDR_CLUSTER_BITS, hdr->cluster_bits);
    bytes_put_be64(bytes + QCOW2_HDR_SIZE, hdr->size);
    bytes_put_be32(bytes + QCOW2_HDR_L1_SIZE, hdr->l1_size);
    bytes_put_be64(bytes + QCOW2_HDR_L1_TABLE_OFFSET, hdr->l1_table_offset);
    bytes_put_be64(bytes + QCOW2_HDR_REFCOUNT_TABLE_OFFSET, hdr->refcount_table_offset);
    bytes_put_be32(bytes + QCOW2_HDR_REFCOUNT_TABLE_CLUSTERS, hdr->refcount_table_clusters);
    bytes_put_be64(bytes + QCOW2_HDR_INCOMPATIBLE_FEATURES, hdr->incompatible_features);
    bytes_put_be32(bytes + QCOW2_HDR_REFCOUNT_ORDER, hdr->refcount_order);
    bytes_put_be32(bytes + QCOW2_HDR_HEADER_LENGTH, QCOW2_HDR_FULL_LENGTH);
    bytes[QCOW2_HDR_COMPRESSION_TYPE] = hdr->compression_type;
}

size_t qcow2_header_encode(const struct qcow2_header *hdr, uint8_t *bytes, size_t size)
{
    struct encoder e = {.bytes = bytes, .used = QCOW2_HDR_FULL_LENGTH, .size = size};

    memset(bytes, 0, size);
    put_fields(bytes, hdr);
    if (hdr->has_parent || hdr->parent_pending)
        put_parent(&e, hdr);
    if (hdr->backing_format.len > 0)
        put_extension(&e, QCOW2_EXT_BACKING_FORMAT, hdr->backing_format.data,
                      hdr->backing_format.len);
    put_extension(&e, QCOW2_EXT_END, NULL, 0);
    if (hdr->backing_file.len > 0) {
        bytes_put_be64(bytes + QCOW2_HDR_BACKING_FILE_OFFSET, e.used);
        bytes_put_be32(bytes + QCOW2_HDR_BACKING_FILE_SIZE, hdr->backing_file.len);
        put(&e, hdr->backing_file.data, hdr->backing_file.len, hdr->backing_file.len);
    }
    return e.full ? 0 : e.used;
}
