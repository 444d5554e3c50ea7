/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The disk API: from a request's path to an opened disk and the call on it.
 *
 * A ref is resolved anew for each request, for tags move and manifests are deleted; but not for
 * each range of a disk's data (disks_names.c).  What a manifest's digest names never changes:
 * opened disks are kept by it, so that a read of 4 KiB does not parse a manifest of a megabyte.
 */
#include "disks_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "leases.h"
#include "quarantine.h"
#include "quote.h"
#include "registry.h"

#define PATH_PREFIX "/v1/disks/"

/* Opened disks get one part in so many of the bytes for metadata, the metadata cache the rest. */
#define OPENED_SHARE 4

/* -- Opened disks ----------------------------------------------------------------------------- */

struct disk *disk_ref(struct disk *disk)
{
    atomic_fetch_add(&disk->refs, 1);
    return disk;
}

void disk_unref(struct disk *disk)
{
    if (!disk || atomic_fetch_sub(&disk->refs, 1) > 1)
        return;
    if (disk->l1)
        index_l1_unref(disk->l1);
    free(disk->layers);
    manifest_free(disk->manifest);
    free(disk);
}

static void *value_ref(void *value)
{
    return disk_ref(value);
}

static void value_unref(void *value)
{
    disk_unref(value);
}

static size_t value_cost(const void *value)
{
    return ((const struct disk *)value)->cost;
}

static const struct cache_type disk_type = {
    .ref = value_ref,
    .unref = value_unref,
    .cost = value_cost,
};

const struct digest *disk_chain_id(const struct disk *disk)
{
    return &disk->chain.chain_ids[disk->chain.depth - 1];
}

static int get_slice(void *ctx, uint32_t ordinal, uint32_t slice, struct index_slice **ret_slice,
                     struct cairn_error *err)
{
    struct disk *disk = ctx;

    return metacache_slice(disk->disks->meta, &disk->chain, disk->l1, ordinal, slice, ret_slice,
                           err);
}

struct index_slices disk_slices(struct disk *disk)
{
    return (struct index_slices){.get = get_slice, .ctx = disk};
}

int disk_blob(struct disk *disk, uint32_t layer, struct blob **ret_blob, struct cairn_error *err)
{
    const struct digest *digest = &disk->layers[layer];
    char text[DIGEST_STR_MAX];
    int code = blobs_get(disk->disks->blobs, digest, ret_blob, err);

    if (code != CAIRN_E_NOT_FOUND)
        return code;
    /* To who reads the disk that is damage, and no wrong name. */
    if (quarantine_check(disk->disks->store, digest, err) == CAIRN_OK)
        error_set(err, CAIRN_E_CORRUPT, "the store has lost its blob");
    if (err)
        err->code = CAIRN_E_CORRUPT;
    return error_prefix(err, CAIRN_E_CORRUPT, "layer %s", digest_format(digest, text));
}

static int read_blob(void *ctx, uint32_t layer, void *buf, size_t len, uint64_t host_off,
                     struct cairn_error *err)
{
    CLEANUP(blob_unref_p) struct blob *blob = NULL;
    int code = disk_blob(ctx, layer, &blob, err);

    if (code != CAIRN_OK)
        return code;
    return source_pread_padded(blob->src, buf, len, host_off, err);
}

struct chain_reader disk_reader(struct disk *disk)
{
    return (struct chain_reader){
        .l1 = disk->l1,
        .slices = disk_slices(disk),
        .blobs = {.pread = read_blob, .ctx = disk},
        .layers = disk->layers,
        .cache = disk->disks->clusters,
        .far = store_is_far(disk->disks->store),
    };
}

static const char *format_name(unsigned format)
{
    return format == LAYER_RAW ? "raw" : "qcow2";
}

