/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an image says of itself, as JSON: also of an image that Cairn refuses as a layer, with the
 * reason.
 */
#include "image_info.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cairn.h"
#include "json_memory.h"
#include "json_text.h"
#include "local_chain.h"
#include "qcow2.h"

static void json_decref_p(json_t **json)
{
    json_decref(*json);
}

static json_t *number(uint64_t n)
{
    return n > INT64_MAX ? json_real((double)n) : json_integer((json_int_t)n);
}

/* -- Features ------------------------------------------------------------------------------- */

static const char *known_feature(unsigned type, unsigned bit)
{
    static const char *const names[3][5] = {
        {"dirty bit", "corrupt bit", "external data file", "compression type",
         "extended L2 entries"},
        {"lazy refcounts"},
        {"bitmaps", "raw external data"},
    };

    return bit < 5 ? names[type][bit] : NULL;
}

/* The name of a feature bit: ours, else the one that the image's own table gives it. */
static json_t *feature_to_json(const struct qcow2_header *h, unsigned type, unsigned bit)
{
    const char *known = known_feature(type, bit);
    json_t *name = NULL;

    if (known)
        name = json_string(known);
    for (uint32_t i = 0; !name && i < h->nr_features; i++)
        if (h->features[i].type == type && h->features[i].bit == bit)
            name = json_text(h->features[i].name, strlen(h->features[i].name));
    return json_pack("{s:i, s:o, s:b}", "bit", (int)bit, "name", name ? name : json_string(""),
                     "known", known != NULL);
}

static json_t *features_to_json(const struct qcow2_header *h, unsigned type, uint64_t bits)
{
    json_t *list = json_array();

    for (unsigned bit = 0; bit < 64; bit++)
        if (bits >> bit & 1)
            json_array_append_new(list, feature_to_json(h, type, bit));
    return list;
}

static json_t *all_features(const struct qcow2_header *h)
{
    return json_pack(
        "{s:o, s:o, s:o}", "incompatible",
        features_to_json(h, QCOW2_FEATURE_INCOMPATIBLE, h->incompatible_features), "compatible",
        features_to_json(h, QCOW2_FEATURE_COMPATIBLE, h->compatible_features), "autoclear",
        features_to_json(h, QCOW2_FEATURE_AUTOCLEAR, h->autoclear_features));
}

/* -- The header ----------------------------------------------------------------------------- */

static const char *compression_name(uint8_t type)
{
    return type == LAYER_DEFLATE ? "zlib" : type == LAYER_ZSTD ? "zstd" : "unknown";
}

static const char *crypt_name(uint32_t method)
{
    static const char *const names[] = {"none", "aes", "luks"};

    return method < 3 ? names[method] : "unknown";
}

static json_t *header_to_json(const struct qcow2_header *h)
{
    return json_pack(
        "{s:I, s:I, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:s, s:b}", "version",
        (json_int_t)h->version, "clusterSize", (json_int_t)1 << h->cluster_bits, "virtualSize",
        number(h->size), "headerLength", (json_int_t)h->header_length, "l1Size",
        (json_int_t)h->l1_size, "l1TableOffset", (json_int_t)h->l1_table_offset,
        "refcountTableOffset", (json_int_t)h->refcount_table_offset, "refcountTableClusters",
        (json_int_t)h->refcount_table_clusters, "refcountBits", (json_int_t)1 << h->refcount_order,
        "compression", compression_name(h->compression_type), "encryption",
        crypt_name(h->crypt_method), "extendedL2",
        (h->incompatible_features & QCOW2_INCOMPAT_EXTL2) != 0);
}

static void add_extension(json_t *list, uint32_t type, const char *name, uint64_t len)
{
    char hex[16];

    snprintf(hex, sizeof(hex), "0x%08" PRIx32, type);
    json_array_append_new(
        list, json_pack("{s:s, s:s, s:I}", "type", hex, "name", name, "length", (json_int_t)len));
}

static json_t *extensions_to_json(const struct qcow2_header *h)
{
    json_t *list = json_array();

    if (h->backing_format.len)
        add_extension(list, QCOW2_EXT_BACKING_FORMAT, "backing format", h->backing_format.len);
    if (h->nr_features)
        add_extension(list, QCOW2_EXT_FEATURE_NAMES, "feature names",
                      (uint64_t)h->nr_features * QCOW2_FEATURE_ENTRY_LEN);
    if (h->has_bitmaps)
        add_extension(list, QCOW2_EXT_BITMAPS, "bitmaps", QCOW2_EXT_BITMAPS_LEN);
    if (h->has_crypto_header)
        add_extension(list, QCOW2_EXT_CRYPTO_HEADER, "encryption header", QCOW2_EXT_CRYPTO_LEN);
    if (h->data_file.len)
        add_extension(list, QCOW2_EXT_DATA_FILE, "external data file", h->data_file.len);
    if (h->has_parent)
        add_extension(list, QCOW2_EXT_CAIRN_PARENT, "cairn parent", QCOW2_CAIRN_PARENT_LEN);
    return list;
}

/* What the image stands on, in its own words: none of these names is opened. */
static void add_references(json_t *root, const struct qcow2_header *h)
{
    char parent[DIGEST_STR_MAX];

    if (h->backing_file.len)
        json_object_set_new(root, "backingFile",
                            json_text(h->backing_file.data, h->backing_file.len));
    if (h->backing_format.len)
        json_object_set_new(root, "backingFormat",
                            json_text(h->backing_format.data, h->backing_format.len));
    if (h->data_file.len)
        json_object_set_new(root, "dataFile", json_text(h->data_file.data, h->data_file.len));
    if (h->has_parent)
        json_object_set_new(root, "parent", json_string(digest_format(&h->parent, parent)));
}

