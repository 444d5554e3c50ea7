/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is wanted is a manifest; what is held is a lease of the service on it, or nothing.  Requests
 * take turns (the lock `turn`), whoever makes them, so that the two belong together.
 */
#include "lease.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "checked.h"
#include "json_memory.h"

#define TTL_DEFAULT_S 600
#define TTL_MAX_S     86400
#define RELEASE_MS    3000 /* how long the end waits for the service */
#define ID_MAX        64

CLEANUP_DEFINE(json_t *, json_decref)

struct lease {
    struct cairn_client *client; /* of its own */
    char *holder;
    unsigned ttl_s;
    void (*tell)(void *ctx, const char *message);
    void *tell_ctx;
    pthread_t thread;

    pthread_mutex_t turn; /* protects what is held; before lock */
    struct ref ref;       /* by digest */
    char id[ID_MAX];      /* empty: none */
    struct ref next_ref;  /* between lease_take_next and lease_settle */
    char next_id[ID_MAX];
    bool failing; /* that was told */

    pthread_mutex_t lock;
    pthread_cond_t changed; /* of the monotonic clock */
    bool ending;
    struct timespec end; /* when who ends stops waiting, if ending */
};

/* -- Requests ------------------------------------------------------------------------------- */

static bool has_passed(const struct timespec *end)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec > end->tv_sec || (now.tv_sec == end->tv_sec && now.tv_nsec >= end->tv_nsec);
}

/* Asked while a request waits: an end does not wait for long. */
static int on_progress(void *ctx, const char *what, uint64_t done, uint64_t total)
{
    struct lease *lease = ctx;
    SCOPED_LOCK(&lease->lock);

    (void)what;
    (void)done;
    (void)total;
    return lease->ending && has_passed(&lease->end);
}

static int ask(struct lease *lease, const char *method, const struct ref *ref, const char *id,
               const char *body, struct remote_answer *ret_answer, struct cairn_error *err)
{
    char suffix[sizeof("/leases/") + ID_MAX], path[CLIENT_PATH_MAX];
    struct remote_request request = {
        .method = method,
        .path = path,
        .headers = {"Content-Type: application/json"},
        .idempotent = id != NULL,
        .body = body,
        .body_len = body ? strlen(body) : 0,
    };

    snprintf(suffix, sizeof(suffix), "/leases%s%s", id ? "/" : "", id ? id : "");
    client_disk_path(ref, suffix, path);
    return remote_request(lease->client->remote, &request, ret_answer, err);
}

static int take_id(const struct remote_answer *answer, char id[ID_MAX], struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *json = NULL;
    const char *text;
    int ret =
        json_memory_load(answer->body ? answer->body : "", answer->body_len, 0, &json, NULL, err);

    if (ret != CAIRN_OK)
        return ret;
    text = json_string_value(json_object_get(json, "id"));
    if (!text || !*text || strlen(text) >= ID_MAX ||
        strspn(text, "0123456789abcdef") != strlen(text))
        return error_set(err, CAIRN_E_CORRUPT, "the service's answer has no lease");
    strcpy(id, text);
    return CAIRN_OK;
}

/* Who holds it, and for how long. */
static int make_terms(const struct lease *lease, char **ret_text, struct cairn_error *err)
{
    CLEANUP(json_decref_p) json_t *terms = NULL;

    json_memory_begin();
    terms = json_pack("{s:s, s:I}", "holder", lease->holder, "ttl", (json_int_t)lease->ttl_s);
    return json_memory_dump(terms, JSON_COMPACT, ret_text, err);
}

static int take(struct lease *lease, const struct ref *ref, char id[ID_MAX],
                struct cairn_error *err)
{
    CLEANUP_FREE char *terms = NULL;
    char what[REF_STR_MAX];
    struct remote_answer answer;
    int ret = make_terms(lease, &terms, err);