int disk_check_l1(const struct index_l1 *l1, const struct meta_chain *chain,
                  struct cairn_error *err)
{
    for (uint32_t i = 0; i < l1->depth && i < chain->depth; i++)
        if (l1->layers[i].format != chain->layers[i].format)
            return error_set(err, CAIRN_E_CONFLICT,
                             "layers[%u]: the manifest says %s, but this server knows the same "
                             "chain with this layer as %s",
                             i, format_name(chain->layers[i].format),
                             format_name(l1->layers[i].format));
    return CAIRN_OK;
}

static size_t annotations_bytes(json_t *annotations)
{
    size_t bytes = 0;
    const char *key;
    json_t *value;

    json_object_foreach(annotations, key, value) bytes +=
        128 + strlen(key) + json_string_length(value);
    return bytes;
}

/* The memory it takes, about. */
static size_t disk_bytes(const struct disk *disk)
{
    size_t per_layer = sizeof(struct manifest_layer) + 2 * sizeof(struct digest);

    return sizeof(*disk) + disk->chain.depth * per_layer + index_l1_bytes(disk->l1) +
           annotations_bytes(disk->manifest->annotations);
}

/* The parts of a disk that follow from its manifest. */
static int disk_fill(struct disk *disk, struct cairn_error *err)
{
    const struct manifest *m = disk->manifest;
    char chain_id[DIGEST_STR_MAX];
    int code;

    disk->chain = (struct meta_chain){
        .depth = m->depth,
        .chain_ids = m->chain_ids,
        .layers = m->layers,
    };
    disk->layers = calloc(m->depth, sizeof(*disk->layers));
    if (!disk->layers)
        return error_no_memory(err, "an opened disk");
    for (uint32_t i = 0; i < m->depth; i++)
        disk->layers[i] = m->layers[i].digest;
    snprintf(disk->etag, sizeof(disk->etag), "\"%s\"",
             digest_format(disk_chain_id(disk), chain_id));
    code = metacache_l1(disk->disks->meta, &disk->chain, m->depth - 1, &disk->l1, err);
    if (code == CAIRN_OK)
        code = disk_check_l1(disk->l1, &disk->chain, err);
    if (code == CAIRN_OK)
        disk->cost = disk_bytes(disk);
    return code;
}

struct load {
    struct disks *disks;
    struct ref ref; /* by digest */
};

static int load_disk(void *arg, void **ret_value, struct cairn_error *err)
{
    const struct load *load = arg;
    CLEANUP(disk_unref_p) struct disk *disk = calloc(1, sizeof(*disk));
    int code;

    if (!disk)
        return error_no_memory(err, "an opened disk");
    atomic_init(&disk->refs, 1);
    disk->disks = load->disks;
    code = registry_find_manifest(load->disks->store, &load->ref, &disk->manifest,
                                  &disk->manifest_digest, err);
    if (code == CAIRN_OK)
        code = disk_fill(disk, err);
    if (code == CAIRN_OK)
        *ret_value = steal_ptr(disk);
    return code;
}

static int open_manifest(struct disks *disks, const struct ref *ref, const struct digest *manifest,
                         struct disk **ret_disk, struct cairn_error *err)
{
    struct load load = {.disks = disks, .ref = *ref};
    struct cache_key key = {.digest = *manifest};
    void *value;
    int code;

    load.ref.tag[0] = 0;
    load.ref.digest = *manifest;
    code = cache_get(disks->opened, &key, load_disk, &load, &value, err);
    if (code == CAIRN_OK)
        *ret_disk = value;
    return code;
}

int disk_open(struct disks *disks, const struct ref *ref, struct disk **ret_disk,
              struct cairn_error *err)
{
    struct digest manifest;
    int code = registry_resolve(disks->store, ref, &manifest, err);

    return code == CAIRN_OK ? open_manifest(disks, ref, &manifest, ret_disk, err) : code;
}

int disk_open_recent(struct disks *disks, const struct ref *ref, struct disk **ret_disk,
                     struct cairn_error *err)
{
    struct digest manifest;
    int code = disks_resolve_recent(disks, ref, &manifest, err);

    return code == CAIRN_OK ? open_manifest(disks, ref, &manifest, ret_disk, err) : code;
}

/* -- Requests --------------------------------------------------------------------------------- */

