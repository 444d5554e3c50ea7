/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The search of chain_lookup.c, compiled once for each instruction set: no guard, and no use to
 * anybody else.  ISA(name) names a function of the set, ISA_TARGET is its attribute;
 * ISA(rank_in_top) and ISA(rank_in_node) count the keys below a sector, ISA(put_extents) makes the
 * answers of a group.
 *
 * A batch goes in groups, each step for the whole group before the next, and each step asks the
 * memory for what the next one needs: the misses of a group are waited for together.
 */

/* From a node of the level below top, there are several, to the leaf that sector belongs to. */
ISA_TARGET static __attribute__((noinline)) uint32_t ISA(descend)(const struct index_slice *slice,
                                                                  uint32_t at, uint16_t sector)
{
    uint32_t off = sizeof(*slice);

    for (unsigned level = slice_levels(slice->nr_extents); level > 1; level--) {
        at = at * NODE_KEYS + ISA(rank_in_node)(slice_keys(slice, off) + at * NODE_KEYS, sector);
        off += slice_level_nodes(slice->nr_extents, level) * NODE_SIZE;
    }
    return at;
}

/* The number of the leaf that sector belongs to; if all keys are in top, the rank there. */
ISA_TARGET static inline uint32_t ISA(find_leaf)(const struct index_slice *slice, uint16_t sector)
{
    uint32_t at = ISA(rank_in_top)(slice, sector);

    return slice->leaves_off > sizeof(*slice) ? ISA(descend)(slice, at, sector) : at;
}

ISA_TARGET static inline uint32_t ISA(find_in_leaf)(const struct index_slice *slice, uint32_t leaf,
                                                    uint16_t sector)
{
    const uint16_t *keys = slice_keys(slice, slice->leaves_off) + (size_t)leaf * NODE_KEYS;

    return slice->leaves_off ? leaf * NODE_KEYS + ISA(rank_in_node)(keys, sector) : leaf;
}

ISA_TARGET static uint32_t ISA(find)(const struct index_slice *slice, uint32_t sector)
{
    return ISA(find_in_leaf)(slice, ISA(find_leaf)(slice, (uint16_t)sector), (uint16_t)sector);
}

ISA_TARGET static int ISA(lookup)(struct chain_index *index, uint64_t guest_off,
                                  struct extent *ret_extent, struct cairn_error *err)
{
    uint16_t sector = (uint16_t)(guest_off >> SECTOR_BITS);
    const struct index_slice *slice;

    if (guest_off >= index->virtual_size)
        return refuse(index, guest_off, err);
    slice =
        atomic_load_explicit(&index->slots[guest_off >> INDEX_SLICE_BITS], memory_order_acquire);
    if (!slice)
        return lookup_missing(index, guest_off, ret_extent, err);
    put_answer(index->l1, slice, ISA(find_in_leaf)(slice, ISA(find_leaf)(slice, sector), sector),
               guest_off, ret_extent);
    return CAIRN_OK;
}

/* Steps 2 to 4: the leaves, the records, the extents. */
ISA_TARGET static inline void ISA(lookup_group)(const struct index_l1 *l1,
                                                const struct index_slice *const slices[GROUP],
                                                const uint64_t *guest_offs, unsigned nr,
                                                struct extent *ret_extents)
{
    struct found_group found;
    uint32_t leaf[GROUP];

    for (unsigned i = 0; i < nr; i++) {
        leaf[i] = ISA(find_leaf)(slices[i], (uint16_t)(guest_offs[i] >> SECTOR_BITS));
        __builtin_prefetch(slice_keys(slices[i], slices[i]->leaves_off) + leaf[i] * NODE_KEYS);
    }
    for (unsigned i = 0; i < nr; i++) {
        uint16_t sector = (uint16_t)(guest_offs[i] >> SECTOR_BITS);

        found_note(&found, i, slices[i], ISA(find_in_leaf)(slices[i], leaf[i], sector));
        __builtin_prefetch(found.records[i]);
    }
    ISA(put_extents)(l1, slices, &found, guest_offs, nr, ret_extents);
}

ISA_TARGET static int ISA(lookup_many)(struct chain_index *index, const uint64_t *guest_offs,
                                       size_t nr, struct extent *ret_extents,
                                       struct cairn_error *err)
{
    for (size_t done = 0; done < nr; done += GROUP) {
        const struct index_slice *slices[GROUP];
        unsigned in_group = (unsigned)min_u64(nr - done, GROUP);
        uint32_t missing = 0;

        for (unsigned i = 0; i < in_group; i++) {
            uint64_t guest_off = guest_offs[done + i];

            if (guest_off >= index->virtual_size)
                return refuse(index, guest_off, err);
            slices[i] = atomic_load_explicit(&index->slots[guest_off >> INDEX_SLICE_BITS],
                                             memory_order_acquire);
            if (!slices[i]) {
                slices[i] = &nothing.slice;
                missing |= 1u << i;
            }
            __builtin_prefetch(slices[i]);
        }
        ISA(lookup_group)(index->l1, slices, guest_offs + done, in_group, ret_extents + done);
        for (; missing; missing &= missing - 1) {
            size_t i = done + (unsigned)__builtin_ctz(missing);
            int rc = lookup_missing(index, guest_offs[i], &ret_extents[i], err);

            if (rc < 0)
                return rc;
        }
    }
    return CAIRN_OK;
}
