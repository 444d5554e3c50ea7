/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Is a disk whole?  Asked from outside: nothing is believed that can be computed here.
 *
 * What is wrong with the disk is a problem, which is noted, and the rest is looked at all the same.
 * What keeps us from finding out (no answer, no permission, cancelled) is an error.
 */
#include "verify.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "json_memory.h"
#include "json_text.h"
#include "layer.h"
#include "qcow2_check.h"
#include "remote_blobs.h"

#define PIECE        (1u << 20)
#define FINDINGS_MAX 100u /* of one layer */

CLEANUP_DEFINE(json_t *, json_decref)

struct verify {
    struct cairn_client *client;
    struct ref ref; /* by digest */
    struct manifest *manifest;
    struct remote_blobs *blobs;
    struct progress progress;
    json_t *result, *problems; /* the latter is borrowed from the former */
};

/* -- Problems ------------------------------------------------------------------------------- */

static int note(struct verify *v, const char *layer, const char *text, struct cairn_error *err)
{
    json_t *item = json_pack("{s:s*, s:o}", "layer", layer, "text", json_text(text, strlen(text)));

    return json_array_append_new(v->problems, item) ? error_no_memory(err, "a list of problems")
                                                    : CAIRN_OK;
}

/* Does the failure say something of the disk? */
static bool is_problem(int code)
{
    return code == CAIRN_E_CORRUPT || code == CAIRN_E_NOT_FOUND || code == CAIRN_E_IO ||
           code == CAIRN_E_UNSUPPORTED || code == CAIRN_E_LIMIT || code == CAIRN_E_USAGE;
}

/* Take the failure, which is why, as a problem if it is one. */
static int take_failure(struct verify *v, const char *layer, int code,
                        const struct cairn_error *why, struct cairn_error *err)
{
    if (code == CAIRN_OK)
        return CAIRN_OK;
    if (is_problem(code))
        return note(v, layer, why->message, err);
    if (err)
        *err = *why;
    return code;
}

/* -- One layer ------------------------------------------------------------------------------ */

/* What the service has may be longer than the manifest says, and right as far as that goes. */
static int check_size(struct verify *v, uint32_t ordinal, struct cairn_error *why)
{
    const struct manifest_layer *layer = &v->manifest->layers[ordinal];
    char path[CLIENT_PATH_MAX];
    const struct remote_request request = {
        .method = "HEAD",
        .path = client_blob_path(v->ref.repo, &layer->digest, path),
        .idempotent = true,
    };
    struct remote_answer answer;
    uint64_t size;
    unsigned status;
    int ret = remote_request(v->client->remote, &request, &answer, why);

    if (ret != CAIRN_OK)
        return ret;
    size = answer.content_length;
    status = answer.status;
    remote_answer_release(&answer);
    if (status == 200 && size != UINT64_MAX && size != layer->size)
        return error_set(why, CAIRN_E_CORRUPT, "the service has %llu bytes, the manifest says %llu",
                         (unsigned long long)size, (unsigned long long)layer->size);
    return CAIRN_OK;
}

static int hash_layer(struct verify *v, struct source *src, struct digest *ret_digest,
                      struct cairn_error *why)
{
    CLEANUP(hasher_free_p) struct hasher *hasher = NULL;
    CLEANUP_FREE void *buf = malloc(PIECE);
    int ret = buf ? hasher_new(&hasher, why) : error_no_memory(why, "a buffer");

    for (uint64_t off = 0; ret == CAIRN_OK && off < src->size;) {
        size_t len = (size_t)min_u64(PIECE, src->size - off);

        ret = source_pread(src, buf, len, off, why);
        if (ret != CAIRN_OK)
            break;
        hasher_update(hasher, buf, len);
        off += len;
        ret = progress_at(v->client, &v->progress, off, why);
    }
    if (ret == CAIRN_OK)
        hasher_finish(hasher, ret_digest);
    return ret;
}

static int check_bytes(struct verify *v, uint32_t ordinal, struct source *src,
                       struct cairn_error *why)
{
    char text[DIGEST_STR_MAX];
    struct digest digest;
    int ret = check_size(v, ordinal, why);

    if (ret == CAIRN_OK)
        ret = hash_layer(v, src, &digest, why);
    if (ret == CAIRN_OK && !digest_equal(&digest, &v->manifest->layers[ordinal].digest))
        ret = error_set(why, CAIRN_E_CORRUPT, "its bytes have the digest %s",
                        digest_format(&digest, text));
    return ret;
}

/* An active layer records what it was started on; only a rebase may have put it elsewhere. */
static int check_parent(const struct manifest *m, uint32_t ordinal, const struct layer *layer,
                        struct cairn_error *why)
{
    const struct digest *recorded = layer_recorded_parent(layer);
    char text[DIGEST_STR_MAX];

