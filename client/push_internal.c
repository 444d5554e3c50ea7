/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pushing internal snapshots of a local image.
 *
 * The blob of an image with snapshots shows its active disk only.  So each state of the image that
 * is to be published becomes a layer that holds what differs from a state before it: the one from
 * which it differs least, for an image may have been reverted to any of them, or the image's
 * backing chain.  Chains of states so form a tree, and share the blobs of what they have in common.
 * A state that shows the same as another needs no layer.
 *
 * Only earlier states are looked at, so that a new snapshot does not change what is published of
 * the old ones; and the same states give the same bytes, so a push that is repeated sends nothing
 * twice.  Layers are made and uploaded one at a time.  The backing chain is pushed as its files
 * are.
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "json_memory.h"
#include "json_text.h"
#include "push.h"
#include "quote.h"
#include "snapshot_tags.h"
#include "states.h"

/* Of indexes kept to compare with; those of the oldest states give way. */
#define INDEX_BYTES_MAX ((size_t)256 << 20)

/* A state that is published, or the first: the backing chain. */
struct link {
    struct local_index index; /* what it shows; empty: given up */
    uint32_t parent;          /* which link it stands on */
    uint32_t depth;           /* layers of its chain */
    bool has_layer;           /* of its own, at the top of that chain */
    struct manifest_layer layer;
    struct digest chain_id; /* if depth is not 0 */
};

struct internal {
    struct push backing; /* client, ref; the backing chain and its layers */
    struct local_chain *chain;
    struct states states;
    struct link *links;
    uint32_t nr_links;
    char *folder; /* for the layer in the making */
    char *path;   /* of it */
    bool missing; /* the service did not find a blob that was looked for or sent */
};

/* -- Layers --------------------------------------------------------------------------------- */

static int push_backing(struct internal *in, struct cairn_error *err)
{
    struct link *link = &in->links[0];
    struct push *p = &in->backing;
    int ret = push_hash_chain(p, err);

    if (ret == CAIRN_OK)
        ret = push_upload_missing(p, err);
    for (; ret == CAIRN_OK && link->depth < p->depth; link->depth++) {
        const struct digest below = link->chain_id;

        digest_chain(link->depth ? &below : NULL, &p->layers[link->depth].digest, &link->chain_id);
    }
    return ret;
}

/* The layer in the making gets its digest, and is uploaded unless it is there. */
static int upload_layer(struct internal *in, struct link *link, const char *what,
                        struct cairn_error *err)
{
    const struct digest *below = &in->links[link->parent].chain_id;
    struct cairn_client *client = in->backing.client;
    const char *repo = in->backing.ref.repo;
    CLEANUP(source_free_p) struct source *src = NULL;
    struct progress progress = {.what = what};
    bool has;
    int ret = source_open_file(in->path, NULL, &src, err);

    if (ret != CAIRN_OK)
        return ret;
    progress.total = src->size;
    link->layer = (struct manifest_layer){.size = src->size, .format = LAYER_QCOW2};
    ret = push_hash_source(client, src, &progress, &link->layer.digest, err);
    if (ret == CAIRN_OK)
        ret = client_has_blob(client, repo, &link->layer.digest, &has, err);
    if (ret == CAIRN_OK && !has)
        ret = client_upload(client, repo, src, &link->layer.digest, NULL, &progress, err);
    digest_chain(link->depth ? below : NULL, &link->layer.digest, &link->chain_id);
    link->has_layer = true;
    link->depth++;
    return ret;
}

/* A layer from the link's parent to the link. */
static int make_layer(struct internal *in, struct link *link, const char *what,
                      struct cairn_error *err)
{
    struct link *parent = &in->links[link->parent];
    int ret = states_write_layer(&in->states, &parent->index, &link->index,
                                 parent->depth ? &parent->chain_id : NULL, in->backing.client, what,
                                 in->path, err);

    if (ret == CAIRN_OK)
        ret = upload_layer(in, link, what, err);
    if (unlink(in->path) != 0 && ret == CAIRN_OK)
        ret = error_set_errno(err, errno, "cannot remove %s", in->path);
    return ret;
}

