/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What differs between two states is told from their tables: a guest range that both take from the
 * same place of the same file, or read as zeros, is the same, and is not read.  The rest is read
 * from the newer state as its guest would see it, so that a range where that one shows the backing
 * chain again, reads as zeros, or ends, comes out right without being a case of its own.
 *
 * The layer has the active layer's shape, with subclusters of 4 KiB; a difference in smaller pieces
 * is widened to them.
 */
#include "states.h"

#include <inttypes.h>
#include <string.h>

#include "active.h"
#include "chain_read.h"
#include "checked.h"

#define SUBCLUSTER  ((uint64_t)4096)
#define PIECE_BYTES ((size_t)1 << 20)

/* -- The image and what it stands on -------------------------------------------------------- */

/* Nothing beneath is an empty disk: it has a layer, so that all states have one below. */
static int add_empty(struct local_index *below, struct cairn_error *err)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    int ret = source_from_memory("", 0, "an empty disk", &src, err);

    if (ret == CAIRN_OK)
        ret = layer_open(src, LAYER_RAW, &layer, err);
    return ret == CAIRN_OK ? local_index_add(below, layer, err) : ret;
}

static int add_backing(struct local_index *below, const struct local_layer *local,
                       struct cairn_error *err)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    int ret = local_layer_open(local, &src, err);

    if (ret == CAIRN_OK)
        ret = layer_open(src, local->format, &layer, err);
    return ret == CAIRN_OK ? local_index_add(below, layer, err) : ret;
}

static int index_below(struct states *states, struct cairn_error *err)
{
    uint32_t nr = states->chain->depth - 1;
    int ret = nr == 0 ? add_empty(&states->below, err) : CAIRN_OK;

    for (uint32_t i = 0; ret == CAIRN_OK && i < nr; i++)
        ret = add_backing(&states->below, &states->chain->layers[i], err);
    return ret;
}

static int name_layers(struct states *states, struct cairn_error *err)
{
    uint32_t nr = states->below.l1->depth + 1;

    states->digests = calloc(nr, sizeof(states->digests[0]));
    if (!states->digests)
        return error_no_memory(err, "the chain");
    for (uint32_t i = 0; i < nr; i++)
        digest_of(&i, sizeof(i), &states->digests[i]);
    return CAIRN_OK;
}

static int open_image(struct states *states, struct cairn_error *err)
{
    const struct local_layer *top = &states->chain->layers[states->chain->depth - 1];
    int ret;

    if (top->format != LAYER_QCOW2)
        return error_set(err, CAIRN_E_USAGE, "%s is not a qcow2 image: it has no snapshots",
                         top->path);
    ret = local_layer_open(top, &states->top, err);
    if (ret == CAIRN_OK)
        ret = qcow2_image_open(states->top, 0, &states->image, err);
    if (ret == CAIRN_OK)
        ret = qcow2_image_snapshots(states->image, &states->snapshots, &states->nr_snapshots, err);
    return ret;
}

int states_open(const struct local_chain *chain, struct states *ret_states, struct cairn_error *err)
{
    struct states states = {.chain = chain};
    int ret = open_image(&states, err);

    if (ret == CAIRN_OK)
        ret = index_below(&states, err);
    if (ret == CAIRN_OK)
        ret = name_layers(&states, err);
    if (ret == CAIRN_OK)
        *ret_states = states;
    else
        states_release(&states);
    return ret;
}

void states_release(struct states *states)
{
    local_index_release(&states->below);
    free(states->digests);
    qcow2_image_free(states->image);
    source_free(states->lower);
    source_free(states->top);
    *states = (struct states){0};
}

int states_find(const struct states *states, const char *name_or_id, uint32_t *ret_snapshot,
                struct cairn_error *err)
{
    return qcow2_snapshot_find(states->image, name_or_id, ret_snapshot, err);
}

int states_index(const struct states *states, uint32_t snapshot, struct local_index *ret_index,
                 struct cairn_error *err)
{
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    int ret = snapshot == STATE_ACTIVE ? layer_open(states->top, LAYER_QCOW2, &layer, err)
                                       : layer_open_snapshot(states->top, snapshot, &layer, err);

    if (ret == CAIRN_OK)
        ret = local_index_copy(&states->below, ret_index, err);
    return ret == CAIRN_OK ? local_index_add(ret_index, layer, err) : ret;
}

/* -- Reading a state ------------------------------------------------------------------------ */

/* Layer ordinal of the backing chain: opened when it is needed, which is seldom. */
static int open_lower(struct states *states, uint32_t ordinal, struct cairn_error *err)
{
    if (states->lower && states->lower_ordinal == ordinal)
        return CAIRN_OK;
    source_free(states->lower);
    states->lower = NULL;
    states->lower_ordinal = ordinal;
    return local_layer_open(&states->chain->layers[ordinal], &states->lower, err);
}

static int read_layer(void *ctx, uint32_t ordinal, void *buf, size_t len, uint64_t host_off,
                      struct cairn_error *err)
{
    struct states *states = ctx;
    int ret;

    if (ordinal >= states->below.l1->depth)
        return source_pread_padded(states->top, buf, len, host_off, err);
    ret = open_lower(states, ordinal, err);
    return ret == CAIRN_OK ? source_pread_padded(states->lower, buf, len, host_off, err) : ret;
}

