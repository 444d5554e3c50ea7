/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The servers, the pool of curl handles, and the attempts of one request.
 *
 * A request takes the handle that was used last (its connection is the least likely to have been
 * closed, its memory the most likely to be cached) and keeps it for one attempt.  Handles are easy
 * handles, not a multi handle: measured with 4 KiB ranged GETs over loopback they cost 20 µs of CPU
 * a request against 15 µs for bare sockets, and threads share nothing but the free list's short
 * lock.
 *
 * An attempt that got no answer is repeated if the request may be, on the next server where there
 * are several, with a short pause once all have been tried; a connection that could not even be
 * made leaves no doubt and is always tried again.  All attempts share one deadline.  An attempt of
 * a repeatable request gets half of what is left of it, so that one stalled connection does not use
 * it all up.  As long as no server has ever answered, refused connections are not tried for the
 * whole deadline: that is a wrong address, or a service that is not running, and somebody waits to
 * be told.
 *
 * Proxy settings of the environment are ignored: a guest's disk must not start to depend on a proxy
 * that someone configured for a browser.
 */
#include "remote_conn.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "checked.h"

#define HANDLES_MAX         64
#define SERVERS_MAX         16
#define DEADLINE_MS_DEFAULT 30000u
#define CONNECT_MS_MAX      5000
#define FIRST_CONTACT_MS    1000 /* a service that has never answered may be a wrong address */
#define PAUSE_MS_FIRST      50
#define PAUSE_MS_MAX        1000
/* Standing still: publishing a chain of thousands of layers, or ending a large upload, may keep the
 * service busy for minutes before it says a word. */
#define STALL_S         600L
#define TCP_KEEPALIVE_S 30L
/* A service that was restarted may have another address; names are asked for with new connections
 * only. */
#define NAMES_KNOWN_S  1L
#define RECEIVE_BUFFER (128L << 10)

struct remote {
    struct remote_options given; /* the strings are ours */
    char *servers_text;
    char *servers[SERVERS_MAX]; /* point into servers_text, without trailing slashes */
    unsigned nr_servers;
    atomic_uint current; /* the server that answered last */
    atomic_bool reached; /* has any answered yet? */
    unsigned deadline_ms;
    uint64_t operation; /* of request IDs */
    atomic_uint nr_requests;

    pthread_mutex_t lock; /* of all below */
    pthread_cond_t freed;
    struct remote_auth *auth; /* NULL: none */
    struct conn *free;
    unsigned nr_conns;
};

/* -- Setting up ----------------------------------------------------------------------------- */

static CURLcode curl_ready;

static void curl_init(void)
{
    curl_ready = curl_global_init(CURL_GLOBAL_DEFAULT);
}

/* A URL or token with a control character or space in it would change what is sent. */
static bool printable(const char *text)
{
    for (; *text; text++)
        if (*text <= ' ' || *text > '~')
            return false;
    return true;
}

static int add_server(struct remote *remote, char *url, struct cairn_error *err)
{
    size_t len = strlen(url);

    if (strncmp(url, "http://", 7) != 0 && strncmp(url, "https://", 8) != 0)
        return error_set(err, CAIRN_E_USAGE,
                         "server URL \"%s\" does not start with http:// or https://", url);
    if (!printable(url) || strpbrk(url, "?#") || len >= REMOTE_URL_MAX / 2)
        return error_set(err, CAIRN_E_USAGE,
                         "server URL \"%.200s\" is not of the form http://HOST:PORT", url);
    if (remote->nr_servers == SERVERS_MAX)
        return error_set(err, CAIRN_E_LIMIT, "more than %d server URLs", SERVERS_MAX);
    while (len > 0 && url[len - 1] == '/')
        url[--len] = 0;
    remote->servers[remote->nr_servers++] = url;
    return CAIRN_OK;
}