/* -- The tree of states --------------------------------------------------------------------- */

/* The link from which it differs least; the oldest of several. */
static int choose_parent(struct internal *in, struct link *link, bool *ret_differ,
                         struct cairn_error *err)
{
    struct state_distance best = {0};
    bool found = false;

    for (uint32_t i = 0; i < in->nr_links; i++) {
        struct state_distance d;
        int ret;

        if (!in->links[i].index.l1)
            continue;
        ret = states_distance(&in->states, &in->links[i].index, &link->index, &d, err);
        if (ret != CAIRN_OK)
            return ret;
        if (found && (d.data_bytes > best.data_bytes ||
                      (d.data_bytes == best.data_bytes && d.differ >= best.differ)))
            continue;
        found = true;
        best = d;
        link->parent = i;
    }
    *ret_differ = best.differ;
    return CAIRN_OK;
}

static void bound_indexes(struct internal *in)
{
    size_t bytes = 0;

    for (uint32_t i = in->nr_links; i-- > 0;) {
        bytes += local_index_bytes(&in->links[i].index);
        if (bytes > INDEX_BYTES_MAX && i > 0 && i + 1 < in->nr_links)
            local_index_release(&in->links[i].index);
    }
}

static int fill_link(struct internal *in, struct link *link, uint32_t snapshot,
                     struct cairn_error *err)
{
    char quoted[QUOTE_MAX], what[QUOTE_MAX + 16];
    bool differ;
    int ret = states_index(&in->states, snapshot, &link->index, err);

    if (ret == CAIRN_OK)
        ret = choose_parent(in, link, &differ, err);
    if (ret != CAIRN_OK)
        return ret;
    link->depth = in->links[link->parent].depth;
    link->chain_id = in->links[link->parent].chain_id;
    if (!differ && link->depth > 0) /* a chain has a layer at least */
        return CAIRN_OK;
    snprintf(what, sizeof(what), "push %s",
             snapshot == STATE_ACTIVE ? "active disk"
                                      : quote_str(in->states.snapshots[snapshot].name, quoted));
    return make_layer(in, link, what, err);
}

/* Add a state of the image to the tree. */
static int add_state(struct internal *in, uint32_t snapshot, struct cairn_error *err)
{
    struct link *link = &in->links[in->nr_links];
    int ret = fill_link(in, link, snapshot, err);

    if (ret != CAIRN_OK) {
        local_index_release(&link->index);
        return ret;
    }
    in->nr_links++;
    bound_indexes(in);
    return CAIRN_OK;
}

/* The layers of the last state's chain, from the top down; malloc'ed. */
static int collect_layers(const struct internal *in, struct manifest_layer **ret_layers,
                          struct cairn_error *err)
{
    const struct link *link = &in->links[in->nr_links - 1];
    struct manifest_layer *layers = calloc(link->depth, sizeof(layers[0]));

    if (!layers)
        return error_no_memory(err, "the chain");
    for (; link != in->links; link = &in->links[link->parent])
        if (link->has_layer)
            layers[link->depth - 1] = link->layer;
    if (link->depth > 0)
        memcpy(layers, in->backing.layers, link->depth * sizeof(layers[0]));
    *ret_layers = layers;
    return CAIRN_OK;
}

