/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pushing internal snapshots of a local image.
 *
 * The blob of an image with snapshots shows its active disk only.  So each state of the image that
 * is to be published becomes a layer: the first one over the image's backing chain, each further
 * one over the state before it, with what differs.  The chain of a snapshot is a prefix of the
 * chain of the next, and shares all its blobs.  A state that shows the same as the one before needs
 * no layer.
 *
 * Layers are made and uploaded one at a time, under the same bytes for the same states, so a push
 * that is repeated sends nothing twice.  The backing chain is pushed as its files are.
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "json_text.h"
#include "push.h"
#include "quote.h"
#include "snapshot_tags.h"
#include "states.h"

struct internal {
    struct cairn_client *client;
    struct ref ref;
    struct local_chain *chain;
    struct states states;
    struct local_index shown;      /* by the layers so far */
    uint32_t depth;                /* of them */
    struct manifest_layer *layers; /* the backing chain's, then those made here */
    struct digest chain_id;        /* if depth is not 0 */
    char *folder;                  /* for the layer in the making */
    char *path;                    /* of it */
};

/* -- Layers --------------------------------------------------------------------------------- */

static void append(struct internal *in, const struct manifest_layer *layer)
{
    struct digest below = in->chain_id;

    digest_chain(in->depth ? &below : NULL, &layer->digest, &in->chain_id);
    in->layers[in->depth++] = *layer;
}

static int push_backing(struct internal *in, struct cairn_error *err)
{
    CLEANUP(push_release) struct push p = {0};
    int ret = push_init(&p, in->client, &in->ref, in->chain, in->chain->depth - 1, err);

    if (ret == CAIRN_OK)
        ret = push_hash_chain(&p, err);
    if (ret == CAIRN_OK)
        ret = push_upload_missing(&p, err);
    for (uint32_t i = 0; ret == CAIRN_OK && i < p.depth; i++)
        append(in, &p.layers[i]);
    return ret;
}

static int upload_layer(struct internal *in, const char *what, struct cairn_error *err)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    struct manifest_layer layer = {.format = LAYER_QCOW2};
    struct progress progress = {.what = what};
    bool has;
    int ret = source_open_file(in->path, NULL, &src, err);

    if (ret != CAIRN_OK)
        return ret;
    layer.size = progress.total = src->size;
    ret = push_hash_source(in->client, src, &progress, &layer.digest, err);
    if (ret == CAIRN_OK)
        ret = client_has_blob(in->client, in->ref.repo, &layer.digest, &has, err);
    if (ret == CAIRN_OK && !has)
        ret = client_upload(in->client, in->ref.repo, src, &layer.digest, NULL, &progress, err);
    if (ret == CAIRN_OK)
        append(in, &layer);
    return ret;
}

static int make_layer(struct internal *in, const struct local_index *to, const char *what,
                      struct cairn_error *err)
{
    const struct digest *parent = in->depth ? &in->chain_id : NULL;
    int ret =
        states_write_layer(&in->states, &in->shown, to, parent, in->client, what, in->path, err);

    if (ret == CAIRN_OK)
        ret = upload_layer(in, what, err);
    if (unlink(in->path) != 0 && ret == CAIRN_OK)
        ret = error_set_errno(err, errno, "cannot remove %s", in->path);
    return ret;
}

/* Let the chain show a state of the image. */
static int add_state(struct internal *in, uint32_t snapshot, struct cairn_error *err)
{
    CLEANUP(local_index_release) struct local_index to = {0};
    char quoted[QUOTE_MAX], what[QUOTE_MAX + 16];
    bool differ = true;
    int ret = states_index(&in->states, snapshot, &to, err);

    if (ret == CAIRN_OK && in->depth > 0)
        ret = states_differ(&in->states, &in->shown, &to, &differ, err);
    if (ret != CAIRN_OK || !differ)
        return ret;
    snprintf(what, sizeof(what), "push %s",
             snapshot == STATE_ACTIVE ? "active disk"
                                      : quote_str(in->states.snapshots[snapshot].name, quoted));
    ret = make_layer(in, &to, what, err);
    if (ret != CAIRN_OK)
        return ret;
    local_index_release(&in->shown);
    in->shown = to;
    to = (struct local_index){0};
    return CAIRN_OK;
}

/* Publish the chain as it is; *ret_ref is `repo@sha256:…`. */
static int publish(struct internal *in, const char *tag, char **ret_ref, struct cairn_error *err)
{
    CLEANUP(manifest_free_p) struct manifest *m = NULL;
    struct ref ref = in->ref;
    struct digest digest;
    int ret = local_layer_check(&in->chain->layers[in->chain->depth - 1], err);

    snprintf(ref.tag, sizeof(ref.tag), "%s", tag);
    if (ret == CAIRN_OK)
        ret = manifest_new(in->layers, in->depth, &m, err);
    if (ret == CAIRN_OK)
        ret = client_put_manifest(in->client, &ref, m, &digest, err);
    return ret == CAIRN_OK ? push_format_result(&ref, &digest, ret_ref, err) : ret;
}

/* -- Begin and end -------------------------------------------------------------------------- */