static int add_servers(struct remote *remote, struct cairn_error *err)
{
    char *save = NULL;
    int ret = CAIRN_OK;

    remote->servers_text = strdup(remote->given.servers ? remote->given.servers : "");
    if (!remote->servers_text)
        return error_no_memory(err, "server URLs");
    for (char *url = strtok_r(remote->servers_text, ", ", &save); url && ret == CAIRN_OK;
         url = strtok_r(NULL, ", ", &save))
        ret = add_server(remote, url, err);
    if (ret == CAIRN_OK && remote->nr_servers == 0)
        ret = error_set(err, CAIRN_E_USAGE, "no server URL given");
    return ret;
}

/* Where each string of the options is. */
static const size_t texts[] = {
    offsetof(struct remote_options, servers),    offsetof(struct remote_options, token),
    offsetof(struct remote_options, token_file), offsetof(struct remote_options, cacert),
    offsetof(struct remote_options, cert),       offsetof(struct remote_options, key),
};
#define NR_TEXTS (sizeof(texts) / sizeof(texts[0]))

static char **text_at(struct remote_options *options, size_t i)
{
    return (char **)(void *)((char *)options + texts[i]);
}

static int keep_options(struct remote *remote, const struct remote_options *options,
                        struct cairn_error *err)
{
    remote->given = *options;
    for (size_t i = 0; i < NR_TEXTS; i++)
        *text_at(&remote->given, i) = NULL;
    for (size_t i = 0; i < NR_TEXTS; i++) {
        const char *text = *(const char *const *)(const void *)((const char *)options + texts[i]);

        if (text && *text && !(*text_at(&remote->given, i) = strdup(text)))
            return error_no_memory(err, "the options of the service");
    }
    return CAIRN_OK;
}

/* curl's own words for a file that is missing are of little help. */
static int check_file(const char *what, const char *path, struct cairn_error *err)
{
    if (!path || access(path, R_OK) == 0)
        return CAIRN_OK;
    return error_set_errno(err, errno, "%s %s", what, path);
}

static int check_tls(const struct remote_options *given, struct cairn_error *err)
{
    int ret = check_file("authorities", given->cacert, err);

    if (ret == CAIRN_OK && given->key && !given->cert)
        ret = error_set(err, CAIRN_E_USAGE, "a key is given without its certificate");
    if (ret == CAIRN_OK)
        ret = check_file("certificate", given->cert, err);
    if (ret == CAIRN_OK)
        ret = check_file("key", given->key, err);
    return ret;
}

static int set_auth(struct remote *remote, struct cairn_error *err)
{
    const struct remote_options *given = &remote->given;
    int ret = CAIRN_OK;

    if (given->token)
        ret = remote_auth_new(given->token, &remote->auth, err);
    else if (given->token_file)
        ret = remote_auth_read(given->token_file, &remote->auth, err);
    for (unsigned i = 0; ret == CAIRN_OK && remote->auth && i < remote->nr_servers; i++)
        if (remote_auth_exposed(remote->servers[i]) && !given->insecure_token)
            ret = error_set(err, CAIRN_E_USAGE,
                            "%.300s: without TLS the token could be read on its way; use https://, "
                            "or allow it (--insecure-token, CAIRN_INSECURE_TOKEN=1)",
                            remote->servers[i]);
    return ret;
}

int remote_new(const struct remote_options *options, struct remote **ret_remote,
               struct cairn_error *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    CLEANUP(remote_free_p) struct remote *remote = calloc(1, sizeof(*remote));
    pthread_condattr_t attr;
    int ret;

    if (!remote)
        return error_no_memory(err, "the connection pool");
    pthread_mutex_init(&remote->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&remote->freed, &attr);
    pthread_condattr_destroy(&attr);
    if (getrandom(&remote->operation, sizeof(remote->operation), 0) < 0)
        remote->operation = (uint64_t)getpid();
    pthread_once(&once, curl_init);
    if (curl_ready != CURLE_OK)
        return error_set(err, CAIRN_E_UNAVAILABLE, "libcurl cannot start: %s",
                         curl_easy_strerror(curl_ready));
    remote->deadline_ms = options->deadline_ms ? options->deadline_ms : DEADLINE_MS_DEFAULT;
    ret = keep_options(remote, options, err);
    if (ret == CAIRN_OK)
        ret = add_servers(remote, err);
    if (ret == CAIRN_OK)
        ret = check_tls(&remote->given, err);
    if (ret == CAIRN_OK)
        ret = set_auth(remote, err);
    if (ret == CAIRN_OK)
        *ret_remote = steal_ptr(remote);
    return ret;
}

