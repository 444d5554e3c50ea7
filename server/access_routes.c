/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which action a request is.  What has no row here is refused when access control is on, and a
 * server whose routes have none does not start.
 *
 * Names of repositories have slashes in them, so a path is matched from both ends: what is left
 * between is the repository or the ref, and must be a valid one.  Handlers take paths apart by
 * themselves; test_access compares what both make of them.
 */
#include "access.h"

#include <stdio.h>
#include <string.h>

#include "manifest.h"

#define READ (HTTP_GET | HTTP_HEAD)

static const struct access_route table[] = {
    {READ, "/healthz", ACCESS_OPEN},
    {READ, "/readyz", ACCESS_OPEN},
    {READ, "/metrics", ACCESS_METRICS},

    {READ, "/v2", ACCESS_TOKEN},
    {READ, "/v2/", ACCESS_TOKEN},
    {READ, "/v2/_catalog", ACCESS_LISTS},
    {HTTP_POST, "/v2/<repo>/blobs/uploads", ACCESS_PUSH},
    {HTTP_POST, "/v2/<repo>/blobs/uploads/", ACCESS_PUSH},
    {READ | HTTP_PATCH | HTTP_PUT | HTTP_DELETE, "/v2/<repo>/blobs/uploads/<name>", ACCESS_PUSH},
    {READ, "/v2/<repo>/blobs/<name>", ACCESS_PULL},
    {HTTP_DELETE, "/v2/<repo>/blobs/<name>", ACCESS_DELETE},
    {READ, "/v2/<repo>/manifests/<name>", ACCESS_PULL},
    {HTTP_PUT, "/v2/<repo>/manifests/<name>", ACCESS_PUSH},
    {HTTP_DELETE, "/v2/<repo>/manifests/<name>", ACCESS_DELETE},
    {READ, "/v2/<repo>/tags/list", ACCESS_PULL},
    {READ, "/v2/<repo>/referrers/<name>", ACCESS_PULL},

    {READ, "/v1/disks/<ref>", ACCESS_PULL},
    {READ, "/v1/disks/<ref>/data", ACCESS_PULL},
    {READ, "/v1/disks/<ref>/extents", ACCESS_PULL},
    {READ, "/v1/disks/<ref>/index", ACCESS_PULL},
    {READ, "/v1/disks/<ref>/open", ACCESS_PULL},
    {READ, "/v1/disks/<ref>/changes", ACCESS_PULL},
    {HTTP_POST, "/v1/disks/<ref>/leases", ACCESS_PULL},
    {HTTP_PUT | HTTP_DELETE, "/v1/disks/<ref>/leases/<name>", ACCESS_PULL},

    {READ, "/v1/repositories/<repo>", ACCESS_PULL},

    {READ, "/v1/leases", ACCESS_ADMIN},
    {HTTP_POST, "/v1/gc", ACCESS_ADMIN},
    {HTTP_POST, "/v1/scrub", ACCESS_ADMIN},
    {READ, "/v1/jobs", ACCESS_ADMIN},
    {READ | HTTP_DELETE, "/v1/jobs/<name>", ACCESS_ADMIN},
    {READ | HTTP_PUT, "/v1/log-level", ACCESS_ADMIN},
};
#define NR_ROUTES (sizeof(table) / sizeof(table[0]))

/* -- Matching ------------------------------------------------------------------------------- */

/*
 * How much of text is before the suffix at its end; a `<name>` that ends the suffix is one
 * component, and not empty.  0: text does not end so, or there is nothing before it.
 */
static size_t before_suffix(const char *text, const char *suffix)
{
    size_t fixed = strcspn(suffix, "<"), len = strlen(text);

    if (suffix[fixed]) {
        const char *slash = strrchr(text, '/');

        if (!slash || !slash[1])
            return 0;
        len = (size_t)(slash - text) + 1;
    }
    return len > fixed && memcmp(text + len - fixed, suffix, fixed) == 0 ? len - fixed : 0;
}

/* Copy what text begins with, if it fits. */
static bool copy_name(const char *text, size_t len, size_t room, char *out)
{
    if (len == 0 || len >= room)
        return false;
    memcpy(out, text, len);
    out[len] = 0;
    return true;
}

