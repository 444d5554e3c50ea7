/* SPDX-License-Identifier: Apache-2.0 */
#include "quota_rules.h"

#include <string.h>

#include "byte_count.h"
#include "quote.h"
#include "repo_pattern.h"

#define RULES_MAX 1024

struct rule {
    const char *pattern;
    uint64_t allowed;
};

struct quota_rules {
    char *text; /* what the patterns point into */
    size_t nr;
    struct rule rules[];
};

/* Take a rule, of len bytes, apart; its pattern gets a terminating zero. */
static int parse_rule(char *text, size_t len, struct rule *ret_rule, struct cairn_error *err)
{
    static char all[] = "*";
    char *equals = memchr(text, '=', len);
    const char *size = equals ? equals + 1 : text;
    char quoted[QUOTE_MAX];

    if ((equals && !repo_pattern_valid(text, (size_t)(equals - text))) ||
        !byte_count_parse(size, (size_t)(text + len - size), &ret_rule->allowed) ||
        ret_rule->allowed == QUOTA_NONE)
        return error_set(
            err, CAIRN_E_USAGE,
            "%s, expected <size> or <pattern>=<size>, with a size in bytes (K, M, G, T)",
            quote_bytes(text, len, quoted));
    if (equals)
        *equals = 0;
    ret_rule->pattern = equals ? text : all;
    return CAIRN_OK;
}

static size_t count_rules(const char *text)
{
    size_t nr = 1;

    for (; *text; text++)
        nr += *text == ',';
    return nr;
}

int quota_rules_parse(const char *text, struct quota_rules **ret_rules, struct cairn_error *err)
{
    const size_t nr = count_rules(text);
    CLEANUP(quota_rules_free_p) struct quota_rules *all = NULL;
    int r = CAIRN_OK;

    if (nr > RULES_MAX)
        return error_set(err, CAIRN_E_USAGE, "%zu rules, expected at most %d", nr, RULES_MAX);
    all = calloc(1, sizeof(*all) + nr * sizeof(all->rules[0]));
    if (!all || !(all->text = strdup(text)))
        return error_no_memory(err, "quota rules");
    for (char *rule = all->text; all->nr < nr && !r; all->nr++) {
        size_t len = strcspn(rule, ",");

        r = parse_rule(rule, len, &all->rules[all->nr], err);
        rule += len + 1;
    }
    if (!r)
        *ret_rules = steal_ptr(all);
    return r;
}

void quota_rules_free(struct quota_rules *rules)
{
    if (!rules)
        return;
    free(rules->text);
    free(rules);
}

uint64_t quota_rules_allowed(const struct quota_rules *rules, const char *repo)
{
    for (size_t i = 0; rules && i < rules->nr; i++) {
        if (repo_pattern_matches(rules->rules[i].pattern, repo))
            return rules->rules[i].allowed;
    }
    return QUOTA_NONE;
}
