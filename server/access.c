/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Admitting requests.  The list of tokens in force is replaced as a whole; a request keeps the one
 * that admitted it, by its token, which is its caller.  Tokens are not logged, nor kept: what was
 * decoded is wiped.
 *
 * Who has no token is the anonymous caller, a token without a name whose grants are what the
 * parameter says, so that there is one way to decide; those who have one may do that, too.
 */
#include "access.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "credentials.h"
#include "log.h"
#include "metrics.h"
#include "quote.h"
#include "tokens.h"

/* Why a request was refused. */
enum refusal {
    NO_TOKEN,
    UNKNOWN_TOKEN,
    MALFORMED,
    NOT_GRANTED,
    NR_REFUSALS,
};

struct access {
    char *token_file; /* NULL: off */
    bool open_metrics;
    struct token anonymous;
    pthread_mutex_t lock;  /* protects tokens */
    struct tokens *tokens; /* NULL: off */
    atomic_ullong refused[NR_REFUSALS];
    atomic_ullong reloaded, reloads_failed;
};

/* -- Life ----------------------------------------------------------------------------------- */

static struct tokens *current_tokens(struct access *access)
{
    SCOPED_LOCK(&access->lock);

    return access->tokens ? tokens_ref(access->tokens) : NULL;
}

static int load(struct access *access, struct cairn_error *err)
{
    struct tokens *tokens, *old;
    bool exposed;
    int r = tokens_load(access->token_file, &tokens, &exposed, err);

    if (r)
        return r;
    tokens_add_everybody(tokens, &access->anonymous);
    if (exposed)
        log_event(LOG_LEVEL_WARN, "token-file", "%s: everybody may read it, expected mode 0640",
                  access->token_file);
    pthread_mutex_lock(&access->lock);
    old = access->tokens;
    access->tokens = tokens;
    pthread_mutex_unlock(&access->lock);
    tokens_unref(old);
    return CAIRN_OK;
}

int access_reload(struct access *access, unsigned *ret_nr, struct cairn_error *err)
{
    int r = load(access, err);

    atomic_fetch_add(r ? &access->reloads_failed : &access->reloaded, 1);
    if (!r)
        *ret_nr = tokens_count(access->tokens); /* which nobody else replaces */
    return r;
}

static int set_anonymous(struct access *access, const char *patterns, struct cairn_error *err)
{
    CLEANUP_FREE char *copy = strdup(patterns);
    struct token *anonymous = &access->anonymous;
    size_t room = 1;
    char *save = NULL;

    for (const char *p = patterns; *p; p++)
        room += *p == ',';
    anonymous->grants = calloc(room, sizeof(*anonymous->grants));
    if (!copy || !anonymous->grants)
        return error_no_memory(err, "access control");
    for (char *word = strtok_r(copy, ",", &save); word; word = strtok_r(NULL, ",", &save)) {
        struct grant *grant = &anonymous->grants[anonymous->nr_grants++];
        char quoted[QUOTE_MAX];

        if (strlen(word) >= sizeof(grant->pattern) || !repo_pattern_valid(word, strlen(word)))
            return error_set(err, CAIRN_E_USAGE,
                             "anonymous-pull: %s is not a pattern of repository names",
                             quote_str(word, quoted));
        grant->actions = GRANT_PULL;
        snprintf(grant->pattern, sizeof(grant->pattern), "%s", word);
    }
    return CAIRN_OK;
}

static int turn_on(struct access *access, const struct access_options *options,
                   struct cairn_error *err)
{
    int r = CAIRN_OK;

    access->token_file = strdup(options->token_file);
    if (!access->token_file)
        return error_no_memory(err, "access control");
    if (options->anonymous_pull)
        r = set_anonymous(access, options->anonymous_pull, err);
    return r ? r : load(access, err);
}

int access_new(const struct access_options *options, struct access **ret_access,
               struct cairn_error *err)
{
    CLEANUP(access_free_p) struct access *access = calloc(1, sizeof(*access));
    int r = CAIRN_OK;

    if (!access)
        return error_no_memory(err, "access control");
    pthread_mutex_init(&access->lock, NULL);
    access->open_metrics = options->open_metrics;
    if (options->token_file)
        r = turn_on(access, options, err);
    if (!r)
        *ret_access = steal_ptr(access);
    return r;
}

bool access_is_on(const struct access *access)
{
    return access->token_file;
}

void access_free(struct access *access)
{
    if (!access)
        return;
    tokens_unref(access->tokens);
    free(access->anonymous.grants);
    free(access->token_file);
    pthread_mutex_destroy(&access->lock);
    free(access);
}

/* -- Refusing ------------------------------------------------------------------------------- */

static void count(struct access *access, enum refusal why)
{
    atomic_fetch_add_explicit(&access->refused[why], 1, memory_order_relaxed);
}

/* Basic alone is offered: OCI clients take a Bearer challenge for an invitation to a token service,
 * which there is none of. */
static void reply_unauthorized(struct http_reply *reply, const char *message)
{
    http_reply_error(reply, 401, "UNAUTHORIZED", "%s", message);
    http_reply_header(reply, "WWW-Authenticate", "Basic realm=\"cairn\", charset=\"UTF-8\"");
    http_reply_header(reply, "Docker-Distribution-API-Version", "registry/2.0");
}

static void refuse_caller(const struct token *caller, struct http_reply *reply,
                          enum grant_action action, const char *repo)
{
    if (!caller->name[0])
        reply_unauthorized(reply, "a token is needed, as Bearer or as the password of Basic");
    else if (repo && repo[0])
        http_reply_error(reply, 403, "DENIED", "token %s is not granted %s of repository %s",
                         caller->name, grant_action_name(action), repo);
    else
        http_reply_error(reply, 403, "DENIED", "token %s is not granted %s", caller->name,
                         grant_action_name(action));
}

