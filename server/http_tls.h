/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS of the HTTP server: TLS 1.2 and later, by GnuTLS, as libmicrohttpd has it.
 *
 * Certificate, key and the authority of clients are files that can be read again while the server
 * runs: each connection is given what is in force when it begins.  With an authority, a client
 * without a certificate of it, or with one that is not valid now, does not get through the
 * handshake.
 */
#ifndef SERVER_HTTP_TLS_H
#define SERVER_HTTP_TLS_H

#include <microhttpd.h>
#include <stdbool.h>

#include "cleanup.h"
#include "error.h"

struct http_tls;
struct metrics;

struct http_tls_options {
    const char *cert;      /* PEM: the certificate, with those between it and its authority */
    const char *key;       /* PEM */
    const char *client_ca; /* PEM; NULL: clients need no certificate */
};

/* Read and check the files; CAIRN_E_USAGE names one that is no good. */
int http_tls_new(const struct http_tls_options *options, struct http_tls **ret_tls,
                 struct cairn_error *err);
void http_tls_free(struct http_tls *tls); /* after its daemons; NULL is allowed */
CLEANUP_DEFINE(struct http_tls *, http_tls_free)

/* Read the files again.  What was in force stays so if that fails, and for connections that are
 * there.  *ret_changed: they differ. */
int http_tls_reload(struct http_tls *tls, bool *ret_changed, struct cairn_error *err);

/* What libmicrohttpd's daemon wants, at its start: an array that ends with MHD_OPTION_END. */
#define HTTP_TLS_OPTIONS_MAX 4
void http_tls_daemon_options(struct http_tls *tls,
                             struct MHD_OptionItem items[HTTP_TLS_OPTIONS_MAX]);

/* When a connection begins, before its handshake. */
void http_tls_begin(struct http_tls *tls, struct MHD_Connection *connection);

/* For /metrics. */
void http_tls_write_metrics(void *tls, struct metrics *m);

#endif
