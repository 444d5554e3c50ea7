/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libmicrohttpd takes certificates once, at its start, asks clients for one without insisting, and
 * leaves its check to the application.  So each connection is told anew, before its handshake: the
 * credentials in force, and that a client's certificate is demanded and verified in the handshake.
 *
 * Credentials that were replaced are kept until the end: a handshake may be using them, and GnuTLS
 * does not count.  Files that are the same as before replace nothing, so what is kept grows with
 * new certificates, by some KiB each, and not with signals.
 */
#include "http_tls.h"

#include <errno.h>
#include <fcntl.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "log.h"
#include "metrics.h"

#define FILE_BYTES_MAX (1u << 20)
#define PRIORITIES     "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"

/* One file, as it was read; zero-terminated, for libmicrohttpd. */
struct pem {
    char *text;
    size_t len;
};

/* What was read at one time. */
struct generation {
    struct generation *older;
    struct pem cert, key, client_ca; /* client_ca.text is NULL if there is none */
    gnutls_certificate_credentials_t credentials;
    int64_t expires; /* the certificate's notAfter */
};

struct http_tls {
    char *cert, *key, *client_ca; /* names of files; client_ca may be NULL */
    pthread_mutex_t reloading;    /* one at a time */
    _Atomic(struct generation *) current;
    atomic_ullong connections, handshakes, clients_refused, reloaded, reloads_failed;
};

/* -- Files ---------------------------------------------------------------------------------- */

static int read_all(int fd, struct pem *pem)
{
    ssize_t n = 1;

    while (n > 0 || (n < 0 && errno == EINTR)) {
        n = read(fd, pem->text + pem->len, FILE_BYTES_MAX - pem->len);
        if (n > 0)
            pem->len += (size_t)n;
    }
    return n < 0 ? errno : 0;
}

static int read_pem(const char *what, const char *path, struct pem *pem, struct cairn_error *err)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    int failed;

    if (fd < 0 || fstat(fd, &st) != 0)
        return error_set_errno(err, errno, "%s %s", what, path);
    if (!S_ISREG(st.st_mode))
        return error_set(err, CAIRN_E_USAGE, "%s %s is not a regular file", what, path);
    pem->text = calloc(1, FILE_BYTES_MAX + 1);
    if (!pem->text)
        return error_no_memory(err, what);
    failed = read_all(fd, pem);
    if (failed)
        return error_set_errno(err, failed, "%s %s", what, path);
    if (pem->len == FILE_BYTES_MAX)
        return error_set(err, CAIRN_E_USAGE, "%s %s: expected less than %u bytes", what, path,
                         FILE_BYTES_MAX);
    return CAIRN_OK;
}

static bool pem_equal(const struct pem *a, const struct pem *b)
{
    return a->len == b->len && (a->len == 0 || memcmp(a->text, b->text, a->len) == 0);
}

static void pem_release(struct pem *pem)
{
    if (pem->text)
        explicit_bzero(pem->text, pem->len);
    free(pem->text);
}

static gnutls_datum_t datum_of(const struct pem *pem)
{
    return (gnutls_datum_t){.data = (unsigned char *)pem->text, .size = (unsigned)pem->len};
}

/* -- Generations ---------------------------------------------------------------------------- */

static void generation_free(struct generation *g)
{
    if (g->credentials)
        gnutls_certificate_free_credentials(g->credentials);
    pem_release(&g->cert);
    pem_release(&g->key);
    pem_release(&g->client_ca);
    free(g);
}
CLEANUP_DEFINE(struct generation *, generation_free)

static int read_files(const struct http_tls *tls, struct generation *g, struct cairn_error *err)
{
    int r = read_pem("tls-cert", tls->cert, &g->cert, err);

    if (!r)
        r = read_pem("tls-key", tls->key, &g->key, err);
    if (!r && tls->client_ca)
        r = read_pem("tls-client-ca", tls->client_ca, &g->client_ca, err);
    return r;
}

/* The time at which the certificate, the first in its file, ends; one that has ended, or not begun,
 * is worth a word, but serves whoever does not look. */
static void note_validity(const struct http_tls *tls, struct generation *g)
{
    gnutls_datum_t datum = datum_of(&g->cert);
    gnutls_x509_crt_t crt;

    if (gnutls_x509_crt_init(&crt) < 0)
        return;
    if (gnutls_x509_crt_import(crt, &datum, GNUTLS_X509_FMT_PEM) >= 0) {
        g->expires = gnutls_x509_crt_get_expiration_time(crt);
        if (g->expires < time(NULL))
            log_event(LOG_LEVEL_WARN, "tls", "%s: the certificate has expired", tls->cert);
        else if (gnutls_x509_crt_get_activation_time(crt) > time(NULL))
            log_event(LOG_LEVEL_WARN, "tls", "%s: the certificate is not valid yet", tls->cert);
    }
    gnutls_x509_crt_deinit(crt);
}

