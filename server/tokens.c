/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading the token file.  Whatever is not exactly as it should be refuses the whole file: a line
 * that was skipped would be a token that somebody believes to have given, or to have taken away.
 */
#include "tokens.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "quote.h"

#define FILE_BYTES_MAX (4u << 20)
#define TOKENS_MAX     10000u /* each request is compared with all of them */
#define GRANTS_MAX     64u    /* of one token */
#define BLANK          " \t\r"

struct tokens {
    atomic_uint refs;
    const struct token *everybody; /* may be NULL */
    unsigned nr;
    struct token *list;
};

/* -- Life ----------------------------------------------------------------------------------- */

struct tokens *tokens_ref(struct tokens *tokens)
{
    atomic_fetch_add_explicit(&tokens->refs, 1, memory_order_relaxed);
    return tokens;
}

void tokens_unref(struct tokens *tokens)
{
    if (!tokens || atomic_fetch_sub(&tokens->refs, 1) > 1)
        return;
    for (unsigned i = 0; i < tokens->nr; i++)
        free(tokens->list[i].grants);
    free(tokens->list);
    free(tokens);
}

void tokens_add_everybody(struct tokens *tokens, const struct token *everybody)
{
    tokens->everybody = everybody;
}

unsigned tokens_count(const struct tokens *tokens)
{
    return tokens->nr;
}

const struct token *tokens_at(const struct tokens *tokens, unsigned i)
{
    return &tokens->list[i];
}

/* -- One line ------------------------------------------------------------------------------- */

/* The next word of *p, zero-terminated in place; NULL at the end of the line. */
static char *next_word(char **p)
{
    char *word = *p + strspn(*p, BLANK);
    size_t len = strcspn(word, BLANK);

    *p = word + len;
    if (len > 0 && **p)
        *(*p)++ = 0;
    return len > 0 ? word : NULL;
}

static int parse_name(const char *word, struct token *token, struct cairn_error *err)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t len = strlen(word);
    char quoted[QUOTE_MAX];

    if (len >= sizeof(token->name) || strspn(word, allowed) != len)
        return error_set(err, CAIRN_E_USAGE,
                         "%s is not a token's name: expected at most %zu letters, digits, . _ -",
                         quote_str(word, quoted), sizeof(token->name) - 1);
    memcpy(token->name, word, len + 1);
    return CAIRN_OK;
}

/* What stands in its place may be a token that was pasted: it is not shown. */
static int parse_hash(const char *word, struct token *token, struct cairn_error *err)
{
    if (!word || digest_parse(word, strlen(word), &token->hash, NULL) != CAIRN_OK)
        return error_set(err, CAIRN_E_USAGE,
                         "token %s: expected sha256: and 64 lower-case hex digits behind the name",
                         token->name);
    return CAIRN_OK;
}

static int add_grant(const char *word, struct token *token, struct cairn_error *err)
{
    struct grant *grants;
    int r;

    if (token->nr_grants == GRANTS_MAX)
        return error_set(err, CAIRN_E_USAGE, "token %s: more than %u grants", token->name,
                         GRANTS_MAX);
    grants = realloc(token->grants, (token->nr_grants + 1) * sizeof(*grants));
    if (!grants)
        return error_no_memory(err, "the tokens");
    token->grants = grants;
    r = grant_parse(word, &grants[token->nr_grants], err);
    if (r)
        return error_prefix(err, r, "token %s", token->name);
    token->nr_grants++;
    return CAIRN_OK;
}

/* name is the line's first word, rest what follows it. */
static int parse_token(const char *name, char *rest, struct token *token, struct cairn_error *err)
{
    const char *word;
    int r = parse_name(name, token, err);

    if (!r)
        r = parse_hash(next_word(&rest), token, err);
    while (!r && (word = next_word(&rest)))
        r = add_grant(word, token, err);
    if (!r && token->nr_grants == 0)
        r = error_set(err, CAIRN_E_USAGE, "token %s: no grant, expected one such as pull",
                      token->name);
    return r;
}

/* -- The file ------------------------------------------------------------------------------- */

static int add_token(struct tokens *tokens, const char *name, char *rest, struct cairn_error *err)
{
    struct token *list, *token;
    int r;

    if (tokens->nr == TOKENS_MAX)
        return error_set(err, CAIRN_E_USAGE, "more than %u tokens", TOKENS_MAX);
    list = realloc(tokens->list, (tokens->nr + 1) * sizeof(*list));
    if (!list)
        return error_no_memory(err, "the tokens");
    tokens->list = list;
    token = &list[tokens->nr++];
    *token = (struct token){.list = tokens};
    r = parse_token(name, rest, token, err);
    for (unsigned i = 0; !r && i + 1 < tokens->nr; i++)
        if (digest_equal(&list[i].hash, &token->hash))
            r = error_set(err, CAIRN_E_USAGE, "token %s is the same as token %s", token->name,
                          list[i].name);
    return r;
}

