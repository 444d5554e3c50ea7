/* SPDX-License-Identifier: Apache-2.0 */
/*
 * L1s and slices as bytes, one frame each (chain_index_format.h).
 *
 * The decoder takes nothing for granted.  The checksum catches accidents and values under the
 * wrong key; it does not authenticate, so everything that the invariants say is checked behind it
 * all the same.  A payload is stored compressed only where that makes it smaller, hence a stored
 * length never exceeds the raw one, which is bounded by what the type can need.
 */
#include "chain_index_format.h"

#include <inttypes.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

#include "bytes.h"
#include "chain_index_internal.h"
#include "checked.h"

/* Higher levels take longer and hardly make planes of bytes smaller. */
#define ZSTD_LEVEL 1

/* -- Frames ------------------------------------------------------------------------------------ */

void index_checksum(const char *key, const void *header, const void *payload, size_t len,
                    uint8_t ret_checksum[CHECKSUM_SIZE])
{
    char tag[INDEX_KEY_MAX + CHECKSUM_OFF] = {0};
    XXH128_canonical_t canonical;

    memcpy(tag, key, strlen(key));
    memcpy(tag + INDEX_KEY_MAX, header, CHECKSUM_OFF);
    XXH128_canonicalFromHash(&canonical,
                             XXH3_128bits_withSeed(payload, len, XXH3_64bits(tag, sizeof(tag))));
    memcpy(ret_checksum, canonical.digest, CHECKSUM_SIZE);
}

/* Store raw in at most as many bytes; returns how many. */
static uint32_t store_payload(const void *raw, uint32_t raw_len, void *ret_stored,
                              uint16_t *ret_flags)
{
    size_t n = raw_len > 0 ? ZSTD_compress(ret_stored, raw_len - 1, raw, raw_len, ZSTD_LEVEL) : 0;

    *ret_flags = 0;
    if (raw_len > 0 && !ZSTD_isError(n)) {
        *ret_flags = FRAME_ZSTD;
        return (uint32_t)n;
    }
    if (raw_len > 0)
        memcpy(ret_stored, raw, raw_len);
    return raw_len;
}

static int frame_encode(const char *key, enum frame_type type, const void *raw, uint32_t raw_len,
                        void **ret_buf, size_t *ret_len, struct cairn_error *err)
{
    uint8_t *buf = malloc(FRAME_HEADER_SIZE + (size_t)raw_len);
    uint8_t *shrunk;
    uint32_t stored_len;
    uint16_t flags;

    if (!buf)
        return error_no_memory(err, "a frame of a chain index");
    stored_len = store_payload(raw, raw_len, buf + FRAME_HEADER_SIZE, &flags);
    bytes_put_le32(buf, FRAME_MAGIC);
    buf[4] = FORMAT_VERSION;
    buf[5] = (uint8_t)type;
    bytes_put_le16(buf + 6, flags);
    bytes_put_le32(buf + 8, raw_len);
    bytes_put_le32(buf + 12, stored_len);
    index_checksum(key, buf, buf + FRAME_HEADER_SIZE, stored_len, buf + CHECKSUM_OFF);
    *ret_len = FRAME_HEADER_SIZE + (size_t)stored_len;
    shrunk = realloc(buf, *ret_len);
    *ret_buf = shrunk ? shrunk : buf;
    return CAIRN_OK;
}

/* A payload, decompressed: within the frame's bytes, or owned if there is a buffer of its own. */
struct payload {
    const uint8_t *raw;
    uint32_t raw_len;
    uint8_t *owned;
};

static void payload_release(struct payload *payload)
{
    free(payload->owned);
}

