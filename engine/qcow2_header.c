/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The qcow2 header and its extensions (docs/interop/qcow2.rst of QEMU, "Header" to "Full disk
 * encryption header pointer").
 *
 * All of it lies in the first cluster, which is read once and decoded into host integers.  An
 * extension that we do not know is skipped; unknown compatible and autoclear bits do not matter to
 * a reader.  Bytes that look like names stay bytes: what is printed of them is quoted, and nothing
 * that an image names is ever opened.
 */
#include "qcow2_header.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "chain_index.h"
#include "quote.h"

/* A header being decoded. */
struct decoder {
    struct source *src;
    struct qcow2_header *hdr;
    uint8_t *cluster;  /* the first cluster, as far as the file reaches, and some zeros */
    uint64_t len;      /* of that */
    uint64_t ext_end;  /* of the header extension area: the backing name or the cluster's end */
    unsigned ext_seen; /* bit n: known_extensions[n] was there */
};

void qcow2_header_release(struct qcow2_header *hdr)
{
    free(hdr->backing_file.data);
    free(hdr->backing_format.data);
    free(hdr->data_file.data);
    free(hdr->features);
    memset(hdr, 0, sizeof(*hdr));
}

/* -- Fixed fields ------------------------------------------------------------------------------ */

static void decode_v2_fields(const uint8_t *b, struct qcow2_header *hdr)
{
    hdr->version = bytes_get_be32(b + QCOW2_HDR_VERSION);
    hdr->backing_file_offset = bytes_get_be64(b + QCOW2_HDR_BACKING_FILE_OFFSET);
    hdr->backing_file_size = bytes_get_be32(b + QCOW2_HDR_BACKING_FILE_SIZE);
    hdr->cluster_bits = bytes_get_be32(b + QCOW2_HDR_CLUSTER_BITS);
    hdr->size = bytes_get_be64(b + QCOW2_HDR_SIZE);
    hdr->crypt_method = bytes_get_be32(b + QCOW2_HDR_CRYPT_METHOD);
    hdr->l1_size = bytes_get_be32(b + QCOW2_HDR_L1_SIZE);
    hdr->l1_table_offset = bytes_get_be64(b + QCOW2_HDR_L1_TABLE_OFFSET);
    hdr->refcount_table_offset = bytes_get_be64(b + QCOW2_HDR_REFCOUNT_TABLE_OFFSET);
    hdr->refcount_table_clusters = bytes_get_be32(b + QCOW2_HDR_REFCOUNT_TABLE_CLUSTERS);
    hdr->nb_snapshots = bytes_get_be32(b + QCOW2_HDR_NB_SNAPSHOTS);
    hdr->snapshots_offset = bytes_get_be64(b + QCOW2_HDR_SNAPSHOTS_OFFSET);
    hdr->refcount_order = QCOW2_V2_REFCOUNT_ORDER;
    hdr->header_length = QCOW2_HDR_V2_LENGTH;
}

static void decode_v3_fields(const uint8_t *b, struct qcow2_header *hdr)
{
    hdr->incompatible_features = bytes_get_be64(b + QCOW2_HDR_INCOMPATIBLE_FEATURES);
    hdr->compatible_features = bytes_get_be64(b + QCOW2_HDR_COMPATIBLE_FEATURES);
    hdr->autoclear_features = bytes_get_be64(b + QCOW2_HDR_AUTOCLEAR_FEATURES);
    hdr->refcount_order = bytes_get_be32(b + QCOW2_HDR_REFCOUNT_ORDER);
    hdr->header_length = bytes_get_be32(b + QCOW2_HDR_HEADER_LENGTH);
    if (hdr->header_length > QCOW2_HDR_COMPRESSION_TYPE)
        hdr->compression_type = b[QCOW2_HDR_COMPRESSION_TYPE];
}

static int check_fixed_v3(const char *name, const struct qcow2_header *hdr, struct cairn_error *err)
{
    if (hdr->header_length < QCOW2_HDR_V3_LENGTH || hdr->header_length % 8 != 0)
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: header_length %" PRIu32 " is not a multiple of 8 from %d up", name,
                         hdr->header_length, QCOW2_HDR_V3_LENGTH);
    if (hdr->header_length > qcow2_cluster_size(hdr))
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: header_length %" PRIu32 " exceeds the cluster size %" PRIu64, name,
                         hdr->header_length, qcow2_cluster_size(hdr));
    if (hdr->refcount_order > QCOW2_REFCOUNT_ORDER_MAX)
        return error_set(err, CAIRN_E_CORRUPT, "%s: refcount_order %" PRIu32 " is above %d", name,
                         hdr->refcount_order, QCOW2_REFCOUNT_ORDER_MAX);
    if (qcow2_has_extl2(hdr) && hdr->cluster_bits < QCOW2_CLUSTER_BITS_MIN_EXTL2)
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: cluster_bits %" PRIu32 " with extended L2 entries, which need %d",
                         name, hdr->cluster_bits, QCOW2_CLUSTER_BITS_MIN_EXTL2);
    return CAIRN_OK;
}

