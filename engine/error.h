/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Setting errors.  An error is set once, where the problem is known; frames further out put
 * context in front of the message and never replace it.
 */
#ifndef ENGINE_ERROR_H
#define ENGINE_ERROR_H

#include <stddef.h>

#include "cairn_error.h"

/*
 * Describe a failure in err (may be NULL) and return code, so that a caller can write
 * `return error_set(err, CAIRN_E_CORRUPT, "…")`.
 */
int error_set(struct cairn_error *err, enum cairn_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/*
 * The same for a failed system call: appends ": " and the text of sys_errno, which is kept in
 * the error.  The code follows from it: ENOENT is NOT_FOUND, ENOSPC, EDQUOT and EFBIG are
 * NO_SPACE, ENOMEM is NO_MEMORY, EACCES and EPERM are DENIED, everything else is IO.
 */
int error_set_errno(struct cairn_error *err, int sys_errno, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Report a failed allocation of what; returns CAIRN_E_NO_MEMORY. */
int error_no_memory(struct cairn_error *err, const char *what);

/* Put "context: " in front of the message that err holds; returns err's code (or code if NULL). */
int error_prefix(struct cairn_error *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* A stable lower-case word for a code ("corrupt", "not-found", …), for logs and JSON. */
const char *error_code_name(int code);

/* The exit code of a program that ends with code: 0 for OK, 2 for USAGE, else 1. */
int error_exit_code(int code);

#endif