int remote_new_like(const struct remote *other, int (*poll)(void *ctx, struct cairn_error *err),
                    void *poll_ctx, struct remote **ret_remote, struct cairn_error *err)
{
    struct remote_options options = other->given;
    int ret;

    options.poll = poll;
    options.poll_ctx = poll_ctx;
    ret = remote_new(&options, ret_remote, err);
    if (ret == CAIRN_OK) {
        atomic_store(&(*ret_remote)->current, atomic_load(&other->current));
        atomic_store(&(*ret_remote)->reached, atomic_load(&other->reached));
    }
    return ret;
}

void remote_free(struct remote *remote)
{
    if (!remote)
        return;
    while (remote->free) {
        struct conn *conn = remote->free;

        remote->free = conn->next;
        curl_easy_cleanup(conn->curl);
        remote_auth_unref(conn->auth);
        free(conn);
    }
    remote_auth_unref(remote->auth);
    for (size_t i = 0; i < NR_TEXTS; i++)
        free(*text_at(&remote->given, i));
    free(remote->servers_text);
    pthread_cond_destroy(&remote->freed);
    pthread_mutex_destroy(&remote->lock);
    free(remote);
}

const char *remote_server(const struct remote *remote)
{
    return remote->servers[0];
}

/* -- The pool ------------------------------------------------------------------------------- */

static uint64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static struct conn *conn_new(struct remote *remote)
{
    struct conn *conn = calloc(1, sizeof(*conn));

    if (!conn)
        return NULL;
    conn->remote = remote;
    conn->id_header.data = conn->id_line;
    conn->curl = curl_easy_init();
    if (!conn->curl) {
        free(conn);
        return NULL;
    }
    return conn;
}

static void conn_put(struct remote *remote, struct conn *conn)
{
    SCOPED_LOCK(&remote->lock);

    conn->next = remote->free;
    remote->free = conn;
    pthread_cond_signal(&remote->freed);
}

/* Wait, until the deadline, for a handle to come back, unless there may be one more. */
static int wait_free_locked(struct remote *remote, uint64_t deadline, struct cairn_error *err)
{
    struct timespec ts = {.tv_sec = (time_t)(deadline / 1000),
                          .tv_nsec = (long)(deadline % 1000) * 1000000};

    while (!remote->free && remote->nr_conns == HANDLES_MAX)
        if (pthread_cond_timedwait(&remote->freed, &remote->lock, &ts) != 0)
            return error_set(err, CAIRN_E_UNAVAILABLE,
                             "all %d connections to %s are busy, none came free in time",
                             HANDLES_MAX, remote_server(remote));
    return CAIRN_OK;
}

static int conn_get(struct remote *remote, uint64_t deadline, struct conn **ret_conn,
                    struct cairn_error *err)
{
    SCOPED_LOCK(&remote->lock);
    struct conn *conn;
    int ret = wait_free_locked(remote, deadline, err);

    if (ret != CAIRN_OK)
        return ret;
    conn = remote->free;
    if (conn) {
        remote->free = conn->next;
    } else {
        conn = conn_new(remote);
        if (!conn)
            return error_no_memory(err, "a connection");
        remote->nr_conns++;
    }
    if (conn->auth != remote->auth) {
        remote_auth_unref(conn->auth);
        conn->auth = remote_auth_ref(remote->auth);
        conn->shape = NULL; /* it sends another header now */
    }
    *ret_conn = conn;
    return CAIRN_OK;
}

/* curl calls it whenever something happens, and once a second. */
static int on_progress(void *arg, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    struct conn *conn = arg;

    (void)a, (void)b, (void)c, (void)d;
    conn->polled = conn->remote->given.poll(conn->remote->given.poll_ctx, &conn->poll_err);
    return conn->polled != CAIRN_OK;
}

