/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client handle, and what the rest of libcairn asks of the service: manifests, blobs' presence,
 * tags.  What comes back is believed only as far as it can be checked: a manifest's bytes against
 * their digest, everything else against its grammar.
 */
#include "client.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define SERVER_DEFAULT "http://127.0.0.1:7117"
#define CACHE_DEFAULT  ((uint64_t)10 << 30)
#define CLUSTERS_BYTES ((size_t)16 << 20) /* decompressed clusters, for the next read */

const char *cairn_version(void)
{
    return CAIRN_VERSION;
}

const char *cairn_code_name(int code)
{
    return error_code_name(code);
}

int cairn_exit_code(int code)
{
    return error_exit_code(code);
}

/* -- The handle ----------------------------------------------------------------------------- */

static const char *environment_or(const char *value, const char *name, const char *fallback)
{
    if (!value)
        value = getenv(name);
    return value && *value ? value : fallback;
}

/* Call progress with what is kept. */
static int tell_locked(struct cairn_client *client, struct cairn_error *err)
{
    if (client->progress(client->progress_ctx, client->what, client->done_bytes,
                         client->total_bytes) == 0)
        return CAIRN_OK;
    return error_set(err, CAIRN_E_CANCELLED, "%s: cancelled", client->what);
}

/* While a request waits, progress is told again what it was told last, so that the caller can
 * cancel. */
static int on_poll(void *ctx, struct cairn_error *err)
{
    struct cairn_client *client = ctx;
    SCOPED_LOCK(&client->progress_lock);

    return tell_locked(client, err);
}

/* A handle that has no connections yet. */
static int client_alloc(cairn_progress_fn progress, void *progress_ctx,
                        struct cairn_client **ret_client, struct cairn_error *err)
{
    struct cairn_client *client = calloc(1, sizeof(*client));

    if (!client)
        return error_no_memory(err, "a client");
    pthread_mutex_init(&client->progress_lock, NULL);
    snprintf(client->what, sizeof(client->what), "request");
    client->progress = progress;
    client->progress_ctx = progress_ctx;
    *ret_client = client;
    return CAIRN_OK;
}

static int open_blocks(struct cairn_client *client, const struct cairn_client_options *options,
                       struct cairn_error *err)
{
    const char *folder = environment_or(options->cache, "CAIRN_CACHE", NULL);
    uint64_t bytes = options->cache_bytes ? options->cache_bytes : CACHE_DEFAULT;
    int ret;

    if (!folder)
        return CAIRN_OK;
    ret = block_cache_open(folder, bytes, &client->blocks, err);
    return ret ? ret : cluster_cache_new(CLUSTERS_BYTES, &client->clusters, err);
}

/* What names the service, and what proves us to it.  A token that is given, either way, counts
 * before those of the environment. */
static struct remote_options remote_options(const struct cairn_client_options *options)
{
    bool given = options->token || options->token_file;
    const char *insecure = environment_or(NULL, "CAIRN_INSECURE_TOKEN", "");
    struct remote_options remote = {
        .servers = environment_or(options->server, "CAIRN_SERVER", SERVER_DEFAULT),
        .token = given ? options->token : environment_or(NULL, "CAIRN_TOKEN", NULL),
        .token_file = given ? options->token_file : environment_or(NULL, "CAIRN_TOKEN_FILE", NULL),
        .cacert = environment_or(options->cacert, "CAIRN_CACERT", NULL),
        .cert = environment_or(options->cert, "CAIRN_CERT", NULL),
        .key = environment_or(options->key, "CAIRN_KEY", NULL),
        .insecure_token = options->insecure_token || strcmp(insecure, "1") == 0,
        .deadline_ms = options->deadline_ms,
    };

    return remote;
}

int cairn_client_new(const struct cairn_client_options *options, struct cairn_client **ret_client,
                     struct cairn_error *err)
{
    static const struct cairn_client_options defaults = CAIRN_CLIENT_OPTIONS_INIT;
    CLEANUP(cairn_client_free_p) struct cairn_client *client = NULL;
    struct remote_options remote;
    int ret;

