/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Uploading one blob: a session in chunks that goes on where it was, whatever broke.
 *
 * The service is the one that knows how much of a session it has; after every failure it is asked
 * (GET of the session), and the upload continues there.  A small blob goes in one body with the
 * closing PUT.  Where the session is, is remembered between runs (user_state.h).  The digest in the
 * closing PUT is what makes the blob right: the service compares it with what it received.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "checked.h"
#include "client.h"
#include "user_state.h"

#define CHUNK_BYTES ((uint64_t)32 << 20)
#define SMALL_BYTES ((uint64_t)4 << 20) /* up to here: one body, nothing remembered */
#define STALLS_MAX  6                   /* failures in a row without a byte of progress */

struct upload {
    struct cairn_client *client;
    const char *repo;
    struct source *src;
    const struct digest *digest;
    const struct progress *progress;
    char name[DIGEST_STR_MAX]; /* of the digest */

    char *location;     /* of the session; NULL: none */
    uint64_t off;       /* what the service has */
    uint64_t body_off;  /* where the body being sent starts */
    uint64_t chunk_min; /* as the service wants it */
    struct upload_state state;
};

/* -- Callbacks of requests ------------------------------------------------------------------ */

static int read_body(void *ctx, void *buf, size_t len, uint64_t off, struct cairn_error *err)
{
    struct upload *up = ctx;
    int ret = source_pread(up->src, buf, len, up->body_off + off, err);

    if (ret == CAIRN_OK)
        ret = progress_at(up->client, up->progress, up->body_off + off, err);
    return ret;
}

static int request(struct upload *up, struct remote_request *req, struct remote_answer *ret_answer,
                   struct cairn_error *err)
{
    req->ctx = up;
    return remote_request(up->client->remote, req, ret_answer, err);
}

static int take_location(struct upload *up, struct remote_answer *answer, struct cairn_error *err)
{
    if (!answer->location)
        return up->location
                   ? CAIRN_OK
                   : error_set(err, CAIRN_E_CORRUPT,
                               "%s: the service opened an upload without a Location", up->name);
    if (!up->location || strcmp(up->location, answer->location) != 0)
        upload_state_save(&up->state, answer->location);
    free(up->location);
    up->location = steal_ptr(answer->location);
    return CAIRN_OK;
}

static void forget_session(struct upload *up)
{
    free(up->location);
    up->location = NULL;
    up->off = 0;
}

/* -- Opening, mounting, asking -------------------------------------------------------------- */

/* POST: a new session, or with from the blob itself (201).  The service is told how large the blob
 * is: where there is no room for it, it says so before anything is sent. */
static int open_session(struct upload *up, const char *from, bool *ret_mounted,
                        struct cairn_error *err)
{
    char path[2 * CLIENT_PATH_MAX], mount[CLIENT_PATH_MAX] = "";
    struct remote_request req = {.method = "POST", .path = path};
    struct remote_answer answer;
    int ret;

    forget_session(up);
    if (from)
        snprintf(mount, sizeof(mount), "from=%s&mount=%s&", from, up->name);
    snprintf(path, sizeof(path), "/v2/%s/blobs/uploads/?%ssize=%" PRIu64, up->repo, mount,
             up->src->size);
    ret = request(up, &req, &answer, err);
    if (ret != CAIRN_OK)
        return error_prefix(err, ret, "push %s", up->name);
    *ret_mounted = from && answer.status == 201;
    up->chunk_min = answer.chunk_min;
    if (answer.status == 202)
        ret = take_location(up, &answer, err);
    else if (!*ret_mounted)
        ret = remote_answer_error(&answer, up->name, err);
    remote_answer_release(&answer);
    return ret;
}

/* `Range: 0-<last byte>`; a session without bytes says 0-0 or nothing. */
static bool parse_range(const char *range, uint64_t size, uint64_t *ret_off)
{
    uint64_t last;
    int end = 0;

    if (!range || strcmp(range, "0-0") == 0) {
        *ret_off = 0;
        return true;
    }
    if (sscanf(range, "0-%20" SCNu64 "%n", &last, &end) != 1 || range[end] || last >= size)
        return false;
    *ret_off = last + 1;
    return true;
}

