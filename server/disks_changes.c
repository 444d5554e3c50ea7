/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GET …/changes?since=<ref>: the guest ranges in which the disk may differ from another one, with
 * what it shows there: {start,length,zero,data}, neighbours that say the same merged.
 *
 * The two indexes are compared as the client takes the list: the comparison stops when a piece of
 * text is full, and goes on behind it when that was sent.
 */
#include "disks_internal.h"

#include <inttypes.h>

#include "access.h"
#include "checked.h"

#define PIECE_BYTES 65536u
#define PIECE_FULL  1 /* result of add, to stop the comparison */

struct changes {
    struct list list;
    struct disk *since, *disk;
    uint64_t at, end;              /* what is still to be compared */
    uint64_t last_start, last_len; /* seen and not yet printed, if the length is not 0 */
    bool last_zero;
    bool any;
};

static void print_last(struct changes *c)
{
    if (c->last_len == 0)
        return;
    list_printf(&c->list,
                "%s{ \"start\": %" PRIu64 ", \"length\": %" PRIu64 ", \"zero\": %s, \"data\": %s}",
                c->any ? ",\n" : "", c->last_start, c->last_len, c->last_zero ? "true" : "false",
                c->last_zero ? "false" : "true");
    c->any = true;
}

static int add(void *arg, const struct extent *e, struct cairn_error *err)
{
    struct changes *c = arg;
    bool zero = extent_reads_zero(e->kind);

    (void)err;
    c->at = e->guest_off + e->len;
    if (c->last_len > 0 && c->last_start + c->last_len == e->guest_off && c->last_zero == zero) {
        c->last_len += e->len;
        return CAIRN_OK;
    }
    print_last(c);
    c->last_start = e->guest_off;
    c->last_len = e->len;
    c->last_zero = zero;
    return c->list.len < PIECE_BYTES ? CAIRN_OK : PIECE_FULL;
}

static int next_changes(struct list *list, struct cairn_error *err)
{
    struct changes *c = (struct changes *)list;
    struct index_slices since = disk_slices(c->since), now = disk_slices(c->disk);
    int code = chain_diff_range(c->since->l1, &since, c->since->layers, c->disk->l1, &now,
                                c->disk->layers, c->at, c->end - c->at, add, c, err);

    if (code == PIECE_FULL)
        return CAIRN_OK;
    if (code == CAIRN_OK) {
        print_last(c);
        list_printf(list, "]}\n");
        list->done = true;
    }
    return code;
}

static void changes_free(struct list *list)
{
    struct changes *c = (struct changes *)list;

    disk_unref(c->since);
    disk_unref(c->disk);
    list_release(list);
    free(c);
}

static void print_disk(struct list *list, const struct disk *disk)
{
    char manifest[DIGEST_STR_MAX], chain_id[DIGEST_STR_MAX];

    list_printf(list, "\"manifest\": \"%s\", \"chainId\": \"%s\", \"virtualSize\": %" PRIu64,
                digest_format(&disk->manifest_digest, manifest),
                digest_format(disk_chain_id(disk), chain_id), disk->l1->virtual_size);
}

/* The disk named by since, or the reply that says why not. */
static struct disk *open_since(const struct disk_request *rq)
{
    const char *text = http_query(rq->http, "since");
    struct disk *since;
    struct cairn_error err;
    struct ref ref;
    int code;

    if (!text) {
        error_set(&err, CAIRN_E_USAGE,
                  "query parameter since is missing: expected a ref (repo:tag or repo@sha256:…)");
        http_reply_failure(rq->reply, &err);
        return NULL;
    }
    code = ref_parse(text, &ref, &err);
    if (code != CAIRN_OK) {
        error_prefix(&err, code, "query parameter since");
        http_reply_failure(rq->reply, &err);
        return NULL;
    }
    if (!access_allows(rq->http, GRANT_PULL, ref.repo)) {
        access_refuse(rq->http, rq->reply, GRANT_PULL, ref.repo);
        return NULL;
    }
    if (disk_open(rq->disk->disks, &ref, &since, &err) != CAIRN_OK) {
        disks_reply_ref_error(rq->reply, text, &err);
        return NULL;
    }
    return since;
}

void disks_reply_changes(const struct disk_request *rq)
{
    struct disk *since = open_since(rq);
    struct cairn_error err;
    struct changes *c;

    if (!since)
        return;
    c = calloc(1, sizeof(*c));
    if (!c) {
        disk_unref(since);
        error_no_memory(&err, "a list of changes");
        http_reply_failure(rq->reply, &err);
        return;
    }
    c->list.next = next_changes;
    c->list.free = changes_free;
    c->since = since;
    c->disk = disk_ref(rq->disk);
    c->end = max_u64(since->l1->virtual_size, rq->disk->l1->virtual_size);
    list_printf(&c->list, "{");
    print_disk(&c->list, c->disk);
    list_printf(&c->list, ", \"since\": {");
    print_disk(&c->list, c->since);
    list_printf(&c->list, "},\n\"extents\": [");
    list_reply(&c->list, rq->reply);
}