    if (!options)
        options = &defaults;
    if (options->struct_size != sizeof(*options))
        return error_set(err, CAIRN_E_USAGE,
                         "client options are %zu bytes, this library's are %zu; use "
                         "CAIRN_CLIENT_OPTIONS_INIT",
                         options->struct_size, sizeof(*options));
    ret = client_alloc(options->progress, options->progress_ctx, &client, err);
    if (ret != CAIRN_OK)
        return ret;
    remote = remote_options(options);
    remote.poll = options->progress ? on_poll : NULL;
    remote.poll_ctx = client;
    ret = remote_new(&remote, &client->remote, err);
    if (ret == CAIRN_OK)
        ret = open_blocks(client, options, err);
    if (ret == CAIRN_OK)
        *ret_client = steal_ptr(client);
    return ret;
}

int client_new_like(const struct cairn_client *other, cairn_progress_fn progress,
                    void *progress_ctx, struct cairn_client **ret_client, struct cairn_error *err)
{
    CLEANUP(cairn_client_free_p) struct cairn_client *client = NULL;
    int ret = client_alloc(progress, progress_ctx, &client, err);

    if (ret == CAIRN_OK)
        ret = remote_new_like(other->remote, on_poll, client, &client->remote, err);
    if (ret == CAIRN_OK)
        *ret_client = steal_ptr(client);
    return ret;
}

void cairn_client_free(struct cairn_client *client)
{
    if (!client)
        return;
    cluster_cache_free(client->clusters);
    block_cache_unref(client->blocks);
    remote_free(client->remote);
    pthread_mutex_destroy(&client->progress_lock);
    free(client);
}

int client_progress(struct cairn_client *client, const char *what, uint64_t done_bytes,
                    uint64_t total_bytes, struct cairn_error *err)
{
    int ret;

    if (!client->progress)
        return CAIRN_OK;
    pthread_mutex_lock(&client->progress_lock);
    snprintf(client->what, sizeof(client->what), "%s", what);
    client->done_bytes = done_bytes;
    client->total_bytes = total_bytes;
    ret = tell_locked(client, err);
    pthread_mutex_unlock(&client->progress_lock);
    return ret;
}

int progress_at(struct cairn_client *client, const struct progress *progress, uint64_t at,
                struct cairn_error *err)
{
    return client_progress(client, progress->what, progress->done + at, progress->total, err);
}

/* -- Paths ---------------------------------------------------------------------------------- */

/* Repositories, tags and digests consist of characters that a path may hold as they are. */

char *client_blob_path(const char *repo, const struct digest *d, char path[CLIENT_PATH_MAX])
{
    char text[DIGEST_STR_MAX];

    snprintf(path, CLIENT_PATH_MAX, "/v2/%s/blobs/%s", repo, digest_format(d, text));
    return path;
}

char *client_disk_path(const struct ref *ref, const char *suffix, char path[CLIENT_PATH_MAX])
{
    char text[REF_STR_MAX];

    snprintf(path, CLIENT_PATH_MAX, "/v1/disks/%s%s", ref_format(ref, text), suffix);
    return path;
}

static char *manifest_path(const struct ref *ref, char path[CLIENT_PATH_MAX])
{
    char text[DIGEST_STR_MAX];

    snprintf(path, CLIENT_PATH_MAX, "/v2/%s/manifests/%s", ref->repo,
             ref->tag[0] ? ref->tag : digest_format(&ref->digest, text));
    return path;
}

/* -- Manifests ------------------------------------------------------------------------------ */

static int check_digest(const char *announced, const struct digest *expected, const char *what,
                        struct cairn_error *err)
{
    char text[DIGEST_STR_MAX];

    digest_format(expected, text);
    if (announced && strcmp(announced, text) != 0)
        return error_set(err, CAIRN_E_CORRUPT, "%s: the service names it %.80s, its bytes are %s",
                         what, announced, text);
    return CAIRN_OK;
}

int client_check_manifest(const void *json, size_t len, const struct ref *ref,
                          const char *announced, const char *what, struct digest *ret_digest,
                          struct cairn_error *err)
{
    char got[DIGEST_STR_MAX];

    if (len == 0)
        return error_set(err, CAIRN_E_CORRUPT, "%s: the manifest is empty", what);
    digest_of(json, len, ret_digest);
    if (!ref->tag[0] && !digest_equal(ret_digest, &ref->digest))
        return error_set(err, CAIRN_E_CORRUPT, "%s: the service sent a manifest of digest %s", what,
                         digest_format(ret_digest, got));
    return check_digest(announced, ret_digest, what, err);
}