    if (!recorded || (m->has_rebased_from && digest_equal(recorded, &m->rebased_from)) ||
        (ordinal > 0 && digest_equal(recorded, &m->chain_ids[ordinal - 1])))
        return CAIRN_OK;
    return error_set(why, CAIRN_E_CORRUPT,
                     "it was made for chain %s, which is not what is below it",
                     digest_format(recorded, text));
}

struct findings {
    struct verify *v;
    const char *layer;
    unsigned nr;
    int failed; /* to note one */
};

/* Leaked clusters cost space; everything else is wrong. */
static void take_finding(void *arg, const struct qcow2_finding *finding)
{
    struct findings *f = arg;

    if (finding->kind != QCOW2_CHECK_LEAK && f->nr++ < FINDINGS_MAX && !f->failed)
        f->failed = note(f->v, f->layer, finding->text, NULL);
}

static int check_tables(struct verify *v, uint32_t ordinal, const char *digest, struct source *src,
                        struct cairn_error *why)
{
    struct findings findings = {.v = v, .layer = digest};
    const struct qcow2_check_options options = {.found = take_finding, .arg = &findings};
    CLEANUP(qcow2_check_free_p) struct qcow2_check *check = NULL;
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    enum layer_format format = v->manifest->layers[ordinal].format;
    int ret = layer_open(src, format, &layer, why);

    if (ret == CAIRN_OK)
        ret = check_parent(v->manifest, ordinal, layer, why);
    if (ret == CAIRN_OK && format == LAYER_QCOW2)
        ret = qcow2_check_new(src, &options, &check, why);
    return ret == CAIRN_OK && findings.failed ? error_no_memory(why, "a problem") : ret;
}

static int verify_layer(struct verify *v, uint32_t ordinal, bool bytes, struct cairn_error *err)
{
    const struct manifest_layer *m = &v->manifest->layers[ordinal];
    CLEANUP(source_free_p) struct source *src = NULL;
    char digest[DIGEST_STR_MAX];
    struct cairn_error why;
    size_t before = json_array_size(v->problems);
    int ret = remote_blobs_source(v->blobs, ordinal, &src, err);

    if (ret != CAIRN_OK)
        return ret;
    digest_format(&m->digest, digest);
    if (bytes)
        ret = take_failure(v, digest, check_bytes(v, ordinal, src, &why), &why, err);
    v->progress.done += m->size;
    /* The tables of a layer that differs say no more than that. */
    if (ret == CAIRN_OK && json_array_size(v->problems) == before)
        ret = take_failure(v, digest, check_tables(v, ordinal, digest, src, &why), &why, err);
    return ret;
}

/* -- The service's word ---------------------------------------------------------------------- */

/* That it finds the chain, and the same one. */
static int check_service(struct verify *v, struct cairn_error *why)
{
    CLEANUP(json_decref_p) json_t *info = NULL;
    char path[CLIENT_PATH_MAX], chain_id[DIGEST_STR_MAX];
    const struct remote_request request = {.method = "GET",
                                           .path = client_disk_path(&v->ref, "", path),
                                           .idempotent = true,
                                           .long_running = true};
    struct remote_answer answer;
    const char *said;
    int ret = remote_request(v->client->remote, &request, &answer, why);

    if (ret != CAIRN_OK)
        return ret;
    ret = remote_answer_json(&answer, "the service's index", &info, why);
    remote_answer_release(&answer);
    if (ret != CAIRN_OK)
        return ret;
    said = json_string_value(json_object_get(info, "chainId"));
    digest_format(&v->manifest->chain_ids[v->manifest->depth - 1], chain_id);
    if (said && strcmp(said, chain_id) == 0)
        return CAIRN_OK;
    return error_set(why, CAIRN_E_CORRUPT, "the service says chain %.80s, the manifest gives %s",
                     said ? said : "(none)", chain_id);
}

/* -- Where it is stored ---------------------------------------------------------------------- */

static int take_damage(struct verify *v, const json_t *job, struct cairn_error *err)
{
    const json_t *item;
    size_t i;
    int ret = CAIRN_OK;

    json_array_foreach(json_object_get(json_object_get(job, "result"), "damaged"), i, item)
    {
        const char *digest = json_string_value(json_object_get(item, "digest"));
        const char *problem = json_string_value(json_object_get(item, "problem"));

        if (ret == CAIRN_OK)
            ret = note(v, digest, problem ? problem : "it is damaged", err);
    }
    return ret;
}

static int take_job(struct verify *v, const char *text, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *job = NULL;
    const char *state, *why;
    int ret = json_memory_load(text, strlen(text), 0, &job, NULL, err);

    if (ret != CAIRN_OK)
        return ret;
    state = json_string_value(json_object_get(job, "state"));
    why = json_string_value(json_object_get(job, "error"));
    if (state && strcmp(state, "done") == 0)
        return take_damage(v, job, err);
    return error_set(err, CAIRN_E_UNAVAILABLE, "the service's scrub of the disk has %.20s: %.300s",
                     state ? state : "no state", why ? why : "see its log");
}