int disks_query_u64(const struct http_request *req, const char *name, uint64_t *ret_value,
                    struct cairn_error *err)
{
    const char *text = http_query(req, name);
    char quoted[QUOTE_MAX];
    unsigned long long value;
    char *end;

    if (!text)
        return CAIRN_OK;
    errno = 0;
    value = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno)
        return error_set(err, CAIRN_E_USAGE,
                         "query parameter %s=%s: expected a number of bytes below 2^64", name,
                         quote_str(text, quoted));
    *ret_value = value;
    return CAIRN_OK;
}

void disks_reply_ref_error(struct http_reply *reply, const char *text,
                           const struct cairn_error *err)
{
    char quoted[QUOTE_MAX];

    quote_str(text, quoted);
    if (err->code == CAIRN_E_NOT_FOUND)
        http_reply_error(reply, 404, "MANIFEST_UNKNOWN", "disk %s: %s", quoted, err->message);
    else if (err->code == CAIRN_E_UNSUPPORTED)
        http_reply_error(reply, 400, "UNSUPPORTED", "%s is not a disk: %s", quoted, err->message);
    else
        http_reply_failure(reply, err);
}

static const struct call {
    const char *name; /* the path behind the ref, without its '/' */
    const char *pattern;
    bool chain_only; /* the answer follows from the chain: its ID is the ETag */
    void (*reply)(const struct disk_request *rq);
} calls[] = {
    {"", "/v1/disks/<ref>", false, disks_reply_info},
    {"data", "/v1/disks/<ref>/data", true, disks_reply_data},
    {"extents", "/v1/disks/<ref>/extents", true, disks_reply_extents},
    {"index", "/v1/disks/<ref>/index", true, disks_reply_index},
    {"changes", "/v1/disks/<ref>/changes", false, disks_reply_changes},
    {"open", "/v1/disks/<ref>/open", false, disks_reply_open},
};

static const struct call *find_call(const char *name)
{
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
        if (strcmp(calls[i].name, name) == 0)
            return &calls[i];
    return NULL;
}

/*
 * Split `<ref>[/<call>]`.  Repository names contain '/', so the ref ends at the first one behind
 * its ':' or '@'.  ref gets the ref's text; returns the call's, or NULL if there is no whole ref.
 */
static const char *split_path(const char *path, char *ref, size_t room)
{
    size_t len = strcspn(path, ":@");

    if (!path[len])
        return NULL;
    len += strcspn(path + len, "/");
    if (len >= room)
        return NULL;
    memcpy(ref, path, len);
    ref[len] = 0;
    return path[len] ? path + len + 1 : path + len;
}

static bool is_data_range(const struct call *call, const struct http_request *req)
{
    return call->reply == disks_reply_data && http_header(req, "Range");
}

static void reply_call(struct disks *disks, const struct call *call, const char *ref_text,
                       const struct http_request *req, struct http_reply *reply)
{
    CLEANUP(disk_unref_p) struct disk *disk = NULL;
    struct ref ref;
    struct disk_request rq = {.ref = &ref, .http = req, .reply = reply};
    struct cairn_error err;
    int code;

    http_reply_route(reply, call->pattern);
    if (ref_parse(ref_text, &ref, &err) != CAIRN_OK) {
        http_reply_error(reply, 400, "NAME_INVALID", "%s", err.message);
        return;
    }
    code = is_data_range(call, req) ? disk_open_recent(disks, &ref, &disk, &err)
                                    : disk_open(disks, &ref, &disk, &err);
    if (code != CAIRN_OK) {
        disks_reply_ref_error(reply, ref_text, &err);
        return;
    }
    rq.disk = disk;
    if (call->chain_only)
        http_reply_header(reply, "ETag", "%s", disk->etag);
    if (call->chain_only && http_not_modified(req, disk->etag))
        http_reply_status(reply, 304);
    else
        call->reply(&rq);
}

