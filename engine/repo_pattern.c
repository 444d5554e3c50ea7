/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matching goes back to the last `*` only: with one kind of wildcard an earlier one never has to be
 * tried again, so a pattern takes at most its length times the name's, whoever wrote it.
 */
#include "repo_pattern.h"

bool repo_pattern_valid(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        char c = text[i];

        if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
              c == '-' || c == '/' || c == '*'))
            return false;
    }
    return len > 0;
}

bool repo_pattern_matches(const char *pattern, const char *repo)
{
    const char *star = NULL, *tried = NULL;

    while (*repo) {
        if (*pattern == '*') {
            star = pattern++;
            tried = repo;
        } else if (*pattern == *repo) {
            pattern++;
            repo++;
        } else if (star) {
            pattern = star + 1;
            repo = ++tried;
        } else {
            return false;
        }
    }
    while (*pattern == '*')
        pattern++;
    return !*pattern;
}