void access_refuse(const struct http_request *req, struct http_reply *reply,
                   enum grant_action action, const char *repo)
{
    refuse_caller(http_caller(req), reply, action, repo);
}

bool access_allows(const struct http_request *req, enum grant_action action, const char *repo)
{
    const struct token *caller = http_caller(req);

    return !caller || token_allows(caller, action, repo);
}

/* -- Admitting ------------------------------------------------------------------------------ */

static void release_caller(const void *caller)
{
    tokens_unref(((const struct token *)caller)->list);
}

/* Who sent the request; false: it was refused. */
static bool identify(struct access *access, const struct http_request *req,
                     struct http_reply *reply, const struct token **ret_caller)
{
    CLEANUP(tokens_unref_p) struct tokens *tokens = NULL;
    char buf[CREDENTIALS_MAX];
    const char *secret = NULL;
    size_t len = 0;
    enum credentials kind =
        credentials_parse(http_header(req, "Authorization"), buf, &secret, &len);

    *ret_caller = &access->anonymous;
    if (kind == CREDENTIALS_TOKEN) {
        tokens = current_tokens(access);
        *ret_caller = tokens_find(tokens, secret, len);
    }
    if (kind != CREDENTIALS_NONE)
        explicit_bzero(buf, sizeof(buf));
    if (kind == CREDENTIALS_MALFORMED || !*ret_caller) {
        count(access, kind == CREDENTIALS_MALFORMED ? MALFORMED : UNKNOWN_TOKEN);
        reply_unauthorized(reply, kind == CREDENTIALS_MALFORMED
                                      ? "Authorization is neither Bearer nor Basic with a token"
                                      : "the token is not known");
        return false;
    }
    steal_ptr(tokens); /* kept by the caller */
    return true;
}

static enum grant_action action_of(enum access_need need)
{
    switch (need) {
    case ACCESS_PUSH:
        return GRANT_PUSH;
    case ACCESS_DELETE:
        return GRANT_DELETE;
    case ACCESS_METRICS:
    case ACCESS_ADMIN:
        return GRANT_ADMIN;
    case ACCESS_OPEN:
    case ACCESS_TOKEN:
    case ACCESS_LISTS:
    case ACCESS_PULL:
        break;
    }
    return GRANT_PULL;
}

/* What a request wants. */
struct want {
    const struct access_route *route; /* NULL: the table has no row */
    unsigned methods;                 /* of the rows of its path */
    char repo[ACCESS_REPO_MAX];       /* may be empty */
};

static bool is_open(const struct access *access, const struct want *want)
{
    return want->route && (want->route->need == ACCESS_OPEN ||
                           (want->route->need == ACCESS_METRICS && access->open_metrics));
}

static bool is_allowed(const struct token *caller, const struct want *want)
{
    if (!want->route)
        return false;
    if (want->route->need == ACCESS_TOKEN)
        return caller->name[0];
    return token_allows(caller, action_of(want->route->need), want->repo[0] ? want->repo : NULL);
}

/* To anonymous callers what has no row is refused in the same words as everything else. */
static void refuse(const struct token *caller, const struct want *want, struct http_reply *reply)
{
    if (want->route)
        refuse_caller(caller, reply, action_of(want->route->need), want->repo);
    else if (!caller->name[0])
        refuse_caller(caller, reply, GRANT_PULL, NULL);
    else if (want->methods)
        http_reply_methods(reply, want->methods);
    else
        http_reply_error(reply, 404, "NOT_FOUND", "there is nothing at this path");
}

bool access_admit(void *ctx, struct http_request *req, struct http_reply *reply)
{
    struct access *access = ctx;
    const struct token *caller;
    struct want want;

    want.route = access_find_route(http_method(req), http_path(req), &want.methods, want.repo);
    if (is_open(access, &want))
        return true;
    if (!identify(access, req, reply, &caller))
        return false;
    http_set_caller(req, caller, release_caller);
    if (caller->name[0])
        http_set_user(req, caller->name);
    if (is_allowed(caller, &want))
        return true;
    count(access, caller->name[0] ? NOT_GRANTED : NO_TOKEN);
    refuse(caller, &want, reply);
    return false;
}

/* -- Figures -------------------------------------------------------------------------------- */

void access_write_metrics(void *ctx, struct metrics *m)
{
    static const char *const reasons[NR_REFUSALS] = {
        [NO_TOKEN] = "reason=\"no_token\"",
        [UNKNOWN_TOKEN] = "reason=\"unknown_token\"",
        [MALFORMED] = "reason=\"malformed\"",
        [NOT_GRANTED] = "reason=\"not_granted\"",
    };
    struct access *access = ctx;
    CLEANUP(tokens_unref_p) struct tokens *tokens = current_tokens(access);

    metrics_family(m, "cairn_auth_failures_total", "counter",
                   "Requests refused for want of a token or a grant.");
    for (unsigned i = 0; i < NR_REFUSALS; i++)
        metrics_value(m, reasons[i], atomic_load(&access->refused[i]));
    metrics_family(m, "cairn_auth_tokens", "gauge", "Tokens in force.");
    metrics_value(m, NULL, tokens ? tokens_count(tokens) : 0);
    metrics_family(m, "cairn_auth_reloads_total", "counter",
                   "Times the token file was read again.");
    metrics_value(m, "result=\"ok\"", atomic_load(&access->reloaded));
    metrics_value(m, "result=\"failed\"", atomic_load(&access->reloads_failed));
}
