/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names inside images are bytes.  In JSON they are UTF-8 where they are UTF-8, else each byte that
 * is not printable ASCII becomes \xNN; whoever prints them escapes control characters again.
 */
#ifndef CLIENT_JSON_TEXT_H
#define CLIENT_JSON_TEXT_H

#include <jansson.h>
#include <stddef.h>

/* NULL only without memory. */
json_t *json_text(const void *bytes, size_t len);

#endif