static int check_compression_type(const char *name, const struct qcow2_header *hdr,
                                  struct cairn_error *err)
{
    bool bit = hdr->incompatible_features & QCOW2_INCOMPAT_COMPRESSION;

    if (bit != (hdr->compression_type != 0))
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: compression_type %u with the compression type bit %s", name,
                         hdr->compression_type, bit ? "set" : "clear");
    return CAIRN_OK;
}

static int decode_fixed(struct source *src, struct qcow2_header *hdr, struct cairn_error *err)
{
    uint8_t b[QCOW2_HDR_FULL_LENGTH];
    int r;

    if (src->size < QCOW2_HDR_V2_LENGTH)
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: %" PRIu64 " bytes are too few for a qcow2 header", src->name,
                         src->size);
    r = source_pread_padded(src, b, sizeof(b), 0, err);
    if (r != CAIRN_OK)
        return r;
    if (bytes_get_be32(b + QCOW2_HDR_MAGIC) != QCOW2_MAGIC)
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: magic 0x%08" PRIx32 " is not that of a qcow2 image (0x%08" PRIx32 ")",
                         src->name, bytes_get_be32(b + QCOW2_HDR_MAGIC), QCOW2_MAGIC);
    decode_v2_fields(b, hdr);
    if (hdr->version != 2 && hdr->version != 3)
        return error_set(err, CAIRN_E_UNSUPPORTED,
                         "%s: qcow2 version %" PRIu32 " is neither 2 nor 3", src->name,
                         hdr->version);
    if (hdr->cluster_bits < QCOW2_CLUSTER_BITS_MIN || hdr->cluster_bits > QCOW2_CLUSTER_BITS_MAX)
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: cluster_bits %" PRIu32 " is not between %d and %d", src->name,
                         hdr->cluster_bits, QCOW2_CLUSTER_BITS_MIN, QCOW2_CLUSTER_BITS_MAX);
    if (hdr->version < 3)
        return CAIRN_OK;
    decode_v3_fields(b, hdr);
    r = check_fixed_v3(src->name, hdr, err);
    return r == CAIRN_OK ? check_compression_type(src->name, hdr, err) : r;
}

/* -- Extensions -------------------------------------------------------------------------------- */

static int copy_blob(struct qcow2_blob *blob, uint32_t type, const uint8_t *data, uint32_t len,
                     struct cairn_error *err)
{
    blob->data = malloc(len > 0 ? len : 1);
    if (!blob->data)
        return error_no_memory(err, "a header extension");
    memcpy(blob->data, data, len);
    blob->type = type;
    blob->len = len;
    return CAIRN_OK;
}

static int wrong_length(const struct decoder *d, const char *what, uint32_t len, uint32_t expected,
                        struct cairn_error *err)
{
    return error_set(err, CAIRN_E_CORRUPT,
                     "%s: the %s extension has %" PRIu32 " bytes instead of %" PRIu32, d->src->name,
                     what, len, expected);
}

