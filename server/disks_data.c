/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HEAD and GET …/data: the guest's bytes, with one Range (RFC 9110, section 14).
 *
 * A range that lies in one piece in one layer's file goes out by sendfile.  Everything else is read
 * through the chain's index: small ranges before the reply begins, so that a failure still has a
 * status of its own, larger ones as the client takes them.
 */
#include "disks_internal.h"

#include <fcntl.h>
#include <inttypes.h>

#include "checked.h"
#include "nowait.h"
#include "quote.h"
#include "registry.h"

#define DATA_TYPE "application/octet-stream"

/* What is read before the reply begins: most requests of a disk's client, and little memory. */
#define SMALL_RANGE ((uint64_t)256 << 10)

/* A guest range on its way out. */
struct data {
    struct disk *disk;
    uint64_t guest_off; /* of the body's first byte */
};

static int data_read(void *ctx, void *buf, size_t len, uint64_t off, struct cairn_error *err)
{
    const struct data *d = ctx;
    struct chain_reader reader = disk_reader(d->disk);

    return chain_read(&reader, buf, len, d->guest_off + off, err);
}

static void data_free(void *ctx)
{
    struct data *d = ctx;

    disk_unref(d->disk);
    free(d);
}

static bool reply_stream(const struct disk_request *rq, unsigned status, uint64_t guest_off,
                         uint64_t len)
{
    struct data *d = malloc(sizeof(*d));
    struct http_stream stream = {.read = data_read, .free = data_free, .ctx = d};
    struct cairn_error err;

    if (!d) {
        error_no_memory(&err, "a data stream");
        http_reply_failure(rq->reply, &err);
        return false;
    }
    *d = (struct data){.disk = disk_ref(rq->disk), .guest_off = guest_off};
    http_reply_stream(rq->reply, status, DATA_TYPE, &stream, len);
    return true;
}

static bool reply_small(const struct disk_request *rq, unsigned status, uint64_t guest_off,
                        size_t len)
{
    struct chain_reader reader = disk_reader(rq->disk);
    CLEANUP_FREE uint8_t *buf = malloc(len);
    struct cairn_error err;
    int code = buf ? nowait_check(&err) : error_no_memory(&err, "a range of a disk");

    if (code == CAIRN_OK)
        code = chain_read(&reader, buf, len, guest_off, &err);
    if (code == CAIRN_OK)
        http_reply_buffer(rq->reply, status, DATA_TYPE, steal_ptr(buf), len);
    else
        http_reply_failure(rq->reply, &err);
    return code == CAIRN_OK;
}

/*
 * If the range is one run of plain data inside the file of one layer (what lies past the file's end
 * reads as zeros, and sendfile cannot send those): a descriptor of the file, for the caller to
 * close, and where the run begins.  -1 if not.
 */
static int one_piece(const struct disk_request *rq, uint64_t guest_off, uint64_t len, int *ret_fd,
                     uint64_t *ret_host_off, struct cairn_error *err)
{
    struct disk *disk = rq->disk;
    struct index_slices slices = disk_slices(disk);
    CLEANUP(blob_unref_p) struct blob *blob = NULL;
    char key[REGISTRY_KEY_MAX];
    struct extent first;
    size_t nr;
    int code;

    *ret_fd = -1;
    code = chain_map(disk->l1, &slices, guest_off, len, &first, 1, &nr, err);
    if (code != CAIRN_OK || nr == 0 || first.len < len || first.kind != EXTENT_DATA)
        return code;
    code = disk_blob(disk, first.layer, &blob, err);
    if (code != CAIRN_OK || blob->fd < 0 || !range_in(first.host_off, len, blob->src->size))
        return code;
    code = nowait_check_file(blob->fd, first.host_off, len, err);
    if (code != CAIRN_OK)
        return code;
    *ret_fd = fcntl(blob->fd, F_DUPFD_CLOEXEC, 0);
    if (*ret_fd < 0)
        return CAIRN_OK; /* without a descriptor to spare it is read */
    *ret_host_off = first.host_off;
    store_note_sent(disk->disks->store, registry_blob_key(&disk->layers[first.layer], key), len);
    return CAIRN_OK;
}

/* Makes the reply; false if it is a failure. */
static bool reply_range(const struct disk_request *rq, unsigned status, uint64_t guest_off,
                        uint64_t len)
{
    bool body = len > 0 && http_method(rq->http) != HTTP_HEAD;
    struct cairn_error err;
    uint64_t host_off;
    int fd = -1;

    if (body && one_piece(rq, guest_off, len, &fd, &host_off, &err) != CAIRN_OK) {
        http_reply_failure(rq->reply, &err);
        return false;
    }
    if (body && fd < 0 && len <= SMALL_RANGE)
        return reply_small(rq, status, guest_off, (size_t)len);
    if (fd < 0)
        return reply_stream(rq, status, guest_off, len);
    http_reply_fd(rq->reply, status, DATA_TYPE, fd, host_off, len);
    return true;
}

void disks_reply_data(const struct disk_request *rq)
{
    uint64_t size = rq->disk->l1->virtual_size;
    uint64_t off = 0, len = size;
    char quoted[QUOTE_MAX];

    http_reply_header(rq->reply, "Accept-Ranges", "bytes");
    switch (http_range(rq->http, size, rq->disk->etag, &off, &len)) {
    case HTTP_RANGE_NONE:
        reply_range(rq, 200, 0, size);
        break;
    case HTTP_RANGE_PARTIAL:
        if (reply_range(rq, 206, off, len))
            http_reply_header(rq->reply, "Content-Range", "bytes %" PRIu64 "-%" PRIu64 "/%" PRIu64,
                              off, off + len - 1, size);
        break;
    case HTTP_RANGE_UNSATISFIABLE:
        http_reply_header(rq->reply, "Content-Range", "bytes */%" PRIu64, size);
        http_reply_error(rq->reply, 416, "RANGE_INVALID",
                         "Range: %s is not within the disk's %" PRIu64 " bytes",
                         quote_str(http_header(rq->http, "Range"), quoted), size);
        break;
    }
}
