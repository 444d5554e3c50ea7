/* SPDX-License-Identifier: Apache-2.0 */
/* Tokens and their headers.  No message holds a token. */
#include "remote_auth.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define TOKEN_MAX 1000 /* the server takes no longer ones */
#define BLANK     " \t\r\n"

struct remote_auth {
    atomic_uint refs;
    char *line;
    struct curl_slist *list;
};

struct remote_auth *remote_auth_ref(struct remote_auth *auth)
{
    if (auth)
        atomic_fetch_add(&auth->refs, 1);
    return auth;
}

void remote_auth_unref(struct remote_auth *auth)
{
    if (!auth || atomic_fetch_sub(&auth->refs, 1) > 1)
        return;
    curl_slist_free_all(auth->list);
    free(auth->line);
    free(auth);
}

/* A space or control character would change what is sent. */
static bool is_sendable(const char *token)
{
    for (; *token; token++)
        if (*token <= ' ' || *token > '~')
            return false;
    return true;
}

int remote_auth_new(const char *token, struct remote_auth **ret_auth, struct cairn_error *err)
{
    CLEANUP(remote_auth_unref_p) struct remote_auth *auth = NULL;

    if (!is_sendable(token))
        return error_set(err, CAIRN_E_USAGE, "the token holds spaces or control characters");
    if (strlen(token) > TOKEN_MAX)
        return error_set(err, CAIRN_E_USAGE, "the token has more than %d characters", TOKEN_MAX);
    auth = calloc(1, sizeof(*auth));
    if (!auth)
        return error_no_memory(err, "the token");
    atomic_init(&auth->refs, 1);
    if (asprintf(&auth->line, "Authorization: Bearer %s", token) < 0) {
        auth->line = NULL;
        return error_no_memory(err, "the token");
    }
    auth->list = curl_slist_append(NULL, auth->line);
    if (!auth->list)
        return error_no_memory(err, "the token");
    *ret_auth = steal_ptr(auth);
    return CAIRN_OK;
}

/* The one word in text; NULL if there is none, or more. */
static char *only_word(char *text)
{
    char *word = text + strspn(text, BLANK);
    size_t len = strcspn(word, BLANK);

    if (len == 0 || word[len + strspn(word + len, BLANK)])
        return NULL;
    word[len] = 0;
    return word;
}

int remote_auth_read(const char *path, struct remote_auth **ret_auth, struct cairn_error *err)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    char buf[2 * TOKEN_MAX] = ""; /* more is more than one word, or too long */
    const char *token;
    int ret;

    if (fd < 0 || read(fd, buf, sizeof(buf) - 1) < 0)
        return error_set_errno(err, errno, "token file %s", path);
    token = only_word(buf);
    ret = token ? remote_auth_new(token, ret_auth, err)
                : error_set(err, CAIRN_E_USAGE, "expected a token and nothing else in it");
    explicit_bzero(buf, sizeof(buf));
    return ret ? error_prefix(err, ret, "token file %s", path) : CAIRN_OK;
}

bool remote_auth_equal(const struct remote_auth *a, const struct remote_auth *b)
{
    return a == b || (a && b && strcmp(a->line, b->line) == 0);
}

const char *remote_auth_line(const struct remote_auth *auth)
{
    return auth ? auth->line : NULL;
}

struct curl_slist *remote_auth_list(const struct remote_auth *auth)
{
    return auth ? auth->list : NULL;
}

/* -- Where it may go ------------------------------------------------------------------------ */

bool remote_auth_exposed(const char *url)
{
    const char *host = url + strlen("http://");
    size_t len;

    if (strncasecmp(url, "http://", strlen("http://")) != 0)
        return false;
    if (memchr(host, '@', strcspn(host, "/"))) /* what is before it is no host */
        return true;
    len = *host == '[' ? strcspn(host, "/") : strcspn(host, ":/");
    if (*host == '[')
        return strncmp(host, "[::1]", 5) != 0 || (len > 5 && host[5] != ':');
    return !(len == 9 && strncasecmp(host, "localhost", len) == 0) &&
           !(len > 4 && strncmp(host, "127.", 4) == 0 && strspn(host, "0123456789.") == len);
}