static int decode_backing_format(struct decoder *d, const uint8_t *data, uint32_t len,
                                 struct cairn_error *err)
{
    return copy_blob(&d->hdr->backing_format, QCOW2_EXT_BACKING_FORMAT, data, len, err);
}

static int decode_data_file(struct decoder *d, const uint8_t *data, uint32_t len,
                            struct cairn_error *err)
{
    return copy_blob(&d->hdr->data_file, QCOW2_EXT_DATA_FILE, data, len, err);
}

static int decode_feature_names(struct decoder *d, const uint8_t *data, uint32_t len,
                                struct cairn_error *err)
{
    uint32_t nr = len / QCOW2_FEATURE_ENTRY_LEN;
    struct qcow2_feature_name *features = calloc(nr + 1, sizeof(*features));

    if (!features)
        return error_no_memory(err, "the feature name table");
    for (uint32_t i = 0; i < nr; i++) {
        const uint8_t *entry = data + (size_t)i * QCOW2_FEATURE_ENTRY_LEN;

        features[i].type = entry[0];
        features[i].bit = entry[1];
        memcpy(features[i].name, entry + 2, QCOW2_FEATURE_NAME_LEN);
    }
    d->hdr->features = features;
    d->hdr->nr_features = nr;
    return CAIRN_OK;
}

static int decode_bitmaps(struct decoder *d, const uint8_t *data, uint32_t len,
                          struct cairn_error *err)
{
    struct qcow2_header *hdr = d->hdr;

    /* Without its autoclear bit, which version 2 has not, the extension is not to be believed. */
    hdr->stale_bitmaps = !(hdr->autoclear_features & QCOW2_AUTOCLEAR_BITMAPS);
    if (hdr->stale_bitmaps)
        return CAIRN_OK;
    if (len != QCOW2_EXT_BITMAPS_LEN)
        return wrong_length(d, "bitmaps", len, QCOW2_EXT_BITMAPS_LEN, err);
    hdr->nb_bitmaps = bytes_get_be32(data);
    hdr->bitmap_directory_size = bytes_get_be64(data + 8);
    hdr->bitmap_directory_offset = bytes_get_be64(data + 16);
    hdr->has_bitmaps = true;
    if (hdr->nb_bitmaps == 0 || bytes_get_be32(data + 4) != 0)
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: the bitmaps extension has nb_bitmaps %" PRIu32
                         " (at least 1 expected) and reserved field 0x%" PRIx32 " (0 expected)",
                         d->src->name, hdr->nb_bitmaps, bytes_get_be32(data + 4));
    return CAIRN_OK;
}

static int decode_crypto_header(struct decoder *d, const uint8_t *data, uint32_t len,
                                struct cairn_error *err)
{
    if (d->hdr->crypt_method != QCOW2_CRYPT_LUKS)
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: an encryption header pointer with crypt_method %" PRIu32
                         ", which has none",
                         d->src->name, d->hdr->crypt_method);
    if (len != QCOW2_EXT_CRYPTO_LEN)
        return wrong_length(d, "encryption header pointer", len, QCOW2_EXT_CRYPTO_LEN, err);
    d->hdr->crypto_header_offset = bytes_get_be64(data);
    d->hdr->crypto_header_length = bytes_get_be64(data + 8);
    d->hdr->has_crypto_header = true;
    return CAIRN_OK;
}

static int decode_cairn_parent(struct decoder *d, const uint8_t *data, uint32_t len,
                               struct cairn_error *err)
{
    static const uint8_t pending[QCOW2_CAIRN_PARENT_LEN];
    char quoted[QUOTE_MAX];

    d->hdr->parent_pending = len == sizeof(pending) && memcmp(data, pending, len) == 0;
    if (d->hdr->parent_pending)
        return CAIRN_OK;
    if (digest_parse((const char *)data, len, &d->hdr->parent, NULL) != CAIRN_OK)
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: the recorded parent %s is not a chain ID (sha256:<64 hex digits>)",
                         d->src->name, quote_bytes(data, len, quoted));
    d->hdr->has_parent = true;
    return CAIRN_OK;
}