/* Publish the chain of the last state; *ret_ref is `repo@sha256:…`. */
static int publish(struct internal *in, const char *tag, char **ret_ref, struct cairn_error *err)
{
    CLEANUP(manifest_free_p) struct manifest *m = NULL;
    CLEANUP_FREE struct manifest_layer *layers = NULL;
    struct ref ref = in->backing.ref;
    struct digest digest;
    int ret = local_layer_check(&in->chain->layers[in->chain->depth - 1], err);

    snprintf(ref.tag, sizeof(ref.tag), "%s", tag);
    if (ret == CAIRN_OK)
        ret = collect_layers(in, &layers, err);
    if (ret == CAIRN_OK)
        ret = manifest_new(layers, in->links[in->nr_links - 1].depth, &m, err);
    if (ret == CAIRN_OK)
        ret = client_put_manifest(in->backing.client, &ref, m, &digest, err);
    in->missing = m && ret == CAIRN_E_NOT_FOUND;
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

/* The first link; there is room for all states. */
static int begin_tree(struct internal *in, struct cairn_error *err)
{
    in->links = calloc((size_t)in->states.nr_snapshots + 2, sizeof(in->links[0]));
    if (!in->links)
        return error_no_memory(err, "the chain");
    in->nr_links = 1;
    return local_index_copy(&in->states.below, &in->links[0].index, err);
}

static void internal_release(struct internal *in)
{
    if (in->folder)
        rmdir(in->folder);
    free(in->folder);
    free(in->path);
    for (uint32_t i = 0; i < in->nr_links; i++)
        local_index_release(&in->links[i].index);
    free(in->links);
    states_release(&in->states);
    push_release(&in->backing);
    local_chain_free(in->chain);
}

/* Everything that can be refused without the service. */
static int internal_open(struct internal *in, struct cairn_client *client, const char *file,
                         const char *ref_text, struct cairn_error *err)
{
    struct ref ref;
    int ret = push_parse_ref(ref_text, &ref, err);

    if (ret == CAIRN_OK)
        ret = local_chain_open(file, "qcow2", &in->chain, err);
    if (ret == CAIRN_OK)
        ret = push_init(&in->backing, client, &ref, in->chain, in->chain->depth - 1, err);
    if (ret == CAIRN_OK)
        ret = states_open(in->chain, &in->states, err);
    return ret == CAIRN_OK ? begin_tree(in, err) : ret;
}

static int internal_begin(struct internal *in, struct cairn_error *err)
{
    int ret = make_folder(in, err);

    return ret == CAIRN_OK ? push_backing(in, err) : ret;
}

/* -- One snapshot --------------------------------------------------------------------------- */

static int push_one(struct cairn_client *client, const char *file, const char *snapshot,
                    const char *ref, char **ret_ref, bool *ret_missing, struct cairn_error *err)
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
    if (ret == CAIRN_OK)
        ret = publish(&in, in.backing.ref.tag, ret_ref, err);
    *ret_missing = in.missing;
    return ret;
}

/* Layers are gone when they are sent, so all begins again: what is there is not sent twice. */
int cairn_push_internal(struct cairn_client *client, const char *file, const char *snapshot,
                        const char *ref, char **ret_ref, struct cairn_error *err)
{
    bool missing = true;
    int ret = CAIRN_OK;

    for (unsigned i = 0; missing && i <= CLIENT_RESENDS; i++)
        ret = push_one(client, file, snapshot, ref, ret_ref, &missing, err);
    return ret;
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
        ret = publish(in, in->backing.ref.tag, &by_digest, err);
    if (ret == CAIRN_OK && json_object_set_new(root, "ref", json_string(by_digest)) != 0)
        ret = error_no_memory(err, "JSON");
    return ret;
}

static int push_tree(struct cairn_client *client, const char *file, const char *ref,
                     char **ret_json, bool *ret_missing, struct cairn_error *err)
{
    CLEANUP(internal_release) struct internal in = {0};
    char **tags = NULL;
    json_t *root = json_object();
    int ret = root ? internal_open(&in, client, file, ref, err) : error_no_memory(err, "JSON");

    if (ret == CAIRN_OK)
        ret = snapshot_tags(in.backing.ref.tag, in.states.snapshots, in.states.nr_snapshots, &tags,
                            err);
    if (ret == CAIRN_OK)
        ret = push_all(&in, tags, root, err);
    if (ret == CAIRN_OK)
        ret = json_memory_dump(root, JSON_COMPACT, ret_json, err);
    snapshot_tags_free(tags, in.states.nr_snapshots);
    json_decref(root);
    *ret_missing = in.missing;
    return ret;
}

int cairn_push_internal_all(struct cairn_client *client, const char *file, const char *ref,
                            char **ret_json, struct cairn_error *err)
{
    bool missing = true;
    int ret = CAIRN_OK;

    for (unsigned i = 0; missing && i <= CLIENT_RESENDS; i++)
        ret = push_tree(client, file, ref, ret_json, &missing, err);
    return ret;
}