static int parse_lines(struct tokens *tokens, char *text, const char *path, struct cairn_error *err)
{
    unsigned nr = 1;

    for (char *next, *line = text; line; line = next, nr++) {
        char *name;
        int r;

        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        name = next_word(&line);
        if (!name || *name == '#')
            continue;
        r = add_token(tokens, name, line, err);
        if (r)
            return error_prefix(err, r, "%s:%u", path, nr);
    }
    return CAIRN_OK;
}

int tokens_parse(const char *text, size_t len, const char *path, struct tokens **ret_tokens,
                 struct cairn_error *err)
{
    CLEANUP(tokens_unref_p) struct tokens *tokens = calloc(1, sizeof(*tokens));
    CLEANUP_FREE char *copy = strndup(text, len);
    int r;

    if (!tokens || !copy)
        return error_no_memory(err, "the tokens");
    atomic_init(&tokens->refs, 1);
    if (strlen(copy) != len)
        return error_set(err, CAIRN_E_USAGE, "%s: holds a zero byte, expected text", path);
    r = parse_lines(tokens, copy, path, err);
    if (!r)
        *ret_tokens = steal_ptr(tokens);
    return r;
}

/* Who may write to the file may do everything. */
static int check_file(int fd, const char *path, bool *ret_exposed, struct cairn_error *err)
{
    struct stat st;

    if (fstat(fd, &st) != 0)
        return error_set_errno(err, errno, "token file %s", path);
    if (!S_ISREG(st.st_mode))
        return error_set(err, CAIRN_E_USAGE, "token file %s is not a regular file", path);
    if (st.st_mode & (S_IWGRP | S_IWOTH))
        return error_set(err, CAIRN_E_USAGE,
                         "token file %s: others than its owner may write to it (mode %04o), "
                         "expected 0640 or less",
                         path, st.st_mode & 07777u);
    *ret_exposed = st.st_mode & S_IRWXO;
    return CAIRN_OK;
}

static int read_file(int fd, const char *path, char *buf, size_t *ret_len, struct cairn_error *err)
{
    size_t len = 0;
    ssize_t n;

    do {
        n = read(fd, buf + len, FILE_BYTES_MAX + 1 - len);
        if (n > 0)
            len += (size_t)n;
    } while (n > 0 || (n < 0 && errno == EINTR));
    if (n < 0)
        return error_set_errno(err, errno, "cannot read token file %s", path);
    if (len > FILE_BYTES_MAX)
        return error_set(err, CAIRN_E_USAGE, "token file %s is larger than %u bytes", path,
                         FILE_BYTES_MAX);
    *ret_len = len;
    return CAIRN_OK;
}

int tokens_load(const char *path, struct tokens **ret_tokens, bool *ret_exposed,
                struct cairn_error *err)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    CLEANUP_FREE char *buf = malloc(FILE_BYTES_MAX + 1);
    size_t len = 0;
    int r;

    if (fd < 0)
        return error_set_errno(err, errno, "cannot open token file %s", path);
    if (!buf)
        return error_no_memory(err, "the tokens");
    r = check_file(fd, path, ret_exposed, err);
    if (!r)
        r = read_file(fd, path, buf, &len, err);
    return r ? r : tokens_parse(buf, len, path, ret_tokens, err);
}

/* -- Asking --------------------------------------------------------------------------------- */

/* 0 if equal; reads all of both. */
static uint64_t difference(const struct digest *a, const struct digest *b)
{
    uint64_t words_a[4], words_b[4];

    static_assert(sizeof(words_a) == sizeof(a->sha256), "a digest is four words");
    memcpy(words_a, a->sha256, sizeof(words_a));
    memcpy(words_b, b->sha256, sizeof(words_b));
    return (words_a[0] ^ words_b[0]) | (words_a[1] ^ words_b[1]) | (words_a[2] ^ words_b[2]) |
           (words_a[3] ^ words_b[3]);
}

/* All are compared whatever is found, and without a branch on what was: of two that were equal,
 * which a list does not have, the later one would count. */
const struct token *tokens_find(const struct tokens *tokens, const char *secret, size_t len)
{
    struct digest hash;
    unsigned found = 0; /* its place, from 1 */

    digest_of(secret, len, &hash);
    for (unsigned i = 0; i < tokens->nr; i++) {
        uint64_t diff = difference(&hash, &tokens->list[i].hash);
        unsigned differs = (unsigned)((diff | (0 - diff)) >> 63);

        found |= (i + 1) & (differs - 1);
    }
    return found ? &tokens->list[found - 1] : NULL;
}

bool token_allows(const struct token *token, enum grant_action action, const char *repo)
{
    for (unsigned i = 0; i < token->nr_grants; i++)
        if (grant_allows(&token->grants[i], action, repo))
            return true;
    return token->list && token->list->everybody &&
           token_allows(token->list->everybody, action, repo);
}