/* Authorities that are named are the only ones. */
static void set_tls(CURL *curl, const struct remote_options *given)
{
    curl_easy_setopt(curl, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    if (given->cacert) {
        curl_easy_setopt(curl, CURLOPT_CAINFO, given->cacert);
        curl_easy_setopt(curl, CURLOPT_CAPATH, NULL);
    }
    if (given->cert) {
        curl_easy_setopt(curl, CURLOPT_SSLCERT, given->cert);
        curl_easy_setopt(curl, CURLOPT_SSLKEY, given->key ? given->key : given->cert);
    }
}

void conn_reshape(struct conn *conn, const void *shape)
{
    CURL *curl = conn->curl;

    curl_easy_reset(curl);
    conn->shape = shape;
    conn->url[0] = 0;
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, conn->reason);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(curl, CURLOPT_TCP_NODELAY, 1L);
    curl_easy_setopt(curl, CURLOPT_TCP_KEEPALIVE, 1L);
    curl_easy_setopt(curl, CURLOPT_TCP_KEEPIDLE, TCP_KEEPALIVE_S);
    curl_easy_setopt(curl, CURLOPT_DNS_CACHE_TIMEOUT, NAMES_KNOWN_S);
    curl_easy_setopt(curl, CURLOPT_BUFFERSIZE, RECEIVE_BUFFER);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "cairn/" CAIRN_VERSION);
    set_tls(curl, &conn->remote->given);
    if (conn->remote->given.poll) {
        curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
        curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, on_progress);
        curl_easy_setopt(curl, CURLOPT_XFERINFODATA, conn);
    }
}

/* -- One request ---------------------------------------------------------------------------- */

/* The path of an absolute URL, which must be one of the servers': the token goes nowhere else. */
static int path_on_servers(const struct remote *remote, const char *url, const char **ret_path,
                           struct cairn_error *err)
{
    if (*url == '/') {
        *ret_path = url;
        return CAIRN_OK;
    }
    for (unsigned i = 0; i < remote->nr_servers; i++) {
        size_t len = strlen(remote->servers[i]);

        if (strncmp(url, remote->servers[i], len) == 0 && url[len] == '/') {
            *ret_path = url + len;
            return CAIRN_OK;
        }
    }
    return error_set(err, CAIRN_E_UNSUPPORTED,
                     "the service refers to \"%.200s\", which is not on one of its servers", url);
}

static int set_url(struct conn *conn, const char *server, const char *path, struct cairn_error *err)
{
    char url[REMOTE_URL_MAX];
    size_t server_len = strlen(server);
    size_t path_len = strlen(path);

    if (server_len + path_len >= sizeof(url))
        return error_set(err, CAIRN_E_LIMIT, "URL %s%.100s… is longer than %d bytes", server, path,
                         REMOTE_URL_MAX);
    memcpy(url, server, server_len);
    memcpy(url + server_len, path, path_len + 1);
    if (strcmp(url, conn->url) == 0)
        return CAIRN_OK;
    if (curl_easy_setopt(conn->curl, CURLOPT_URL, url) != CURLE_OK)
        return error_no_memory(err, "a URL");
    memcpy(conn->url, url, server_len + path_len + 1);
    return CAIRN_OK;
}