static const struct {
    uint32_t type;
    int (*decode)(struct decoder *d, const uint8_t *data, uint32_t len, struct cairn_error *err);
} known_extensions[] = {
    {QCOW2_EXT_BACKING_FORMAT, decode_backing_format},
    {QCOW2_EXT_FEATURE_NAMES, decode_feature_names},
    {QCOW2_EXT_BITMAPS, decode_bitmaps},
    {QCOW2_EXT_CRYPTO_HEADER, decode_crypto_header},
    {QCOW2_EXT_DATA_FILE, decode_data_file},
    {QCOW2_EXT_CAIRN_PARENT, decode_cairn_parent},
};

static int decode_extension(struct decoder *d, uint32_t type, const uint8_t *data, uint32_t len,
                            struct cairn_error *err)
{
    for (size_t i = 0; i < sizeof(known_extensions) / sizeof(known_extensions[0]); i++) {
        if (known_extensions[i].type != type)
            continue;
        if (d->ext_seen & 1U << i)
            return error_set(err, CAIRN_E_CORRUPT,
                             "%s: header extension 0x%08" PRIx32 " appears twice", d->src->name,
                             type);
        d->ext_seen |= 1U << i;
        return known_extensions[i].decode(d, data, len, err);
    }
    return CAIRN_OK;
}

static int decode_extensions(struct decoder *d, struct cairn_error *err)
{
    uint64_t off = d->hdr->header_length;

    while (range_in(off, QCOW2_EXT_HEADER_LEN, d->ext_end)) {
        uint32_t type = bytes_get_be32(d->cluster + off);
        uint32_t len = bytes_get_be32(d->cluster + off + 4);
        uint64_t data_off = off + QCOW2_EXT_HEADER_LEN;
        int r;

        if (type == QCOW2_EXT_END)
            break;
        if (!range_in(data_off, len, d->ext_end))
            return error_set(err, CAIRN_E_CORRUPT,
                             "%s: header extension 0x%08" PRIx32 " at 0x%" PRIx64 " of %" PRIu32
                             " bytes leaves the header area, which ends at 0x%" PRIx64,
                             d->src->name, type, off, len, d->ext_end);
        r = decode_extension(d, type, d->cluster + data_off, len, err);
        if (r != CAIRN_OK)
            return r;
        off = data_off + round_up(len, 8);
    }
    return CAIRN_OK;
}

/* -- Backing name ------------------------------------------------------------------------------ */

static int check_backing_name(const struct decoder *d, struct cairn_error *err)
{
    const struct qcow2_header *hdr = d->hdr;

    if (hdr->backing_file_offset < hdr->header_length ||
        hdr->backing_file_offset > qcow2_cluster_size(hdr))
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: backing_file_offset 0x%" PRIx64 " is not between the header (%" PRIu32
                         " bytes) and the end of the first cluster (0x%" PRIx64 ")",
                         d->src->name, hdr->backing_file_offset, hdr->header_length,
                         qcow2_cluster_size(hdr));
    if (hdr->backing_file_size > QCOW2_BACKING_NAME_MAX)
        return error_set(err, CAIRN_E_LIMIT,
                         "%s: backing_file_size %" PRIu32 " is above the limit of %d bytes",
                         d->src->name, hdr->backing_file_size, QCOW2_BACKING_NAME_MAX);
    if (!range_in(hdr->backing_file_offset, hdr->backing_file_size, d->len))
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: the backing name at 0x%" PRIx64 " of %" PRIu32
                         " bytes leaves the first cluster (0x%" PRIx64 " bytes) or the file",
                         d->src->name, hdr->backing_file_offset, hdr->backing_file_size,
                         qcow2_cluster_size(hdr));
    return CAIRN_OK;
}

/* Where a backing name begins, the extension area ends. */
static int decode_backing_name(struct decoder *d, struct cairn_error *err)
{
    struct qcow2_header *hdr = d->hdr;
    int r;

    d->ext_end = d->len;
    if (hdr->backing_file_offset == 0)
        return CAIRN_OK;
    r = check_backing_name(d, err);
    if (r != CAIRN_OK)
        return r;
    d->ext_end = hdr->backing_file_offset;
    return copy_blob(&hdr->backing_file, 0, d->cluster + hdr->backing_file_offset,
                     hdr->backing_file_size, err);
}

