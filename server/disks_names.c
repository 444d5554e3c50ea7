/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What refs named a moment ago.  Who reads a disk range by range asks for the same ref each time,
 * and each look-up is one or two round trips to the store; so what the first range's look-up found
 * serves the ranges of the next second.  A change that this server makes is seen at once: it moves
 * the generation on, and what was looked up in an earlier one, or is still being looked up, counts
 * no more.  One that another server makes is seen after a second; all other calls look up anew.
 */
#include "disks_internal.h"

#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "registry.h"

#define NAMED_FOR_US UINT64_C(1000000)
#define NAMES_MAX    4096

struct named {
    atomic_uint refs;
    uint64_t until_us;
    unsigned generation;
    struct digest manifest;
};

static void *named_ref(void *value)
{
    struct named *named = value;

    atomic_fetch_add(&named->refs, 1);
    return named;
}

static void named_unref(void *value)
{
    struct named *named = value;

    if (named && atomic_fetch_sub(&named->refs, 1) == 1)
        free(named);
}

static void named_unref_p(struct named **named)
{
    named_unref(*named);
}

static size_t named_cost(const void *value)
{
    (void)value;
    return 1;
}

int disks_names_new(struct cache **ret_names, struct cairn_error *err)
{
    static const struct cache_type type = {
        .ref = named_ref, .unref = named_unref, .cost = named_cost};

    return cache_new(&type, NAMES_MAX, ret_names, err);
}

void disks_names_changed(struct disks *disks)
{
    atomic_fetch_add(&disks->generation, 1);
}

struct look_up {
    struct disks *disks;
    const struct ref *ref;
};

static int fetch_named(void *arg, void **ret_value, struct cairn_error *err)
{
    const struct look_up *look_up = arg;
    CLEANUP(named_unref_p) struct named *named = calloc(1, sizeof(*named));
    int code;

    if (!named)
        return error_no_memory(err, "what a ref names");
    atomic_init(&named->refs, 1);
    named->generation = atomic_load(&look_up->disks->generation);
    named->until_us = clock_now_us() + NAMED_FOR_US;
    code = registry_resolve(look_up->disks->store, look_up->ref, &named->manifest, err);
    if (code == CAIRN_OK)
        *ret_value = steal_ptr(named);
    return code;
}

static struct cache_key key_of(const struct ref *ref)
{
    char text[REF_STR_MAX];
    struct cache_key key = {0};

    ref_format(ref, text);
    digest_of(text, strlen(text), &key.digest);
    return key;
}

static bool holds(const struct disks *disks, const struct named *named)
{
    return named->generation == atomic_load(&disks->generation) && clock_now_us() < named->until_us;
}

int disks_resolve_recent(struct disks *disks, const struct ref *ref, struct digest *ret_manifest,
                         struct cairn_error *err)
{
    struct look_up look_up = {disks, ref};
    struct cache_key key = key_of(ref);
    void *value = cache_peek(disks->names, &key);
    int code = CAIRN_OK;

    if (value && !holds(disks, value)) {
        cache_drop(disks->names, &key, value);
        named_unref(value);
        value = NULL;
    }
    if (!value)
        code = cache_get(disks->names, &key, fetch_named, &look_up, &value, err);
    if (code != CAIRN_OK)
        return code;
    *ret_manifest = ((struct named *)value)->manifest;
    named_unref(value);
    return CAIRN_OK;
}
