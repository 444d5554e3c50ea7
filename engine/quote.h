/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Outside bytes in messages: quoted, cut to a readable length, and with everything that is not
 * printable ASCII escaped, so that no name in an image or a request can forge a log line.
 */
#ifndef ENGINE_QUOTE_H
#define ENGINE_QUOTE_H

#include <stddef.h>

#define QUOTE_MAX 128

/* Write "bytes" with its quotes into buf, zero-terminated; a cut text ends in "...".  Returns buf.
 */
char *quote_bytes(const void *bytes, size_t len, char buf[QUOTE_MAX]);

/* The same for a zero-terminated string. */
char *quote_str(const char *str, char buf[QUOTE_MAX]);

#endif