static struct chain_reader reader_of(struct states *states, const struct local_index *index)
{
    return (struct chain_reader){
        .l1 = index->l1, .slices = local_index_slices(index), .blobs = {read_layer, states}};
}

/* The backing of a layer in the making: past the end of what it stands on there are zeros. */
static int read_beneath(void *ctx, void *buf, size_t len, uint64_t guest_off,
                        struct cairn_error *err)
{
    const struct chain_reader *from = ctx;
    uint64_t size = from->l1->virtual_size;
    size_t there = (size_t)(guest_off < size ? min_u64(len, size - guest_off) : 0);

    memset((char *)buf + there, 0, len - there);
    return there ? chain_read(from, buf, there, guest_off, err) : CAIRN_OK;
}

/* -- Differences ---------------------------------------------------------------------------- */

static int differences(const struct states *states, const struct local_index *from,
                       const struct local_index *to, layer_extent_fn fn, void *arg,
                       struct cairn_error *err)
{
    const struct index_slices from_slices = local_index_slices(from);
    const struct index_slices to_slices = local_index_slices(to);

    return chain_diff_states(from->l1, &from_slices, to->l1, &to_slices, states->digests,
                             states->below.l1->depth, fn, arg, err);
}

static int measure(void *arg, const struct extent *e, struct cairn_error *err)
{
    struct state_distance *distance = arg;

    (void)err;
    distance->differ = true;
    if (!extent_reads_zero(e->kind))
        distance->data_bytes += e->len;
    return CAIRN_OK;
}

int states_distance(const struct states *states, const struct local_index *from,
                    const struct local_index *to, struct state_distance *ret_distance,
                    struct cairn_error *err)
{
    struct state_distance distance = {.differ = from->l1->virtual_size != to->l1->virtual_size};
    int ret = differences(states, from, to, measure, &distance, err);

    if (ret == CAIRN_OK)
        *ret_distance = distance;
    return ret;
}

/* -- The layer ------------------------------------------------------------------------------ */

struct writing {
    struct chain_reader from, to;
    struct active *active;
    uint64_t done; /* what is before is written, or the same */
    uint8_t *buf;
    struct cairn_client *client;
    const char *what;
};

static int copy(struct writing *w, uint64_t guest_off, uint64_t end, struct cairn_error *err)
{
    int ret = CAIRN_OK;

    for (uint64_t at = max_u64(guest_off, w->done); at < end && ret == CAIRN_OK;) {
        size_t len = (size_t)min_u64(PIECE_BYTES, end - at);

        ret = chain_read(&w->to, w->buf, len, at, err);
        if (ret == CAIRN_OK)
            ret = active_pwrite(w->active, w->buf, len, at, err);
        if (ret == CAIRN_OK)
            ret = client_progress(w->client, w->what, at + len, w->to.l1->virtual_size, err);
        at += len;
        w->done = at;
    }
    return ret;
}

static int zero(struct writing *w, uint64_t guest_off, uint64_t end, struct cairn_error *err)
{
    w->done = end;
    return active_zero(w->active, end - guest_off, guest_off, true, err);
}

/* One difference.  Past the end of the newer state there is nothing to say: the layer ends. */
static int put(void *arg, const struct extent *e, struct cairn_error *err)
{
    struct writing *w = arg;
    uint64_t size = w->to.l1->virtual_size;
    uint64_t end = min_u64(e->guest_off + e->len, size);
    uint64_t outer_start = round_down(e->guest_off, SUBCLUSTER);
    uint64_t outer_end = min_u64(round_up(end, SUBCLUSTER), size);
    uint64_t inner_start = round_up(e->guest_off, SUBCLUSTER);
    uint64_t inner_end = end == size ? size : round_down(end, SUBCLUSTER);
    int ret;

    if (e->guest_off >= size)
        return CAIRN_OK;
    if (!extent_reads_zero(e->kind) || inner_start >= inner_end)
        return copy(w, outer_start, outer_end, err);
    ret = copy(w, outer_start, inner_start, err);
    if (ret == CAIRN_OK)
        ret = zero(w, inner_start, inner_end, err);
    return ret == CAIRN_OK ? copy(w, inner_end, outer_end, err) : ret;
}

static int write_active(struct writing *w, struct states *states, const struct local_index *from,
                        const struct local_index *to, struct cairn_error *err)
{
    int ret;

    w->buf = malloc(PIECE_BYTES);
    if (!w->buf)
        return error_no_memory(err, "a buffer");
    ret = differences(states, from, to, put, w, err);
    free(w->buf);
    return ret == CAIRN_OK ? active_seal(w->active, err) : ret;
}

int states_write_layer(struct states *states, const struct local_index *from,
                       const struct local_index *to, const struct digest *parent,
                       struct cairn_client *client, const char *what, const char *path,
                       struct cairn_error *err)
{
    struct writing w = {.from = reader_of(states, from),
                        .to = reader_of(states, to),
                        .client = client,
                        .what = what};
    const struct active_options options = {.virtual_size = to->l1->virtual_size,
                                           .parent = parent,
                                           .backing = {.pread = read_beneath, .ctx = &w.from}};
    int ret = active_create(path, &options, &w.active, err);
    int closed;

    if (ret != CAIRN_OK)
        return ret;
    ret = write_active(&w, states, from, to, err);
    closed = active_close(w.active, ret == CAIRN_OK ? err : NULL);
    return ret == CAIRN_OK ? closed : ret;
}
