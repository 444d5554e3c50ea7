/* SPDX-License-Identifier: Apache-2.0 */
/* Manifests and refs from anybody: what is accepted is written and read back the same. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void want(bool condition)
{
    if (!condition)
        abort();
}

static void try_manifest(const uint8_t *data, size_t size)
{
    CLEANUP(manifest_free_p) struct manifest *m = NULL, *back = NULL;
    CLEANUP_FREE char *json = NULL, *again = NULL;
    struct cairn_error err;
    size_t len, again_len;

    if (manifest_parse(data, size, &m, &err) != CAIRN_OK)
        return;
    want(manifest_encode(m, &json, &len, &err) == CAIRN_OK);
    want(manifest_parse(json, len, &back, &err) == CAIRN_OK);
    want(back->depth == m->depth);
    want(memcmp(back->chain_ids, m->chain_ids, m->depth * sizeof(*m->chain_ids)) == 0);
    want(manifest_encode(back, &again, &again_len, &err) == CAIRN_OK);
    want(len == again_len && memcmp(json, again, len) == 0);
}

static void try_ref(const uint8_t *data, size_t size)
{
    CLEANUP_FREE char *text = strndup((const char *)data, size);
    char formatted[REF_STR_MAX];
    struct ref ref, back;
    struct cairn_error err;

    if (!text || ref_parse(text, &ref, &err) != CAIRN_OK)
        return;
    want(ref_valid_repo(ref.repo) && (ref.tag[0] == 0 || ref_valid_tag(ref.tag)));
    want(ref_parse(ref_format(&ref, formatted), &back, &err) == CAIRN_OK);
    want(strcmp(ref.repo, back.repo) == 0 && strcmp(ref.tag, back.tag) == 0);
    want(ref.tag[0] != 0 || digest_equal(&ref.digest, &back.digest));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    try_manifest(data, size);
    try_ref(data, size);
    return 0;
}
