/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Manifests: parsing with validation, and writing.
 *
 * The bytes come from anybody.  Before jansson builds a tree of them their shape is bounded, for
 * a tree takes up to a hundred times the memory of its text; afterwards every field that means
 * something here is checked, and no other is looked at.  Whether the layers exist and fit
 * together is for the server to find out.
 */
#include "manifest.h"

#include <inttypes.h>
#include <string.h>

#include "json_memory.h"
#include "quote.h"

/* An object with an annotations object per layer, and what surrounds them. */
#define CONTAINERS_MAX (2u * CHAIN_DEPTH_MAX + 64)
#define VALUES_MAX     (8u * CHAIN_DEPTH_MAX)
#define NESTING_MAX    16u

CLEANUP_DEFINE(json_t *, json_decref)

/* -- Shape ------------------------------------------------------------------------------------- */

struct shape {
    uint32_t nesting, containers, values;
};

/* The index of the quote that ends the string whose first character is at i, or len. */
static size_t skip_string(const char *text, size_t len, size_t i)
{
    for (; i < len && text[i] != '"'; i++)
        if (text[i] == '\\')
            i++;
    return i < len ? i : len;
}

static void shape_count(struct shape *shape, char c)
{
    switch (c) {
    case '{':
    case '[':
        shape->nesting++;
        shape->containers++;
        break;
    case '}':
    case ']':
        shape->nesting -= shape->nesting > 0;
        break;
    case ',':
        shape->values++;
        break;
    default:
        break;
    }
}

static int check_shape(const char *text, size_t len, struct cairn_error *err)
{
    struct shape shape = {.values = 1};

    if (len > MANIFEST_BYTES_MAX)
        return error_set(err, CAIRN_E_LIMIT, "manifest: %zu bytes, at most %u are accepted", len,
                         MANIFEST_BYTES_MAX);
    for (size_t i = 0; i < len; i++) {
        if (text[i] == '"')
            i = skip_string(text, len, i + 1);
        else
            shape_count(&shape, text[i]);
        if (shape.nesting > NESTING_MAX)
            return error_set(err, CAIRN_E_LIMIT,
                             "manifest: nested deeper than %u levels at byte %zu", NESTING_MAX, i);
        if (shape.containers > CONTAINERS_MAX || shape.values > VALUES_MAX)
            return error_set(err, CAIRN_E_LIMIT,
                             "manifest: more JSON values than a chain of %d layers",
                             CHAIN_DEPTH_MAX);
    }
    return CAIRN_OK;
}

static int load_json(const char *text, size_t len, json_t **ret_root, struct cairn_error *err)
{
    char quoted[QUOTE_MAX];
    json_error_t jerr;
    int rc = check_shape(text, len, err);

    if (rc < 0)
        return rc;
    rc = json_memory_load(text, len, JSON_REJECT_DUPLICATES, ret_root, &jerr, err);
    if (rc < 0 || *ret_root)
        return rc;
    return error_set(err, CAIRN_E_CORRUPT, "manifest: not valid JSON at byte %d: %s", jerr.position,
                     quote_str(jerr.text, quoted));
}

/* -- Fields ------------------------------------------------------------------------------------ */

