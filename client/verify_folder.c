/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Verifying the disk of a folder: the chain that it stands on, at the service, and its own layers
 * here.  Sealed layers do not change, also while the disk is attached; the active one is checked
 * when nobody writes to it.
 */
#include <stdio.h>
#include <string.h>

#include "disk_folder.h"
#include "json_memory.h"
#include "verify.h"

CLEANUP_DEFINE(json_t *, json_decref)

struct local {
    struct cairn_client *client;
    const char *folder;
    json_t *result;
};

static int note(const struct local *l, const char *list, const char *layer, const char *text,
                struct cairn_error *err)
{
    json_t *array = json_object_get(l->result, list);

    if (!array && (array = json_array()) != NULL)
        json_object_set_new(l->result, list, array);
    return json_array_append_new(array, json_pack("{s:s, s:s}", "layer", layer, "text", text))
               ? error_no_memory(err, "JSON")
               : CAIRN_OK;
}

/* What `cairn image check` says of it, but for leaks, which an active layer may have. */
static int take_check(const struct local *l, const char *layer, const char *text,
                      struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *check = NULL;
    const char *state;
    const json_t *finding;
    size_t i;
    int ret = json_memory_load(text, strlen(text), 0, &check, NULL, err);

    if (ret != CAIRN_OK)
        return ret;
    state = json_string_value(json_object_get(check, "state"));
    if (state && (strcmp(state, "clean") == 0 || strcmp(state, "leaks") == 0))
        return CAIRN_OK;
    json_array_foreach(json_object_get(check, "findings"), i, finding)
    {
        const char *said = json_string_value(json_object_get(finding, "text"));

        if (ret == CAIRN_OK)
            ret = note(l, "problems", layer, said ? said : "it is damaged", err);
    }
    return ret;
}

static int verify_file(const struct local *l, const char *name, struct cairn_error *err)
{
    CLEANUP_FREE char *path = NULL;
    CLEANUP_FREE char *text = NULL;
    struct cairn_error why;
    int ret;

    if (asprintf(&path, "%s/%s", l->folder, name) < 0) {
        path = NULL;
        return error_no_memory(err, "a path");
    }
    ret = cairn_image_check(path, "qcow2", CAIRN_REPAIR_NONE, l->client->progress,
                            l->client->progress_ctx, &text, &why);
    if (ret == CAIRN_OK)
        return take_check(l, name, text, err);
    if (ret == CAIRN_E_CONFLICT)
        return note(l, "skipped", name, "it is in use", err);
    if (ret == CAIRN_E_CANCELLED || ret == CAIRN_E_NO_MEMORY || ret == CAIRN_E_DENIED) {
        if (err)
            *err = why;
        return ret;
    }
    return note(l, "problems", name, why.message, err);
}

static int verify_files(const struct local *l, const struct disk_state *state,
                        struct cairn_error *err)
{
    int ret = CAIRN_OK;

    for (uint32_t i = 0; ret == CAIRN_OK && i < state->nr_sealed; i++) {
        char name[DISK_SEALED_NAME_MAX];

        ret = verify_file(l, disk_sealed_name(state->sealed[i], name), err);
    }
    return ret == CAIRN_OK ? verify_file(l, DISK_FOLDER_ACTIVE, err) : ret;
}

int cairn_verify_folder(struct cairn_client *client, const char *folder, bool where_stored,
                        char **ret_json, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *result = NULL;
    struct local l = {.client = client, .folder = folder};
    struct disk_state state;
    struct ref ref = {0};
    bool marked;
    int ret = disk_folder_read_state(folder, &state, &marked, err);

    if (ret != CAIRN_OK)
        return ret;
    snprintf(ref.repo, sizeof(ref.repo), "%s", state.repo);
    ref.digest = state.manifest;
    ret = verify_ref(client, &ref, where_stored, &result, err);
    l.result = result;
    if (ret == CAIRN_OK)
        ret = verify_files(&l, &state, err);
    return ret == CAIRN_OK ? verify_finish(result, ret_json, err) : ret;
}
