/* SPDX-License-Identifier: Apache-2.0 */
/* What operators and clients write about access: token files, Authorization headers, paths. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "access.h"
#include "credentials.h"
#include "manifest.h"
#include "tokens.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void want(bool condition)
{
    if (!condition)
        abort();
}

static void try_tokens(const char *text, size_t len)
{
    CLEANUP(tokens_unref_p) struct tokens *tokens = NULL;
    struct cairn_error err;

    if (tokens_parse(text, len, "tokens", &tokens, &err) != CAIRN_OK) {
        want(strncmp(err.message, "tokens:", 7) == 0);
        return;
    }
    for (unsigned i = 0; i < tokens_count(tokens); i++) {
        const struct token *token = tokens_at(tokens, i);

        want(token->name[0] && token->nr_grants > 0);
        for (unsigned k = 0; k < token->nr_grants; k++)
            want(token->grants[k].actions &&
                 repo_pattern_valid(token->grants[k].pattern, strlen(token->grants[k].pattern)));
    }
    tokens_find(tokens, text, len);
}

static void try_credentials(const char *header)
{
    char buf[CREDENTIALS_MAX];
    const char *token = NULL;
    size_t len = 0;

    if (credentials_parse(header, buf, &token, &len) == CREDENTIALS_TOKEN)
        want(len > 0 && token >= buf && token + len <= buf + sizeof(buf));
}

static void try_path(const char *path)
{
    char repo[ACCESS_REPO_MAX];
    unsigned methods;

    for (enum http_method method = HTTP_GET; method <= HTTP_DELETE; method *= 2) {
        const struct access_route *row = access_find_route(method, path, &methods, repo);

        want(!row || (row->methods & method && (!repo[0] || ref_valid_repo(repo))));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CLEANUP_FREE char *text = malloc(size + 1);

    if (!text)
        return 0;
    memcpy(text, data, size);
    text[size] = 0;
    try_tokens(text, size);
    try_credentials(text);
    try_path(text);
    return 0;
}
