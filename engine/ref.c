/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of repositories, tags and refs, by the grammar of the OCI distribution specification
 * ("Pulling manifests").  A valid repository name never has a component that begins with '_' or
 * '.', which is what keeps names apart from the store's own folders.
 */
#include <stdio.h>
#include <string.h>

#include "manifest.h"
#include "quote.h"

#define DEFAULT_TAG "latest"

static bool is_name_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

static size_t name_chars(const char *p)
{
    size_t n = 0;

    while (is_name_char(p[n]))
        n++;
    return n;
}

/* The length of a separator within a component: one of `.`, `_`, `__`, or any number of `-`. */
static size_t separator(const char *p)
{
    if (p[0] == '.')
        return 1;
    if (p[0] == '_')
        return p[1] == '_' ? 2 : 1;
    return strspn(p, "-");
}

/* The length of the component that p begins with, 0 if it does not begin with one. */
static size_t component(const char *p)
{
    size_t n = name_chars(p);

    while (n > 0) {
        size_t sep = separator(p + n);
        size_t more = name_chars(p + n + sep);

        if (sep == 0 || more == 0)
            break;
        n += sep + more;
    }
    return n;
}

bool ref_valid_repo(const char *repo)
{
    const char *p = repo;

    if (strnlen(repo, sizeof(((struct ref *)0)->repo)) >= sizeof(((struct ref *)0)->repo))
        return false;
    for (;;) {
        size_t n = component(p);

        if (n == 0)
            return false;
        p += n;
        if (*p == 0)
            return true;
        if (*p++ != '/')
            return false;
    }
}

static bool is_tag_char(char c)
{
    return is_name_char(c) || (c >= 'A' && c <= 'Z') || c == '_' || c == '.' || c == '-';
}

bool ref_valid_tag(const char *tag)
{
    size_t n = 0;

    if (tag[0] == '.' || tag[0] == '-')
        return false;
    while (n < sizeof(((struct ref *)0)->tag) && is_tag_char(tag[n]))
        n++;
    return n > 0 && n < sizeof(((struct ref *)0)->tag) && tag[n] == 0;
}

static int set_repo(struct ref *ref, const char *text, size_t len, struct cairn_error *err)
{
    char quoted[QUOTE_MAX];

    if (len < sizeof(ref->repo)) {
        memcpy(ref->repo, text, len);
        ref->repo[len] = 0;
        if (ref_valid_repo(ref->repo))
            return CAIRN_OK;
    }
    return error_set(err, CAIRN_E_USAGE,
                     "repository name %s is not valid: up to 255 of a-z and 0-9, with single "
                     "'.', '_', '__' or '-' inside, and '/' between components",
                     quote_bytes(text, len, quoted));
}

static int set_tag(struct ref *ref, const char *tag, struct cairn_error *err)
{
    char quoted[QUOTE_MAX];

    if (!ref_valid_tag(tag))
        return error_set(err, CAIRN_E_USAGE,
                         "tag %s is not valid: up to 128 of A-Z, a-z, 0-9, '_', '.' and '-', not "
                         "beginning with '.' or '-'",
                         quote_str(tag, quoted));
    memcpy(ref->tag, tag, strlen(tag) + 1);
    return CAIRN_OK;
}

int ref_parse(const char *text, struct ref *ret_ref, struct cairn_error *err)
{
    size_t repo_len = strcspn(text, "@:");
    const char *rest = text + repo_len;
    struct ref ref = {.tag = ""};
    int rc = set_repo(&ref, text, repo_len, err);

    if (rc < 0)
        return rc;
    if (*rest == '@')
        rc = digest_parse(rest + 1, strlen(rest + 1), &ref.digest, err);
    else
        rc = set_tag(&ref, *rest == ':' ? rest + 1 : DEFAULT_TAG, err);
    if (rc == CAIRN_OK)
        *ret_ref = ref;
    return rc;
}

char *ref_format(const struct ref *ref, char *buf)
{
    char digest[DIGEST_STR_MAX];

    if (ref->tag[0])
        snprintf(buf, REF_STR_MAX, "%s:%s", ref->repo, ref->tag);
    else
        snprintf(buf, REF_STR_MAX, "%s@%s", ref->repo, digest_format(&ref->digest, digest));
    return buf;
}
