/* SPDX-License-Identifier: Apache-2.0 */
/* Patterns of repositories, as an operator writes them into rules: golden, *, team-*. */
#ifndef ENGINE_REPO_PATTERN_H
#define ENGINE_REPO_PATTERN_H

#include <stdbool.h>
#include <stddef.h>

/* May the len bytes at text be a pattern: what names of repositories are made of, and `*`? */
bool repo_pattern_valid(const char *text, size_t len);

/* `*` stands for any run of characters, slashes among them, and for none. */
bool repo_pattern_matches(const char *pattern, const char *repo);

#endif