/* -- The whole --------------------------------------------------------------------------------- */

/* A short file may say that its clusters are large: that must not cost memory.  Zeros behind its end
 * end the header extensions. */
static int decode_first_cluster(struct source *src, struct qcow2_header *hdr,
                                struct cairn_error *err)
{
    size_t len = min_u64(qcow2_cluster_size(hdr), round_up(src->size, 8) + QCOW2_EXT_HEADER_LEN);
    CLEANUP_FREE uint8_t *cluster = malloc(len);
    struct decoder d = {.src = src, .hdr = hdr, .cluster = cluster, .len = len};
    int r;

    if (!cluster)
        return error_no_memory(err, "the header cluster");
    r = source_pread_padded(src, cluster, len, 0, err);
    if (r == CAIRN_OK)
        r = decode_backing_name(&d, err);
    if (r == CAIRN_OK)
        r = decode_extensions(&d, err);
    return r;
}

int qcow2_header_read(struct source *src, struct qcow2_header *ret_hdr, struct cairn_error *err)
{
    struct qcow2_header hdr = {0};
    int r = decode_fixed(src, &hdr, err);

    if (r != CAIRN_OK)
        return r;
    r = decode_first_cluster(src, &hdr, err);
    /* A feature that we do not know may well be why the rest of the header makes no sense. */
    if (r == CAIRN_E_CORRUPT && (hdr.incompatible_features & ~QCOW2_INCOMPAT_KNOWN))
        r = qcow2_header_check_supported(src, &hdr, err);
    if (r != CAIRN_OK)
        qcow2_header_release(&hdr);
    else
        *ret_hdr = hdr;
    return r;
}

/* -- Supported? -------------------------------------------------------------------------------- */

static const char *feature_name(const struct qcow2_header *hdr, unsigned bit,
                                char quoted[QUOTE_MAX])
{
    for (uint32_t i = 0; i < hdr->nr_features; i++)
        if (hdr->features[i].type == QCOW2_FEATURE_INCOMPATIBLE && hdr->features[i].bit == bit)
            return quote_str(hdr->features[i].name, quoted);
    return "without a name";
}

/* Names as many of the unknown bits as fit the message; the mask says which there are. */
static int unknown_features(const struct source *src, const struct qcow2_header *hdr,
                            struct cairn_error *err)
{
    uint64_t unknown = hdr->incompatible_features & ~QCOW2_INCOMPAT_KNOWN;
    char list[CAIRN_ERROR_MESSAGE_MAX / 2] = "";
    size_t used = 0;

    for (unsigned bit = 0; bit < 64 && used < sizeof(list); bit++) {
        char quoted[QUOTE_MAX];

        if (unknown & UINT64_C(1) << bit)
            used += (size_t)snprintf(list + used, sizeof(list) - used, "%sbit %u %s",
                                     used > 0 ? ", " : "", bit, feature_name(hdr, bit, quoted));
    }
    return error_set(err, CAIRN_E_UNSUPPORTED,
                     "%s: unknown incompatible features 0x%" PRIx64 " (%s)", src->name, unknown,
                     list);
}

static int refuse_data_file(const struct source *src, const struct qcow2_header *hdr,
                            struct cairn_error *err)
{
    char quoted[QUOTE_MAX];

    return error_set(err, CAIRN_E_UNSUPPORTED,
                     "%s: the image keeps its data in an external data file (%s), which is never "
                     "opened",
                     src->name,
                     hdr->data_file.data
                         ? quote_bytes(hdr->data_file.data, hdr->data_file.len, quoted)
                         : "unnamed");
}

static int refuse_encryption(const struct source *src, uint32_t method, struct cairn_error *err)
{
    return error_set(err, CAIRN_E_UNSUPPORTED,
                     "%s: the image is encrypted (crypt_method %" PRIu32 ", %s)", src->name, method,
                     method == QCOW2_CRYPT_AES    ? "AES"
                     : method == QCOW2_CRYPT_LUKS ? "LUKS"
                                                  : "unknown");
}

