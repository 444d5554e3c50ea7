/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Structured mutation of qcow2 images.  It finds the tables of an image, and changes an entry of
 * one of them into something an attacker would write there: the place of another table, of its
 * own, past the end, between clusters; other flags, reserved bits; one more or one less; a copy of
 * another entry.  Besides, it cuts and lengthens files, copies clusters, and leaves bytes and
 * scripts to libFuzzer.  It fixes nothing up: no count, no refcount, no size follows.
 */
#include <string.h>

#include "bytes.h"
#include "checked.h"
#include "qcow2.h"
#include "qcow2_layout.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
size_t LLVMFuzzerCustomCrossOver(const uint8_t *one, size_t one_size, const uint8_t *other,
                                 size_t other_size, uint8_t *out, size_t max_out, unsigned seed);

struct mutator {
    struct image *image;
    struct image_layout layout;
    uint64_t random;
};

/* A number in the image. */
struct field {
    uint32_t off;
    unsigned width;
};

static uint8_t bytes[2][IMAGE_MAX];
static struct image images[2] = {{.bytes = bytes[0]}, {.bytes = bytes[1]}};

/* xorshift64* */
static uint64_t draw(struct mutator *m)
{
    m->random ^= m->random >> 12;
    m->random ^= m->random << 25;
    m->random ^= m->random >> 27;
    return m->random * UINT64_C(0x2545f4914f6cdd1d);
}

static uint64_t below(struct mutator *m, uint64_t n)
{
    return n > 0 ? (draw(m) >> 16) % n : 0;
}

static uint64_t cluster_size(const struct mutator *m)
{
    return UINT64_C(1) << m->layout.cluster_bits;
}

/* -- Fields ------------------------------------------------------------------------------------ */

/* Pairs of offset and width. */
static const uint8_t header_fields[][2] = {
    {4, 4},  {8, 8},  {16, 4}, {20, 4}, {24, 8}, {32, 4}, {36, 4}, {40, 8},  {48, 8},
    {56, 4}, {60, 4}, {64, 8}, {72, 8}, {80, 8}, {88, 8}, {96, 4}, {100, 4}, {104, 1},
};
static const uint8_t extension_fields[][2] = {{0, 4}, {4, 4}, {8, 4}, {8, 8}, {16, 8}, {24, 8}};
static const uint8_t snapshot_fields[][2] = {{0, 8},  {8, 4},  {12, 2}, {14, 2},
                                             {32, 4}, {36, 4}, {40, 8}, {48, 8}};
static const uint8_t bitmap_fields[][2] = {{0, 8},  {8, 4},  {12, 4}, {16, 1},
                                           {17, 1}, {18, 2}, {20, 4}};

#define PICK(m, fields) (fields)[below((m), sizeof(fields) / sizeof((fields)[0]))]

/* Mostly one of the first entries, which are in use. */
static uint64_t pick_index(struct mutator *m, uint64_t nr)
{
    return below(m, below(m, 8) ? min_u64(nr, 12) : nr);
}

static struct field pick_entry(struct mutator *m, const struct image_part *part)
{
    unsigned width = 8;

    if (part->kind == IMAGE_REFBLOCK)
        width = m->layout.refcount_order < 3 ? 1 : 1U << (m->layout.refcount_order - 3);
    return (struct field){part->off + (uint32_t)pick_index(m, part->len / width) * width, width};
}

static struct field pick_field_of(struct mutator *m, const struct image_part *part)
{
    const uint8_t *f;

    switch (part->kind) {
    case IMAGE_HEADER:
        f = PICK(m, header_fields);
        break;
    case IMAGE_EXTENSION:
        f = PICK(m, extension_fields);
        break;
    case IMAGE_SNAPSHOT:
        f = PICK(m, snapshot_fields);
        break;
    case IMAGE_BITMAP:
        f = PICK(m, bitmap_fields);
        break;
    case IMAGE_L1:
    case IMAGE_L2:
    case IMAGE_REFTABLE:
    case IMAGE_REFBLOCK:
    case IMAGE_BITMAP_TABLE:
    case IMAGE_TABLE_KINDS:
    default:
        return pick_entry(m, part);
    }
    return (struct field){part->off + f[0], f[1]};
}

/* A part of a kind that there is. */
static const struct image_part *pick_part(struct mutator *m)
{
    enum image_table kind = (enum image_table)below(m, IMAGE_TABLE_KINDS);
    unsigned first = (unsigned)below(m, m->layout.nr);

    for (unsigned i = 0; i < m->layout.nr; i++) {
        const struct image_part *part = &m->layout.parts[(first + i) % m->layout.nr];

        if (part->kind == kind)
            return part;
    }
    return &m->layout.parts[first];
}