static int check_frame(const char *key, enum frame_type type, uint32_t raw_max, const uint8_t *buf,
                       size_t len, struct cairn_error *err)
{
    uint8_t checksum[CHECKSUM_SIZE];

    if (len < FRAME_HEADER_SIZE)
        return error_set(err, CAIRN_E_CORRUPT, "frame of %zu bytes, expected at least %u", len,
                         FRAME_HEADER_SIZE);
    if (bytes_get_le32(buf) != FRAME_MAGIC)
        return error_set(err, CAIRN_E_CORRUPT, "magic 0x%" PRIx32 ", expected 0x%x",
                         bytes_get_le32(buf), FRAME_MAGIC);
    if (buf[4] != FORMAT_VERSION)
        return error_set(err, CAIRN_E_UNSUPPORTED, "version %u, expected %u", buf[4],
                         FORMAT_VERSION);
    if (buf[5] != (uint8_t)type || bytes_get_le16(buf + 6) > FRAME_ZSTD)
        return error_set(err, CAIRN_E_CORRUPT, "type %u, flags 0x%x, expected type %u", buf[5],
                         bytes_get_le16(buf + 6), type);
    if (bytes_get_le32(buf + 8) > raw_max)
        return error_set(err, CAIRN_E_CORRUPT, "raw length %" PRIu32 ", at most %" PRIu32,
                         bytes_get_le32(buf + 8), raw_max);
    if (bytes_get_le32(buf + 12) != len - FRAME_HEADER_SIZE)
        return error_set(err, CAIRN_E_CORRUPT, "stored length %" PRIu32 ", but %zu bytes are there",
                         bytes_get_le32(buf + 12), len - FRAME_HEADER_SIZE);
    index_checksum(key, buf, buf + FRAME_HEADER_SIZE, len - FRAME_HEADER_SIZE, checksum);
    if (memcmp(checksum, buf + CHECKSUM_OFF, CHECKSUM_SIZE) != 0)
        return error_set(err, CAIRN_E_CORRUPT, "checksum does not fit the bytes and the key");
    return CAIRN_OK;
}

static int decompress(const uint8_t *stored, uint32_t stored_len, uint32_t raw_len,
                      struct payload *ret_payload, struct cairn_error *err)
{
    CLEANUP_FREE uint8_t *raw = NULL;

    if (ZSTD_getFrameContentSize(stored, stored_len) != raw_len)
        return error_set(err, CAIRN_E_CORRUPT, "zstd frame does not hold %" PRIu32 " bytes",
                         raw_len);
    raw = malloc((size_t)raw_len + 1);
    if (!raw)
        return error_no_memory(err, "a frame of a chain index");
    if (ZSTD_decompress(raw, raw_len, stored, stored_len) != raw_len)
        return error_set(err, CAIRN_E_CORRUPT, "zstd frame is damaged");
    *ret_payload = (struct payload){.raw = raw, .raw_len = raw_len, .owned = raw};
    raw = NULL;
    return CAIRN_OK;
}

static int frame_decode(const char *key, enum frame_type type, uint32_t raw_max, const void *buf,
                        size_t len, struct payload *ret_payload, struct cairn_error *err)
{
    const uint8_t *frame = buf;
    uint32_t raw_len, stored_len;
    int rc = check_frame(key, type, raw_max, frame, len, err);

    if (rc < 0)
        return rc;
    raw_len = bytes_get_le32(frame + 8);
    stored_len = bytes_get_le32(frame + 12);
    if (bytes_get_le16(frame + 6) & FRAME_ZSTD)
        return decompress(frame + FRAME_HEADER_SIZE, stored_len, raw_len, ret_payload, err);
    if (stored_len != raw_len)
        return error_set(err, CAIRN_E_CORRUPT,
                         "stored length %" PRIu32 " of an uncompressed payload of %" PRIu32
                         " bytes",
                         stored_len, raw_len);
    *ret_payload = (struct payload){.raw = frame + FRAME_HEADER_SIZE, .raw_len = raw_len};
    return CAIRN_OK;
}

/* -- L1: encoding ------------------------------------------------------------------------------ */

static uint32_t l1_raw_len(uint32_t depth, uint32_t nr_slices)
{
    return L1_HEAD_SIZE + depth * L1_LAYER_SIZE + nr_slices * 2;
}

static void put_head(const struct index_l1 *l1, uint8_t *p)
{
    memcpy(p, l1->chain_id.sha256, 32);
    bytes_put_le32(p + 32, l1->depth);
    bytes_put_le32(p + 36, l1->nr_slices);
    bytes_put_le64(p + 40, l1->virtual_size);
    bytes_put_le64(p + 48, l1->totals.nr_extents);
    bytes_put_le64(p + 56, l1->totals.data_bytes);
    bytes_put_le64(p + 64, l1->totals.zero_bytes);
    bytes_put_le64(p + 72, l1->totals.layers_bytes);
}

