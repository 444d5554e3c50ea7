/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Uploads: POST opens one, PATCH adds a chunk, GET tells where it stands, PUT ends it and DELETE
 * drops it (OCI distribution specification, "Push").
 *
 * The bytes are the store's.  What this process remembers of an upload is its session: the SHA-256
 * so far, computed while the bytes pass.  It is a convenience: an upload that came by way of
 * another process, or whose session was forgotten, is read back and hashed at the end.
 *
 * One request at a time writes.  A new one takes an upload over from one that is still under way,
 * which then fails: a client whose connection broke need not wait until the server has noticed.
 * The check and the append are one step under the session's lock, and among processes the store
 * refuses an append anywhere but at the end; so chunks never mix.  Ending an upload can take
 * minutes (hashing what was read back, syncing it) and holds no lock: whoever comes meanwhile is
 * sent away to try again, and does not keep a worker waiting.
 */
#include "registry_internal.h"

#include <inttypes.h>
#include <microhttpd.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "access.h"
#include "byte_count.h"
#include "checked.h"
#include "quarantine.h"
#include "quote.h"
#include "step.h"

#define SESSIONS_IDLE_MAX 256
#define CHUNK_MIN         (5u << 20) /* S3's smallest part; smaller chunks are taken all the same */
#define READ_BACK_SIZE    (1u << 20)

/* -- Sessions ----------------------------------------------------------------------------- */

struct session {
    struct session *next; /* the three are protected by the sessions' lock */
    unsigned refs;
    uint64_t last_used;
    char id[STORE_UPLOAD_ID_MAX];

    pthread_mutex_t lock;  /* protects all below, and orders this process's changes to the upload */
    unsigned writer;       /* whose turn it is; anybody else has been overtaken */
    bool ending;           /* by that writer: nobody overtakes it, and hasher is its own */
    struct hasher *hasher; /* of the first `hashed` bytes; NULL: not known */
    uint64_t hashed;
};

struct sessions {
    pthread_mutex_t lock; /* before any session's */
    struct session *first;
    uint64_t clock;
};

int sessions_new(struct sessions **ret_sessions, struct cairn_error *err)
{
    struct sessions *all = calloc(1, sizeof(*all));

    if (!all)
        return error_no_memory(err, "upload sessions");
    pthread_mutex_init(&all->lock, NULL);
    *ret_sessions = all;
    return CAIRN_OK;
}

