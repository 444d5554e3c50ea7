/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Grants: what a token may do, and where.  `pull,push:vm-*` are two actions on the repositories
 * that the pattern matches; without a pattern they hold for all of them.
 *
 * Pull is reading, also of names; push is adding: blobs, manifests, tags; delete is taking away;
 * admin is what concerns the service and no repository, so it has no pattern.  None of them implies
 * another: `cairn push` wants to know what is there already, and needs pull and push.
 */
#ifndef ENGINE_GRANT_H
#define ENGINE_GRANT_H

#include <stdbool.h>

#include "error.h"
#include "repo_pattern.h"

enum grant_action {
    GRANT_PULL = 1,
    GRANT_PUSH = 2,
    GRANT_DELETE = 4,
    GRANT_ADMIN = 8,
};

/* As long as a repository's name can be, with its zero. */
#define GRANT_PATTERN_MAX 256

struct grant {
    unsigned actions;                /* or-ed */
    char pattern[GRANT_PATTERN_MAX]; /* repo_pattern_valid */
};

/* CAIRN_E_USAGE says what is wrong with it. */
int grant_parse(const char *text, struct grant *ret_grant, struct cairn_error *err);

/* repo NULL: the action is about no repository (admin), or about some, whichever it is. */
bool grant_allows(const struct grant *grant, enum grant_action action, const char *repo);

/* "pull", "push", "delete", "admin". */
const char *grant_action_name(enum grant_action action);

#endif
