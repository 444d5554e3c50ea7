/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tokens that a file lists: one a line, `NAME sha256:HEX GRANT…`; empty lines and lines that
 * start with # are skipped.  HEX is the SHA-256 of the token, GRANT as in grant.h.  Several lines
 * may have one name: so a token is replaced without a moment in which neither is valid.
 *
 * A plain hash is right here, and a slow or salted one would buy nothing: tokens are not passwords
 * that people choose but long random strings (`cairn token` makes them of 256 bits), so there is
 * nothing to guess and no table to look them up in, and each request has to be checked.
 *
 * A list never changes; another file is another list.
 */
#ifndef SERVER_TOKENS_H
#define SERVER_TOKENS_H

#include <stdbool.h>
#include <stddef.h>

#include "digest.h"
#include "grant.h"

#define TOKEN_NAME_MAX 65 /* with its zero */

struct tokens;

struct token {
    char name[TOKEN_NAME_MAX];
    struct digest hash;
    unsigned nr_grants;
    struct grant *grants;
    struct tokens *list; /* that it is part of; NULL: of none */
};

/* Read and check a file.  CAIRN_E_USAGE names file and line; so does one that others than its owner
 * may write to.  *ret_exposed: others than its owner and group may read it. */
int tokens_load(const char *path, struct tokens **ret_tokens, bool *ret_exposed,
                struct cairn_error *err);
/* The same of len bytes; path is for messages. */
int tokens_parse(const char *text, size_t len, const char *path, struct tokens **ret_tokens,
                 struct cairn_error *err);

struct tokens *tokens_ref(struct tokens *tokens);
void tokens_unref(struct tokens *tokens); /* NULL is allowed */
CLEANUP_DEFINE(struct tokens *, tokens_unref)

/* Let all tokens of the list do what this one may; it is borrowed. */
void tokens_add_everybody(struct tokens *tokens, const struct token *everybody);

unsigned tokens_count(const struct tokens *tokens);
/* By their place in the file. */
const struct token *tokens_at(const struct tokens *tokens, unsigned i);

/* The token of len bytes, or NULL.  How long it takes says nothing about the tokens there are.  It
 * is borrowed from the list. */
const struct token *tokens_find(const struct tokens *tokens, const char *secret, size_t len);

/* repo as in grant_allows. */
bool token_allows(const struct token *token, enum grant_action action, const char *repo);

#endif
