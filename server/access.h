/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may do what.  A request names a token (Bearer, or the password of Basic), a table
 * (access_routes.c) says which action on which repository it is, and the token's grants decide,
 * before a handler or the store is asked.  So an answer says nothing about what is not the
 * caller's: of a repository that he may not see nobody looks whether it exists.
 *
 * Without a token file everything is allowed.
 */
#ifndef SERVER_ACCESS_H
#define SERVER_ACCESS_H

#include <stdio.h>

#include "cleanup.h"
#include "grant.h"
#include "http.h"

struct access;
struct metrics;

struct access_options {
    const char *token_file;     /* NULL: access control is off */
    const char *anonymous_pull; /* patterns of repositories, with commas; NULL: none */
    bool open_metrics;          /* /metrics without a token */
};

int access_new(const struct access_options *options, struct access **ret_access,
               struct cairn_error *err);
void access_free(struct access *access); /* no request is left; NULL is allowed */
CLEANUP_DEFINE(struct access *, access_free)

bool access_is_on(const struct access *access);

/* Read the token file again.  What was in force stays so if that fails, and for requests that are
 * under way.  *ret_nr: how many tokens there are. */
int access_reload(struct access *access, unsigned *ret_nr, struct cairn_error *err);

/* For http_admission, when access control is on; access is a struct access.  Never waits. */
bool access_admit(void *access, struct http_request *req, struct http_reply *reply);

/* May whoever sent an admitted request do this, too?  repo as in grant_allows. */
bool access_allows(const struct http_request *req, enum grant_action action, const char *repo);
/* The reply if he may not: 401, or 403 for who showed a token. */
void access_refuse(const struct http_request *req, struct http_reply *reply,
                   enum grant_action action, const char *repo);

/* For /metrics. */
void access_write_metrics(void *access, struct metrics *m);

/* -- The table (access_routes.c) -------------------------------------------------------------- */

enum access_need {
    ACCESS_OPEN,    /* nothing at all */
    ACCESS_METRICS, /* admin, unless a parameter opens it */
    ACCESS_TOKEN,   /* any token */
    ACCESS_LISTS,   /* pull, of some repository: the handler leaves out what is not the caller's */
    ACCESS_PULL,
    ACCESS_PUSH,
    ACCESS_DELETE,
    ACCESS_ADMIN,
};

struct access_route {
    unsigned methods; /* or-ed */
    const char *path; /* `<repo>` and `<ref>` have slashes in them, `<name>` is one component */
    enum access_need need;
};

/*
 * The row for a request.  *ret_methods: what the path's rows have; 0: it has none.  repo gets the
 * repository's name, which is valid, or is empty.
 */
#define ACCESS_REPO_MAX 256
const struct access_route *access_find_route(enum http_method method, const char *path,
                                             unsigned *ret_methods, char repo[ACCESS_REPO_MAX]);

/* Is there a row for all that these routes serve?  CAIRN_E_UNSUPPORTED names one without. */
int access_check_routes(const struct http_route *routes, size_t nr_routes, struct cairn_error *err);

/* A line for each row: METHOD PATH NEED. */
void access_print_routes(FILE *out);

#endif
