/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What jansson allocates with is replaced when this is loaded, before there are threads, by what
 * was there before and a note of failures.  So whoever else uses jansson in the process notices
 * nothing; if he replaces it later, we are where jansson leaves us.
 */
#include "json_memory.h"

#include <stdbool.h>

static json_malloc_t allocate;
static _Thread_local bool lacked; /* since this thread's last begin, load or dump */

static void *watch(size_t size)
{
    void *p = allocate(size);

    lacked |= !p;
    return p;
}

static __attribute__((constructor)) void start_watching(void)
{
    json_free_t release;

    json_get_alloc_funcs(&allocate, &release);
    json_set_alloc_funcs(watch, release);
}

void json_memory_begin(void)
{
    lacked = false;
}

int json_memory_load(const void *text, size_t len, size_t flags, json_t **ret_json,
                     json_error_t *ret_why, struct cairn_error *err)
{
    json_t *json;

    json_memory_begin();
    json = json_loadb(text, len, flags, ret_why);
    if (lacked) {
        json_memory_begin();
        json_decref(json);
        return error_no_memory(err, "JSON");
    }
    *ret_json = json;
    return CAIRN_OK;
}

int json_memory_dump(const json_t *json, size_t flags, char **ret_text, struct cairn_error *err)
{
    char *text = json ? json_dumps(json, flags) : NULL;
    bool whole = text && !lacked;

    json_memory_begin();
    if (!whole) {
        free(text);
        return error_no_memory(err, "JSON");
    }
    *ret_text = text;
    return CAIRN_OK;
}