static int make_credentials(const struct http_tls *tls, struct generation *g,
                            struct cairn_error *err)
{
    const gnutls_datum_t cert = datum_of(&g->cert), key = datum_of(&g->key);
    const gnutls_datum_t client_ca = datum_of(&g->client_ca);
    int r = gnutls_certificate_allocate_credentials(&g->credentials);

    if (r < 0)
        return error_no_memory(err, "TLS");
    r = gnutls_certificate_set_x509_key_mem2(g->credentials, &cert, &key, GNUTLS_X509_FMT_PEM, NULL,
                                             0);
    if (r < 0)
        return error_set(err, CAIRN_E_USAGE,
                         "tls-cert %s with tls-key %s: %s; expected a certificate in PEM and its "
                         "key",
                         tls->cert, tls->key, gnutls_strerror(r));
    if (!tls->client_ca)
        return CAIRN_OK;
    r = gnutls_certificate_set_x509_trust_mem(g->credentials, &client_ca, GNUTLS_X509_FMT_PEM);
    if (r <= 0)
        return error_set(err, CAIRN_E_USAGE, "tls-client-ca %s: %s; expected certificates in PEM",
                         tls->client_ca, r ? gnutls_strerror(r) : "it has none");
    return CAIRN_OK;
}

static int generation_new(const struct http_tls *tls, struct generation **ret_generation,
                          struct cairn_error *err)
{
    CLEANUP(generation_free_p) struct generation *g = calloc(1, sizeof(*g));
    int r = g ? read_files(tls, g, err) : error_no_memory(err, "TLS");

    if (!r)
        r = make_credentials(tls, g, err);
    if (r)
        return r;
    note_validity(tls, g);
    *ret_generation = steal_ptr(g);
    return CAIRN_OK;
}

static bool generation_equal(const struct generation *a, const struct generation *b)
{
    return pem_equal(&a->cert, &b->cert) && pem_equal(&a->key, &b->key) &&
           pem_equal(&a->client_ca, &b->client_ca);
}

/* -- Life ----------------------------------------------------------------------------------- */

int http_tls_new(const struct http_tls_options *options, struct http_tls **ret_tls,
                 struct cairn_error *err)
{
    CLEANUP(http_tls_free_p) struct http_tls *tls = calloc(1, sizeof(*tls));
    struct generation *g;
    int r;

    if (!tls)
        return error_no_memory(err, "TLS");
    pthread_mutex_init(&tls->reloading, NULL);
    tls->cert = strdup(options->cert);
    tls->key = strdup(options->key);
    tls->client_ca = options->client_ca ? strdup(options->client_ca) : NULL;
    if (!tls->cert || !tls->key || (options->client_ca && !tls->client_ca))
        return error_no_memory(err, "TLS");
    r = generation_new(tls, &g, err);
    if (r)
        return r;
    atomic_store(&tls->current, g);
    *ret_tls = steal_ptr(tls);
    return CAIRN_OK;
}

void http_tls_free(struct http_tls *tls)
{
    struct generation *older;

    if (!tls)
        return;
    for (struct generation *g = atomic_load(&tls->current); g; g = older) {
        older = g->older;
        generation_free(g);
    }
    pthread_mutex_destroy(&tls->reloading);
    free(tls->cert);
    free(tls->key);
    free(tls->client_ca);
    free(tls);
}

static int reload_locked(struct http_tls *tls, bool *ret_changed, struct cairn_error *err)
{
    CLEANUP(generation_free_p) struct generation *g = NULL;
    int r = generation_new(tls, &g, err);

    if (r)
        return r;
    *ret_changed = !generation_equal(g, atomic_load(&tls->current));
    if (*ret_changed) {
        g->older = atomic_load(&tls->current);
        atomic_store(&tls->current, steal_ptr(g));
    }
    return CAIRN_OK;
}

int http_tls_reload(struct http_tls *tls, bool *ret_changed, struct cairn_error *err)
{
    SCOPED_LOCK(&tls->reloading);
    int r = reload_locked(tls, ret_changed, err);

    atomic_fetch_add(r ? &tls->reloads_failed : &tls->reloaded, 1);
    return r;
}

/* -- Connections ---------------------------------------------------------------------------- */