static void put_layer(const struct layer_attr *attr, uint8_t *p)
{
    bytes_put_le64(p, attr->virtual_size);
    p[8] = attr->cluster_bits;
    p[9] = attr->format;
    p[10] = attr->compression;
    p[11] = 0;
}

int index_l1_encode(const struct index_l1 *l1, void **ret_buf, size_t *ret_len,
                    struct cairn_error *err)
{
    uint32_t raw_len = l1_raw_len(l1->depth, l1->nr_slices);
    CLEANUP_FREE uint8_t *raw = malloc(raw_len);
    uint8_t *p = raw;
    char key[INDEX_KEY_MAX];

    if (!raw)
        return error_no_memory(err, "the L1 of a chain index");
    put_head(l1, p);
    p += L1_HEAD_SIZE;
    for (uint32_t i = 0; i < l1->depth; i++, p += L1_LAYER_SIZE)
        put_layer(&l1->layers[i], p);
    for (uint32_t i = 0; i < l1->nr_slices; i++, p += 2)
        bytes_put_le16(p, l1->slices[i]);
    index_key_l1(&l1->chain_id, key);
    return frame_encode(key, FRAME_L1, raw, raw_len, ret_buf, ret_len, err);
}

/* -- L1: decoding ------------------------------------------------------------------------------ */

static int check_virtual_size(uint64_t size, struct cairn_error *err)
{
    if (size <= CHAIN_VIRTUAL_SIZE_MAX && is_aligned(size, SECTOR_SIZE))
        return CAIRN_OK;
    return error_set(err, CAIRN_E_CORRUPT,
                     "virtual size %" PRIu64 ", expected a multiple of 512 up to %" PRIu64, size,
                     CHAIN_VIRTUAL_SIZE_MAX);
}

/* What decides how much memory the L1 takes. */
static int check_l1_shape(const struct payload *payload, const struct digest *chain_id,
                          struct cairn_error *err)
{
    const uint8_t *p = payload->raw;
    uint32_t depth, nr_slices;
    uint64_t virtual_size;
    int rc;

    if (payload->raw_len < L1_HEAD_SIZE)
        return error_set(err, CAIRN_E_CORRUPT, "L1 of %" PRIu32 " bytes, expected at least %u",
                         payload->raw_len, L1_HEAD_SIZE);
    if (memcmp(p, chain_id->sha256, 32) != 0)
        return error_set(err, CAIRN_E_CORRUPT, "L1 of another chain");
    depth = bytes_get_le32(p + 32);
    nr_slices = bytes_get_le32(p + 36);
    virtual_size = bytes_get_le64(p + 40);
    if (depth == 0 || depth > CHAIN_DEPTH_MAX)
        return error_set(err, CAIRN_E_CORRUPT, "depth %" PRIu32 ", expected 1 to %d", depth,
                         CHAIN_DEPTH_MAX);
    rc = check_virtual_size(virtual_size, err);
    if (rc < 0)
        return rc;
    if (nr_slices != div_round_up(virtual_size, INDEX_SLICE_SIZE))
        return error_set(err, CAIRN_E_CORRUPT, "%" PRIu32 " slices for a virtual size of %" PRIu64,
                         nr_slices, virtual_size);
    if (payload->raw_len != l1_raw_len(depth, nr_slices))
        return error_set(err, CAIRN_E_CORRUPT,
                         "L1 of %" PRIu32 " bytes, expected %" PRIu32 " for depth %" PRIu32
                         " and %" PRIu32 " slices",
                         payload->raw_len, l1_raw_len(depth, nr_slices), depth, nr_slices);
    return CAIRN_OK;
}