static void set_times(struct conn *conn, const struct remote_call *call, uint64_t left_ms)
{
    uint64_t attempt_ms = call->idempotent && left_ms > 1000 ? left_ms / 2 : left_ms;

    curl_easy_setopt(conn->curl, CURLOPT_CONNECTTIMEOUT_MS,
                     (long)min_u64(attempt_ms, CONNECT_MS_MAX));
    if (call->long_running) {
        curl_easy_setopt(conn->curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
        curl_easy_setopt(conn->curl, CURLOPT_LOW_SPEED_TIME, STALL_S);
    } else {
        curl_easy_setopt(conn->curl, CURLOPT_TIMEOUT_MS, (long)attempt_ms);
    }
}

/* That a client's certificate is missing or refused shows as a connection that ends. */
static const char *tls_hint(const struct conn *conn, CURLcode code)
{
    if (code == CURLE_PEER_FAILED_VERIFICATION)
        return "; whom to trust is said by --cacert or CAIRN_CACERT";
    if ((code == CURLE_SSL_CONNECT_ERROR || code == CURLE_RECV_ERROR) &&
        strncmp(conn->url, "https://", 8) == 0 && !conn->remote->given.cert)
        return "; does it demand a certificate (--cert, --key)?";
    return "";
}

int conn_error(const struct conn *conn, CURLcode code, const char *method, struct cairn_error *err)
{
    const enum cairn_code kind =
        code == CURLE_PEER_FAILED_VERIFICATION ? CAIRN_E_DENIED : CAIRN_E_UNAVAILABLE;

    return error_set(err, kind, "%s %.300s: %s%s (request %s)", method, conn->url,
                     conn->reason[0] ? conn->reason : curl_easy_strerror(code),
                     tls_hint(conn, code), conn_request_id(conn));
}

/* The service did not take the token: has the file another one by now? */
static bool renew_auth(struct remote *remote, const struct conn *conn)
{
    CLEANUP(remote_auth_unref_p) struct remote_auth *auth = NULL;
    struct remote_auth *old;
    long status = 0;

    curl_easy_getinfo(conn->curl, CURLINFO_RESPONSE_CODE, &status);
    if (status != 401 || !conn->auth || remote->given.token ||
        remote_auth_read(remote->given.token_file, &auth, NULL) != CAIRN_OK ||
        remote_auth_equal(auth, conn->auth))
        return false;
    pthread_mutex_lock(&remote->lock);
    old = remote->auth;
    remote->auth = steal_ptr(auth);
    pthread_mutex_unlock(&remote->lock);
    remote_auth_unref(old);
    return true;
}

/* TLS could not be agreed upon.  That a client's certificate is refused shows, with TLS 1.3, only
 * when the answer is awaited. */
static bool is_tls_failure(const struct conn *conn, CURLcode code)
{
    switch ((int)code) {
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_PEER_FAILED_VERIFICATION:
        return true;
    case CURLE_RECV_ERROR:
        return strncmp(conn->url, "https://", 8) == 0;
    default:
        return false;
    }
}

/* What one attempt came to. */
struct outcome {
    enum attempt attempt;
    int result;       /* of the call, if it is done */
    bool may_repeat;  /* can another attempt do no harm? */
    bool unreachable; /* there was not even a connection */
    bool renewed;     /* it is worth trying with the token that there is now */
};

static void set_request_id(struct conn *conn, unsigned nr)
{
    snprintf(conn->id_line, sizeof(conn->id_line), REMOTE_ID_NAME "%016" PRIx64 "-%x",
             conn->remote->operation, nr);
}

const char *conn_request_id(const struct conn *conn)
{
    return conn->id_line + strlen(REMOTE_ID_NAME);
}

static struct outcome try_server(struct conn *conn, const char *server, const char *path,
                                 const struct remote_call *call, uint64_t left_ms,
                                 struct cairn_error *err)
{
    struct outcome o = {.attempt = ATTEMPT_DONE, .may_repeat = true};
    CURLcode code;

    o.result = call->prepare(call->arg, conn, err);
    if (o.result == CAIRN_OK)
        o.result = set_url(conn, server, path, err);
    if (o.result != CAIRN_OK)
        return o;
    set_times(conn, call, left_ms);
    conn->reason[0] = 0;
    conn->polled = CAIRN_OK;
    code = curl_easy_perform(conn->curl);
    if (conn->polled != CAIRN_OK) {
        o.result = conn->polled;
        *err = conn->poll_err;
        return o;
    }
    o.attempt = call->finish(call->arg, conn, code, &o.result, &o.may_repeat, err);
    o.unreachable = code == CURLE_COULDNT_CONNECT || code == CURLE_COULDNT_RESOLVE_HOST;
    o.may_repeat = o.may_repeat && (call->idempotent || o.unreachable);
    o.unreachable = o.unreachable || is_tls_failure(conn, code);
    o.renewed = code == CURLE_OK && renew_auth(conn->remote, conn);
    return o;
}

static void pause_ms(uint64_t ms)
{
    struct timespec ts = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};

    clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);
}