/* -- Snapshots and bitmaps ------------------------------------------------------------------ */

/* What an image lacks is noted as a member; that memory lacks is no fact of the image. */
static int note(json_t *root, const char *member, int code, const struct cairn_error *why,
                struct cairn_error *err)
{
    if (code == CAIRN_E_NO_MEMORY)
        return error_no_memory(err, "the description of an image");
    if (code != CAIRN_OK)
        json_object_set_new(root, member, json_text(why->message, strlen(why->message)));
    return CAIRN_OK;
}

static json_t *snapshot_to_json(const struct qcow2_snapshot *s)
{
    return json_pack("{s:o, s:o, s:I, s:I, s:o, s:o, s:o}", "id", json_text(s->id, strlen(s->id)),
                     "name", json_text(s->name, strlen(s->name)), "dateSeconds",
                     (json_int_t)s->date_sec, "dateNanoseconds", (json_int_t)s->date_nsec,
                     "vmClockNanoseconds", number(s->vm_clock_nsec), "vmStateSize",
                     number(s->vm_state_size), "virtualSize", number(s->disk_size));
}

int image_info_add_snapshots(json_t *root, struct qcow2_image *image, struct cairn_error *err)
{
    const struct qcow2_snapshot *snapshots;
    struct cairn_error why;
    json_t *list = json_array();
    uint32_t nr;
    int ret = qcow2_image_snapshots(image, &snapshots, &nr, &why);

    for (uint32_t i = 0; ret == CAIRN_OK && i < nr; i++)
        json_array_append_new(list, snapshot_to_json(&snapshots[i]));
    json_object_set_new(root, "snapshots", list);
    return note(root, "snapshotsUnreadable", ret, &why, err);
}

static json_t *bitmap_to_json(struct qcow2_image *image, const struct qcow2_bitmap *b)
{
    json_t *json =
        json_pack("{s:o, s:o, s:I, s:b, s:b, s:I}", "name", json_text(b->name, strlen(b->name)),
                  "granularity", number(UINT64_C(1) << b->granularity_bits), "flags",
                  (json_int_t)b->flags, "inUse", (b->flags & QCOW2_BITMAP_IN_USE) != 0, "auto",
                  (b->flags & QCOW2_BITMAP_AUTO) != 0, "type", (json_int_t)b->type);
    struct cairn_error why;

    if (json && qcow2_bitmap_check(image, b, &why) != CAIRN_OK)
        json_object_set_new(json, "unusable", json_text(why.message, strlen(why.message)));
    return json;
}

static int add_bitmaps(json_t *root, struct qcow2_image *image, struct cairn_error *err)
{
    const struct qcow2_bitmap *bitmaps;
    struct cairn_error why;
    json_t *list = json_array();
    uint32_t nr;
    int ret = qcow2_image_bitmaps(image, &bitmaps, &nr, &why);

    for (uint32_t i = 0; ret == CAIRN_OK && i < nr; i++)
        json_array_append_new(list, bitmap_to_json(image, &bitmaps[i]));
    json_object_set_new(root, "bitmaps", list);
    return note(root, "bitmapsUnreadable", ret, &why, err);
}

/* -- The whole ------------------------------------------------------------------------------ */

/* Would the image do as a layer?  If not, "refused" says why. */
static int add_verdict(json_t *root, struct source *src, enum layer_format format,
                       struct cairn_error *err)
{
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    struct cairn_error why;
    int ret = layer_open(src, format, &layer, &why);

    return note(root, "refused", ret, &why, err);
}

static int describe_qcow2(json_t *root, struct source *src, struct cairn_error *err)
{
    CLEANUP(qcow2_image_free_p) struct qcow2_image *image = NULL;
    CLEANUP(json_decref_p) json_t *header = NULL;
    const struct qcow2_header *h;
    int ret = qcow2_image_open(src, QCOW2_OPEN_INFO, &image, err);

    if (ret != CAIRN_OK)
        return ret;
    h = qcow2_image_header(image);
    header = header_to_json(h);
    if (!header || json_object_update(root, header) != 0)
        return error_no_memory(err, "JSON");
    json_object_set_new(root, "features", all_features(h));
    json_object_set_new(root, "extensions", extensions_to_json(h));
    add_references(root, h);
    ret = image_info_add_snapshots(root, image, err);
    if (ret == CAIRN_OK)
        ret = add_bitmaps(root, image, err);
    if (h->stale_bitmaps)
        json_object_set_new(root, "bitmapsUnreadable",
                            json_string("inconsistent: a program that does not know bitmaps wrote "
                                        "the image (autoclear bit 0 is not set)"));
    return ret == CAIRN_OK ? add_verdict(root, src, LAYER_QCOW2, err) : ret;
}

int cairn_image_info(const char *file, const char *format_name, char **ret_json,
                     struct cairn_error *err)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(json_decref_p) json_t *root = NULL;
    enum layer_format format;
    struct stat st;
    int ret = local_format(file, format_name, &format, err);

    if (ret == CAIRN_OK)
        ret = local_open(file, &src, &st, err);
    if (ret != CAIRN_OK)
        return ret;
    json_memory_begin();
    root = json_pack("{s:o, s:s, s:o, s:o}", "file", json_text(file, strlen(file)), "format",
                     format == LAYER_RAW ? "raw" : "qcow2", "fileSize", number(src->size),
                     "allocatedBytes", number((uint64_t)st.st_blocks * 512));
    if (!root)
        return error_no_memory(err, "JSON");
    if (format == LAYER_QCOW2)
        ret = describe_qcow2(root, src, err);
    else
        json_object_set_new(root, "virtualSize", number((src->size + 511) / 512 * 512));
    return ret == CAIRN_OK ? json_memory_dump(root, JSON_COMPACT, ret_json, err) : ret;
}
