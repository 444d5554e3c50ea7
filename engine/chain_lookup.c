/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looking up single guest offsets, alone or many at a time: the index of a chain as a reader holds
 * it, with its slices at hand.
 *
 * The slots say per slice where it is in memory; a slice that no layer has is one empty slice, so
 * that the way to every answer is the same: a slot, the slice's tree, a record.  A slot is filled
 * once and then stays, which is why nobody who reads it needs a lock or a reference.  What the
 * bound in bytes leaves no room for is got, looked at and let go.
 *
 * The search comes in several instruction sets.  They differ in how a node's keys are compared and
 * in nothing else; chain_lookup_isa.h is the code that they share, compiled for each.
 */
#include <assert.h>
#include <inttypes.h>
#include <stddef.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "chain_index_internal.h"
#include "checked.h"

struct chain_index {
    const struct lookup_isa *isa;
    uint64_t virtual_size;
    const struct index_l1 *l1;
    struct index_slices slices;
    size_t max_bytes;
    atomic_size_t bytes; /* of the slices in slots */
    _Atomic(struct index_slice *) slots[];
};

/* What no layer has.  Its record is what a search may look at behind the last extent. */
static struct {
    struct index_slice slice;
    uint8_t record[RECORD_SIZE];
} nothing = {
    .slice =
        {
            .top = {[0 ... INDEX_TOP_KEYS - 1] = NO_KEY},
            .refs = 1,
            .records_off = sizeof(struct index_slice),
        },
};

/* -- Slots ------------------------------------------------------------------------------------- */

/* Keep a slice for good, unless somebody else did meanwhile or there is no room. */
static void keep_slice(struct chain_index *index, uint32_t slice_nr, struct index_slice *slice)
{
    size_t bytes = slice == &nothing.slice ? 0 : index_slice_bytes(slice);
    struct index_slice *expected = NULL;

    if (atomic_fetch_add(&index->bytes, bytes) + bytes > index->max_bytes ||
        !atomic_compare_exchange_strong(&index->slots[slice_nr], &expected, slice))
        atomic_fetch_sub(&index->bytes, bytes);
    else
        index_slice_ref(slice);
}

/* A reference to a slice that is in no slot yet. */
static int fetch_slice(struct chain_index *index, uint32_t slice_nr, struct index_slice **ret_slice,
                       struct cairn_error *err)
{
    uint32_t ordinal = index->l1->slices[slice_nr];
    int rc = CAIRN_OK;

    if (ordinal == INDEX_NO_SLICE)
        *ret_slice = index_slice_ref(&nothing.slice);
    else
        rc = index->slices.get(index->slices.ctx, ordinal, slice_nr, ret_slice, err);
    if (rc == CAIRN_OK)
        keep_slice(index, slice_nr, *ret_slice);
    return rc;
}

static int get_slice(void *ctx, uint32_t ordinal, uint32_t slice_nr, struct index_slice **ret_slice,
                     struct cairn_error *err)
{
    struct chain_index *index = ctx;
    struct index_slice *slice = atomic_load_explicit(&index->slots[slice_nr], memory_order_acquire);

    (void)ordinal; /* as the L1 says */
    if (!slice)
        return fetch_slice(index, slice_nr, ret_slice, err);
    *ret_slice = index_slice_ref(slice);
    return CAIRN_OK;
}

struct index_slices chain_index_slices(struct chain_index *index)
{
    return (struct index_slices){.get = get_slice, .ctx = index};
}

/* -- From a slice to an answer ----------------------------------------------------------------- */

#define NO_END (1u << 22) /* as far behind any sector as no extent is long */

/* Where the extent that a search came to ends, in sectors; NO_END: it came to none. */
static inline uint32_t found_end(const struct index_slice *slice, uint32_t i)
{
    uint32_t end = slice_last(slice, i) + 1;

    return i < slice->nr_extents ? end : NO_END;
}