int client_get_manifest_bytes(struct cairn_client *client, const struct ref *ref, char **ret_json,
                              size_t *ret_len, struct digest *ret_digest, struct cairn_error *err)
{
    char path[CLIENT_PATH_MAX];
    char what[REF_STR_MAX];
    const struct remote_request request = {
        .method = "GET",
        .path = manifest_path(ref, path),
        .headers = {"Accept: " MANIFEST_MEDIA_TYPE},
        .body_max = MANIFEST_BYTES_MAX,
        .idempotent = true,
    };
    struct remote_answer answer;
    struct digest digest;
    int ret = remote_request(client->remote, &request, &answer, err);

    ref_format(ref, what);
    if (ret != CAIRN_OK)
        return error_prefix(err, ret, "%s", what);
    if (answer.status != 200)
        ret = remote_answer_error(&answer, what, err);
    else
        ret = client_check_manifest(answer.body, answer.body_len, ref, answer.digest, what, &digest,
                                    err);
    if (ret == CAIRN_OK) {
        *ret_json = steal_ptr(answer.body);
        *ret_len = answer.body_len;
        *ret_digest = digest;
    }
    remote_answer_release(&answer);
    return ret;
}

int client_get_manifest(struct cairn_client *client, const struct ref *ref,
                        struct manifest **ret_manifest, struct digest *ret_digest,
                        struct cairn_error *err)
{
    CLEANUP_FREE char *json = NULL;
    char what[REF_STR_MAX];
    struct digest digest;
    size_t len;
    int ret = client_get_manifest_bytes(client, ref, &json, &len, &digest, err);

    if (ret != CAIRN_OK)
        return ret;
    ret = manifest_parse(json, len, ret_manifest, err);
    if (ret != CAIRN_OK)
        return error_prefix(err, ret, "%s", ref_format(ref, what));
    if (ret_digest)
        *ret_digest = digest;
    return CAIRN_OK;
}

int client_put_manifest_bytes(struct cairn_client *client, const struct ref *ref, const char *json,
                              size_t len, struct digest *ret_digest, struct cairn_error *err)
{
    char path[CLIENT_PATH_MAX];
    char what[REF_STR_MAX];
    const struct remote_request request = {
        .method = "PUT",
        .path = manifest_path(ref, path),
        .headers = {"Content-Type: " MANIFEST_MEDIA_TYPE},
        .body = json,
        .body_len = len,
        .idempotent = true,
        .long_running = true, /* the service validates the layers and builds the index */
    };
    struct remote_answer answer;
    struct digest digest;
    int ret = remote_request(client->remote, &request, &answer, err);

    ref_format(ref, what);
    if (ret != CAIRN_OK)
        return error_prefix(err, ret, "%s", what);
    digest_of(json, len, &digest);
    if (answer.status != 201)
        ret = remote_answer_error(&answer, what, err);
    else
        ret = check_digest(answer.digest, &digest, what, err);
    remote_answer_release(&answer);
    if (ret == CAIRN_OK && ret_digest)
        *ret_digest = digest;
    return ret;
}

/* The config blob that every disk's manifest names: two bytes. */
static int put_empty_config(struct cairn_client *client, const char *repo, struct cairn_error *err)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    const struct progress progress = {.what = "publish", .total = strlen(MANIFEST_EMPTY_JSON)};
    struct digest digest;
    bool has;
    int ret;

    digest_of(MANIFEST_EMPTY_JSON, strlen(MANIFEST_EMPTY_JSON), &digest);
    ret = client_has_blob(client, repo, &digest, &has, err);
    if (ret != CAIRN_OK || has)
        return ret;
    ret = source_from_memory(MANIFEST_EMPTY_JSON, strlen(MANIFEST_EMPTY_JSON), "config", &src, err);
    if (ret == CAIRN_OK)
        ret = client_upload(client, repo, src, &digest, NULL, &progress, err);
    return ret;
}

int client_put_manifest(struct cairn_client *client, const struct ref *ref,
                        const struct manifest *m, struct digest *ret_digest,
                        struct cairn_error *err)
{
    CLEANUP_FREE char *json = NULL;
    size_t len;
    int ret = manifest_encode(m, &json, &len, err);

    if (ret == CAIRN_OK)
        ret = put_empty_config(client, ref->repo, err);
    if (ret == CAIRN_OK)
        ret = client_put_manifest_bytes(client, ref, json, len, ret_digest, err);
    return ret;
}