/* A value as a message shows it. */
static const char *show(const json_t *value, char buf[QUOTE_MAX])
{
    switch (value ? (int)json_typeof(value) : -1) {
    case -1:
        return "missing";
    case JSON_STRING:
        return quote_bytes(json_string_value(value), json_string_length(value), buf);
    case JSON_INTEGER:
        snprintf(buf, QUOTE_MAX, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        return buf;
    case JSON_REAL:
        snprintf(buf, QUOTE_MAX, "%g", json_real_value(value));
        return buf;
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_NULL:
        return "null";
    default:
        return json_is_true(value) ? "true" : "false";
    }
}

static int wrong(enum cairn_code code, const char *path, const char *key, const json_t *value,
                 const char *expected, struct cairn_error *err)
{
    char shown[QUOTE_MAX];

    return error_set(err, code, "manifest: %s%s is %s, expected %s", path, key, show(value, shown),
                     expected);
}

static bool string_is(const json_t *value, const char *expected)
{
    return json_is_string(value) && strcmp(json_string_value(value), expected) == 0;
}

static int get_digest(const json_t *object, const char *path, const char *key,
                      struct digest *ret_digest, struct cairn_error *err)
{
    const json_t *value = json_object_get(object, key);

    if (json_is_string(value) && digest_parse(json_string_value(value), json_string_length(value),
                                              ret_digest, NULL) == CAIRN_OK)
        return CAIRN_OK;
    return wrong(CAIRN_E_CORRUPT, path, key, value, "sha256: and 64 lower-case hex digits", err);
}

static int get_size(const json_t *object, const char *path, uint64_t *ret_size,
                    struct cairn_error *err)
{
    const json_t *value = json_object_get(object, "size");

    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return wrong(CAIRN_E_CORRUPT, path, "size", value, "a number of bytes", err);
    *ret_size = (uint64_t)json_integer_value(value);
    return CAIRN_OK;
}

/* -- Parts of the manifest --------------------------------------------------------------------- */

static int parse_head(const json_t *root, struct cairn_error *err)
{
    const json_t *version = json_object_get(root, "schemaVersion");
    const json_t *media_type = json_object_get(root, "mediaType");
    const json_t *artifact_type = json_object_get(root, "artifactType");

    if (!json_is_object(root))
        return wrong(CAIRN_E_CORRUPT, "", "the document", root, "an object", err);
    if (!json_is_integer(version) || json_integer_value(version) != 2)
        return wrong(CAIRN_E_CORRUPT, "", "schemaVersion", version, "2", err);
    if (media_type && !json_is_string(media_type))
        return wrong(CAIRN_E_CORRUPT, "", "mediaType", media_type, "a string", err);
    if (media_type && !string_is(media_type, MANIFEST_MEDIA_TYPE))
        return wrong(CAIRN_E_UNSUPPORTED, "", "mediaType", media_type, MANIFEST_MEDIA_TYPE, err);
    if (artifact_type && !json_is_string(artifact_type))
        return wrong(CAIRN_E_CORRUPT, "", "artifactType", artifact_type, "a string", err);
    if (!string_is(artifact_type, MANIFEST_ARTIFACT_TYPE))
        return wrong(CAIRN_E_UNSUPPORTED, "", "artifactType", artifact_type, MANIFEST_ARTIFACT_TYPE,
                     err);
    return CAIRN_OK;
}

static int parse_config(const json_t *root, struct cairn_error *err)
{
    const json_t *config = json_object_get(root, "config");
    const json_t *media_type = json_object_get(config, "mediaType");
    const json_t *digest = json_object_get(config, "digest");
    const json_t *size = json_object_get(config, "size");
    const json_t *data = json_object_get(config, "data");

    if (!json_is_object(config))
        return wrong(CAIRN_E_CORRUPT, "", "config", config, "the empty descriptor", err);
    if (!string_is(media_type, MANIFEST_EMPTY_TYPE))
        return wrong(CAIRN_E_CORRUPT, "config.", "mediaType", media_type, MANIFEST_EMPTY_TYPE, err);
    if (!string_is(digest, MANIFEST_EMPTY_DIGEST))
        return wrong(CAIRN_E_CORRUPT, "config.", "digest", digest, MANIFEST_EMPTY_DIGEST, err);
    if (!json_is_integer(size) || json_integer_value(size) != sizeof(MANIFEST_EMPTY_JSON) - 1)
        return wrong(CAIRN_E_CORRUPT, "config.", "size", size, "2", err);
    if (data && !string_is(data, MANIFEST_EMPTY_BASE64))
        return wrong(CAIRN_E_CORRUPT, "config.", "data", data, MANIFEST_EMPTY_BASE64, err);
    return CAIRN_OK;
}

static int parse_layer(const json_t *object, size_t index, struct manifest_layer *ret_layer,
                       struct cairn_error *err)
{
    const json_t *media_type = json_object_get(object, "mediaType");
    char path[32];
    int rc;

    if (!json_is_object(object)) {
        snprintf(path, sizeof(path), "layers[%zu]", index);
        return wrong(CAIRN_E_CORRUPT, path, "", object, "a descriptor", err);
    }
    snprintf(path, sizeof(path), "layers[%zu].", index);
    rc = get_digest(object, path, "digest", &ret_layer->digest, err);
    if (rc == CAIRN_OK)
        rc = get_size(object, path, &ret_layer->size, err);
    if (rc < 0)
        return rc;
    if (!json_is_string(media_type))
        return wrong(CAIRN_E_CORRUPT, path, "mediaType", media_type, "a string", err);
    ret_layer->format = LAYER_QCOW2;
    if (string_is(media_type, MANIFEST_LAYER_QCOW2))
        return CAIRN_OK;
    if (!string_is(media_type, MANIFEST_LAYER_RAW))
        return wrong(CAIRN_E_UNSUPPORTED, path, "mediaType", media_type,
                     MANIFEST_LAYER_QCOW2 " or " MANIFEST_LAYER_RAW, err);
    if (index > 0)
        return wrong(CAIRN_E_CORRUPT, path, "mediaType", media_type,
                     MANIFEST_LAYER_QCOW2 " (only layers[0] may be raw)", err);
    ret_layer->format = LAYER_RAW;
    return CAIRN_OK;
}

static int parse_layers(const json_t *root, struct manifest *m, struct cairn_error *err)
{
    const json_t *layers = json_object_get(root, "layers");
    size_t nr = json_array_size(layers);

    if (!json_is_array(layers) || nr == 0)
        return wrong(CAIRN_E_CORRUPT, "", "layers", layers, "an array of at least one descriptor",
                     err);
    if (nr > CHAIN_DEPTH_MAX)
        return error_set(err, CAIRN_E_LIMIT,
                         "manifest: layers has %zu entries, at most %d are accepted", nr,
                         CHAIN_DEPTH_MAX);
    m->depth = (uint32_t)nr;
    m->layers = calloc(nr, sizeof(*m->layers));
    if (!m->layers)
        return error_no_memory(err, "a manifest's layers");
    for (size_t i = 0; i < nr; i++) {
        int rc = parse_layer(json_array_get(layers, i), i, &m->layers[i], err);

        if (rc < 0)
            return rc;
    }
    return CAIRN_OK;
}

static int parse_annotations(json_t *root, struct manifest *m, struct cairn_error *err)
{
    json_t *annotations = json_object_get(root, "annotations");
    const char *key;
    json_t *value;

    if (!annotations)
        return CAIRN_OK;
    if (!json_is_object(annotations))
        return wrong(CAIRN_E_CORRUPT, "", "annotations", annotations, "an object of strings", err);
    json_object_foreach(annotations, key, value)
    {
        char quoted[QUOTE_MAX];

        if (!json_is_string(value))
            return wrong(CAIRN_E_CORRUPT, "annotations.", quote_str(key, quoted), value, "a string",
                         err);
    }
    m->annotations = json_incref(annotations);
    m->has_rebased_from = json_object_get(annotations, MANIFEST_REBASED_FROM) != NULL;
    if (!m->has_rebased_from)
        return CAIRN_OK;
    return get_digest(annotations, "annotations.", MANIFEST_REBASED_FROM, &m->rebased_from, err);
}

static int parse_subject(const json_t *root, struct manifest *m, struct cairn_error *err)
{
    const json_t *subject = json_object_get(root, "subject");
    const json_t *media_type = json_object_get(subject, "mediaType");
    int rc;

    if (!subject)
        return CAIRN_OK;
    if (!json_is_object(subject))
        return wrong(CAIRN_E_CORRUPT, "", "subject", subject, "a descriptor", err);
    if (!json_is_string(media_type))
        return wrong(CAIRN_E_CORRUPT, "subject.", "mediaType", media_type, "a string", err);
    rc = get_digest(subject, "subject.", "digest", &m->subject, err);
    if (rc == CAIRN_OK)
        rc = get_size(subject, "subject.", &m->subject_size, err);
    m->has_subject = rc == CAIRN_OK;
    return rc;
}

static int fill_chain_ids(struct manifest *m, struct cairn_error *err)
{
    m->chain_ids = calloc(m->depth, sizeof(*m->chain_ids));
    if (!m->chain_ids)
        return error_no_memory(err, "a manifest's chain IDs");
    for (uint32_t i = 0; i < m->depth; i++)
        digest_chain(i > 0 ? &m->chain_ids[i - 1] : NULL, &m->layers[i].digest, &m->chain_ids[i]);
    return CAIRN_OK;
}

int manifest_parse(const void *json, size_t len, struct manifest **ret_manifest,
                   struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *root = NULL;
    CLEANUP(manifest_free_p) struct manifest *m = calloc(1, sizeof(*m));
    int rc;

    if (!m)
        return error_no_memory(err, "a manifest");
    rc = load_json(json, len, &root, err);
    if (rc == CAIRN_OK)
        rc = parse_head(root, err);
    if (rc == CAIRN_OK)
        rc = parse_config(root, err);
    if (rc == CAIRN_OK)
        rc = parse_layers(root, m, err);
    if (rc == CAIRN_OK)
        rc = parse_annotations(root, m, err);
    if (rc == CAIRN_OK)
        rc = parse_subject(root, m, err);
    if (rc == CAIRN_OK)
        rc = fill_chain_ids(m, err);
    if (rc == CAIRN_OK)
        *ret_manifest = steal_ptr(m);
    return rc;
}

void manifest_free(struct manifest *m)
{
    if (!m)
        return;
    json_decref(m->annotations);
    free(m->chain_ids);
    free(m->layers);
    free(m);
}

int manifest_new(const struct manifest_layer *layers, uint32_t depth,
                 struct manifest **ret_manifest, struct cairn_error *err)
{
    CLEANUP(manifest_free_p) struct manifest *m = NULL;
    int rc;

    if (depth == 0 || depth > CHAIN_DEPTH_MAX)
        return error_set(err, CAIRN_E_LIMIT, "a chain of %" PRIu32 " layers, expected 1 to %d",
                         depth, CHAIN_DEPTH_MAX);
    for (uint32_t i = 1; i < depth; i++)
        if (layers[i].format != LAYER_QCOW2)
            return error_set(err, CAIRN_E_USAGE, "layer %" PRIu32 " is raw; only the base may be",
                             i);
    m = calloc(1, sizeof(*m));
    if (!m || !(m->layers = calloc(depth, sizeof(*layers))))
        return error_no_memory(err, "a manifest");
    m->depth = depth;
    memcpy(m->layers, layers, depth * sizeof(*layers));
    rc = fill_chain_ids(m, err);
    if (rc == CAIRN_OK)
        *ret_manifest = steal_ptr(m);
    return rc;
}

/* -- Writing ----------------------------------------------------------------------------------- */

static json_t *descriptor(const char *media_type, const struct digest *d, uint64_t size)
{
    char text[DIGEST_STR_MAX];

    return json_pack("{s:s, s:s, s:I}", "mediaType", media_type, "digest", digest_format(d, text),
                     "size", (json_int_t)size);
}

static json_t *empty_config(void)
{
    return json_pack("{s:s, s:s, s:i, s:s}", "mediaType", MANIFEST_EMPTY_TYPE, "digest",
                     MANIFEST_EMPTY_DIGEST, "size", (int)sizeof(MANIFEST_EMPTY_JSON) - 1, "data",
                     MANIFEST_EMPTY_BASE64);
}

static json_t *layer_descriptors(const struct manifest *m)
{
    CLEANUP(json_decref_p) json_t *layers = json_array();

    for (uint32_t i = 0; i < m->depth; i++) {
        const struct manifest_layer *layer = &m->layers[i];
        const char *media_type =
            layer->format == LAYER_RAW ? MANIFEST_LAYER_RAW : MANIFEST_LAYER_QCOW2;

        if (json_array_append_new(layers, descriptor(media_type, &layer->digest, layer->size)) < 0)
            return NULL;
    }
    return steal_ptr(layers);
}

/* The annotations, with the one that the struct has a field for brought into line with it. */
static json_t *all_annotations(const struct manifest *m)
{
    CLEANUP(json_decref_p)
    json_t *annotations = m->annotations ? json_copy(m->annotations) : json_object();
    char text[DIGEST_STR_MAX];

    if (!m->has_rebased_from)
        json_object_del(annotations, MANIFEST_REBASED_FROM);
    else if (json_object_set_new(annotations, MANIFEST_REBASED_FROM,
                                 json_string(digest_format(&m->rebased_from, text))) < 0)
        return NULL;
    return steal_ptr(annotations);
}

static int add_optional(const struct manifest *m, json_t *root)
{
    CLEANUP(json_decref_p) json_t *annotations = all_annotations(m);

    if (!annotations)
        return -1;
    if (json_object_size(annotations) > 0 && json_object_set(root, "annotations", annotations) < 0)
        return -1;
    if (m->has_subject &&
        json_object_set_new(root, "subject",
                            descriptor(MANIFEST_MEDIA_TYPE, &m->subject, m->subject_size)) < 0)
        return -1;
    return 0;
}

int manifest_encode(const struct manifest *m, char **ret_json, size_t *ret_len,
                    struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *root = NULL;
    int rc;

    json_memory_begin();
    root = json_pack("{s:i, s:s, s:s, s:o, s:o}", "schemaVersion", 2, "mediaType",
                     MANIFEST_MEDIA_TYPE, "artifactType", MANIFEST_ARTIFACT_TYPE, "config",
                     empty_config(), "layers", layer_descriptors(m));
    if (!root || add_optional(m, root) < 0)
        return error_no_memory(err, "a manifest");
    rc = json_memory_dump(root, JSON_COMPACT | JSON_SORT_KEYS, ret_json, err);
    if (rc == CAIRN_OK)
        *ret_len = strlen(*ret_json);
    return rc;
}