/* Servers are tried in turn; when all have failed, wait before the next round. */
static void before_next(const struct remote *remote, unsigned attempts, uint64_t deadline)
{
    unsigned rounds = attempts / remote->nr_servers;
    uint64_t pause = min_u64((uint64_t)PAUSE_MS_FIRST << (rounds < 6 ? rounds : 6), PAUSE_MS_MAX);
    uint64_t now = now_ms();

    if (attempts % remote->nr_servers == 0 && now < deadline)
        pause_ms(min_u64(pause, deadline - now));
}

/* Is it time to give up, attempts having failed since started? */
static bool give_up(struct remote *remote, const struct outcome *o, uint64_t started,
                    uint64_t deadline)
{
    uint64_t now = now_ms();

    if (!o->may_repeat || now >= deadline)
        return true;
    return o->unreachable && now >= started + FIRST_CONTACT_MS &&
           !atomic_load_explicit(&remote->reached, memory_order_relaxed);
}

static void note_success(struct remote *remote, unsigned server)
{
    if (atomic_load_explicit(&remote->current, memory_order_relaxed) != server)
        atomic_store_explicit(&remote->current, server, memory_order_relaxed);
    if (!atomic_load_explicit(&remote->reached, memory_order_relaxed))
        atomic_store_explicit(&remote->reached, true, memory_order_relaxed);
}

/* The attempts of a call, with the path found; err is not NULL.  What was refused for its token did
 * nothing, so it may be sent again with another one, whatever it is; once, lest it never ends. */
static int make_attempts(struct remote *remote, const struct remote_call *call, const char *path,
                         struct cairn_error *err)
{
    uint64_t started = now_ms();
    uint64_t deadline = started + remote->deadline_ms;
    unsigned server = atomic_load_explicit(&remote->current, memory_order_relaxed);
    unsigned nr = atomic_fetch_add_explicit(&remote->nr_requests, 1, memory_order_relaxed);
    bool renewed = false;

    for (unsigned attempts = 1;; attempts++) {
        uint64_t now = attempts == 1 ? started : now_ms();
        struct conn *conn = NULL;
        struct outcome o;
        int ret = conn_get(remote, deadline, &conn, err);

        if (ret != CAIRN_OK)
            return ret;
        set_request_id(conn, nr);
        o = try_server(conn, remote->servers[server], path, call,
                       deadline > now ? deadline - now : 1, err);
        conn_put(remote, conn);
        if (o.renewed && !renewed) {
            renewed = true;
            continue;
        }
        if (o.attempt == ATTEMPT_DONE) {
            note_success(remote, server);
            return o.result;
        }
        server = (server + 1) % remote->nr_servers;
        if (give_up(remote, &o, started, deadline))
            return err->code;
        before_next(remote, attempts, deadline);
    }
}

int remote_call(struct remote *remote, const struct remote_call *call, struct cairn_error *err)
{
    struct cairn_error why;
    const char *path = NULL;
    int ret = path_on_servers(remote, call->path, &path, err);

    if (ret != CAIRN_OK)
        return ret;
    ret = make_attempts(remote, call, path, &why);
    if (ret != CAIRN_OK && err)
        *err = why;
    return ret;
}

bool header_is(const char *line, size_t len, const char *name, const char **ret_value,
               size_t *ret_len)
{
    size_t name_len = strlen(name);

    if (len <= name_len || line[name_len] != ':' || strncasecmp(line, name, name_len) != 0)
        return false;
    line += name_len + 1;
    len -= name_len + 1;
    while (len > 0 && (*line == ' ' || *line == '\t')) {
        line++;
        len--;
    }
    while (len > 0 && (line[len - 1] == '\r' || line[len - 1] == '\n' || line[len - 1] == ' '))
        len--;
    *ret_value = line;
    *ret_len = len;
    return true;
}