int qcow2_header_check_supported(const struct source *src, const struct qcow2_header *hdr,
                                 struct cairn_error *err)
{
    if (hdr->incompatible_features & ~QCOW2_INCOMPAT_KNOWN)
        return unknown_features(src, hdr, err);
    if (hdr->incompatible_features & QCOW2_INCOMPAT_DATA_FILE)
        return refuse_data_file(src, hdr, err);
    if (hdr->crypt_method != QCOW2_CRYPT_NONE)
        return refuse_encryption(src, hdr->crypt_method, err);
    if (hdr->incompatible_features & QCOW2_INCOMPAT_CORRUPT)
        return error_set(err, CAIRN_E_UNSUPPORTED,
                         "%s: the image is marked corrupt (incompatible feature bit 1); repair it "
                         "with cairn image check --repair all",
                         src->name);
    if (hdr->compression_type > LAYER_ZSTD)
        return error_set(err, CAIRN_E_UNSUPPORTED,
                         "%s: compression_type %u is neither 0 (deflate) nor 1 (zstd)", src->name,
                         hdr->compression_type);
    return CAIRN_OK;
}

/* -- Tables ------------------------------------------------------------------------------------ */

unsigned qcow2_header_regions(const struct qcow2_header *hdr,
                              struct qcow2_region ret_regions[QCOW2_REGIONS_MAX])
{
    uint64_t cluster_size = qcow2_cluster_size(hdr);
    const struct qcow2_region all[QCOW2_REGIONS_MAX] = {
        {"header", 0, cluster_size},
        {"L1 table", hdr->l1_table_offset, (uint64_t)hdr->l1_size * QCOW2_L1E_SIZE},
        {"refcount table", hdr->refcount_table_offset,
         (uint64_t)hdr->refcount_table_clusters * cluster_size},
        {"snapshot table", hdr->snapshots_offset, (uint64_t)hdr->nb_snapshots * QCOW2_SNAP_LENGTH},
        {"bitmap directory", hdr->bitmap_directory_offset,
         hdr->has_bitmaps ? hdr->bitmap_directory_size : 0},
    };
    unsigned nr = 0;

    for (unsigned i = 0; i < QCOW2_REGIONS_MAX; i++) {
        if (all[i].len == 0)
            continue;
        ret_regions[nr] = all[i];
        ret_regions[nr++].len = round_up(all[i].len, cluster_size);
    }
    return nr;
}

const struct qcow2_region *qcow2_region_find(const struct qcow2_region *regions, unsigned nr,
                                             uint64_t host_off, uint64_t len)
{
    for (unsigned i = 0; i < nr; i++)
        if (host_off < regions[i].host_off + regions[i].len && regions[i].host_off < host_off + len)
            return &regions[i];
    return NULL;
}

int qcow2_check_table(const struct source *src, const struct qcow2_header *hdr, const char *what,
                      uint64_t host_off, uint64_t len, struct cairn_error *err)
{
    if (!is_aligned(host_off, qcow2_cluster_size(hdr)))
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: %s at 0x%" PRIx64 " is not aligned to the cluster size %" PRIu64,
                         src->name, what, host_off, qcow2_cluster_size(hdr));
    if (!range_in(host_off, len, src->size))
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: %s at 0x%" PRIx64 " of %" PRIu64
                         " bytes reaches past the end of the file (%" PRIu64 " bytes)",
                         src->name, what, host_off, len, src->size);
    return CAIRN_OK;
}

int qcow2_check_limit(const struct source *src, const char *what, uint64_t value, uint64_t limit,
                      struct cairn_error *err)
{
    if (value > limit)
        return error_set(err, CAIRN_E_LIMIT, "%s: %s %" PRIu64 " is above the limit of %" PRIu64,
                         src->name, what, value, limit);
    return CAIRN_OK;
}