/* Ask the service how much it has.  *ret_alive is false if the session is gone or of no use. */
static int ask_session(struct upload *up, bool *ret_alive, struct cairn_error *err)
{
    struct remote_request req = {.method = "GET", .path = up->location, .idempotent = true};
    struct remote_answer answer;
    int ret = request(up, &req, &answer, err);

    if (ret != CAIRN_OK)
        return error_prefix(err, ret, "push %s", up->name);
    *ret_alive = (answer.status == 204 || answer.status == 200) &&
                 parse_range(answer.range, up->src->size, &up->off);
    if (*ret_alive)
        ret = take_location(up, &answer, err);
    remote_answer_release(&answer);
    if (!*ret_alive)
        forget_session(up);
    return ret;
}

static void cancel_session(struct upload *up)
{
    const struct remote_request req = {.method = "DELETE", .path = up->location};
    struct remote_answer answer;

    if (up->location && remote_request(up->client->remote, &req, &answer, NULL) == CAIRN_OK)
        remote_answer_release(&answer);
    forget_session(up);
}

/* -- Sending -------------------------------------------------------------------------------- */

/*
 * Is it worth asking where the session stands?  It may be elsewhere than we thought (416, 409),
 * gone (404), or out of reach for a moment (502 to 504).
 */
static bool may_go_on(unsigned status)
{
    return status == 404 || status == 409 || status == 416 || (status >= 502 && status <= 504);
}

/* PATCH one chunk.  *ret_again: nothing is lost, ask the service where it is. */
static int send_chunk(struct upload *up, bool *ret_again, struct cairn_error *err)
{
    uint64_t len = min_u64(max_u64(CHUNK_BYTES, up->chunk_min), up->src->size - up->off);
    char content_range[80];
    struct remote_request req = {
        .method = "PATCH",
        .path = up->location,
        .headers = {"Content-Type: application/octet-stream", content_range},
        .read_body = read_body,
        .body_len = len,
        .long_running = true,
    };
    struct remote_answer answer;
    int ret;

    up->body_off = up->off;
    snprintf(content_range, sizeof(content_range), "Content-Range: %" PRIu64 "-%" PRIu64, up->off,
             up->off + len - 1);
    ret = request(up, &req, &answer, err);
    *ret_again = ret == CAIRN_E_UNAVAILABLE;
    if (ret != CAIRN_OK)
        return error_prefix(err, ret, "push %s", up->name);
    if (answer.status == 202 || answer.status == 204) {
        up->off += len;
        ret = take_location(up, &answer, err);
    } else {
        *ret_again = may_go_on(answer.status);
        ret = remote_answer_error(&answer, up->name, err);
    }
    remote_answer_release(&answer);
    return ret;
}

/* The closing PUT, with the rest of the bytes where that is a small blob's all. */
static int close_session(struct upload *up, bool *ret_again, struct cairn_error *err)
{
    CLEANUP_FREE char *path = NULL;
    struct remote_request req = {
        .method = "PUT",
        .headers = {"Content-Type: application/octet-stream"},
        .read_body = read_body,
        .body_len = up->src->size - up->off,
        .long_running = true,
    };
    struct remote_answer answer;
    int ret;

    if (asprintf(&path, "%s%cdigest=%s", up->location, strchr(up->location, '?') ? '&' : '?',
                 up->name) < 0) {
        path = NULL;
        return error_no_memory(err, "a request");
    }
    req.path = path;
    up->body_off = up->off;
    ret = request(up, &req, &answer, err);
    *ret_again = ret == CAIRN_E_UNAVAILABLE;
    if (ret != CAIRN_OK)
        return error_prefix(err, ret, "push %s", up->name);
    if (answer.status != 201) {
        *ret_again = may_go_on(answer.status);
        ret = remote_answer_error(&answer, up->name, err);
    }
    remote_answer_release(&answer);
    return ret;
}

static int send_rest(struct upload *up, bool *ret_again, struct cairn_error *err)
{
    int ret = CAIRN_OK;

    if (up->src->size > SMALL_BYTES || up->off > 0)
        while (ret == CAIRN_OK && up->off < up->src->size)
            ret = send_chunk(up, ret_again, err);
    if (ret == CAIRN_OK)
        ret = close_session(up, ret_again, err);
    return ret;
}

static void pause_after(unsigned stalls)
{
    struct timespec ts = {.tv_nsec = 50000000L << (stalls < 4 ? stalls : 4)};

    clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);
}