    if (ret == CAIRN_OK)
        ret = ask(lease, "POST", ref, NULL, terms, &answer, err);
    if (ret != CAIRN_OK)
        return ret;
    if (answer.status == 201)
        ret = take_id(&answer, id, err);
    else
        ret = remote_answer_error(&answer, ref_format(ref, what), err);
    remote_answer_release(&answer);
    return ret;
}

/* CAIRN_E_NOT_FOUND: it has expired. */
static int renew(struct lease *lease, struct cairn_error *err)
{
    struct remote_answer answer;
    int ret = ask(lease, "PUT", &lease->ref, lease->id, NULL, &answer, err);

    if (ret != CAIRN_OK)
        return ret;
    if (answer.status != 200)
        ret = remote_answer_error(&answer, "lease", err);
    remote_answer_release(&answer);
    return ret;
}

/* What is not released ends by itself. */
static void release(struct lease *lease, const struct ref *ref, const char *id)
{
    struct remote_answer answer;

    if (*id && ask(lease, "DELETE", ref, id, NULL, &answer, NULL) == CAIRN_OK)
        remote_answer_release(&answer);
}

/* -- Holding -------------------------------------------------------------------------------- */

__attribute__((format(printf, 2, 3))) static void tell(struct lease *lease, const char *fmt, ...)
{
    char message[1024];
    va_list ap;

    if (!lease->tell)
        return;
    va_start(ap, fmt);
    vsnprintf(message, sizeof(message), fmt, ap);
    va_end(ap);
    lease->tell(lease->tell_ctx, message);
}

/* Told when it begins to fail and when that is over. */
static void note_outcome(struct lease *lease, int code, const struct cairn_error *err)
{
    bool failing = code != CAIRN_OK;

    if (failing != lease->failing && failing)
        tell(lease, "the lease on the disk's chain cannot be renewed, which is tried again: %s",
             err->message);
    else if (failing != lease->failing)
        tell(lease, "the lease on the disk's chain is held again");
    lease->failing = failing;
}

/* With the turn. */
static int hold_locked(struct lease *lease, struct cairn_error *err)
{
    int ret = lease->id[0] ? renew(lease, err) : CAIRN_E_NOT_FOUND;

    if (ret == CAIRN_E_NOT_FOUND) {
        lease->id[0] = 0;
        ret = take(lease, &lease->ref, lease->id, err);
    }
    return ret;
}

static int hold(struct lease *lease)
{
    struct cairn_error err;
    SCOPED_LOCK(&lease->turn);
    int ret = hold_locked(lease, &err);

    if (ret != CAIRN_E_CANCELLED)
        note_outcome(lease, ret, &err);
    return ret;
}

static struct timespec after_ms(unsigned ms)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += (long)(ms % 1000) * 1000000;
    t.tv_sec += (time_t)(ms / 1000) + t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    return t;
}

/* False: it is to end. */
static bool wait_for_ms(struct lease *lease, unsigned ms)
{
    const struct timespec until = after_ms(ms);
    SCOPED_LOCK(&lease->lock);

    while (!lease->ending && !has_passed(&until))
        pthread_cond_timedwait(&lease->changed, &lease->lock, &until);
    return !lease->ending;
}

/* Three times in its life, and twice as often while that fails. */
static void *keep_holding(void *arg)
{
    struct lease *lease = arg;
    unsigned third_ms = lease->ttl_s * 1000 / 3;
    bool failed = lease->failing;

    while (wait_for_ms(lease, failed ? third_ms / 2 : third_ms))
        failed = hold(lease) != CAIRN_OK;
    return NULL;
}

int lease_take_next(struct lease *lease, const struct ref *ref, struct cairn_error *err)
{
    struct cairn_error why;
    SCOPED_LOCK(&lease->turn);
    int ret = take(lease, ref, lease->next_id, &why);

    if (ret == CAIRN_E_UNSUPPORTED || ret == CAIRN_E_DENIED) {
        tell(lease, "no lease on the disk's new chain: %s", why.message);
        ret = CAIRN_OK;
    }
    lease->next_ref = *ref;
    if (ret == CAIRN_OK)
        return CAIRN_OK;
    if (err)
        *err = why;
    return error_prefix(err, ret, "the lease on the new chain");
}

