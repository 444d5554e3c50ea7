/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a request proves itself with: a token, given or read from a file that may change while a
 * disk is attached.  The header made of it is immutable and shared by the requests that send it.
 */
#ifndef CLIENT_REMOTE_AUTH_H
#define CLIENT_REMOTE_AUTH_H

#include <curl/curl.h>
#include <stdbool.h>

#include "cleanup.h"
#include "error.h"

struct remote_auth;

/* CAIRN_E_USAGE if the token holds what a header cannot. */
int remote_auth_new(const char *token, struct remote_auth **ret_auth, struct cairn_error *err);
/* The same for a file that holds a token, and white space around it. */
int remote_auth_read(const char *path, struct remote_auth **ret_auth, struct cairn_error *err);
struct remote_auth *remote_auth_ref(struct remote_auth *auth); /* NULL is allowed */
void remote_auth_unref(struct remote_auth *auth);              /* NULL is allowed */
CLEANUP_DEFINE(struct remote_auth *, remote_auth_unref)

bool remote_auth_equal(const struct remote_auth *a, const struct remote_auth *b);

/* "Authorization: Bearer …", and the same as a list of headers; NULL without auth.  Borrowed. */
const char *remote_auth_line(const struct remote_auth *auth);
struct curl_slist *remote_auth_list(const struct remote_auth *auth);

/* Would a token sent to this URL travel in the clear, and leave this host? */
bool remote_auth_exposed(const char *url);

#endif
