/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disk.json, the document.  It is a file on disk like any other, so nothing in it is believed:
 * every field has its type and its limits, and file names have exactly one shape, so that no path
 * leads out of the folder.  Unknown fields are refused: they would be lost on the next write.
 */
#include "disk_folder.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "checked.h"
#include "json_memory.h"
#include "quote.h"

#define STATE_VERSION  1
#define SEALED_PREFIX  "sealed-"
#define COMPACT_PREFIX "compact-"
#define LAYER_SUFFIX   ".qcow2"

char *disk_sealed_name(uint32_t number, char name[DISK_SEALED_NAME_MAX])
{
    snprintf(name, DISK_SEALED_NAME_MAX, SEALED_PREFIX "%" PRIu32 LAYER_SUFFIX, number);
    return name;
}

char *disk_compact_name(uint32_t number, char name[DISK_SEALED_NAME_MAX])
{
    snprintf(name, DISK_SEALED_NAME_MAX, COMPACT_PREFIX "%" PRIu32 LAYER_SUFFIX, number);
    return name;
}

/* -- Writing -------------------------------------------------------------------------------- */

static json_t *encode_layers(const struct disk_state *state)
{
    json_t *layers = json_array();
    char name[DISK_SEALED_NAME_MAX];

    for (uint32_t i = 0; i < state->nr_sealed; i++)
        json_array_append_new(layers,
                              json_pack("{s:s}", "file", disk_sealed_name(state->sealed[i], name)));
    return layers;
}

static json_t *encode_repair(const struct disk_repair *repair)
{
    return json_pack("{s:I, s:I}", "time", (json_int_t)repair->time, "leaksFreed",
                     (json_int_t)repair->leaks);
}

int disk_state_encode(const struct disk_state *state, char **ret_json, struct cairn_error *err)
{
    char manifest[DIGEST_STR_MAX], chain_id[DIGEST_STR_MAX];
    json_t *json;
    int ret;

    json_memory_begin();
    json = json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:I, s:o, s:s}", "version", STATE_VERSION,
                     "madeFrom", state->made_from, "ref", state->ref, "repository", state->repo,
                     "manifest", digest_format(&state->manifest, manifest), "chainId",
                     digest_format(&state->chain_id, chain_id), "virtualSize",
                     (json_int_t)state->virtual_size, "layers", encode_layers(state), "active",
                     DISK_FOLDER_ACTIVE);
    if (json && state->last_repair.time != 0)
        json_object_set_new(json, "lastRepair", encode_repair(&state->last_repair));
    ret = json_memory_dump(json, JSON_INDENT(2), ret_json, err);
    json_decref(json);
    return ret;
}

/* -- Reading -------------------------------------------------------------------------------- */

struct state_reader {
    const char *what; /* the document */
    json_t *json;
    struct cairn_error *err;
};

static int bad_field(const struct state_reader *r, const char *field, const char *value,
                     const char *expected)
{
    char quoted[QUOTE_MAX];

    return error_set(r->err, CAIRN_E_CORRUPT, "%s: field \"%s\" is %s, expected %s", r->what, field,
                     value ? quote_str(value, quoted) : "missing or of another type", expected);
}

static int read_string(const struct state_reader *r, const char *field, const char *expected,
                       const char **ret_value)
{
    *ret_value = json_string_value(json_object_get(r->json, field));
    return *ret_value ? CAIRN_OK : bad_field(r, field, NULL, expected);
}

static int read_digest(const struct state_reader *r, const char *field, struct digest *ret_digest)
{
    static const char expected[] = "sha256:<64 hex digits>";
    const char *text;
    int ret = read_string(r, field, expected, &text);

    if (ret == CAIRN_OK && digest_parse(text, strlen(text), ret_digest, NULL) != CAIRN_OK)
        ret = bad_field(r, field, text, expected);
    return ret;
}