void lease_settle(struct lease *lease, bool moved)
{
    SCOPED_LOCK(&lease->turn);
    struct ref old_ref = lease->ref;
    char old_id[ID_MAX];

    memcpy(old_id, lease->id, sizeof(old_id));
    if (moved) {
        lease->ref = lease->next_ref;
        memcpy(lease->id, lease->next_id, sizeof(lease->id));
        release(lease, &old_ref, old_id);
    } else {
        release(lease, &lease->next_ref, lease->next_id);
    }
    lease->next_id[0] = 0;
}

/* -- Begin and end -------------------------------------------------------------------------- */

static void lease_destroy(struct lease *lease)
{
    pthread_cond_destroy(&lease->changed);
    pthread_mutex_destroy(&lease->lock);
    pthread_mutex_destroy(&lease->turn);
    cairn_client_free(lease->client);
    free(lease->holder);
    free(lease);
}
CLEANUP_DEFINE(struct lease *, lease_destroy)

/* A folder's name may hold any bytes; a service takes text.  malloc'ed; NULL: out of memory. */
static char *holder_text(const char *holder)
{
    char *text = strdup(holder);
    json_t *valid = json_string(holder);

    for (unsigned char *p = (unsigned char *)text; p && *p; p++)
        if (*p < ' ' || *p == 0x7f || (*p >= 0x80 && !valid))
            *p = '?';
    json_decref(valid);
    return text;
}

static int lease_alloc(const struct ref *ref, const struct lease_options *options,
                       struct lease **ret_lease, struct cairn_error *err)
{
    struct lease *lease = calloc(1, sizeof(*lease));
    pthread_condattr_t attr;

    if (!lease)
        return error_no_memory(err, "a lease");
    pthread_mutex_init(&lease->turn, NULL);
    pthread_mutex_init(&lease->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&lease->changed, &attr);
    pthread_condattr_destroy(&attr);
    lease->ref = *ref;
    lease->ttl_s = options->ttl_s ? options->ttl_s : TTL_DEFAULT_S;
    lease->tell = options->tell;
    lease->tell_ctx = options->tell_ctx;
    *ret_lease = lease;
    return CAIRN_OK;
}

int lease_new(const struct cairn_client *client, const struct ref *ref,
              const struct lease_options *options, struct lease **ret_lease,
              struct cairn_error *err)
{
    CLEANUP(lease_destroy_p) struct lease *lease = NULL;
    int ret, error;

    if (options->ttl_s > TTL_MAX_S)
        return error_set(err, CAIRN_E_USAGE, "a lease of %u seconds, expected at most %d",
                         options->ttl_s, TTL_MAX_S);
    ret = lease_alloc(ref, options, &lease, err);
    if (ret != CAIRN_OK)
        return ret;
    lease->holder = holder_text(options->holder);
    if (!lease->holder)
        return error_no_memory(err, "a lease");
    ret = client_new_like(client, on_progress, lease, &lease->client, err);
    if (ret != CAIRN_OK)
        return ret;
    hold(lease);
    error = pthread_create(&lease->thread, NULL, keep_holding, lease);
    if (error != 0) {
        release(lease, &lease->ref, lease->id);
        return error_set_errno(err, error, "cannot start a thread for the lease");
    }
    *ret_lease = steal_ptr(lease);
    return CAIRN_OK;
}

void lease_free(struct lease *lease)
{
    if (!lease)
        return;
    pthread_mutex_lock(&lease->lock);
    lease->ending = true;
    lease->end = after_ms(RELEASE_MS);
    pthread_cond_signal(&lease->changed);
    pthread_mutex_unlock(&lease->lock);
    pthread_join(lease->thread, NULL);
    release(lease, &lease->ref, lease->id);
    lease_destroy(lease);
}