static bool match_repo(const char *text, const char *suffix, char repo[ACCESS_REPO_MAX])
{
    return copy_name(text, before_suffix(text, suffix), ACCESS_REPO_MAX, repo) &&
           ref_valid_repo(repo);
}

/* A ref in a path is never without its tag or digest. */
static bool match_ref(const char *text, const char *suffix, char repo[ACCESS_REPO_MAX])
{
    char ref_text[REF_STR_MAX];
    struct ref ref;

    if (!copy_name(text, before_suffix(text, suffix), sizeof(ref_text), ref_text) ||
        !strpbrk(ref_text, ":@") || ref_parse(ref_text, &ref, NULL) != CAIRN_OK)
        return false;
    memcpy(repo, ref.repo, sizeof(ref.repo));
    return true;
}

static bool match(const char *pattern, const char *path, char repo[ACCESS_REPO_MAX])
{
    size_t fixed = strcspn(pattern, "<");
    const char *rest = pattern + fixed, *text;

    repo[0] = 0;
    if (strncmp(pattern, path, fixed) != 0)
        return false;
    text = path + fixed;
    if (strncmp(rest, "<repo>", 6) == 0)
        return match_repo(text, rest + 6, repo);
    if (strncmp(rest, "<ref>", 5) == 0)
        return match_ref(text, rest + 5, repo);
    return *rest ? *text && !strchr(text, '/') : !*text;
}

const struct access_route *access_find_route(enum http_method method, const char *path,
                                             unsigned *ret_methods, char repo[ACCESS_REPO_MAX])
{
    *ret_methods = 0;
    for (const struct access_route *row = table; row < table + NR_ROUTES; row++) {
        if (!match(row->path, path, repo))
            continue;
        *ret_methods |= row->methods;
        if (row->methods & method)
            return row;
    }
    repo[0] = 0;
    return NULL;
}

/* -- The table itself ----------------------------------------------------------------------- */

/* The methods of the rows for a route's path, or below it if it ends in a '/'. */
static unsigned methods_below(const char *path)
{
    size_t len = strlen(path);
    unsigned methods = 0;

    for (const struct access_route *row = table; row < table + NR_ROUTES; row++)
        if (strcmp(row->path, path) == 0 ||
            (path[len - 1] == '/' && strncmp(row->path, path, len) == 0))
            methods |= row->methods;
    return methods;
}

static bool has_rows(const struct http_route *route)
{
    unsigned methods = methods_below(route->path);

    return route->methods == HTTP_ANY ? methods != 0 : !(route->methods & ~methods);
}

int access_check_routes(const struct http_route *routes, size_t nr_routes, struct cairn_error *err)
{
    for (size_t i = 0; i < nr_routes; i++)
        if (!has_rows(&routes[i]))
            return error_set(err, CAIRN_E_UNSUPPORTED,
                             "route %s has a method without a row in access_routes.c",
                             routes[i].path);
    return CAIRN_OK;
}

void access_print_routes(FILE *out)
{
    static const char *const needs[] = {
        [ACCESS_OPEN] = "open",     [ACCESS_METRICS] = "metrics", [ACCESS_TOKEN] = "token",
        [ACCESS_LISTS] = "lists",   [ACCESS_PULL] = "pull",       [ACCESS_PUSH] = "push",
        [ACCESS_DELETE] = "delete", [ACCESS_ADMIN] = "admin",
    };
    static const struct {
        enum http_method method;
        const char *name;
    } methods[] = {{HTTP_GET, "GET"}, {HTTP_HEAD, "HEAD"},   {HTTP_POST, "POST"},
                   {HTTP_PUT, "PUT"}, {HTTP_PATCH, "PATCH"}, {HTTP_DELETE, "DELETE"}};

    for (const struct access_route *row = table; row < table + NR_ROUTES; row++)
        for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++)
            if (row->methods & methods[i].method)
                fprintf(out, "%-6s %-34s %s\n", methods[i].name, row->path, needs[row->need]);
}