static struct field pick_field(struct mutator *m)
{
    return pick_field_of(m, pick_part(m));
}

static bool get_field(const struct mutator *m, struct field f, uint64_t *ret_value)
{
    const uint8_t *at = m->image->bytes + f.off;

    if (!range_in(f.off, f.width, m->image->size))
        return false;
    *ret_value = 0;
    for (unsigned i = 0; i < f.width; i++)
        *ret_value = *ret_value << 8 | at[i];
    return true;
}

static void put_field(struct mutator *m, struct field f, uint64_t value)
{
    if (!range_in(f.off, f.width, m->image->size))
        return;
    image_touch(m->image, f.off, f.width);
    for (unsigned i = f.width; i-- > 0; value >>= 8)
        m->image->bytes[f.off + i] = (uint8_t)value;
}

/* -- Values ------------------------------------------------------------------------------------ */

/* Places for an entry to name. */
static uint64_t pick_place(struct mutator *m)
{
    uint64_t end = round_up(m->image->size, cluster_size(m));

    switch (below(m, 8)) {
    case 0:
    case 1:
        return m->layout.parts[below(m, m->layout.nr)].off;
    case 2:
    case 3:
        return below(m, end >> m->layout.cluster_bits) << m->layout.cluster_bits;
    case 4: /* the last cluster, or right behind it */
        return end - below(m, 2) * cluster_size(m);
    case 5: /* farther past the end */
        return end + (below(m, 64) << m->layout.cluster_bits);
    case 6: /* between clusters */
        return below(m, m->image->size + 1) & ~UINT64_C(511);
    default:
        return QCOW2_HOST_OFFSET_MAX & ~((UINT64_C(1) << below(m, 56)) - 1);
    }
}

static uint64_t pick_compressed(struct mutator *m)
{
    unsigned shift = qcow2_compressed_shift(m->layout.cluster_bits);
    uint64_t sectors = below(m, 4) ? below(m, 4) : below(m, UINT64_C(1) << (62 - shift));

    return QCOW2_OFLAG_COMPRESSED | sectors << shift | below(m, m->image->size + 1);
}

static uint64_t mutate_entry(struct mutator *m, uint64_t old)
{
    const uint64_t flags[] = {QCOW2_OFLAG_COPIED, QCOW2_OFLAG_COMPRESSED, QCOW2_OFLAG_ZERO,
                              UINT64_C(1) << below(m, 64)};
    uint64_t other = 0;

    switch (below(m, 10)) {
    case 0:
    case 1:
        return old ^ PICK(m, flags);
    case 2:
    case 3:
        return (old & ~QCOW2_OFFSET_MASK) | pick_place(m);
    case 4:
        return QCOW2_OFLAG_COPIED | pick_place(m);
    case 5:
        return old + (draw(m) & 1 ? cluster_size(m) : -cluster_size(m));
    case 6:
        return pick_compressed(m);
    case 7: /* subclusters: all, none, a half, whatever */
        return draw(m) & draw(m) & (draw(m) & 1 ? QCOW2_SUB_ALLOC_ALL : UINT64_MAX);
    case 8:
        return 0;
    default:
        get_field(m, pick_field(m), &other);
        return other;
    }
}

static uint64_t mutate_number(struct mutator *m, uint64_t old)
{
    switch (below(m, 8)) {
    case 0:
        return old + 1;
    case 1:
        return old - 1;
    case 2:
        return old ^ UINT64_C(1) << below(m, 64);
    case 3:
        return UINT64_C(1) << below(m, 64);
    case 4:
        return UINT64_MAX >> below(m, 64);
    case 5:
        return below(m, 16);
    case 6:
        return 2 * old;
    default:
        return pick_place(m);
    }
}

/* -- Mutations --------------------------------------------------------------------------------- */

static void change_field(struct mutator *m)
{
    struct field f = pick_field(m);
    uint64_t old;

    if (!get_field(m, f, &old))
        return;
    put_field(m, f, f.width == 8 && below(m, 6) ? mutate_entry(m, old) : mutate_number(m, old));
}

/* Over or in exchange for another, of the same table as often as not. */
static void copy_field(struct mutator *m)
{
    const struct image_part *part = pick_part(m);
    struct field from = pick_field_of(m, part);
    struct field to = draw(m) & 1 ? pick_field_of(m, part) : pick_field(m);
    uint64_t a, b;

    if (!get_field(m, from, &a) || !get_field(m, to, &b))
        return;
    put_field(m, to, a);
    if (draw(m) & 1)
        put_field(m, from, b);
}

