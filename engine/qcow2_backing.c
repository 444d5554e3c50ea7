/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The first cluster is rewritten as a whole: header, extensions, backing name, in this order, which
 * is how QEMU lays it out.  It is built in memory and goes out in one write, from the start to the
 * end of what was there or is there now, whichever is longer, so that nothing of an old name stays
 * behind. The image must be one that qcow2_image_open takes; that is what makes it safe to walk the
 * extensions here.
 */
#include "qcow2_backing.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>

#include "bytes.h"
#include "hostfile.h"
#include "qcow2_header.h"

struct first_cluster {
    const struct qcow2_header *hdr;
    const uint8_t *old;
    uint8_t *new;
    size_t size; /* of both */
    size_t used; /* of new */
};

static size_t header_len(const struct qcow2_header *hdr)
{
    return hdr->version == 2 ? QCOW2_HDR_V2_LENGTH : hdr->header_length;
}

/* Where the old extensions must end. */
static size_t extensions_end(const struct first_cluster *c)
{
    return c->hdr->backing_file_offset ? (size_t)c->hdr->backing_file_offset : c->size;
}

/* The end of what the old cluster holds. */
static size_t old_used(const struct first_cluster *c)
{
    size_t off = header_len(c->hdr);
    size_t end = extensions_end(c);

    if (c->hdr->backing_file_offset)
        return end + c->hdr->backing_file.len;
    while (range_in(off, QCOW2_EXT_HEADER_LEN, end) &&
           bytes_get_be32(c->old + off) != QCOW2_EXT_END)
        off += QCOW2_EXT_HEADER_LEN + round_up(bytes_get_be32(c->old + off + 4), 8);
    return min_u64(off, end);
}

static bool put(struct first_cluster *c, const void *data, size_t len, size_t padded)
{
    if (!range_in(c->used, padded, c->size))
        return false;
    memcpy(c->new + c->used, data, len);
    c->used += padded;
    return true;
}

static bool put_extension(struct first_cluster *c, uint32_t type, const void *data, uint32_t len)
{
    uint8_t head[QCOW2_EXT_HEADER_LEN];

    bytes_put_be32(head, type);
    bytes_put_be32(head + 4, len);
    return put(c, head, sizeof(head), sizeof(head)) && put(c, data, len, round_up(len, 8));
}

static bool copy_extensions(struct first_cluster *c, bool feature_names)
{
    size_t end = extensions_end(c);
    bool fits = true;

    for (size_t off = header_len(c->hdr); fits && range_in(off, QCOW2_EXT_HEADER_LEN, end);) {
        uint32_t type = bytes_get_be32(c->old + off);
        uint32_t len = bytes_get_be32(c->old + off + 4);

        off += QCOW2_EXT_HEADER_LEN;
        if (type == QCOW2_EXT_END || !range_in(off, len, end))
            break;
        if (type != QCOW2_EXT_BACKING_FORMAT && (feature_names || type != QCOW2_EXT_FEATURE_NAMES))
            fits = put_extension(c, type, c->old + off, len);
        off += round_up(len, 8);
    }
    return fits;
}

/* False: there is no room for all of it. */
static bool build(struct first_cluster *c, const char *backing, const char *format,
                  bool feature_names)
{
    uint32_t name_len = backing ? (uint32_t)strlen(backing) : 0;

    memset(c->new, 0, c->size);
    c->used = 0;
    if (!put(c, c->old, header_len(c->hdr), header_len(c->hdr)))
        return false;
    if (backing && !put_extension(c, QCOW2_EXT_BACKING_FORMAT, format, (uint32_t)strlen(format)))
        return false;
    if (!copy_extensions(c, feature_names) || !put_extension(c, QCOW2_EXT_END, "", 0))
        return false;
    bytes_put_be64(c->new + QCOW2_HDR_BACKING_FILE_OFFSET, backing ? c->used : 0);
    bytes_put_be32(c->new + QCOW2_HDR_BACKING_FILE_SIZE, name_len);
    if (c->hdr->version > 2)
        bytes_put_be64(c->new + QCOW2_HDR_AUTOCLEAR_FEATURES,
                       c->hdr->autoclear_features & QCOW2_AUTOCLEAR_KNOWN);
    return !backing || put(c, backing, name_len, name_len);
}

static int write_out(int fd, const char *file, const void *bytes, size_t len,
                     struct cairn_error *err)
{
    int own_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0); /* the file closes its descriptor */
    struct hostfile host;
    int ret;

    if (own_fd < 0)
        return error_set_errno(err, errno, "cannot duplicate a descriptor of %s", file);
    ret = hostfile_init(&host, own_fd, file, err);
    if (ret == CAIRN_OK)
        ret = hostfile_pwrite(FAULT_AT(&host, FAULT_BACKING_HEADER), bytes, len, 0, err);
    hostfile_release(&host);
    return ret;
}

static int rewrite(int fd, struct source *src, const struct qcow2_header *hdr, const char *backing,
                   enum layer_format format, size_t *ret_changed, struct cairn_error *err)
{
    const char *format_name = format == LAYER_RAW ? "raw" : "qcow2";
    struct first_cluster c = {.hdr = hdr, .size = qcow2_cluster_size(hdr)};
    CLEANUP_FREE uint8_t *old = malloc(c.size);
    CLEANUP_FREE uint8_t *new = malloc(c.size);
    int ret;

    if (!old || !new)
        return error_no_memory(err, "a cluster");
    c.old = old;
    c.new = new;
    ret = source_pread_padded(src, old, c.size, 0, err);
    if (ret != CAIRN_OK)
        return ret;
    if (!build(&c, backing, format_name, true) && !build(&c, backing, format_name, false))
        return error_set(
            err, CAIRN_E_LIMIT,
            "%s: its first cluster of %zu bytes has no room for a backing file name of "
            "%zu bytes",
            src->name, c.size, backing ? strlen(backing) : 0);
    *ret_changed = max_u64(c.used, old_used(&c));
    return write_out(fd, src->name, c.new, *ret_changed, err);
}

int qcow2_set_backing(int fd, const char *file, const char *backing, enum layer_format format,
                      size_t *ret_changed, struct cairn_error *err)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(qcow2_image_free_p) struct qcow2_image *image = NULL;
    size_t changed = 0;
    int own_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0); /* the source closes its descriptor */
    int ret;

    if (backing && strlen(backing) > QCOW2_BACKING_NAME_MAX)
        ret = error_set(err, CAIRN_E_LIMIT, "%s: a backing file name has at most %d bytes", file,
                        QCOW2_BACKING_NAME_MAX);
    else if (own_fd < 0)
        ret = error_set_errno(err, errno, "cannot duplicate a descriptor of %s", file);
    else
        ret = source_from_fd(steal_fd(&own_fd), file, &src, err);
    if (own_fd >= 0)
        close(own_fd);
    if (ret == CAIRN_OK)
        ret = qcow2_image_open(src, 0, &image, err);
    if (ret == CAIRN_OK && (backing || qcow2_image_header(image)->backing_file_offset))
        ret = rewrite(fd, src, qcow2_image_header(image), backing, format, &changed, err);
    if (ret == CAIRN_OK && ret_changed)
        *ret_changed = changed;
    return ret;
}