static int read_ref(const struct state_reader *r, const char *field, char ret_text[REF_STR_MAX])
{
    const char *text;
    struct ref ref;
    int ret = read_string(r, field, "a ref", &text);

    if (ret == CAIRN_OK && ref_parse(text, &ref, NULL) != CAIRN_OK)
        ret = bad_field(r, field, text, "a ref");
    if (ret == CAIRN_OK)
        ref_format(&ref, ret_text);
    return ret;
}

static int read_repo(const struct state_reader *r, char ret_repo[256])
{
    const char *text;
    int ret = read_string(r, "repository", "a repository's name", &text);

    if (ret == CAIRN_OK && (strlen(text) >= 256 || !ref_valid_repo(text)))
        ret = bad_field(r, "repository", text, "a repository's name");
    if (ret == CAIRN_OK)
        snprintf(ret_repo, 256, "%s", text);
    return ret;
}

static int read_size(const struct state_reader *r, uint64_t *ret_size)
{
    const json_t *value = json_object_get(r->json, "virtualSize");
    json_int_t size = json_integer_value(value);
    char text[32];

    if (!json_is_integer(value))
        return bad_field(r, "virtualSize", NULL, "a number of bytes");
    if (size < 0 || (uint64_t)size > CHAIN_VIRTUAL_SIZE_MAX || !is_aligned((uint64_t)size, 512)) {
        snprintf(text, sizeof(text), "%" JSON_INTEGER_FORMAT, size);
        return bad_field(r, "virtualSize", text, "a multiple of 512 up to 2^48");
    }
    *ret_size = (uint64_t)size;
    return CAIRN_OK;
}

/* Exactly <prefix><number>.qcow2. */
static uint32_t number_of(const char *name, const char *prefix)
{
    char again[DISK_SEALED_NAME_MAX];
    size_t len = strlen(prefix);
    uint32_t number;

    if (strncmp(name, prefix, len) != 0 || sscanf(name + len, "%9" SCNu32, &number) != 1)
        return 0;
    snprintf(again, sizeof(again), "%s%" PRIu32 LAYER_SUFFIX, prefix, number);
    return strcmp(again, name) == 0 ? number : 0;
}

uint32_t disk_sealed_number(const char *name)
{
    return number_of(name, SEALED_PREFIX);
}

uint32_t disk_compact_number(const char *name)
{
    return number_of(name, COMPACT_PREFIX);
}

static int read_layer(const struct state_reader *r, size_t i, uint32_t above, uint32_t *ret_number)
{
    const json_t *row = json_array_get(json_object_get(r->json, "layers"), i);
    const char *file = json_string_value(json_object_get(row, "file"));
    char field[48];

    snprintf(field, sizeof(field), "layers[%zu].file", i);
    if (!file)
        return bad_field(r, field, NULL, "sealed-<number>.qcow2");
    *ret_number = disk_sealed_number(file);
    if (*ret_number <= above)
        return bad_field(r, field, file, "sealed-<number>.qcow2, numbers ascending");
    return CAIRN_OK;
}

static int read_layers(const struct state_reader *r, struct disk_state *state)
{
    const json_t *layers = json_object_get(r->json, "layers");
    size_t nr = json_array_size(layers);

    if (!json_is_array(layers))
        return bad_field(r, "layers", NULL, "a list");
    if (nr > DISK_SEALED_MAX)
        return error_set(r->err, CAIRN_E_LIMIT,
                         "%s: \"layers\" has %zu entries, at most %d are allowed", r->what, nr,
                         DISK_SEALED_MAX);
    for (size_t i = 0; i < nr; i++) {
        int ret = read_layer(r, i, i > 0 ? state->sealed[i - 1] : 0, &state->sealed[i]);

        if (ret != CAIRN_OK)
            return ret;
    }
    state->nr_sealed = (uint32_t)nr;
    return CAIRN_OK;
}