/* -- Blobs ---------------------------------------------------------------------------------- */

int client_has_blob(struct cairn_client *client, const char *repo, const struct digest *d,
                    bool *ret_has, struct cairn_error *err)
{
    char path[CLIENT_PATH_MAX];
    const struct remote_request request = {
        .method = "HEAD",
        .path = client_blob_path(repo, d, path),
        .idempotent = true,
    };
    struct remote_answer answer;
    int ret = remote_request(client->remote, &request, &answer, err);

    if (ret != CAIRN_OK)
        return ret;
    if (answer.status == 200 || answer.status == 404)
        *ret_has = answer.status == 200;
    else
        ret = remote_answer_error(&answer, path, err);
    remote_answer_release(&answer);
    return ret;
}

/* -- Tags ----------------------------------------------------------------------------------- */

int client_mount_layers(struct cairn_client *client, const char *repo, const struct manifest *m,
                        const char *from, struct cairn_error *err)
{
    char text[DIGEST_STR_MAX];

    for (uint32_t i = 0; i < m->depth; i++) {
        const struct digest *d = &m->layers[i].digest;
        bool mounted;
        int ret = client_mount_blob(client, repo, d, from, &mounted, err);

        if (ret == CAIRN_OK && !mounted)
            ret = error_set(err, CAIRN_E_UNSUPPORTED,
                            "the service does not let %s use layer %s of %s; push it there instead",
                            repo, digest_format(d, text), from);
        if (ret == CAIRN_OK)
            ret = client_progress(client, "tag", i + 1, m->depth, err);
        if (ret != CAIRN_OK)
            return ret;
    }
    return put_empty_config(client, repo, err);
}

/* m is NULL within one repository: what it lists is there. */
static int mount_and_put(struct cairn_client *client, const struct ref *ref,
                         const struct ref *new_ref, const struct manifest *m, const char *json,
                         size_t len, struct cairn_error *err)
{
    int ret = m ? client_mount_layers(client, new_ref->repo, m, ref->repo, err) : CAIRN_OK;

    if (ret == CAIRN_OK)
        ret = client_put_manifest_bytes(client, new_ref, json, len, NULL, err);
    return ret;
}

int cairn_tag(struct cairn_client *client, const char *ref_text, const char *new_ref_text,
              struct cairn_error *err)
{
    CLEANUP(manifest_free_p) struct manifest *m = NULL;
    CLEANUP_FREE char *json = NULL;
    struct ref ref, new_ref;
    struct digest digest;
    size_t len;
    int ret = ref_parse(ref_text, &ref, err);

    if (ret == CAIRN_OK)
        ret = ref_parse(new_ref_text, &new_ref, err);
    if (ret != CAIRN_OK)
        return ret;
    if (!new_ref.tag[0])
        return error_set(err, CAIRN_E_USAGE, "%s names a digest; the new name must be a tag",
                         new_ref_text);
    ret = client_get_manifest_bytes(client, &ref, &json, &len, &digest, err);
    if (ret == CAIRN_OK && strcmp(ref.repo, new_ref.repo) != 0)
        ret = manifest_parse(json, len, &m, err);
    if (ret == CAIRN_OK)
        ret = mount_and_put(client, &ref, &new_ref, m, json, len, err);
    for (unsigned i = 0; ret == CAIRN_E_NOT_FOUND && m && i < CLIENT_RESENDS; i++)
        ret = mount_and_put(client, &ref, &new_ref, m, json, len, err);
    return ret;
}

int cairn_remove(struct cairn_client *client, const char *ref_text, struct cairn_error *err)
{
    char path[CLIENT_PATH_MAX];
    struct remote_request request = {.method = "DELETE", .path = path};
    struct remote_answer answer;
    struct ref ref;
    int ret = ref_parse(ref_text, &ref, err);

    if (ret != CAIRN_OK)
        return ret;
    manifest_path(&ref, path);
    ret = remote_request(client->remote, &request, &answer, err);
    if (ret != CAIRN_OK)
        return error_prefix(err, ret, "%s", ref_text);
    if (answer.status != 202 && answer.status != 200 && answer.status != 204)
        ret = remote_answer_error(&answer, ref_text, err);
    remote_answer_release(&answer);
    return ret;
}
