/* SPDX-License-Identifier: Apache-2.0 */
/* What guards the server, as the parameters say: TLS and access control, and reading their files
 * again; and whose word is taken for who a client is. */
#ifndef SERVER_SECURITY_H
#define SERVER_SECURITY_H

#include "access.h"
#include "http_tls.h"
#include "params.h"
#include "proxies.h"

struct security {
    struct http_tls *tls;    /* NULL: plain HTTP */
    struct access *access;   /* without a token file it admits everybody */
    struct proxies *proxies; /* NULL: none is trusted */
};

/* Routes are all that the server has. */
int security_open(const struct params *p, const struct http_route *routes, size_t nr_routes,
                  struct security *ret_security, struct cairn_error *err);
void security_close(struct security *security);

/* On SIGHUP: what cannot be read stays as it was, and that is logged. */
void security_reload(struct security *security);

/* Warn of tokens that travel in the clear. */
void security_note_address(const struct security *security, const char *address);

void security_write_metrics(void *security, struct metrics *m);

#endif
