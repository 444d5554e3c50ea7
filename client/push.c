/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pushing a local chain: digests, the blobs that are missing, the manifest.
 *
 * Which blobs are missing is found from the top down, and the search ends at the first that is
 * there: a chain is pushed base first, so what lies below a layer that the repository has is almost
 * always there, too, and a push costs what is new, however deep the chain.  "Almost" is settled by
 * the service, which looks for every blob when the manifest is put: if it misses one, all are
 * looked for, and the manifest is put again.
 *
 * A file must not change between the reading of its digest and the end of its upload; its times are
 * compared, and the service compares the digest with the bytes it got.
 */
#include <stdio.h>
#include <string.h>

#include "checked.h"
#include "layer_head.h"
#include "push.h"
#include "quote.h"
#include "user_state.h"

#define READ_BYTES ((size_t)1 << 20)

/* -- What to push --------------------------------------------------------------------------- */

int push_parse_ref(const char *text, struct ref *ret_ref, struct cairn_error *err)
{
    char quoted[QUOTE_MAX];
    int ret = ref_parse(text, ret_ref, err);

    if (ret == CAIRN_OK && !ret_ref->tag[0])
        ret = error_set(err, CAIRN_E_USAGE, "%s names a digest; push to a tag, REPO:TAG",
                        quote_str(text, quoted));
    return ret;
}

int push_init(struct push *p, struct cairn_client *client, const struct ref *ref,
              const struct local_chain *chain, uint32_t depth, struct cairn_error *err)
{
    *p = (struct push){.client = client, .ref = *ref, .chain = chain, .depth = depth};
    p->layers = calloc((size_t)depth + 1, sizeof(p->layers[0])); /* depth may be 0 */
    return p->layers ? CAIRN_OK : error_no_memory(err, "the chain");
}

void push_release(struct push *p)
{
    free(p->layers);
    p->layers = NULL;
}

/* -- Digests -------------------------------------------------------------------------------- */

int push_hash_source(struct cairn_client *client, struct source *src,
                     const struct progress *progress, struct digest *ret_digest,
                     struct cairn_error *err)
{
    CLEANUP(hasher_free_p) struct hasher *hasher = NULL;
    CLEANUP_FREE char *buf = malloc(READ_BYTES);
    int ret = buf ? hasher_new(&hasher, err) : error_no_memory(err, "a buffer");

    for (uint64_t off = 0; ret == CAIRN_OK && off < src->size;) {
        size_t len = (size_t)min_u64(READ_BYTES, src->size - off);

        ret = source_pread(src, buf, len, off, err);
        if (ret == CAIRN_OK)
            ret = progress_at(client, progress, off, err);
        if (ret == CAIRN_OK)
            hasher_update(hasher, buf, len);
        off += len;
    }
    if (ret == CAIRN_OK)
        hasher_finish(hasher, ret_digest);
    return ret;
}

/*
 * The layer's bytes: those of its file, or if that came from `pull --chain` and d is the digest
 * that it had there, with the header that it had there.
 */
static int open_layer(const struct local_layer *layer, const struct digest *d,
                      struct source **ret_src, struct cairn_error *err)
{
    struct digest pulled;
    struct source *src;
    int ret = local_layer_open(layer, &src, err);

    if (ret != CAIRN_OK)
        return ret;
    if (layer_head_digest(layer->path, &pulled) && digest_equal(&pulled, d))
        return layer_head_restore(layer->path, src, ret_src, err);
    *ret_src = src;
    return CAIRN_OK;
}

/* The digest of the layer's bytes, if they are those of expected; of the file's, if it is NULL. */
static int hash_as(struct push *p, const struct local_layer *layer, const struct digest *expected,
                   const struct progress *progress, struct digest *ret_digest,
                   struct cairn_error *err)
{
    static const struct digest none;
    CLEANUP(source_free_p) struct source *src = NULL;
    int ret = open_layer(layer, expected ? expected : &none, &src, err);

    if (ret == CAIRN_OK)
        ret = push_hash_source(p->client, src, progress, ret_digest, err);
    return ret;
}

static int hash_layer(struct push *p, const struct local_layer *layer,
                      const struct progress *progress, struct digest *ret_digest,
                      struct cairn_error *err)
{
    struct digest pulled;
    bool unchanged = false;
    int ret = CAIRN_OK;

    if (digest_cache_get(&layer->st, ret_digest))
        return CAIRN_OK;
    if (layer_head_digest(layer->path, &pulled)) {
        ret = hash_as(p, layer, &pulled, progress, ret_digest, err);
        unchanged = ret == CAIRN_OK && digest_equal(ret_digest, &pulled);
    }
    if (ret == CAIRN_OK && !unchanged)
        ret = hash_as(p, layer, NULL, progress, ret_digest, err);
    if (ret == CAIRN_OK)
        ret = local_layer_check(layer, err);
    if (ret == CAIRN_OK)
        digest_cache_put(&layer->st, ret_digest);
    return ret;
}

int push_hash_chain(struct push *p, struct cairn_error *err)
{
    struct progress progress = {.what = "digest"};

    for (uint32_t i = 0; i < p->depth; i++)
        progress.total += p->chain->layers[i].size;
    for (uint32_t i = 0; i < p->depth; i++) {
        const struct local_layer *layer = &p->chain->layers[i];
        int ret = hash_layer(p, layer, &progress, &p->layers[i].digest, err);

        if (ret != CAIRN_OK)
            return ret;
        p->layers[i].size = layer->size;
        p->layers[i].format = layer->format;
        progress.done += layer->size;
    }
    return CAIRN_OK;
}

