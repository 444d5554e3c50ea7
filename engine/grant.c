/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Grants come from a file or a command line that an operator writes: messages name the word that is
 * wrong.
 */
#include "grant.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "quote.h"

static const struct {
    enum grant_action action;
    const char *name;
} actions[] = {
    {GRANT_PULL, "pull"},
    {GRANT_PUSH, "push"},
    {GRANT_DELETE, "delete"},
    {GRANT_ADMIN, "admin"},
};
#define NR_ACTIONS (sizeof(actions) / sizeof(actions[0]))

const char *grant_action_name(enum grant_action action)
{
    for (size_t i = 0; i < NR_ACTIONS; i++)
        if (actions[i].action == action)
            return actions[i].name;
    return "nothing";
}

/* -- Grants --------------------------------------------------------------------------------- */

/* The action of that name; 0 if there is none. */
static unsigned action_of(const char *name, size_t len)
{
    for (size_t i = 0; i < NR_ACTIONS; i++)
        if (strlen(actions[i].name) == len && memcmp(actions[i].name, name, len) == 0)
            return actions[i].action;
    return 0;
}

static int parse_actions(const char *text, size_t len, unsigned *ret_actions,
                         struct cairn_error *err)
{
    const char *end = text + len;
    char quoted[QUOTE_MAX];

    *ret_actions = 0;
    for (const char *word = text;; word++) {
        const char *comma = memchr(word, ',', (size_t)(end - word));
        size_t word_len = (size_t)((comma ? comma : end) - word);
        unsigned action = action_of(word, word_len);

        if (!action)
            return error_set(err, CAIRN_E_USAGE,
                             "unknown action %s, expected pull, push, delete or admin",
                             quote_bytes(word, word_len, quoted));
        *ret_actions |= action;
        if (!comma)
            return CAIRN_OK;
        word = comma;
    }
}

int grant_parse(const char *text, struct grant *ret_grant, struct cairn_error *err)
{
    size_t len = strcspn(text, ":");
    const char *pattern = text[len] ? text + len + 1 : "*";
    char quoted[QUOTE_MAX];
    int r = parse_actions(text, len, &ret_grant->actions, err);

    if (r)
        return r;
    if (strlen(pattern) >= sizeof(ret_grant->pattern) ||
        !repo_pattern_valid(pattern, strlen(pattern)))
        return error_set(err, CAIRN_E_USAGE,
                         "%s is not a pattern of repository names: expected at most %d lower-case "
                         "letters, digits, and . _ - / *",
                         quote_str(pattern, quoted), GRANT_PATTERN_MAX - 1);
    if (ret_grant->actions & GRANT_ADMIN && text[len])
        return error_set(err, CAIRN_E_USAGE, "admin is about no repository: give it without %s",
                         quote_str(text + len, quoted));
    snprintf(ret_grant->pattern, sizeof(ret_grant->pattern), "%s", pattern);
    return CAIRN_OK;
}

bool grant_allows(const struct grant *grant, enum grant_action action, const char *repo)
{
    return grant->actions & action && (!repo || repo_pattern_matches(grant->pattern, repo));
}