/*
 * Put the part of the extent from guest_off on; false if it begins behind guest_off, or is none,
 * for then len is what is below zero.  Without a branch that depends on data but for rare kinds.
 */
static inline bool put_extent(const uint8_t *record, uint32_t end, uint64_t guest_off,
                              struct extent *ret_extent)
{
    uint64_t what = record_what(record), host_off = record_host_off(record);
    uint32_t whole = (uint32_t)((what & 0xffff) + 1) << SECTOR_BITS;
    uint32_t len = (end << SECTOR_BITS) - (uint32_t)(guest_off % INDEX_SLICE_SIZE);
    uint8_t kind = (uint8_t)(what >> 46);

    if (len > whole)
        return false;
    ret_extent->guest_off = guest_off;
    ret_extent->len = len;
    ret_extent->host_off = host_off + ((whole - len) & (0u - extent_kind_linear(kind)));
    ret_extent->compressed_len = 0;
    ret_extent->layer = (uint16_t)(what >> 16);
    ret_extent->kind = kind;
    if (kind == EXTENT_COMPRESSED)
        ret_extent->compressed_len = packed_compressed_len(what << 16, host_off);
    return true;
}

/* There is a hole at guest_off. */
static __attribute__((noinline)) void put_hole(const struct index_l1 *l1,
                                               const struct index_slice *slice, uint64_t guest_off,
                                               struct extent *ret_extent)
{
    uint64_t slice_start = round_down(guest_off, INDEX_SLICE_SIZE);
    uint64_t end = slice_start + INDEX_SLICE_SIZE;
    uint32_t i = slice_find(slice, (uint16_t)(guest_off >> SECTOR_BITS));

    if (i < slice->nr_extents) {
        const struct index_extent next = slice_extent(slice, i);

        end = slice_start + ((uint64_t)packed_start(&next) << SECTOR_BITS);
    }
    *ret_extent = index_hole(l1, guest_off, min_u64(end, l1->virtual_size));
}

static inline void put_answer(const struct index_l1 *l1, const struct index_slice *slice,
                              uint32_t i, uint64_t guest_off, struct extent *ret_extent)
{
    if (!put_extent(slice_record(slice, i), found_end(slice, i), guest_off, ret_extent))
        put_hole(l1, slice, guest_off, ret_extent);
}

/* The slot was empty. */
static int lookup_missing(struct chain_index *index, uint64_t guest_off, struct extent *ret_extent,
                          struct cairn_error *err)
{
    CLEANUP(index_slice_unref_p) struct index_slice *slice = NULL;
    /* Another look-up of the same batch may have filled it meanwhile. */
    int rc = get_slice(index, 0, (uint32_t)(guest_off >> INDEX_SLICE_BITS), &slice, err);

    if (rc < 0)
        return rc;
    put_answer(index->l1, slice, slice_find(slice, (uint16_t)(guest_off >> SECTOR_BITS)), guest_off,
               ret_extent);
    return CAIRN_OK;
}

static int refuse(const struct chain_index *index, uint64_t guest_off, struct cairn_error *err)
{
    return error_set(err, CAIRN_E_USAGE,
                     "guest offset %" PRIu64 " is not below the virtual size %" PRIu64, guest_off,
                     index->virtual_size);
}

/* -- Groups of look-ups ------------------------------------------------------------------------ */

#define GROUP 32

/* What the searches of a group came to. */
struct found_group {
    const uint8_t *records[GROUP];
    uint32_t ends[GROUP];
};

static inline void found_note(struct found_group *found, unsigned nr,
                              const struct index_slice *slice, uint32_t i)
{
    found->records[nr] = slice_record(slice, i);
    found->ends[nr] = found_end(slice, i);
}

