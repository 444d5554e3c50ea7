/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A new prefix's slices take the place of the old ones when it is complete, for the builder reads
 * those of its parent until then.
 */
#include "local_index.h"

#include <string.h>

static void unref_all(struct index_slice **slices, uint32_t nr)
{
    for (uint32_t i = 0; i < nr; i++)
        if (slices[i])
            index_slice_unref(slices[i]);
    free(slices);
}

void local_index_release(struct local_index *index)
{
    unref_all(index->slices, index->nr_slices);
    unref_all(index->emitted, index->nr_slices);
    if (index->l1)
        index_l1_unref(index->l1);
    *index = (struct local_index){0};
}

size_t local_index_bytes(const struct local_index *index)
{
    size_t bytes = index->l1 ? index_l1_bytes(index->l1) : 0;

    for (uint32_t i = 0; i < index->nr_slices; i++)
        if (index->slices[i])
            bytes += index_slice_bytes(index->slices[i]);
    return bytes + 2 * index->nr_slices * sizeof(index->slices[0]);
}

static int get_slice(void *ctx, uint32_t ordinal, uint32_t slice, struct index_slice **ret_slice,
                     struct cairn_error *err)
{
    const struct local_index *index = ctx;

    (void)ordinal; /* the index holds what is in force, which is what is asked for */
    if (slice >= index->nr_slices || !index->slices[slice])
        return error_set(err, CAIRN_E_NOT_FOUND, "slice %u of the chain is not in memory", slice);
    *ret_slice = index_slice_ref(index->slices[slice]);
    return CAIRN_OK;
}

struct index_slices local_index_slices(const struct local_index *index)
{
    return (struct index_slices){get_slice, (void *)(uintptr_t)index};
}

static int keep_slice(void *ctx, uint32_t slice_nr, struct index_slice *slice,
                      struct cairn_error *err)
{
    struct local_index *index = ctx;

    if (slice_nr >= index->nr_slices)
        return error_set(err, CAIRN_E_CORRUPT, "slice %u lies outside of the disk", slice_nr);
    if (index->emitted[slice_nr])
        index_slice_unref(index->emitted[slice_nr]);
    index->emitted[slice_nr] = index_slice_ref(slice);
    return CAIRN_OK;
}

static void take_emitted(struct local_index *index)
{
    for (uint32_t i = 0; i < index->nr_slices; i++) {
        if (!index->emitted[i])
            continue;
        if (index->slices[i])
            index_slice_unref(index->slices[i]);
        index->slices[i] = index->emitted[i];
        index->emitted[i] = NULL;
    }
}

static int grow(struct local_index *index, uint64_t virtual_size, struct cairn_error *err)
{
    uint32_t nr = (uint32_t)((virtual_size + INDEX_SLICE_SIZE - 1) >> INDEX_SLICE_BITS);
    size_t added;
    void *slices, *emitted;

    if (nr <= index->nr_slices)
        return CAIRN_OK;
    added = (nr - index->nr_slices) * sizeof(index->slices[0]);
    slices = realloc(index->slices, nr * sizeof(index->slices[0]));
    if (slices)
        index->slices = slices;
    emitted = realloc(index->emitted, nr * sizeof(index->emitted[0]));
    if (emitted)
        index->emitted = emitted;
    if (!slices || !emitted)
        return error_no_memory(err, "the chain's index");
    memset(index->slices + index->nr_slices, 0, added);
    memset(index->emitted + index->nr_slices, 0, added);
    index->nr_slices = nr;
    return CAIRN_OK;
}

int local_index_add(struct local_index *index, struct layer *layer, struct cairn_error *err)
{
    const struct index_slices parent_slices = local_index_slices(index);
    uint32_t ordinal = index->l1 ? index->l1->depth : 0;
    struct index_l1 *l1;
    struct digest digest;
    int ret = grow(index, layer_get_attr(layer)->virtual_size, err);

    /* The layer's own digest would cost reading it all; here its number names it. */
    digest_of(&ordinal, sizeof(ordinal), &digest);
    if (ret == CAIRN_OK)
        ret = chain_index_build(index->l1, index->l1 ? &parent_slices : NULL, layer, &digest,
                                keep_slice, index, &l1, err);
    if (ret != CAIRN_OK)
        return ret;
    take_emitted(index);
    if (index->l1)
        index_l1_unref(index->l1);
    index->l1 = l1;
    return CAIRN_OK;
}

int local_index_copy(const struct local_index *index, struct local_index *ret_copy,
                     struct cairn_error *err)
{
    int ret = grow(ret_copy, (uint64_t)index->nr_slices << INDEX_SLICE_BITS, err);

    if (ret != CAIRN_OK)
        return ret;
    for (uint32_t i = 0; i < index->nr_slices; i++)
        if (index->slices[i])
            ret_copy->slices[i] = index_slice_ref(index->slices[i]);
    ret_copy->l1 = index_l1_ref(index->l1);
    return CAIRN_OK;
}