/* -- Blobs ---------------------------------------------------------------------------------- */

/* The layer above the highest one that is there. */
static int find_missing(struct push *p, uint32_t *ret_first, struct cairn_error *err)
{
    uint32_t first = p->depth;

    while (first > 0) {
        bool has;
        int ret = client_has_blob(p->client, p->ref.repo, &p->layers[first - 1].digest, &has, err);

        if (ret != CAIRN_OK)
            return ret;
        if (has)
            break;
        first--;
    }
    *ret_first = first;
    return CAIRN_OK;
}

static int upload_layer(struct push *p, uint32_t ordinal, const struct progress *progress,
                        struct cairn_error *err)
{
    const struct local_layer *layer = &p->chain->layers[ordinal];
    const struct digest *d = &p->layers[ordinal].digest;
    CLEANUP(source_free_p) struct source *src = NULL;
    struct cairn_error changed;
    int ret = open_layer(layer, d, &src, err);

    if (ret == CAIRN_OK)
        ret = client_upload(p->client, p->ref.repo, src, d, NULL, progress, err);
    if (ret != CAIRN_E_CORRUPT)
        return ret;
    /* The service got bytes of another digest: the file changed, or what we remembered is wrong. */
    digest_cache_drop(&layer->st);
    if (local_layer_check(layer, &changed) == CAIRN_OK)
        return ret;
    if (err)
        *err = changed;
    return CAIRN_E_CONFLICT;
}

/* Upload layers first and above: all of them, or those that the repository does not have. */
static int upload_from(struct push *p, uint32_t first, bool look, struct cairn_error *err)
{
    struct progress progress = {.what = "push"};
    bool has = false;

    for (uint32_t i = first; i < p->depth; i++)
        progress.total += p->layers[i].size;
    for (uint32_t i = first; i < p->depth; i++) {
        const struct digest *d = &p->layers[i].digest;
        int ret = look ? client_has_blob(p->client, p->ref.repo, d, &has, err) : CAIRN_OK;

        if (ret == CAIRN_OK && !has)
            ret = upload_layer(p, i, &progress, err);
        if (ret != CAIRN_OK)
            return ret;
        progress.done += p->layers[i].size;
    }
    return progress_at(p->client, &progress, 0, err);
}

int push_upload_missing(struct push *p, struct cairn_error *err)
{
    return upload_from(p, 0, true, err);
}

/* -- The whole ------------------------------------------------------------------------------ */

static int upload_and_put(struct push *p, const struct manifest *m, uint32_t first, bool look,
                          struct digest *ret_digest, struct cairn_error *err)
{
    int ret = upload_from(p, first, look, err);

    if (ret == CAIRN_OK)
        ret = client_put_manifest(p->client, &p->ref, m, ret_digest, err);
    return ret;
}

/*
 * Again if the service says that a blob is missing: perhaps one below a layer that is there, or one
 * that was collected as garbage between our look and the end.
 */
static int publish(struct push *p, struct digest *ret_digest, struct cairn_error *err)
{
    CLEANUP(manifest_free_p) struct manifest *m = NULL;
    uint32_t first = 0;
    int ret = manifest_new(p->layers, p->depth, &m, err);

    if (ret == CAIRN_OK)
        ret = find_missing(p, &first, err);
    if (ret != CAIRN_OK)
        return ret;
    ret = upload_and_put(p, m, first, false, ret_digest, err);
    if (first > 0 && ret == CAIRN_E_CORRUPT)
        ret = upload_and_put(p, m, 0, true, ret_digest, err);
    for (unsigned i = 0; ret == CAIRN_E_NOT_FOUND && i < CLIENT_RESENDS; i++)
        ret = upload_and_put(p, m, 0, true, ret_digest, err);
    return ret;
}

int push_format_result(const struct ref *ref, const struct digest *manifest, char **ret_ref,
                       struct cairn_error *err)
{
    struct ref by_digest = *ref;
    char text[REF_STR_MAX];

    by_digest.tag[0] = 0;
    by_digest.digest = *manifest;
    *ret_ref = strdup(ref_format(&by_digest, text));
    return *ret_ref ? CAIRN_OK : error_no_memory(err, "a name");
}

int cairn_push(struct cairn_client *client, const char *file, const char *format, const char *ref,
               char **ret_ref, struct cairn_error *err)
{
    CLEANUP(local_chain_free_p) struct local_chain *chain = NULL;
    CLEANUP(push_release) struct push p = {0};
    struct digest digest;
    struct ref parsed;
    int ret = push_parse_ref(ref, &parsed, err);

    if (ret == CAIRN_OK)
        ret = local_chain_open(file, format, &chain, err);
    if (ret == CAIRN_OK)
        ret = push_init(&p, client, &parsed, chain, chain->depth, err);
    if (ret == CAIRN_OK)
        ret = push_hash_chain(&p, err);
    if (ret == CAIRN_OK)
        ret = publish(&p, &digest, err);
    if (ret == CAIRN_OK)
        ret = push_format_result(&p.ref, &digest, ret_ref, err);
    return ret;
}