/* The answers from the nth of a group on, one by one. */
static inline void put_each(const struct index_l1 *l1,
                            const struct index_slice *const slices[GROUP],
                            const struct found_group *found, const uint64_t *guest_offs, unsigned i,
                            unsigned nr, struct extent *ret_extents)
{
    for (; i < nr; i++)
        if (!put_extent(found->records[i], found->ends[i], guest_offs[i], &ret_extents[i]))
            put_hole(l1, slices[i], guest_offs[i], &ret_extents[i]);
}

static inline void put_all(const struct index_l1 *l1, const struct index_slice *const slices[GROUP],
                           const struct found_group *found, const uint64_t *guest_offs, unsigned nr,
                           struct extent *ret_extents)
{
    put_each(l1, slices, found, guest_offs, 0, nr, ret_extents);
}

/* -- Instruction sets -------------------------------------------------------------------------- */

/* How many of nr sorted keys are below sector; compilers turn it into what any x86-64 has. */
static inline uint32_t count_below(const uint16_t *keys, unsigned nr, uint16_t sector)
{
    uint16_t below = 0;

    for (unsigned i = 0; i < nr; i++)
        below = (uint16_t)(below + (keys[i] < sector));
    return below;
}

static inline uint32_t rank_in_top_portable(const struct index_slice *slice, uint16_t sector)
{
    return count_below(slice->top, INDEX_TOP_KEYS, sector);
}

static inline uint32_t rank_in_node_portable(const uint16_t *keys, uint16_t sector)
{
    return count_below(keys, NODE_KEYS, sector);
}

#define ISA(name) name##_portable
#define ISA_TARGET
#define put_extents_portable put_all
#include "chain_lookup_isa.h"
#undef ISA
#undef ISA_TARGET

uint32_t slice_find(const struct index_slice *slice, uint32_t sector)
{
    return find_portable(slice, sector);
}

#ifdef __x86_64__

#define ISA(name)  name##_avx2
#define ISA_TARGET __attribute__((target("avx2,bmi,bmi2,popcnt")))

/* All ones for each of 16 keys that is not below sector: nothing is left of the difference. */
ISA_TARGET static inline __m256i not_below(const uint16_t *keys, uint16_t sector)
{
    __m256i ahead = _mm256_subs_epu16(_mm256_set1_epi16((short)sector),
                                      _mm256_loadu_si256((const __m256i_u *)(const void *)keys));

    return _mm256_cmpeq_epi16(ahead, _mm256_setzero_si256());
}

/* A bit for each key of a and b, a's and b's by turns eight at a time. */
ISA_TARGET static inline uint32_t bits_of(__m256i a, __m256i b)
{
    return (uint32_t)_mm256_movemask_epi8(_mm256_packs_epi16(a, b));
}

ISA_TARGET static inline uint32_t rank_in_top_avx2(const struct index_slice *slice, uint16_t sector)
{
    /* The second 16 begin with the last eight of the first. */
    uint32_t bits =
        bits_of(not_below(slice->top, sector), not_below(slice->top + INDEX_TOP_KEYS - 16, sector));

    return INDEX_TOP_KEYS - (uint32_t)__builtin_popcount(bits & 0xffff00ff);
}

ISA_TARGET static inline uint32_t rank_in_node_avx2(const uint16_t *keys, uint16_t sector)
{
    return NODE_KEYS - (uint32_t)__builtin_popcount(
                           bits_of(not_below(keys, sector), not_below(keys + 16, sector)));
}

#define put_extents_avx2 put_all
#include "chain_lookup_isa.h"
#undef ISA
#undef ISA_TARGET

#define ISA(name)  name##_avx512
#define ISA_TARGET __attribute__((target("avx512f,avx512bw,bmi,bmi2,popcnt")))

ISA_TARGET static inline uint32_t rank_in_top_avx512(const struct index_slice *slice,
                                                     uint16_t sector)
{
    const __mmask32 top = (1u << INDEX_TOP_KEYS) - 1;
    __m512i keys = _mm512_maskz_loadu_epi16(top, slice->top);

    return (uint32_t)__builtin_popcount(
        _mm512_mask_cmplt_epu16_mask(top, keys, _mm512_set1_epi16((short)sector)));
}