/* `leases` and `leases/<id>`: they are about the manifest, the disk need not be opened. */
static bool is_lease_call(const char *name)
{
    size_t len = strlen("leases");

    return strncmp(name, "leases", len) == 0 && (name[len] == 0 || name[len] == '/');
}

static void reply_lease(struct disks *disks, const char *name, const char *ref_text,
                        const struct http_request *req, struct http_reply *reply)
{
    const char *id = strchr(name, '/');
    struct cairn_error err;
    struct ref ref;

    http_reply_route(reply, id ? PATH_PREFIX "<ref>/leases/<id>" : PATH_PREFIX "<ref>/leases");
    if (ref_parse(ref_text, &ref, &err) != CAIRN_OK)
        http_reply_error(reply, 400, "NAME_INVALID", "%s", err.message);
    else
        leases_handle_disk(disks->store, &ref, id ? id + 1 : NULL, req, reply);
}

bool disks_is_quick(const struct http_request *req)
{
    const char *last = strrchr(http_path(req), '/');

    return strcmp(last, "/data") == 0 && http_header(req, "Range");
}

void disks_handle(struct disks *disks, const struct http_request *req, struct http_reply *reply)
{
    const char *path = http_path(req) + strlen(PATH_PREFIX);
    char ref[REF_STR_MAX], quoted[QUOTE_MAX];
    const char *name = split_path(path, ref, sizeof(ref));
    const struct call *call = name ? find_call(name) : NULL;

    if (!name) {
        http_reply_error(reply, 400, "NAME_INVALID",
                         "%s: expected " PATH_PREFIX "<ref>[/<call>], with <ref> as repo:tag or "
                         "repo@sha256:<hex>",
                         quote_str(http_path(req), quoted));
    } else if (is_lease_call(name)) {
        reply_lease(disks, name, ref, req, reply);
    } else if (!call) {
        http_reply_error(reply, 404, "UNSUPPORTED", "disks have no call %s",
                         quote_str(name, quoted));
    } else if (http_method(req) != HTTP_GET && http_method(req) != HTTP_HEAD) {
        http_reply_methods(reply, HTTP_GET | HTTP_HEAD);
    } else {
        reply_call(disks, call, ref, req, reply);
    }
}

/* -- Life ------------------------------------------------------------------------------------- */

int disks_new(struct store *store, const struct disks_options *options, struct disks **ret_disks,
              struct cairn_error *err)
{
    CLEANUP(disks_free_p) struct disks *disks = calloc(1, sizeof(*disks));
    size_t opened_bytes = options->meta_cache_bytes / OPENED_SHARE;
    int code;

    if (!disks)
        return error_no_memory(err, "the disks");
    disks->store = store;
    disks->options = *options;
    code = metacache_new(options->meta_cache_bytes - opened_bytes, store, options->redis,
                         &disks->meta, err);
    if (code == CAIRN_OK)
        code = cluster_cache_new(options->cluster_cache_bytes, &disks->clusters, err);
    if (code == CAIRN_OK)
        code = blobs_new(store, blobs_max_open(), &disks->blobs, err);
    if (code == CAIRN_OK)
        code = disks_names_new(&disks->names, err);
    if (code == CAIRN_OK)
        code = cache_new(&disk_type, opened_bytes, &disks->opened, err);
    if (code == CAIRN_OK)
        *ret_disks = steal_ptr(disks);
    return code;
}

void disks_free(struct disks *disks)
{
    if (!disks)
        return;
    cache_free(disks->opened);
    cache_free(disks->names);
    blobs_free(disks->blobs);
    cluster_cache_free(disks->clusters);
    metacache_free(disks->meta);
    free(disks);
}

void disks_forget_layer(void *ctx, const struct digest *layer)
{
    struct disks *disks = ctx;

    blobs_forget(disks->blobs, layer);
    cluster_cache_forget(disks->clusters, layer);
}

void disks_forget_gone(struct disks *disks)
{
    blobs_forget_gone(disks->blobs);
}

void disks_write_metrics(void *ctx, struct metrics *m)
{
    struct disks *disks = ctx;

    metacache_write_metrics(disks->meta, m);
}