/*
 * After a failure: is the blob complete after all (the answer to the closing PUT was lost), or
 * where does the session stand?
 */
static int find_out(struct upload *up, bool *ret_done, struct cairn_error *err)
{
    bool alive;
    int ret = client_has_blob(up->client, up->repo, up->digest, ret_done, err);

    if (ret != CAIRN_OK || *ret_done)
        return ret;
    if (up->location) {
        ret = ask_session(up, &alive, err);
        if (ret != CAIRN_OK || alive)
            return ret;
    }
    return open_session(up, NULL, &alive, err);
}

static int send_with_patience(struct upload *up, struct cairn_error *err)
{
    uint64_t reached = up->off;
    unsigned stalls = 0;

    for (;;) {
        bool again = false, done = false;
        int ret = send_rest(up, &again, err);

        if (ret == CAIRN_OK || !again || stalls == STALLS_MAX)
            return ret;
        pause_after(stalls);
        ret = find_out(up, &done, err);
        if (ret != CAIRN_OK || done)
            return ret;
        stalls = up->off > reached ? 0 : stalls + 1;
        reached = max_u64(reached, up->off);
    }
}

/* -- The whole ------------------------------------------------------------------------------ */

/* Continue the session of an earlier run, or open one; a blob that can be mounted needs none. */
static int begin(struct upload *up, const char *mount_from, bool *ret_done, struct cairn_error *err)
{
    bool alive = false;
    int ret = CAIRN_OK;

    *ret_done = false;
    up->location = upload_state_load(&up->state);
    if (up->location)
        ret = ask_session(up, &alive, err);
    if (ret == CAIRN_E_UNSUPPORTED) { /* a remembered location that is none of this service's */
        forget_session(up);
        ret = CAIRN_OK;
    }
    if (ret == CAIRN_OK && !alive)
        ret = open_session(up, mount_from, ret_done, err);
    return ret;
}

/* Is it worth trying the session again another time, or would it be turned down again? */
static bool may_be_resumed(int ret)
{
    return ret == CAIRN_E_UNAVAILABLE || ret == CAIRN_E_CANCELLED || ret == CAIRN_E_DENIED ||
           ret == CAIRN_E_NO_SPACE;
}

int client_upload(struct cairn_client *client, const char *repo, struct source *src,
                  const struct digest *d, const char *mount_from, const struct progress *progress,
                  struct cairn_error *err)
{
    struct upload up = {
        .client = client,
        .repo = repo,
        .src = src,
        .digest = d,
        .progress = progress,
        .state.fd = -1,
    };
    bool done;
    int ret;

    digest_format(d, up.name);
    if (src->size > SMALL_BYTES)
        upload_state_open(&up.state, remote_server(client->remote), repo, d);
    ret = begin(&up, mount_from, &done, err);
    if (ret == CAIRN_OK && !done)
        ret = send_with_patience(&up, err);
    if (!may_be_resumed(ret))
        upload_state_remove(&up.state);
    upload_state_close(&up.state);
    free(up.location);
    return ret;
}

int client_mount_blob(struct cairn_client *client, const char *repo, const struct digest *d,
                      const char *from, bool *ret_mounted, struct cairn_error *err)
{
    const struct progress progress = {.what = "mount"};
    struct source nothing = {.size = 0, .name = "nothing"};
    struct upload up = {
        .client = client,
        .repo = repo,
        .src = &nothing,
        .digest = d,
        .progress = &progress,
        .state.fd = -1,
    };
    int ret;

    digest_format(d, up.name);
    ret = open_session(&up, from, ret_mounted, err);
    if (ret == CAIRN_OK && !*ret_mounted)
        cancel_session(&up);
    free(up.location);
    return ret;
}

int client_push_blob(struct cairn_client *client, const char *repo, const char *path,
                     const struct digest *d, const char *mount_from, struct cairn_error *err)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    char what[16 + DIGEST_STR_MAX] = "push ";
    struct progress progress = {.what = what};
    bool has;
    int ret = client_has_blob(client, repo, d, &has, err);

    if (ret != CAIRN_OK || has)
        return ret;
    ret = source_open_file(path, NULL, &src, err);
    if (ret != CAIRN_OK)
        return ret;
    digest_format(d, what + strlen(what));
    progress.total = src->size;
    return client_upload(client, repo, src, d, mount_from, &progress, err);
}
