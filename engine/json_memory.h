/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON where memory may lack.
 *
 * Without memory jansson says that a document is malformed, and worse: it leaves bytes out of the
 * strings that it parses, and says nothing.  So its allocations are watched, thread by thread, and
 * whoever parses or makes a document asks whether one has failed meanwhile.
 */
#ifndef ENGINE_JSON_MEMORY_H
#define ENGINE_JSON_MEMORY_H

#include <jansson.h>

#include "error.h"

/*
 * As json_loadb.  *ret_json is NULL if it is no JSON, and ret_why (may be NULL) then says why: that
 * is no error here.  CAIRN_E_NO_MEMORY is the only one.
 */
int json_memory_load(const void *text, size_t len, size_t flags, json_t **ret_json,
                     json_error_t *ret_why, struct cairn_error *err);

/* From here on a document is put together in this thread (also: from the last load or dump on) … */
void json_memory_begin(void);
/* … and becomes text, malloc'ed: CAIRN_E_NO_MEMORY if any part of it may be missing. */
int json_memory_dump(const json_t *json, size_t flags, char **ret_text, struct cairn_error *err);

#endif