static int check_sizes(const struct source *src, const struct qcow2_header *hdr,
                       struct cairn_error *err)
{
    uint64_t cluster_size = qcow2_cluster_size(hdr);
    const struct {
        const char *what;
        uint64_t value, limit;
    } limits[] = {
        {"virtual size", hdr->size, CHAIN_VIRTUAL_SIZE_MAX},
        {"l1_size", hdr->l1_size, QCOW2_L1_BYTES_MAX / QCOW2_L1E_SIZE},
        {"refcount_table_clusters", hdr->refcount_table_clusters,
         QCOW2_REFTABLE_BYTES_MAX / cluster_size},
        {"nb_snapshots", hdr->nb_snapshots, QCOW2_SNAPSHOTS_MAX},
        {"nb_bitmaps", hdr->nb_bitmaps, QCOW2_BITMAPS_MAX},
        {"bitmap_directory_size", hdr->bitmap_directory_size, QCOW2_BITMAP_DIR_MAX},
    };

    for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
        int r = qcow2_check_limit(src, limits[i].what, limits[i].value, limits[i].limit, err);

        if (r != CAIRN_OK)
            return r;
    }
    if (hdr->l1_size < qcow2_l1_needed(hdr))
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: l1_size %" PRIu32 " is too small for the virtual size %" PRIu64
                         ", which needs %" PRIu64,
                         src->name, hdr->l1_size, hdr->size, qcow2_l1_needed(hdr));
    if (hdr->refcount_table_clusters == 0)
        return error_set(err, CAIRN_E_CORRUPT, "%s: refcount_table_clusters is 0", src->name);
    if (hdr->has_bitmaps &&
        hdr->bitmap_directory_size < (uint64_t)hdr->nb_bitmaps * QCOW2_BITMAP_LENGTH)
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: bitmap_directory_size %" PRIu64 " is too small for %" PRIu32
                         " bitmaps",
                         src->name, hdr->bitmap_directory_size, hdr->nb_bitmaps);
    return CAIRN_OK;
}

/* Each table by itself; the lengths are the tables', not rounded up to clusters. */
static int check_places(const struct source *src, const struct qcow2_header *hdr,
                        struct cairn_error *err)
{
    int r = CAIRN_OK;

    if (hdr->l1_size > 0)
        r = qcow2_check_table(src, hdr, "L1 table", hdr->l1_table_offset,
                              (uint64_t)hdr->l1_size * QCOW2_L1E_SIZE, err);
    if (r == CAIRN_OK)
        r = qcow2_check_table(src, hdr, "refcount table", hdr->refcount_table_offset,
                              hdr->refcount_table_clusters * qcow2_cluster_size(hdr), err);
    if (r == CAIRN_OK && hdr->nb_snapshots > 0)
        r = qcow2_check_table(src, hdr, "snapshot table", hdr->snapshots_offset,
                              (uint64_t)hdr->nb_snapshots * QCOW2_SNAP_LENGTH, err);
    if (r == CAIRN_OK && hdr->has_bitmaps)
        r = qcow2_check_table(src, hdr, "bitmap directory", hdr->bitmap_directory_offset,
                              hdr->bitmap_directory_size, err);
    return r;
}

int qcow2_header_check_tables(const struct source *src, const struct qcow2_header *hdr,
                              struct cairn_error *err)
{
    struct qcow2_region regions[QCOW2_REGIONS_MAX];
    unsigned nr;
    int r = check_sizes(src, hdr, err);

    if (r == CAIRN_OK)
        r = check_places(src, hdr, err);
    if (r != CAIRN_OK)
        return r;
    nr = qcow2_header_regions(hdr, regions);
    for (unsigned i = 1; i < nr; i++) {
        const struct qcow2_region *other =
            qcow2_region_find(regions, i, regions[i].host_off, regions[i].len);

        if (other)
            return error_set(err, CAIRN_E_CORRUPT,
                             "%s: %s at 0x%" PRIx64 " overlaps the %s at 0x%" PRIx64, src->name,
                             regions[i].what, regions[i].host_off, other->what, other->host_off);
    }
    return CAIRN_OK;
}