ISA_TARGET static inline uint32_t rank_in_node_avx512(const uint16_t *keys, uint16_t sector)
{
    return (uint32_t)__builtin_popcount(
        _mm512_cmplt_epu16_mask(_mm512_loadu_si512(keys), _mm512_set1_epi16((short)sector)));
}

/* Where put_eight puts a member of struct extent. */
static_assert(offsetof(struct extent, guest_off) == 0 && offsetof(struct extent, len) == 8 &&
                  offsetof(struct extent, host_off) == 16 &&
                  offsetof(struct extent, compressed_len) == 24 &&
                  offsetof(struct extent, layer) == 28 && offsetof(struct extent, kind) == 30 &&
                  sizeof(struct extent) == 32,
              "an extent is four words");

/* Eight extents of four words each, from their first words, their second, and so on. */
ISA_TARGET static inline void store_extents(struct extent *extents, const __m512i word[4])
{
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);

    for (unsigned odd = 0; odd < 2; odd++) {
        __m512i low =
            odd ? _mm512_unpackhi_epi64(word[0], word[1]) : _mm512_unpacklo_epi64(word[0], word[1]);
        __m512i high =
            odd ? _mm512_unpackhi_epi64(word[2], word[3]) : _mm512_unpacklo_epi64(word[2], word[3]);
        __m512i a = _mm512_permutex2var_epi64(low, first, high);
        __m512i b = _mm512_permutex2var_epi64(low, second, high);

        _mm256_storeu_si256((__m256i_u *)(void *)&extents[odd], _mm512_castsi512_si256(a));
        _mm256_storeu_si256((__m256i_u *)(void *)&extents[odd + 2],
                            _mm512_extracti64x4_epi64(a, 1));
        _mm256_storeu_si256((__m256i_u *)(void *)&extents[odd + 4], _mm512_castsi512_si256(b));
        _mm256_storeu_si256((__m256i_u *)(void *)&extents[odd + 6],
                            _mm512_extracti64x4_epi64(b, 1));
    }
}

/* The words at eight addresses.  (Without optimisation the intrinsic is a macro of gcc's, which
 * gives a char the mask 0xff.) */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"
ISA_TARGET static inline __m512i load_each(__m512i addresses)
{
    return _mm512_i64gather_epi64(addresses, NULL, 1);
}
#pragma GCC diagnostic pop

/* put_extent for eight at a time, as far as they are neither compressed nor holes: a bit for each
 * that was put. */
ISA_TARGET static inline unsigned put_eight(const uint8_t *const *records, const uint32_t *ends,
                                            const uint64_t *guest_offs, struct extent *ret_extents)
{
    const __m512i one = _mm512_set1_epi64(1), low16 = _mm512_set1_epi64(0xffff);
    __m512i record = _mm512_loadu_si512(records), guest_off = _mm512_loadu_si512(guest_offs);
    __m512i end = _mm512_cvtepu32_epi64(_mm256_loadu_si256((const __m256i_u *)(const void *)ends));
    __m512i host_off = _mm512_srli_epi64(_mm512_slli_epi64(load_each(record), 64 - HOST_OFF_BITS),
                                         64 - HOST_OFF_BITS);
    __m512i what = _mm512_srli_epi64(
        load_each(_mm512_add_epi64(record, _mm512_set1_epi64(RECORD_SIZE - 8))), 16);
    __m512i kind = _mm512_srli_epi64(what, 46);
    __m512i whole =
        _mm512_slli_epi64(_mm512_add_epi64(_mm512_and_si512(what, low16), one), SECTOR_BITS);
    __m512i len =
        _mm512_sub_epi64(_mm512_slli_epi64(end, SECTOR_BITS),
                         _mm512_and_si512(guest_off, _mm512_set1_epi64(INDEX_SLICE_SIZE - 1)));
    __m512i layer = _mm512_and_si512(_mm512_srli_epi64(what, 16), low16);
    __mmask8 linear = _mm512_cmplt_epu64_mask(_mm512_sub_epi64(kind, one), _mm512_set1_epi64(2));
    const __m512i word[4] = {
        guest_off,
        len,
        _mm512_mask_add_epi64(host_off, linear, host_off, _mm512_sub_epi64(whole, len)),
        _mm512_or_si512(_mm512_slli_epi64(layer, 32), _mm512_slli_epi64(kind, 48)),
    };

    store_extents(ret_extents, word);
    return _mm512_cmple_epu64_mask(len, whole) &
           _mm512_cmpneq_epu64_mask(kind, _mm512_set1_epi64(EXTENT_COMPRESSED));
}

