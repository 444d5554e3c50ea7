/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parameters of cairnd.  One table (params.c) gives each its name, type, default, limits,
 * unit and line of help; it drives the command line (--name VALUE), the configuration file
 * (name = value), the environment (CAIRN_NAME) and --help.
 */
#ifndef SERVER_PARAMS_H
#define SERVER_PARAMS_H

#include <stdint.h>
#include <stdio.h>

#include "cleanup.h"
#include "error.h"

struct params {
    char *listen;
    char *store;
    char *port_file;                          /* NULL: none */
    char *tls_cert, *tls_key, *tls_client_ca; /* NULL: none */
    char *token_file;                         /* NULL: access control is off */
    char *anonymous_pull;                     /* NULL: none */
    char *metrics_access;                     /* "admin" or "open" */
    char *trusted_proxies;                    /* NULL: none */
    char *log_level;
    uint64_t workers;
    uint64_t http_threads;
    uint64_t max_connections;
    uint64_t max_connections_per_client; /* 0: no limit */
    uint64_t connection_memory;
    uint64_t max_headers;
    uint64_t max_header_size;
    uint64_t header_timeout;   /* seconds; 0: none */
    uint64_t min_rate;         /* bytes a second; 0: none */
    uint64_t min_rate_window;  /* seconds */
    uint64_t request_deadline; /* seconds; 0: none */
    uint64_t body_memory;
    uint64_t connection_timeout; /* seconds */
    uint64_t reply_memory;
    uint64_t drain_time;     /* seconds */
    uint64_t stop_timeout;   /* seconds */
    char *redis;             /* NULL: none */
    char *redis_sentinel;    /* NULL: none */
    uint64_t redis_deadline; /* milliseconds */
    uint64_t redis_expiry;   /* seconds */
    uint64_t meta_cache;
    uint64_t cluster_cache;
    uint64_t max_depth;
    uint64_t max_virtual_size;
    uint64_t max_manifest;
    uint64_t max_upload;
    uint64_t gc_interval; /* seconds; 0: never */
    uint64_t gc_grace;    /* seconds */
    uint64_t gc_memory;
    uint64_t scrub_rate;     /* bytes per second; 0: no limit */
    uint64_t scrub_interval; /* seconds; 0: never by itself */
    char *quota;             /* NULL: none */
    uint64_t max_uploads;
    uint64_t max_unfinished;
    uint64_t upload_age; /* seconds */
};

enum params_action {
    PARAMS_RUN,
    PARAMS_HELP,    /* --help: print params_help and exit */
    PARAMS_VERSION, /* --version */
    PARAMS_ROUTES,  /* --routes: print what each request needs (access.h) and exit */
};

/*
 * Gather the parameters: defaults, then the file that --config names, then the environment
 * (environ-style; NULL: none), then the command line; what comes later counts.  On failure *p is
 * released.  CAIRN_E_USAGE names where a value was found, the value, and what was expected.
 */
int params_load(int argc, char **argv, char **env, struct params *ret_params,
                enum params_action *ret_action, struct cairn_error *err);
void params_release(struct params *p);

/* One paragraph per parameter. */
void params_help(FILE *out);

#endif