void http_tls_daemon_options(struct http_tls *tls,
                             struct MHD_OptionItem items[HTTP_TLS_OPTIONS_MAX])
{
    static char priorities[] = PRIORITIES;
    struct generation *g = atomic_load(&tls->current);

    items[0] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_CERT, 0, g->cert.text};
    items[1] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_KEY, 0, g->key.text};
    items[2] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_PRIORITIES, 0, priorities};
    items[3] = (struct MHD_OptionItem){MHD_OPTION_END, 0, NULL};
}

static gnutls_session_t session_of(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_GNUTLS_SESSION);

    return info ? info->tls_session : NULL;
}

/* Nobody gets in by a door that could not be guarded. */
static void cut(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);

    if (info)
        shutdown(info->connect_fd, SHUT_RDWR);
    log_event(LOG_LEVEL_ERROR, "tls", "a connection was cut: its credentials cannot be set");
}

/* The client's last word of a handshake was right. */
static int on_finished(gnutls_session_t session, unsigned type, unsigned when, unsigned incoming,
                       const gnutls_datum_t *message)
{
    struct http_tls *tls = gnutls_session_get_ptr(session);

    (void)type, (void)when, (void)message;
    if (incoming)
        atomic_fetch_add_explicit(&tls->handshakes, 1, memory_order_relaxed);
    return 0;
}

/* status 0: it has none. */
static void log_refusal(unsigned status)
{
    gnutls_datum_t why = {0};

    if (status)
        gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &why, 0);
    log_event(LOG_LEVEL_INFO, "tls-client-refused", "%s",
              why.data ? (const char *)why.data : "it showed no certificate");
    gnutls_free(why.data);
}

/* A certificate that says what it is for must be a client's. */
static int verify_client(gnutls_session_t session)
{
    static unsigned char purpose[] = GNUTLS_KP_TLS_WWW_CLIENT;
    gnutls_typed_vdata_st wanted = {.type = GNUTLS_DT_KEY_PURPOSE_OID, .data = purpose};
    struct http_tls *tls = gnutls_session_get_ptr(session);
    unsigned status = 0;

    if (gnutls_certificate_verify_peers(session, &wanted, 1, &status) == GNUTLS_E_SUCCESS &&
        status == 0)
        return 0;
    atomic_fetch_add_explicit(&tls->clients_refused, 1, memory_order_relaxed);
    log_refusal(status);
    return GNUTLS_E_CERTIFICATE_ERROR;
}

/* libmicrohttpd has put itself into the session's pointer, which it would use for pre-shared keys
 * only. */
void http_tls_begin(struct http_tls *tls, struct MHD_Connection *connection)
{
    gnutls_session_t session = session_of(connection);
    struct generation *g = atomic_load(&tls->current);

    atomic_fetch_add_explicit(&tls->connections, 1, memory_order_relaxed);
    if (!session || gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, g->credentials) < 0) {
        cut(connection);
        return;
    }
    gnutls_session_set_ptr(session, tls);
    gnutls_handshake_set_hook_function(session, GNUTLS_HANDSHAKE_FINISHED, GNUTLS_HOOK_POST,
                                       on_finished);
    if (tls->client_ca) {
        gnutls_certificate_server_set_request(session, GNUTLS_CERT_REQUIRE);
        gnutls_session_set_verify_function(session, verify_client);
    }
}

/* -- Figures -------------------------------------------------------------------------------- */

void http_tls_write_metrics(void *ctx, struct metrics *m)
{
    struct http_tls *tls = ctx;
    const struct generation *g = atomic_load(&tls->current);

    metrics_family(m, "cairn_tls_connections_total", "counter", "Connections that began TLS.");
    metrics_value(m, NULL, atomic_load(&tls->connections));
    metrics_family(m, "cairn_tls_handshakes_total", "counter",
                   "Those whose handshake was completed.");
    metrics_value(m, NULL, atomic_load(&tls->handshakes));
    metrics_family(m, "cairn_tls_client_certificates_refused_total", "counter",
                   "Certificates of clients that were not valid, or of an unknown authority.");
    metrics_value(m, NULL, atomic_load(&tls->clients_refused));
    metrics_family(m, "cairn_tls_reloads_total", "counter",
                   "Times the certificates were read again.");
    metrics_value(m, "result=\"ok\"", atomic_load(&tls->reloaded));
    metrics_value(m, "result=\"failed\"", atomic_load(&tls->reloads_failed));
    metrics_family(m, "cairn_tls_certificate_expiry_timestamp_seconds", "gauge",
                   "When the server's certificate ends.");
    metrics_value(m, NULL, g->expires > 0 ? (uint64_t)g->expires : 0);
}