static int get_layer(const uint8_t *p, uint32_t ordinal, struct layer_attr *ret_attr,
                     struct cairn_error *err)
{
    struct layer_attr attr = {
        .virtual_size = bytes_get_le64(p),
        .cluster_bits = p[8],
        .format = p[9],
        .compression = p[10],
    };
    bool raw =
        attr.format == LAYER_RAW && ordinal == 0 && attr.cluster_bits == 0 && attr.compression == 0;
    bool qcow2 = attr.format == LAYER_QCOW2 && attr.cluster_bits >= 9 && attr.cluster_bits <= 21 &&
                 attr.compression <= LAYER_ZSTD;
    int rc = check_virtual_size(attr.virtual_size, err);

    if (rc < 0)
        return error_prefix(err, rc, "layer %" PRIu32, ordinal);
    if ((!raw && !qcow2) || p[11] != 0)
        return error_set(err, CAIRN_E_CORRUPT,
                         "layer %" PRIu32 ": format %u, cluster bits %u, compression %u, %u",
                         ordinal, p[9], p[8], p[10], p[11]);
    *ret_attr = attr;
    return CAIRN_OK;
}

static int get_layers(const uint8_t *p, struct index_l1 *l1, struct cairn_error *err)
{
    for (uint32_t i = 0; i < l1->depth; i++, p += L1_LAYER_SIZE) {
        int rc = get_layer(p, i, &l1->layers[i], err);

        if (rc < 0)
            return rc;
    }
    if (l1->layers[l1->depth - 1].virtual_size != l1->virtual_size)
        return error_set(err, CAIRN_E_CORRUPT,
                         "virtual size %" PRIu64 ", but that of the top layer is %" PRIu64,
                         l1->virtual_size, l1->layers[l1->depth - 1].virtual_size);
    return CAIRN_OK;
}

/* Can the prefix whose top layer is ordinal have made this slice? */
static bool slice_in_prefix(const struct index_l1 *l1, uint32_t ordinal, uint32_t slice_nr)
{
    return ordinal < l1->depth &&
           (uint64_t)slice_nr << INDEX_SLICE_BITS < l1->layers[ordinal].virtual_size;
}

static int get_slices(const uint8_t *p, struct index_l1 *l1, struct cairn_error *err)
{
    for (uint32_t i = 0; i < l1->nr_slices; i++, p += 2) {
        uint16_t ordinal = bytes_get_le16(p);

        if (ordinal != INDEX_NO_SLICE && !slice_in_prefix(l1, ordinal, i))
            return error_set(err, CAIRN_E_CORRUPT,
                             "slice %" PRIu32 ": ordinal %u is no layer that reaches there", i,
                             ordinal);
        l1->slices[i] = ordinal;
    }
    return CAIRN_OK;
}

static int get_totals(const uint8_t *p, struct index_l1 *l1, struct cairn_error *err)
{
    const struct index_totals totals = {
        .nr_extents = bytes_get_le64(p),
        .data_bytes = bytes_get_le64(p + 8),
        .zero_bytes = bytes_get_le64(p + 16),
        .layers_bytes = bytes_get_le64(p + 24),
    };

    if (totals.data_bytes > l1->virtual_size ||
        totals.zero_bytes > l1->virtual_size - totals.data_bytes ||
        totals.nr_extents > l1->virtual_size / SECTOR_SIZE ||
        totals.layers_bytes < totals.data_bytes ||
        totals.layers_bytes / l1->depth > CHAIN_VIRTUAL_SIZE_MAX)
        return error_set(err, CAIRN_E_CORRUPT,
                         "totals of %" PRIu64 " extents, %" PRIu64 " bytes of data, %" PRIu64
                         " of zeros, %" PRIu64 " in layers cannot be",
                         totals.nr_extents, totals.data_bytes, totals.zero_bytes,
                         totals.layers_bytes);
    l1->totals = totals;
    return CAIRN_OK;
}

static int l1_from_payload(const struct payload *payload, const struct digest *chain_id,
                           struct index_l1 **ret_l1, struct cairn_error *err)
{
    CLEANUP(index_l1_unref_p) struct index_l1 *l1 = NULL;
    const uint8_t *p = payload->raw;
    int rc = check_l1_shape(payload, chain_id, err);