/* Where there is one, it is of exactly this shape. */
static int read_repair(const struct state_reader *r, struct disk_repair *ret_repair)
{
    json_t *value = json_object_get(r->json, "lastRepair");
    json_int_t when = json_integer_value(json_object_get(value, "time"));
    const json_t *leaks = json_object_get(value, "leaksFreed");

    if (!value)
        return CAIRN_OK;
    if (json_object_size(value) != 2 || when <= 0 || !json_is_integer(leaks) ||
        json_integer_value(leaks) < 0)
        return bad_field(r, "lastRepair", NULL, "{\"time\": seconds, \"leaksFreed\": a number}");
    *ret_repair = (struct disk_repair){.time = when, .leaks = (uint64_t)json_integer_value(leaks)};
    return CAIRN_OK;
}

static int check_version(const struct state_reader *r)
{
    const json_t *version = json_object_get(r->json, "version");

    if (!json_is_integer(version))
        return bad_field(r, "version", NULL, "a number");
    if (json_integer_value(version) != STATE_VERSION)
        return error_set(r->err, CAIRN_E_UNSUPPORTED,
                         "%s: version %" JSON_INTEGER_FORMAT ", this program knows version %d",
                         r->what, json_integer_value(version), STATE_VERSION);
    return CAIRN_OK;
}

static bool is_known(const char *field)
{
    static const char *const known[] = {"version",  "madeFrom",  "ref",         "repository",
                                        "manifest", "chainId",   "virtualSize", "layers",
                                        "active",   "lastRepair"};

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (strcmp(field, known[i]) == 0)
            return true;
    return false;
}

static int check_fields(const struct state_reader *r)
{
    char quoted[QUOTE_MAX];
    const char *key;
    json_t *value;

    json_object_foreach(r->json, key, value)
    {
        if (!is_known(key))
            return error_set(r->err, CAIRN_E_UNSUPPORTED, "%s: unknown field %s", r->what,
                             quote_str(key, quoted));
    }
    return CAIRN_OK;
}

static int read_state(const struct state_reader *r, struct disk_state *state)
{
    const char *active;
    int ret = check_version(r);

    if (ret == CAIRN_OK)
        ret = check_fields(r);
    if (ret == CAIRN_OK)
        ret = read_ref(r, "madeFrom", state->made_from);
    if (ret == CAIRN_OK)
        ret = read_ref(r, "ref", state->ref);
    if (ret == CAIRN_OK)
        ret = read_repo(r, state->repo);
    if (ret == CAIRN_OK)
        ret = read_digest(r, "manifest", &state->manifest);
    if (ret == CAIRN_OK)
        ret = read_digest(r, "chainId", &state->chain_id);
    if (ret == CAIRN_OK)
        ret = read_size(r, &state->virtual_size);
    if (ret == CAIRN_OK)
        ret = read_layers(r, state);
    if (ret == CAIRN_OK)
        ret = read_repair(r, &state->last_repair);
    if (ret == CAIRN_OK)
        ret = read_string(r, "active", DISK_FOLDER_ACTIVE, &active);
    if (ret == CAIRN_OK && strcmp(active, DISK_FOLDER_ACTIVE) != 0)
        ret = bad_field(r, "active", active, DISK_FOLDER_ACTIVE);
    return ret;
}

int disk_state_parse(const void *json, size_t len, const char *what, struct disk_state *ret_state,
                     struct cairn_error *err)
{
    struct disk_state state = {.nr_sealed = 0};
    json_error_t why;
    json_t *root;
    int ret = json_memory_load(json, len, JSON_REJECT_DUPLICATES, &root, &why, err);
    const struct state_reader r = {.what = what, .json = root, .err = err};

    if (ret != CAIRN_OK)
        return ret;
    if (!json_is_object(root)) {
        ret = error_set(err, CAIRN_E_CORRUPT, "%s: not a JSON object (line %d: %s)", what,
                        root ? 1 : why.line, root ? "another type" : why.text);
        json_decref(root);
        return ret;
    }
    ret = read_state(&r, &state);
    json_decref(root);
    if (ret == CAIRN_OK)
        *ret_state = state;
    return ret;
}