static void session_free(struct session *s)
{
    hasher_free(s->hasher);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

void sessions_free(struct sessions *all)
{
    struct session *next;

    for (struct session *s = all->first; s; s = next) {
        next = s->next;
        session_free(s);
    }
    pthread_mutex_destroy(&all->lock);
    free(all);
}

static struct session *find_session_locked(struct sessions *all, const char *id)
{
    struct session *s = all->first;

    while (s && strcmp(s->id, id) != 0)
        s = s->next;
    return s;
}

/* The session of an upload that is known to exist. */
static int session_get(struct sessions *all, const char *id, struct session **ret_session,
                       struct cairn_error *err)
{
    struct session *s;

    SCOPED_LOCK(&all->lock);
    s = find_session_locked(all, id);
    if (!s) {
        s = calloc(1, sizeof(*s));
        if (!s)
            return error_no_memory(err, "an upload session");
        snprintf(s->id, sizeof(s->id), "%s", id);
        pthread_mutex_init(&s->lock, NULL);
        s->next = all->first;
        all->first = s;
    }
    s->refs++;
    *ret_session = s;
    return CAIRN_OK;
}

static void unlink_session_locked(struct sessions *all, struct session *s)
{
    struct session **p = &all->first;

    while (*p != s)
        p = &(*p)->next;
    *p = s->next;
    session_free(s);
}

static void forget_oldest_locked(struct sessions *all)
{
    struct session *oldest = NULL;
    unsigned nr_idle = 0;

    for (struct session *s = all->first; s; s = s->next) {
        if (s->refs > 0)
            continue;
        nr_idle++;
        if (!oldest || s->last_used < oldest->last_used)
            oldest = s;
    }
    if (nr_idle > SESSIONS_IDLE_MAX)
        unlink_session_locked(all, oldest);
}

/* ended: the upload is no more. */
static void session_put(struct sessions *all, struct session *s, bool ended)
{
    SCOPED_LOCK(&all->lock);
    s->last_used = ended ? 0 : ++all->clock;
    if (--s->refs > 0)
        return;
    if (ended)
        unlink_session_locked(all, s);
    else
        forget_oldest_locked(all);
}

/* Bring the hash into line with an upload of size bytes. */
static int check_hash_locked(struct session *s, uint64_t size, struct cairn_error *err)
{
    if (s->hasher && s->hashed != size) {
        hasher_free(s->hasher);
        s->hasher = NULL;
    }
    s->hashed = size;
    return !s->hasher && size == 0 ? hasher_new(&s->hasher, err) : CAIRN_OK;
}

/* -- Writers: one request that adds to an upload ------------------------------------------ */

struct writer {
    struct registry *registry;
    struct session *session;
    unsigned turn;
    uint64_t off;   /* where the next byte goes */
    uint64_t room;  /* as much as the repository's quota lets the upload have */
    uint64_t total; /* as much as ?size= says that it will have; UINT64_MAX: nothing was said */
    bool ended;
    bool monolithic; /* nobody else knows the upload: without its end it is of no use */
};

static void writer_free(void *ctx)
{
    struct writer *w = ctx;

    if (w->monolithic && !w->ended) {
        store_upload_abort(w->registry->store, w->session->id, NULL);
        registry_count(&w->registry->figures.aborted, 1);
    }
    session_put(w->registry->sessions, w->session, w->ended || w->monolithic);
    free(w);
}

static int check_turn_locked(const struct writer *w, struct cairn_error *err)
{
    if (w->session->writer == w->turn)
        return CAIRN_OK;
    return error_set(err, CAIRN_E_CONFLICT, "another request went on with upload %s",
                     w->session->id);
}

static int check_not_ending_locked(const struct session *s, struct cairn_error *err)
{
    if (!s->ending)
        return CAIRN_OK;
    return error_set(err, CAIRN_E_UNAVAILABLE, "upload %s is being ended by another request",
                     s->id);
}

/* May len bytes more be appended? */
static int check_limits(const struct writer *w, uint64_t len, struct cairn_error *err)
{
    const uint64_t max = w->registry->options.max_upload;

    if (!range_in(w->off, len, max))
        return error_set(err, CAIRN_E_LIMIT, "upload %s is larger than %" PRIu64 " bytes",
                         w->session->id, max);
    if (!range_in(w->off, len, w->total))
        return error_set(err, CAIRN_E_LIMIT,
                         "upload %s has more than the %" PRIu64 " bytes that ?size= said",
                         w->session->id, w->total);
    if (!range_in(w->off, len, w->room))
        return error_set(err, CAIRN_E_DENIED,
                         "upload %s: its repository's quota has room for %" PRIu64 " bytes",
                         w->session->id, w->room);
    return CAIRN_OK;
}

static int append_locked(struct writer *w, const void *buf, size_t len, struct cairn_error *err)
{
    struct session *s = w->session;
    int r = check_turn_locked(w, err);

    if (!r)
        r = check_limits(w, len, err);
    if (!r)
        r = store_upload_append(w->registry->store, s->id, w->off, buf, len, err);
    if (r)
        return r;
    registry_count(&w->registry->figures.received_bytes, len);
    w->off += len;
    if (s->hasher)
        hasher_update(s->hasher, buf, len);
    s->hashed = w->off;
    return CAIRN_OK;
}

static int write_piece(void *ctx, const void *buf, size_t len, struct cairn_error *err)
{
    struct writer *w = ctx;

    SCOPED_LOCK(&w->session->lock);
    return append_locked(w, buf, len, err);
}

/* -- Replies ------------------------------------------------------------------------------ */

/* What ?size= said when the upload was opened stays part of its URL: any server can check it. */
static void upload_headers(const struct registry_call *call, const char *id, uint64_t size)
{
    const char *total = http_query(call->req, "size");

    http_reply_header(call->reply, "Location", "/v2/%s/blobs/uploads/%s%s%s", call->target.repo, id,
                      total ? "?size=" : "", total ? total : "");
    http_reply_header(call->reply, "Range", "0-%" PRIu64, size > 0 ? size - 1 : 0);
    http_reply_header(call->reply, "Docker-Upload-UUID", "%s", id);
}

static void upload_failure(const struct registry_call *call, const struct cairn_error *err)
{
    if (err->code == CAIRN_E_NOT_FOUND)
        http_reply_error(call->reply, MHD_HTTP_NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "%s",
                         err->message);
    else if (err->code == CAIRN_E_CONFLICT)
        http_reply_error(call->reply, MHD_HTTP_CONFLICT, "BLOB_UPLOAD_INVALID", "%s", err->message);
    else if (err->code == CAIRN_E_USAGE)
        http_reply_error(call->reply, MHD_HTTP_BAD_REQUEST, "SIZE_INVALID", "%s", err->message);
    else
        http_reply_failure(call->reply, err);
}

/* -- Before a body ------------------------------------------------------------------------ */

/* `<first>-<last>`; tools also write it as `bytes <first>-<last>/<size>`. */
static bool parse_content_range(const char *text, uint64_t *ret_first, uint64_t *ret_last)
{
    int end = 0;

    if (strncmp(text, "bytes ", 6) == 0)
        text += 6;
    if (text[0] < '0' || text[0] > '9' || sscanf(text, "%19" SCNu64 "-%n", ret_first, &end) != 1 ||
        end == 0)
        return false;
    text += end;
    end = 0;
    if (text[0] < '0' || text[0] > '9' || sscanf(text, "%19" SCNu64 "%n", ret_last, &end) != 1)
        return false;
    return (text[end] == 0 || text[end] == '/') && *ret_last >= *ret_first;
}

/* False when the chunk cannot follow size bytes, and that has been replied. */
static bool check_chunk(const struct registry_call *call, uint64_t size)
{
    const char *range = http_header(call->req, "Content-Range");
    uint64_t first = size, last, len;
    bool has_len = http_content_length(call->req, &len);

    if (range && !parse_content_range(range, &first, &last)) {
        http_reply_error(call->reply, MHD_HTTP_BAD_REQUEST, "BLOB_UPLOAD_INVALID",
                         "Content-Range is not <first>-<last>");
        return false;
    }
    if (first != size) {
        upload_headers(call, call->target.name, size);
        http_reply_error(call->reply, MHD_HTTP_RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID",
                         "the chunk starts at %" PRIu64 ", the upload has %" PRIu64 " bytes", first,
                         size);
        return false;
    }
    if (range && has_len && len != last - first + 1) {
        http_reply_error(call->reply, MHD_HTTP_BAD_REQUEST, "SIZE_INVALID",
                         "Content-Range has %" PRIu64 " bytes, the body %" PRIu64, last - first + 1,
                         len);
        return false;
    }
    return true;
}

/* ?size=, how large the upload will be in the end; UINT64_MAX: it is not said. */
static int query_size(const struct registry_call *call, uint64_t *ret_size, struct cairn_error *err)
{
    const char *text = http_query(call->req, "size");
    const uint64_t max = call->registry->options.max_upload;
    char quoted[QUOTE_MAX];

    *ret_size = UINT64_MAX;
    if (!text)
        return CAIRN_OK;
    if (!number_parse(text, strlen(text), ret_size))
        return error_set(err, CAIRN_E_USAGE, "?size=%s is not a number of bytes",
                         quote_str(text, quoted));
    if (*ret_size > max)
        return error_set(err, CAIRN_E_LIMIT, "the blob is larger than %" PRIu64 " bytes", max);
    return CAIRN_OK;
}

/* What is to come: all of the upload, if that was said, else this body; 0: not known. */
static uint64_t bytes_to_come(const struct registry_call *call, const struct writer *w)
{
    uint64_t len;

    if (w->total != UINT64_MAX)
        return w->total > w->off ? w->total - w->off : 0;
    return http_content_length(call->req, &len) ? len : 0;
}

/* False when the repository has no room for what follows w->off bytes, and that has been replied.
 */
static bool find_room(const struct registry_call *call, struct writer *w)
{
    struct cairn_error err;
    uint64_t len = 0;
    int r = query_size(call, &w->total, &err);

    if (!r)
        r = quota_grow_upload(call->registry->quota, call->target.repo, w->off,
                              bytes_to_come(call, w), &w->room, &err);
    if (!r && http_content_length(call->req, &len))
        r = check_limits(w, len, &err);
    if (r)
        upload_failure(call, &err);
    return !r;
}

/* Take the upload over, if what comes fits behind what is there. */
static bool take_turn(const struct registry_call *call, struct writer *w)
{
    struct session *s = w->session;
    struct cairn_error err;
    uint64_t size;
    int r;

    SCOPED_LOCK(&s->lock);
    r = check_not_ending_locked(s, &err);
    if (!r)
        r = store_upload_size(call->store, s->id, call->target.repo, &size, &err);
    if (!r && !check_chunk(call, size))
        return false;
    if (!r)
        r = check_hash_locked(s, size, &err);
    if (r) {
        upload_failure(call, &err);
        return false;
    }
    w->turn = ++s->writer;
    w->off = size;
    return true;
}

/* A writer of an upload that has size bytes. */
static void begin_writer(const struct registry_call *call, struct http_request *req, const char *id,
                         uint64_t size, bool monolithic)
{
    struct writer *w = calloc(1, sizeof(*w));
    const struct http_sink sink = {.piece = write_piece, .free = writer_free, .ctx = w};
    struct cairn_error err;
    int r = w ? session_get(call->registry->sessions, id, &w->session, &err)
              : error_no_memory(&err, "an upload");

    if (r) {
        free(w);
        upload_failure(call, &err);
        return;
    }
    w->registry = call->registry;
    w->off = size;
    w->monolithic = monolithic;
    if (find_room(call, w) && take_turn(call, w))
        http_stream_body(req, &sink);
    else
        writer_free(w);
}

/* PUT and monolithic POST: false when ?digest= is not a digest, and that has been replied. */
static bool query_digest(const struct registry_call *call, struct digest *ret_digest)
{
    const char *text = http_query(call->req, "digest");
    struct cairn_error err;

    if (!text)
        error_set(&err, CAIRN_E_USAGE, "?digest= is missing");
    else if (digest_parse(text, strlen(text), ret_digest, &err) == CAIRN_OK)
        return true;
    http_reply_error(call->reply, MHD_HTTP_BAD_REQUEST, "DIGEST_INVALID", "%s", err.message);
    return false;
}

/* False when the repository may have no other upload, and that has been replied. */
static bool open_upload(const struct registry_call *call, uint64_t size,
                        char ret_id[STORE_UPLOAD_ID_MAX])
{
    struct cairn_error err;
    int r = quota_begin_upload(call->registry->quota, call->target.repo, size, &err);

    if (!r)
        r = store_upload_new(call->store, call->target.repo, ret_id, &err);
    if (r)
        upload_failure(call, &err);
    else
        registry_count(&call->registry->figures.begun, 1);
    return !r;
}

/* An ID that is not one of this repository's gets no session. */
static bool check_known(const struct registry_call *call, uint64_t *ret_size)
{
    struct cairn_error err;

    if (store_upload_size(call->store, call->target.name, call->target.repo, ret_size, &err) == 0)
        return true;
    upload_failure(call, &err);
    return false;
}

static void begin_monolithic(const struct registry_call *call, struct http_request *req)
{
    char id[STORE_UPLOAD_ID_MAX];
    uint64_t size = 0;
    struct digest d;

    if (!query_digest(call, &d))
        return;
    http_content_length(req, &size);
    if (open_upload(call, size, id))
        begin_writer(call, req, id, 0, true);
}

void registry_begin_upload(const struct registry_call *call, struct http_request *req)
{
    struct digest d;
    uint64_t size;

    if (call->target.resource == REGISTRY_UPLOADS) {
        if (http_query(req, "digest") && !http_query(req, "mount"))
            begin_monolithic(call, req);
        return;
    }
    if (http_method(req) == HTTP_PUT && !query_digest(call, &d))
        return;
    if (check_known(call, &size))
        begin_writer(call, req, call->target.name, size, false);
}

/* -- The end of an upload ----------------------------------------------------------------- */

static int hash_stored(struct writer *w, struct digest *ret_digest, struct cairn_error *err)
{
    CLEANUP(hasher_free_p) struct hasher *hasher = NULL;
    CLEANUP_FREE void *buf = malloc(READ_BACK_SIZE);
    int r = buf ? hasher_new(&hasher, err) : error_no_memory(err, "an upload's digest");

    for (uint64_t off = 0; off < w->off && !r;) {
        size_t len = (size_t)min_u64(READ_BACK_SIZE, w->off - off);

        r = store_upload_read(w->registry->store, w->session->id, buf, len, off, err);
        if (!r)
            hasher_update(hasher, buf, len);
        off += len;
    }
    if (!r)
        hasher_finish(hasher, ret_digest);
    return r;
}

static int digest_written(struct writer *w, struct digest *ret_digest, struct cairn_error *err)
{
    struct session *s = w->session;

    if (!s->hasher)
        return hash_stored(w, ret_digest, err);
    hasher_finish(s->hasher, ret_digest);
    hasher_free(steal_ptr(s->hasher));
    return CAIRN_OK;
}

static int check_complete(const struct writer *w, struct cairn_error *err)
{
    if (w->total == UINT64_MAX || w->off == w->total)
        return CAIRN_OK;
    return error_set(err, CAIRN_E_USAGE, "upload %s has %" PRIu64 " bytes, ?size= said %" PRIu64,
                     w->session->id, w->off, w->total);
}

/*
 * The upload, which w is ending, becomes the blob d.  The link to it comes first, for that is the
 * claim that keeps the blob (collect.h); it shows nothing until the blob is there.  If its digest
 * is another the upload is dropped: no chunk can make it right any more.
 */
static int finish(struct writer *w, const char *repo, const struct digest *d,
                  struct cairn_error *err)
{
    struct store *store = w->registry->store;
    char key[REGISTRY_KEY_MAX], want[DIGEST_STR_MAX], have[DIGEST_STR_MAX];
    struct quota_charge charge;
    struct digest actual;
    int r = check_complete(w, err);

    if (!r)
        r = digest_written(w, &actual, err);
    if (r)
        return r;
    if (!digest_equal(&actual, d)) {
        store_upload_abort(store, w->session->id, NULL);
        registry_count(&w->registry->figures.aborted, 1);
        w->ended = true;
        return error_set(err, CAIRN_E_CORRUPT, "the upload's digest is %s, not %s",
                         digest_format(&actual, have), digest_format(d, want));
    }
    r = quota_charge(w->registry->quota, repo, d, w->off, &charge, err);
    if (r)
        return r;
    r = registry_show_blob(store, repo, d, w->off, err);
    quota_settle(w->registry->quota, &charge, r == CAIRN_OK);
    if (!r)
        r = registry_revive_blob(store, d, err);
    if (!r)
        r = store_upload_commit(store, w->session->id, w->off, registry_blob_key(d, key), err);
    step_reached(STEP_BLOB_STORED);
    w->ended = r == CAIRN_OK;
    if (!r)
        registry_count(&w->registry->figures.finished, 1);
    if (!r) /* that it fails is of no consequence: a scrub sees that the blob is back */
        quarantine_end(store, d, NULL);
    return r;
}

/* Only whoever has the turn may end an upload, and then has it alone. */
static int begin_ending(const struct writer *w, struct cairn_error *err)
{
    SCOPED_LOCK(&w->session->lock);
    int r = check_turn_locked(w, err);

    if (r == CAIRN_OK)
        w->session->ending = true;
    return r;
}

static void stop_ending(const struct writer *w)
{
    SCOPED_LOCK(&w->session->lock);
    w->session->ending = false;
}

static void finish_upload(const struct registry_call *call)
{
    struct writer *w = http_sink_ctx(call->req);
    struct cairn_error err;
    struct digest d;
    int r;

    if (!query_digest(call, &d))
        return;
    r = begin_ending(w, &err);
    if (!r) {
        r = finish(w, call->target.repo, &d, &err);
        stop_ending(w);
    }
    if (r == CAIRN_E_CORRUPT) {
        http_reply_error(call->reply, MHD_HTTP_BAD_REQUEST, "DIGEST_INVALID", "%s", err.message);
    } else if (r) {
        upload_failure(call, &err);
    } else {
        registry_reply_digest(call, &d, "blobs");
        http_reply_status(call->reply, MHD_HTTP_CREATED);
    }
}

/* -- The other requests ------------------------------------------------------------------- */

static int link_blob(const struct registry_call *call, const struct digest *d, uint64_t size,
                     struct cairn_error *err)
{
    struct quota *quota = call->registry->quota;
    struct quota_charge charge;
    int r = quota_charge(quota, call->target.repo, d, size, &charge, err);

    if (r)
        return r;
    r = registry_show_blob(call->store, call->target.repo, d, size, err);
    quota_settle(quota, &charge, r == CAIRN_OK);
    if (!r)
        r = registry_revive_blob(call->store, d, err);
    return r ? r : registry_find_blob(call->store, call->target.repo, d, &size, err);
}

/* ?mount=<digest>&from=<repo>: true if that has been replied, for the blob is the repository's now
 * or may not be.  Where nothing can be mounted an upload is opened (OCI, "Mounting a blob");
 * nothing can from a repository that the caller may not pull, and nobody looks whether that has the
 * blob. */
static bool mount_blob(const struct registry_call *call)
{
    const char *mount = http_query(call->req, "mount"), *from = http_query(call->req, "from");
    struct cairn_error err;
    struct digest d;
    uint64_t size;
    int r;

    if (!mount || !from || !ref_valid_repo(from) || digest_parse(mount, strlen(mount), &d, &err) ||
        !access_allows(call->req, GRANT_PULL, from) ||
        registry_find_blob(call->store, from, &d, &size, &err))
        return false;
    r = link_blob(call, &d, size, &err);
    if (r == CAIRN_E_DENIED) {
        upload_failure(call, &err);
        return true;
    }
    if (r)
        return false;
    registry_count(&call->registry->figures.mounted, 1);
    registry_reply_digest(call, &d, "blobs");
    http_reply_status(call->reply, MHD_HTTP_CREATED);
    return true;
}

void registry_uploads(const struct registry_call *call)
{
    char id[STORE_UPLOAD_ID_MAX];
    struct cairn_error err;
    uint64_t size;

    if (http_sink_ctx(call->req)) {
        finish_upload(call);
        return;
    }
    if (mount_blob(call))
        return;
    if (query_size(call, &size, &err)) {
        upload_failure(call, &err);
        return;
    }
    if (!open_upload(call, size == UINT64_MAX ? 0 : size, id))
        return;
    upload_headers(call, id, 0);
    http_reply_header(call->reply, "OCI-Chunk-Min-Length", "%u", CHUNK_MIN);
    http_reply_status(call->reply, MHD_HTTP_ACCEPTED);
}

static void delete_upload(const struct registry_call *call)
{
    const char *id = call->target.name;
    struct session *s;
    struct cairn_error err;
    uint64_t size;
    int r;

    if (!check_known(call, &size))
        return;
    r = session_get(call->registry->sessions, id, &s, &err);
    if (!r) {
        pthread_mutex_lock(&s->lock);
        r = check_not_ending_locked(s, &err);
        if (!r) {
            s->writer++;
            r = store_upload_abort(call->store, id, &err);
        }
        pthread_mutex_unlock(&s->lock);
        session_put(call->registry->sessions, s, r == CAIRN_OK);
    }
    if (r) {
        upload_failure(call, &err);
        return;
    }
    registry_count(&call->registry->figures.aborted, 1);
    http_reply_status(call->reply, MHD_HTTP_NO_CONTENT);
}

static void reply_where_it_stands(const struct registry_call *call, unsigned status)
{
    struct cairn_error err;
    uint64_t size;

    if (store_upload_size(call->store, call->target.name, call->target.repo, &size, &err)) {
        upload_failure(call, &err);
        return;
    }
    upload_headers(call, call->target.name, size);
    http_reply_status(call->reply, status);
}

void registry_upload(const struct registry_call *call)
{
    switch (http_method(call->req)) {
    case HTTP_PATCH:
        reply_where_it_stands(call, MHD_HTTP_ACCEPTED);
        return;
    case HTTP_PUT:
        finish_upload(call);
        return;
    case HTTP_DELETE:
        delete_upload(call);
        return;
    case HTTP_GET:
    case HTTP_HEAD:
    case HTTP_POST:
        break;
    }
    reply_where_it_stands(call, MHD_HTTP_NO_CONTENT);
}