static int make_folder(struct internal *in, struct cairn_error *err)
{
    const char *tmp = getenv("TMPDIR");

    if (asprintf(&in->folder, "%s/cairn-push-XXXXXX", tmp && *tmp ? tmp : "/var/tmp") < 0) {
        in->folder = NULL;
        return error_no_memory(err, "a file name");
    }
    if (!mkdtemp(in->folder)) {
        int saved_errno = errno;

        free(steal_ptr(in->folder));
        return error_set_errno(err, saved_errno, "cannot make a folder in %s",
                               tmp && *tmp ? tmp : "/var/tmp");
    }
    if (asprintf(&in->path, "%s/layer.qcow2", in->folder) < 0) {
        in->path = NULL;
        return error_no_memory(err, "a file name");
    }
    return CAIRN_OK;
}

static int make_room(struct internal *in, struct cairn_error *err)
{
    in->layers =
        calloc((size_t)in->chain->depth + in->states.nr_snapshots + 1, sizeof(in->layers[0]));
    return in->layers ? CAIRN_OK : error_no_memory(err, "the chain");
}

static void internal_release(struct internal *in)
{
    if (in->folder)
        rmdir(in->folder);
    free(in->folder);
    free(in->path);
    free(in->layers);
    local_index_release(&in->shown);
    states_release(&in->states);
    local_chain_free(in->chain);
}

/* Everything that can be refused without the service. */
static int internal_open(struct internal *in, struct cairn_client *client, const char *file,
                         const char *ref, struct cairn_error *err)
{
    int ret = push_parse_ref(ref, &in->ref, err);

    in->client = client;
    if (ret == CAIRN_OK)
        ret = local_chain_open(file, "qcow2", &in->chain, err);
    if (ret == CAIRN_OK)
        ret = states_open(in->chain, &in->states, err);
    if (ret == CAIRN_OK)
        ret = make_room(in, err);
    if (ret == CAIRN_OK)
        ret = local_index_copy(&in->states.below, &in->shown, err);
    return ret;
}

static int internal_begin(struct internal *in, struct cairn_error *err)
{
    int ret = make_folder(in, err);

    return ret == CAIRN_OK ? push_backing(in, err) : ret;
}

/* -- One snapshot --------------------------------------------------------------------------- */

int cairn_push_internal(struct cairn_client *client, const char *file, const char *snapshot,
                        const char *ref, char **ret_ref, struct cairn_error *err)
{
    CLEANUP(internal_release) struct internal in = {0};
    uint32_t index;
    int ret = internal_open(&in, client, file, ref, err);

    if (ret == CAIRN_OK)
        ret = states_find(&in.states, snapshot, &index, err);
    if (ret == CAIRN_OK)
        ret = internal_begin(&in, err);
    if (ret == CAIRN_OK)
        ret = add_state(&in, index, err);
    return ret == CAIRN_OK ? publish(&in, in.ref.tag, ret_ref, err) : ret;
}

/* -- All snapshots and the active disk ------------------------------------------------------ */

static int report(json_t *list, const struct qcow2_snapshot *s, const char *tag,
                  const char *by_digest, struct cairn_error *err)
{
    json_t *json = json_pack("{s:o, s:o, s:s, s:s}", "id", json_text(s->id, strlen(s->id)), "name",
                             json_text(s->name, strlen(s->name)), "tag", tag, "ref", by_digest);

    if (json_array_append_new(list, json) != 0)
        return error_no_memory(err, "JSON");
    return CAIRN_OK;
}

static int push_snapshots(struct internal *in, char *const *tags, json_t *list,
                          struct cairn_error *err)
{
    for (uint32_t i = 0; i < in->states.nr_snapshots; i++) {
        CLEANUP_FREE char *by_digest = NULL;
        int ret = add_state(in, i, err);

        if (ret == CAIRN_OK)
            ret = publish(in, tags[i], &by_digest, err);
        if (ret == CAIRN_OK)
            ret = report(list, &in->states.snapshots[i], tags[i], by_digest, err);
        if (ret != CAIRN_OK)
            return ret;
    }
    return CAIRN_OK;
}

static int push_all(struct internal *in, char *const *tags, json_t *root, struct cairn_error *err)
{
    json_t *list = json_array();
    CLEANUP_FREE char *by_digest = NULL;
    int ret = json_object_set_new(root, "snapshots", list) == 0 ? internal_begin(in, err)
                                                                : error_no_memory(err, "JSON");

    if (ret == CAIRN_OK)
        ret = push_snapshots(in, tags, list, err);
    if (ret == CAIRN_OK)
        ret = add_state(in, STATE_ACTIVE, err);
    if (ret == CAIRN_OK)
        ret = publish(in, in->ref.tag, &by_digest, err);
    if (ret == CAIRN_OK && json_object_set_new(root, "ref", json_string(by_digest)) != 0)
        ret = error_no_memory(err, "JSON");
    return ret;
}

int cairn_push_internal_all(struct cairn_client *client, const char *file, const char *ref,
                            char **ret_json, struct cairn_error *err)
{
    CLEANUP(internal_release) struct internal in = {0};
    char **tags = NULL;
    json_t *root = json_object();
    int ret = root ? internal_open(&in, client, file, ref, err) : error_no_memory(err, "JSON");

    if (ret == CAIRN_OK)
        ret = snapshot_tags(in.ref.tag, in.states.snapshots, in.states.nr_snapshots, &tags, err);
    if (ret == CAIRN_OK)
        ret = push_all(&in, tags, root, err);
    if (ret == CAIRN_OK) {
        *ret_json = json_dumps(root, JSON_COMPACT);
        ret = *ret_json ? CAIRN_OK : error_no_memory(err, "JSON");
    }
    snapshot_tags_free(tags, in.states.nr_snapshots);
    json_decref(root);
    return ret;
}
