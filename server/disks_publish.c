/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Publishing: the chain of a manifest becomes a disk that can be read.
 *
 * Prefixes whose index is stored were validated when they were built; from there on each layer is
 * opened, validated, compared with what the manifest says of it, and indexed, base first.  So a
 * push costs what its new layers hold, and one that fails half-way leaves only valid prefixes.
 */
#include "disks_internal.h"

#include <inttypes.h>

#include "ahead.h"
#include "opened_layer.h"

/*
 * An active layer records the chain that it was started on.  On any other chain it would show
 * another disk than the one that was written; only a rebase may do that, and has to say so.
 */
static int check_parent(const struct manifest *m, uint32_t ordinal, const struct digest *recorded,
                        struct cairn_error *err)
{
    char recorded_text[DIGEST_STR_MAX], below[DIGEST_STR_MAX] = "no chain (it is the base)";

    if (!recorded || (m->has_rebased_from && digest_equal(recorded, &m->rebased_from)))
        return CAIRN_OK;
    if (ordinal > 0) {
        if (digest_equal(recorded, &m->chain_ids[ordinal - 1]))
            return CAIRN_OK;
        digest_format(&m->chain_ids[ordinal - 1], below);
    }
    return error_set(
        err, CAIRN_E_CONFLICT,
        "recorded parent is chain %s, but the manifest puts the layer on %s (a rebased "
        "layer needs the annotation " MANIFEST_REBASED_FROM ")",
        digest_format(recorded, recorded_text), below);
}

static int check_size(const struct disks *disks, uint64_t virtual_size, struct cairn_error *err)
{
    if (virtual_size <= disks->options.max_virtual_size)
        return CAIRN_OK;
    return error_set(err, CAIRN_E_LIMIT,
                     "virtual size %" PRIu64 " is above this server's limit of %" PRIu64 " bytes",
                     virtual_size, disks->options.max_virtual_size);
}

static int check_layer(const struct disks *disks, const struct manifest *m, uint32_t ordinal,
                       const struct layer *layer, struct cairn_error *err)
{
    int code = check_size(disks, layer_get_attr(layer)->virtual_size, err);

    if (code != CAIRN_OK)
        return code;
    return check_parent(m, ordinal, layer_recorded_parent(layer), err);
}

struct publication {
    struct disks *disks;
    const struct manifest *manifest;
};

/* Called from several threads. */
static int open_layer(void *ctx, uint32_t ordinal, void **ret_item, struct cairn_error *err)
{
    const struct publication *p = ctx;
    const struct manifest_layer *of = &p->manifest->layers[ordinal];
    CLEANUP(blob_unref_p) struct blob *blob = NULL;
    CLEANUP(opened_layer_free_p) struct opened_layer *o = NULL;
    int code = blobs_get(p->disks->blobs, &of->digest, &blob, err);

    if (code != CAIRN_OK)
        return code;
    if (blob->src->size != of->size)
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: the manifest says %" PRIu64 " bytes, the blob has %" PRIu64,
                         blob->src->name, of->size, blob->src->size);
    code = opened_layer_new(steal_ptr(blob), of->format, &o, err);
    if (code != CAIRN_OK)
        return code;
    layer_preload(o->layer);
    *ret_item = steal_ptr(o);
    return CAIRN_OK;
}

static int publish_next(const struct publication *p, struct ahead *ahead,
                        const struct meta_chain *chain, uint32_t ordinal, struct cairn_error *err)
{
    CLEANUP(opened_layer_free_p) struct opened_layer *o = NULL;
    void *item;
    int code = ahead_take(ahead, &item, err);

    if (code != CAIRN_OK)
        return code;
    o = item;
    code = check_layer(p->disks, p->manifest, ordinal, o->layer, err);
    if (code != CAIRN_OK)
        return error_prefix(err, code, "%s", o->blob->src->name);
    return metacache_build(p->disks->meta, chain, ordinal, o->layer, err);
}

/* Layers first and up, opened and scanned many at a time. */
static int publish_layers(struct disks *disks, const struct manifest *m,
                          const struct meta_chain *chain, uint32_t first, struct cairn_error *err)
{
    struct publication p = {.disks = disks, .manifest = m};
    const struct ahead_work work = {.make = open_layer, .free = opened_layer_free_item, .ctx = &p};
    CLEANUP(ahead_free_p) struct ahead *ahead = NULL;
    int code = ahead_new(&work, first, m->depth, &ahead, err);

    for (uint32_t i = first; code == CAIRN_OK && i < m->depth; i++)
        code = publish_next(&p, ahead, chain, i, err);
    return code;
}

/* The longest prefix that is stored is of these very layers, in these formats? */
static int check_stored(struct disks *disks, const struct meta_chain *chain, uint32_t nr_stored,
                        struct cairn_error *err)
{
    CLEANUP(index_l1_unref_p) struct index_l1 *l1 = NULL;
    int code;

    if (nr_stored == 0)
        return CAIRN_OK;
    code = metacache_l1(disks->meta, chain, nr_stored - 1, &l1, err);
    if (code == CAIRN_OK)
        code = disk_check_l1(l1, chain, err);
    if (code == CAIRN_OK)
        code = check_size(disks, l1->virtual_size, err);
    return code;
}

int disks_publish(struct disks *disks, const struct manifest *m, struct cairn_error *err)
{
    struct meta_chain chain = {
        .depth = m->depth,
        .chain_ids = m->chain_ids,
        .layers = m->layers,
    };
    uint32_t nr_stored;
    int code;

    if (m->depth > disks->options.max_depth)
        return error_set(err, CAIRN_E_LIMIT, "depth %u is above this server's limit of %u layers",
                         m->depth, disks->options.max_depth);
    code = metacache_nr_stored(disks->meta, &chain, &nr_stored, err);
    if (code == CAIRN_OK)
        code = check_stored(disks, &chain, nr_stored, err);
    if (code == CAIRN_OK)
        code = publish_layers(disks, m, &chain, nr_stored, err);
    return code;
}
