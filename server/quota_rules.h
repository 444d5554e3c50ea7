/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much repositories may hold, as an operator writes it: `1T`, or
 * `team/big=4T,team-*=1T,*=100G`. A size alone is for all; of several rules the first that matches
 * counts.
 */
#ifndef SERVER_QUOTA_RULES_H
#define SERVER_QUOTA_RULES_H

#include <stdint.h>

#include "cleanup.h"
#include "error.h"

#define QUOTA_NONE UINT64_MAX

struct quota_rules;

/* CAIRN_E_USAGE names the rule, and what was expected. */
int quota_rules_parse(const char *text, struct quota_rules **ret_rules, struct cairn_error *err);
void quota_rules_free(struct quota_rules *rules);
CLEANUP_DEFINE(struct quota_rules *, quota_rules_free)

/* Bytes that a repository may hold; QUOTA_NONE: no rule is about it, or rules is NULL. */
uint64_t quota_rules_allowed(const struct quota_rules *rules, const char *repo);

#endif