static void copy_cluster(struct mutator *m)
{
    uint64_t from = round_down(pick_place(m), 512), to = round_down(pick_place(m), 512);
    uint64_t len = min_u64(cluster_size(m), UINT64_C(512) << below(m, 6));

    if (!range_in(from, len, m->image->size) || !range_in(to, len, m->image->size))
        return;
    image_touch(m->image, to, len);
    if (below(m, 4))
        memmove(m->image->bytes + to, m->image->bytes + from, len);
    else
        memset(m->image->bytes + to, 0, len);
}

static void change_size(struct mutator *m)
{
    struct image *image = m->image;
    uint64_t size = image->size;
    uint64_t step = UINT64_C(1) << below(m, m->layout.cluster_bits + 2);

    size = draw(m) & 1 ? size + step : size - min_u64(step, size);
    if (below(m, 4) == 0)
        size = round_up(size, cluster_size(m));
    if (size == 0 || size > IMAGE_MAX)
        return;
    for (uint64_t off = size; off < image->size; off = round_down(off, 512) + 512)
        if (image_is_dirty(image, (uint32_t)(off / IMAGE_BLOCK)))
            memset(image->bytes + off, 0, round_down(off, 512) + 512 - off);
    image->size = (uint32_t)size;
}

/* Bytes in a block that has some: names, extension data, compressed data. */
static void change_bytes(struct mutator *m)
{
    uint32_t block = (uint32_t)below(m, m->image->size / IMAGE_BLOCK + 1);
    uint32_t off, len;

    for (unsigned i = 0; i < IMAGE_MAX / IMAGE_BLOCK && !image_is_dirty(m->image, block); i++)
        block = (block + 1) % (IMAGE_MAX / IMAGE_BLOCK);
    off = block * IMAGE_BLOCK + (uint32_t)below(m, IMAGE_BLOCK);
    len = 1 + (uint32_t)below(m, 64);
    if (!range_in(off, len, m->image->size))
        return;
    image_touch(m->image, off, len);
    LLVMFuzzerMutate(m->image->bytes + off, len, len);
}

static void change_script(struct mutator *m)
{
    struct image *image = m->image;

    if (below(m, 8) == 0) {
        for (unsigned i = 0; i < 8 && image->script_len < SCRIPT_MAX; i++)
            image->script[image->script_len++] = (uint8_t)(draw(m) >> 32);
        return;
    }
    image->script_len = LLVMFuzzerMutate(image->script, image->script_len, SCRIPT_MAX);
}

static void mutate_once(struct mutator *m)
{
    uint64_t which = below(m, 32);

    image_find_layout(m->image, &m->layout);
    if (m->layout.nr == 0)
        m->image->size = QCOW2_HDR_FULL_LENGTH;
    else if (which < 17 || (which >= 27 && m->image->script_len == 0))
        change_field(m);
    else if (which < 21)
        copy_field(m);
    else if (which < 23)
        copy_cluster(m);
    else if (which < 25)
        change_size(m);
    else if (which < 27)
        change_bytes(m);
    else
        change_script(m);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    struct mutator m = {.image = &images[0], .random = seed * UINT64_C(2654435761) + 1};

    input_unpack(data, size, m.image);
    do
        mutate_once(&m);
    while (below(&m, 2));
    size = input_pack(m.image, data, max_size);
    image_clear(m.image);
    return size;
}

/* One image with a table, a cluster or the script of the other. */
size_t LLVMFuzzerCustomCrossOver(const uint8_t *one, size_t one_size, const uint8_t *other,
                                 size_t other_size, uint8_t *out, size_t max_out, unsigned seed)
{
    struct mutator m = {.image = &images[0], .random = seed * UINT64_C(2654435761) + 1};
    struct image *from = &images[1];
    const struct image_part *part;
    size_t size;

    input_unpack(one, one_size, m.image);
    input_unpack(other, other_size, from);
    image_find_layout(from, &m.layout);
    if (below(&m, 3) == 0 || m.layout.nr == 0) {
        memcpy(m.image->script, from->script, from->script_len);
        m.image->script_len = from->script_len;
    } else {
        part = &m.layout.parts[below(&m, m.layout.nr)];
        if (range_in(part->off, part->len, m.image->size)) {
            image_touch(m.image, part->off, part->len);
            memcpy(m.image->bytes + part->off, from->bytes + part->off, part->len);
        }
    }
    size = input_pack(m.image, out, max_out);
    image_clear(m.image);
    image_clear(from);
    return size;
}
