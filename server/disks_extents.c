/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GET …/extents: what a guest range is made of, as `qemu-img map --output=json` of QEMU 7.2 says
 * it, plus the layer's digest.
 *
 * QEMU's rules: depth 0 is the top; what no layer has is not present, reads as zeros, and bears the
 * depth at which the search ended; offset stands where the guest's bytes, or their preallocated
 * place, lie in one piece in the file, so not for compressed clusters.  Neighbours are one entry
 * where all of that runs on.
 */
#include "disks_internal.h"

#include <inttypes.h>

#include "checked.h"

#define BATCH 128

struct extents {
    struct list list;
    struct disk *disk;
    uint64_t at, end;   /* what is still to be mapped */
    struct extent last; /* mapped and not yet printed, if len is not 0 */
    bool any;           /* is something printed? */
};

static bool one_entry(const struct extent *a, const struct extent *b)
{
    if (a->layer != b->layer || a->kind != b->kind)
        return false;
    return !extent_kind_linear(a->kind) || a->host_off + a->len == b->host_off;
}

static const char *json_bool(bool value)
{
    return value ? "true" : "false";
}

static void print_last(struct extents *x)
{
    const struct extent *e = &x->last;
    bool present = e->kind != EXTENT_HOLE;
    char layer[DIGEST_STR_MAX];

    if (e->len == 0)
        return;
    list_printf(&x->list,
                "%s{ \"start\": %" PRIu64 ", \"length\": %" PRIu64
                ", \"depth\": %u, \"present\": %s, \"zero\": %s, \"data\": %s",
                x->any ? ",\n" : "", e->guest_off, e->len, x->disk->chain.depth - 1u - e->layer,
                json_bool(present), json_bool(extent_reads_zero(e->kind)),
                json_bool(!extent_reads_zero(e->kind)));
    if (extent_kind_linear(e->kind))
        list_printf(&x->list, ", \"offset\": %" PRIu64, e->host_off);
    if (present)
        list_printf(&x->list, ", \"layer\": \"%s\"",
                    digest_format(&x->disk->layers[e->layer], layer));
    list_printf(&x->list, "}");
    x->any = true;
}

static void add(struct extents *x, const struct extent *e)
{
    if (x->last.len > 0 && one_entry(&x->last, e)) {
        x->last.len += e->len;
        return;
    }
    print_last(x);
    x->last = *e;
}

static int next_extents(struct list *list, struct cairn_error *err)
{
    struct extents *x = (struct extents *)list;
    struct index_slices slices = disk_slices(x->disk);
    struct extent batch[BATCH];
    size_t nr = 0;
    int code;

    if (x->at < x->end) {
        code = chain_map(x->disk->l1, &slices, x->at, x->end - x->at, batch, BATCH, &nr, err);
        if (code != CAIRN_OK)
            return code;
    }
    for (size_t i = 0; i < nr; i++)
        add(x, &batch[i]);
    if (nr > 0) {
        x->at = batch[nr - 1].guest_off + batch[nr - 1].len;
    } else {
        print_last(x);
        list_printf(list, "]\n");
        list->done = true;
    }
    return CAIRN_OK;
}

static void extents_free(struct list *list)
{
    struct extents *x = (struct extents *)list;

    disk_unref(x->disk);
    list_release(list);
    free(x);
}

/* start (0) and length (to the end, and never beyond it) of the request. */
static int asked_range(const struct disk_request *rq, uint64_t *ret_start, uint64_t *ret_end,
                       struct cairn_error *err)
{
    uint64_t size = rq->disk->l1->virtual_size;
    uint64_t start = 0, length = UINT64_MAX;
    int code = disks_query_u64(rq->http, "start", &start, err);

    if (code == CAIRN_OK)
        code = disks_query_u64(rq->http, "length", &length, err);
    if (code != CAIRN_OK)
        return code;
    if (start > size)
        return error_set(err, CAIRN_E_USAGE,
                         "query parameter start=%" PRIu64 " is beyond the disk's end at %" PRIu64,
                         start, size);
    *ret_start = start;
    *ret_end = start + min_u64(length, size - start);
    return CAIRN_OK;
}

void disks_reply_extents(const struct disk_request *rq)
{
    struct extents *x = calloc(1, sizeof(*x));
    struct cairn_error err;

    if (!x) {
        error_no_memory(&err, "a list of extents");
        http_reply_failure(rq->reply, &err);
        return;
    }
    x->list.next = next_extents;
    x->list.free = extents_free;
    x->disk = disk_ref(rq->disk);
    if (asked_range(rq, &x->at, &x->end, &err) != CAIRN_OK) {
        extents_free(&x->list);
        http_reply_failure(rq->reply, &err);
        return;
    }
    list_printf(&x->list, "[");
    list_reply(&x->list, rq->reply);
}