    if (rc == CAIRN_OK)
        rc = index_l1_new(bytes_get_le32(p + 32), bytes_get_le64(p + 40), &l1, err);
    if (rc < 0)
        return rc;
    l1->chain_id = *chain_id;
    rc = get_layers(p + L1_HEAD_SIZE, l1, err);
    if (rc == CAIRN_OK)
        rc = get_slices(p + L1_HEAD_SIZE + l1->depth * L1_LAYER_SIZE, l1, err);
    if (rc == CAIRN_OK)
        rc = get_totals(p + 48, l1, err);
    if (rc == CAIRN_OK)
        rc = index_l1_set_ends(l1, err);
    if (rc == CAIRN_OK)
        *ret_l1 = steal_ptr(l1);
    return rc;
}

int index_l1_decode(const void *buf, size_t len, const struct digest *chain_id,
                    struct index_l1 **ret_l1, struct cairn_error *err)
{
    CLEANUP(payload_release) struct payload payload = {0};
    char key[INDEX_KEY_MAX];
    int rc;

    index_key_l1(chain_id, key);
    rc = frame_decode(key, FRAME_L1, L1_RAW_MAX, buf, len, &payload, err);
    if (rc == CAIRN_OK)
        rc = l1_from_payload(&payload, chain_id, ret_l1, err);
    return rc < 0 ? error_prefix(err, rc, "%s", key) : CAIRN_OK;
}

/* -- Slices ------------------------------------------------------------------------------------ */

/* Where the slice would begin in the layer's file if all of it were in one piece with e. */
static uint64_t slice_host_off(const struct index_extent *e)
{
    if (!extent_kind_linear(packed_kind(e)))
        return e->word[1];
    return e->word[1] - ((uint64_t)packed_start(e) << SECTOR_BITS);
}

void index_extents_put(const struct index_extent *extents, uint32_t nr, uint8_t *raw)
{
    uint32_t end = 0;

    for (uint32_t i = 0; i < nr; i++) {
        const struct index_extent *e = &extents[i];
        uint16_t gap = (uint16_t)(packed_start(e) - end);
        uint64_t what = (e->word[0] >> 16 << 16) | gap, host_off = slice_host_off(e);

        for (unsigned b = 0; b < 8; b++) {
            raw[(size_t)nr * b + i] = (uint8_t)(what >> 8 * b);
            raw[(size_t)nr * (8 + b) + i] = (uint8_t)(host_off >> 8 * b);
        }
        end = packed_end(e);
    }
}

void index_extents_get(const uint8_t *raw, uint32_t nr, struct index_extent *ret_extents)
{
    uint32_t end = 0;

    for (uint32_t i = 0; i < nr; i++) {
        struct index_extent *e = &ret_extents[i];
        uint64_t what = 0, host_off = 0;

        for (unsigned b = 0; b < 8; b++) {
            what |= (uint64_t)raw[(size_t)nr * b + i] << 8 * b;
            host_off |= (uint64_t)raw[(size_t)nr * (8 + b) + i] << 8 * b;
        }
        e->word[0] = (what >> 16 << 16) | (uint16_t)(end + what);
        e->word[1] = host_off;
        if (extent_kind_linear(packed_kind(e)))
            e->word[1] += (uint64_t)packed_start(e) << SECTOR_BITS;
        end = packed_end(e);
    }
}

int index_slice_encode(const struct index_slice *slice, const struct digest *prefix_chain_id,
                       uint32_t slice_nr, void **ret_buf, size_t *ret_len, struct cairn_error *err)
{
    uint32_t nr = slice->nr_extents, raw_len = nr * (uint32_t)sizeof(struct index_extent);
    CLEANUP_FREE struct index_extent *extents = malloc((size_t)raw_len + 1);
    CLEANUP_FREE uint8_t *raw = malloc((size_t)raw_len + 1);
    char key[INDEX_KEY_MAX];

    if (!extents || !raw)
        return error_no_memory(err, "a slice of a chain index");
    for (uint32_t i = 0; i < nr; i++)
        extents[i] = slice_extent(slice, i);
    index_extents_put(extents, nr, raw);
    index_key_slice(prefix_chain_id, slice_nr, key);
    return frame_encode(key, FRAME_SLICE, raw, raw_len, ret_buf, ret_len, err);
}