static int scrub(struct verify *v, struct cairn_error *err)
{
    char options[REF_STR_MAX + 32], ref[REF_STR_MAX];
    CLEANUP_FREE char *id = NULL;
    CLEANUP_FREE char *job = NULL;
    bool joined;
    int ret;

    snprintf(options, sizeof(options), "{\"ref\":\"%s\"}", ref_format(&v->ref, ref));
    ret = cairn_job_start(v->client, "scrub", options, &id, &joined, err);
    if (ret == CAIRN_OK && joined)
        ret = error_set(err, CAIRN_E_CONFLICT, "job %s is running, a scrub of something else", id);
    if (ret == CAIRN_OK)
        ret = cairn_job_wait(v->client, id, &job, err);
    return ret == CAIRN_OK ? take_job(v, job, err) : ret;
}

static bool has_problem(const struct verify *v, uint32_t ordinal)
{
    char digest[DIGEST_STR_MAX];
    const json_t *item;
    size_t i;

    digest_format(&v->manifest->layers[ordinal].digest, digest);
    json_array_foreach(v->problems, i, item)
    {
        const char *layer = json_string_value(json_object_get(item, "layer"));

        if (layer && strcmp(layer, digest) == 0)
            return true;
    }
    return false;
}

/* -- A disk ---------------------------------------------------------------------------------- */

static uint64_t bytes_of(const struct manifest *m)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < m->depth; i++)
        if (!checked_add(bytes, m->layers[i].size, &bytes))
            return UINT64_MAX;
    return bytes;
}

static int verify_layers(struct verify *v, bool where_stored, struct cairn_error *err)
{
    int ret = remote_blobs_new(v->client, v->ref.repo, v->manifest, &v->blobs, err);

    v->progress = (struct progress){.what = "verify", .total = bytes_of(v->manifest)};
    if (ret == CAIRN_OK && where_stored)
        ret = scrub(v, err);
    for (uint32_t i = 0; ret == CAIRN_OK && i < v->manifest->depth; i++)
        if (!has_problem(v, i))
            ret = verify_layer(v, i, !where_stored, err);
    return ret;
}

static int describe(struct verify *v, const char *ref_text, struct cairn_error *err)
{
    const struct manifest *m = v->manifest;
    char manifest[DIGEST_STR_MAX], chain_id[DIGEST_STR_MAX];

    v->result = json_pack("{s:s, s:s, s:s, s:I, s:I, s:[]}", "ref", ref_text, "manifest",
                          digest_format(&v->ref.digest, manifest), "chainId",
                          digest_format(&m->chain_ids[m->depth - 1], chain_id), "depth",
                          (json_int_t)m->depth, "bytes",
                          (json_int_t)min_u64(bytes_of(m), INT64_MAX), "problems");
    v->problems = json_object_get(v->result, "problems");
    return v->problems ? CAIRN_OK : error_no_memory(err, "JSON");
}

static void release(struct verify *v)
{
    remote_blobs_free(v->blobs);
    manifest_free(v->manifest);
    json_decref(v->result);
}

/* A manifest that does not have its digest is none that could be verified any further. */
int verify_ref(struct cairn_client *client, const struct ref *ref, bool where_stored,
               json_t **ret_result, struct cairn_error *err)
{
    __attribute__((cleanup(release))) struct verify v = {.client = client, .ref = *ref};
    char text[REF_STR_MAX];
    struct cairn_error why;
    int ret = client_get_manifest(client, ref, &v.manifest, &v.ref.digest, err);

    v.ref.tag[0] = 0; /* all of it is of the same disk, also if the tag moves meanwhile */
    if (ret == CAIRN_OK)
        ret = describe(&v, ref_format(ref, text), err);
    if (ret == CAIRN_OK)
        ret = verify_layers(&v, where_stored, err);
    if (ret == CAIRN_OK)
        ret = take_failure(&v, NULL, check_service(&v, &why), &why, err);
    if (ret == CAIRN_OK)
        *ret_result = steal_ptr(v.result);
    return ret;
}

int verify_finish(json_t *result, char **ret_json, struct cairn_error *err)
{
    bool good = json_array_size(json_object_get(result, "problems")) == 0;

    json_memory_begin();
    if (json_object_set_new(result, "state", json_string(good ? "good" : "damaged")) != 0)
        return error_no_memory(err, "JSON");
    return json_memory_dump(result, JSON_COMPACT, ret_json, err);
}

int cairn_verify(struct cairn_client *client, const char *ref_text, bool where_stored,
                 char **ret_json, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *result = NULL;
    struct ref ref;
    int ret = ref_parse(ref_text, &ref, err);

    if (ret == CAIRN_OK)
        ret = verify_ref(client, &ref, where_stored, &result, err);
    return ret == CAIRN_OK ? verify_finish(result, ret_json, err) : ret;
}