ISA_TARGET static inline void put_extents_avx512(const struct index_l1 *l1,
                                                 const struct index_slice *const slices[GROUP],
                                                 const struct found_group *found,
                                                 const uint64_t *guest_offs, unsigned nr,
                                                 struct extent *ret_extents)
{
    unsigned i = 0;

    for (; i + 8 <= nr; i += 8)
        if (put_eight(found->records + i, found->ends + i, guest_offs + i, ret_extents + i) != 0xff)
            put_each(l1, slices, found, guest_offs, i, i + 8, ret_extents);
    put_each(l1, slices, found, guest_offs, i, nr, ret_extents);
}

#include "chain_lookup_isa.h"
#undef ISA
#undef ISA_TARGET

static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("bmi2");
}

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
}

#endif

static bool has_portable(void)
{
    return true;
}

#define ISA_ROW(name)                                                                              \
    {                                                                                              \
#name, has_##name, lookup_##name, lookup_many_##name, find_##name                          \
    }

static const struct lookup_isa isas[] = {
#ifdef __x86_64__
    ISA_ROW(avx512),
    ISA_ROW(avx2),
#endif
    ISA_ROW(portable),
};

const struct lookup_isa *lookup_isa_get(unsigned nr)
{
    for (size_t i = 0; i < sizeof(isas) / sizeof(isas[0]); i++)
        if (isas[i].usable() && nr-- == 0)
            return &isas[i];
    return NULL;
}

/* -- The object -------------------------------------------------------------------------------- */

int chain_index_new(const struct index_l1 *l1, const struct index_slices *slices, size_t max_bytes,
                    struct chain_index **ret_index, struct cairn_error *err)
{
    struct chain_index *index = calloc(1, sizeof(*index) + l1->nr_slices * sizeof(index->slots[0]));

    if (!index)
        return error_no_memory(err, "the slots of a chain index");
    index->isa = lookup_isa_get(0);
    index->virtual_size = l1->virtual_size;
    index->l1 = l1;
    index->slices = *slices;
    index->max_bytes = max_bytes;
    *ret_index = index;
    return CAIRN_OK;
}

void chain_index_free(struct chain_index *index)
{
    if (!index)
        return;
    for (uint32_t i = 0; i < index->l1->nr_slices; i++)
        index_slice_unref(index->slots[i]);
    free(index);
}

size_t chain_index_bytes(const struct chain_index *index)
{
    return sizeof(*index) + index->l1->nr_slices * sizeof(index->slots[0]) +
           atomic_load(&index->bytes);
}

void chain_index_use(struct chain_index *index, const struct lookup_isa *isa)
{
    index->isa = isa;
}

int chain_index_lookup(struct chain_index *index, uint64_t guest_off, struct extent *ret_extent,
                       struct cairn_error *err)
{
    return index->isa->lookup(index, guest_off, ret_extent, err);
}

int chain_index_lookup_many(struct chain_index *index, const uint64_t *guest_offs, size_t nr,
                            struct extent *ret_extents, struct cairn_error *err)
{
    return index->isa->lookup_many(index, guest_offs, nr, ret_extents, err);
}