static bool same_packed(const struct index_extent *a, const struct index_extent *b)
{
    return a->word[0] == b->word[0] && a->word[1] == b->word[1];
}

/* What keeps packed from following prev (NULL: none) in slice_nr of prefix ordinal. */
static const char *packed_flaw(const struct index_extent *packed, const struct index_extent *prev,
                               const struct index_l1 *l1, uint32_t ordinal, uint32_t slice_nr)
{
    struct index_extent again;
    struct extent e;
    const char *flaw;

    if (packed_layer(packed) > ordinal)
        return "the layer is above the prefix";
    index_extent_unpack(packed, slice_nr, &e);
    flaw = index_extent_flaw(&e, &l1->layers[e.layer]);
    if (flaw)
        return flaw;
    again = index_extent_pack(&e);
    if (!same_packed(packed, &again))
        return "bits are set that mean nothing here";
    if (packed_end(packed) > SLICE_SECTORS)
        return "the guest range leaves the slice";
    if (!range_in(e.guest_off, e.len, l1->layers[ordinal].virtual_size))
        return "the guest range reaches past the virtual size";
    if (prev && packed_start(packed) < packed_end(prev))
        return "it does not begin behind the one before";
    if (prev && packed_mergeable(prev, packed))
        return "it runs on from the one before";
    return NULL;
}

static int check_extents(const struct index_extent *extents, uint32_t nr, const struct index_l1 *l1,
                         uint32_t ordinal, uint32_t slice_nr, struct cairn_error *err)
{
    for (uint32_t i = 0; i < nr; i++) {
        const struct index_extent *e = &extents[i];
        const char *flaw = packed_flaw(e, i > 0 ? e - 1 : NULL, l1, ordinal, slice_nr);

        if (flaw)
            return error_set(err, CAIRN_E_CORRUPT,
                             "extent %" PRIu32 " (0x%016" PRIx64 " 0x%016" PRIx64 "): %s", i,
                             e->word[0], e->word[1], flaw);
    }
    return CAIRN_OK;
}

static int slice_from_payload(const struct payload *payload, const struct index_l1 *l1,
                              uint32_t ordinal, uint32_t slice_nr, struct index_slice **ret_slice,
                              struct cairn_error *err)
{
    CLEANUP_FREE struct index_extent *extents = NULL;
    uint32_t nr = payload->raw_len / (uint32_t)sizeof(*extents);
    int rc;

    if (!slice_in_prefix(l1, ordinal, slice_nr))
        return error_set(err, CAIRN_E_CORRUPT, "prefix %" PRIu32 " has no such slice", ordinal);
    if (payload->raw_len % sizeof(*extents) != 0)
        return error_set(err, CAIRN_E_CORRUPT, "slice of %" PRIu32 " bytes, not a multiple of 16",
                         payload->raw_len);
    extents = malloc((size_t)payload->raw_len + 1);
    if (!extents)
        return error_no_memory(err, "a slice of a chain index");
    index_extents_get(payload->raw, nr, extents);
    rc = check_extents(extents, nr, l1, ordinal, slice_nr, err);
    return rc < 0 ? rc : index_slice_new(extents, nr, ret_slice, err);
}

int index_slice_decode(const void *buf, size_t len, const struct digest *prefix_chain_id,
                       const struct index_l1 *l1, uint32_t ordinal, uint32_t slice_nr,
                       struct index_slice **ret_slice, struct cairn_error *err)
{
    CLEANUP(payload_release) struct payload payload = {0};
    char key[INDEX_KEY_MAX];
    int rc;

    index_key_slice(prefix_chain_id, slice_nr, key);
    rc = frame_decode(key, FRAME_SLICE, SLICE_RAW_MAX, buf, len, &payload, err);
    if (rc == CAIRN_OK)
        rc = slice_from_payload(&payload, l1, ordinal, slice_nr, ret_slice, err);
    return rc < 0 ? error_prefix(err, rc, "%s", key) : CAIRN_OK;
}
