/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From parameters to TLS and access control.  A server that cannot have what it was told to guard
 * itself with does not start; one that runs goes on with what it has.
 */
#include "security.h"

#include <string.h>

#include "log.h"
#include "metrics.h"

static int open_tls(const struct params *p, struct http_tls **ret_tls, struct cairn_error *err)
{
    const struct http_tls_options options = {
        .cert = p->tls_cert,
        .key = p->tls_key,
        .client_ca = p->tls_client_ca,
    };

    if (!p->tls_cert != !p->tls_key)
        return error_set(err, CAIRN_E_USAGE, "tls-cert and tls-key: give both or none");
    if (p->tls_client_ca && !p->tls_cert)
        return error_set(err, CAIRN_E_USAGE, "tls-client-ca needs tls-cert and tls-key");
    return p->tls_cert ? http_tls_new(&options, ret_tls, err) : CAIRN_OK;
}

static int open_access(const struct params *p, struct access **ret_access, struct cairn_error *err)
{
    const struct access_options options = {
        .token_file = p->token_file,
        .anonymous_pull = p->anonymous_pull,
        .open_metrics = strcmp(p->metrics_access, "open") == 0,
    };

    if (p->anonymous_pull && !p->token_file)
        return error_set(
            err, CAIRN_E_USAGE,
            "anonymous-pull needs token-file: without one everybody may do everything");
    return access_new(&options, ret_access, err);
}

int security_open(const struct params *p, const struct http_route *routes, size_t nr_routes,
                  struct security *ret_security, struct cairn_error *err)
{
    int r = access_check_routes(routes, nr_routes, err);

    *ret_security = (struct security){0};
    if (!r)
        r = open_tls(p, &ret_security->tls, err);
    if (!r)
        r = open_access(p, &ret_security->access, err);
    if (!r && p->trusted_proxies)
        r = proxies_parse(p->trusted_proxies, &ret_security->proxies, err);
    if (r)
        security_close(ret_security);
    return r;
}

void security_close(struct security *security)
{
    proxies_free(steal_ptr(security->proxies));
    access_free(steal_ptr(security->access));
    http_tls_free(steal_ptr(security->tls));
}

static void reload_tls(struct http_tls *tls)
{
    struct cairn_error err;
    bool changed;

    if (http_tls_reload(tls, &changed, &err))
        log_error("tls-kept", &err);
    else
        log_event(LOG_LEVEL_INFO, "tls-reloaded", "%s",
                  changed ? "for connections to come" : "nothing has changed");
}

static void reload_access(struct access *access)
{
    struct cairn_error err;
    unsigned nr;

    if (access_reload(access, &nr, &err))
        log_error("tokens-kept", &err);
    else
        log_event(LOG_LEVEL_INFO, "tokens-reloaded", "%u tokens", nr);
}

void security_reload(struct security *security)
{
    if (security->tls)
        reload_tls(security->tls);
    if (access_is_on(security->access))
        reload_access(security->access);
}

void security_note_address(const struct security *security, const char *address)
{
    bool is_local = strncmp(address, "127.", 4) == 0 || strncmp(address, "[::1]", 5) == 0;

    if (access_is_on(security->access) && !security->tls && !is_local)
        log_event(LOG_LEVEL_WARN, "clear-tokens",
                  "listening on %s without TLS: tokens travel in the clear unless a proxy in front "
                  "has TLS",
                  address);
}

void security_write_metrics(void *ctx, struct metrics *m)
{
    const struct security *security = ctx;

    access_write_metrics(security->access, m);
    if (security->tls)
        http_tls_write_metrics(security->tls, m);
}
