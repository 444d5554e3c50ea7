/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The error object: a code, an errno and one line of text.  Nothing here allocates, so that an
 * error can be reported when memory is what ran out.
 */
#include "error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *const code_names[] = {
    [-CAIRN_OK] = "ok",
    [-CAIRN_E_IO] = "io",
    [-CAIRN_E_CORRUPT] = "corrupt",
    [-CAIRN_E_UNSUPPORTED] = "unsupported",
    [-CAIRN_E_NOT_FOUND] = "not-found",
    [-CAIRN_E_CONFLICT] = "conflict",
    [-CAIRN_E_LIMIT] = "limit",
    [-CAIRN_E_CANCELLED] = "cancelled",
    [-CAIRN_E_UNAVAILABLE] = "unavailable",
    [-CAIRN_E_USAGE] = "usage",
    [-CAIRN_E_NO_MEMORY] = "no-memory",
    [-CAIRN_E_NO_SPACE] = "no-space",
    [-CAIRN_E_DENIED] = "denied",
};
#define NR_CODES ((int)(sizeof(code_names) / sizeof(code_names[0])))

/* A prefix leaves at least half of the room to what it stands before. */
#define PREFIX_MAX (CAIRN_ERROR_MESSAGE_MAX / 2)

static enum cairn_code code_of_errno(int sys_errno)
{
    switch (sys_errno) {
    case ENOENT:
        return CAIRN_E_NOT_FOUND;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return CAIRN_E_NO_SPACE;
    case ENOMEM:
        return CAIRN_E_NO_MEMORY;
    case EACCES:
    case EPERM:
        return CAIRN_E_DENIED;
    default:
        return CAIRN_E_IO;
    }
}

int error_set(struct cairn_error *err, enum cairn_code code, const char *fmt, ...)
{
    if (err) {
        va_list ap;

        err->code = code;
        err->sys_errno = 0;
        va_start(ap, fmt);
        vsnprintf(err->message, sizeof(err->message), fmt, ap);
        va_end(ap);
    }
    return code;
}

int error_set_errno(struct cairn_error *err, int sys_errno, const char *fmt, ...)
{
    enum cairn_code code = code_of_errno(sys_errno);

    if (err) {
        char text[CAIRN_ERROR_MESSAGE_MAX];
        char reason[128];
        va_list ap;

        va_start(ap, fmt);
        vsnprintf(text, sizeof(text), fmt, ap);
        va_end(ap);
        err->code = code;
        err->sys_errno = sys_errno;
        snprintf(err->message, sizeof(err->message), "%.*s: %s",
                 (int)(sizeof(err->message) - sizeof(reason) - 3), text,
                 strerror_r(sys_errno, reason, sizeof(reason)));
    }
    return code;
}

int error_no_memory(struct cairn_error *err, const char *what)
{
    return error_set(err, CAIRN_E_NO_MEMORY, "out of memory for %s", what);
}

static void cut_copy(char *to, const char *from, size_t room)
{
    size_t len = strnlen(from, room - 1);

    memcpy(to, from, len);
    to[len] = 0;
}

int error_prefix(struct cairn_error *err, int code, const char *fmt, ...)
{
    char message[CAIRN_ERROR_MESSAGE_MAX];
    size_t used;
    va_list ap;

    if (!err)
        return code;
    memcpy(message, err->message, sizeof(message));
    va_start(ap, fmt);
    vsnprintf(err->message, PREFIX_MAX, fmt, ap);
    va_end(ap);
    used = strlen(err->message);
    err->message[used++] = ':';
    err->message[used++] = ' ';
    cut_copy(err->message + used, message, sizeof(err->message) - used);
    return err->code;
}

const char *error_code_name(int code)
{
    if (code > 0 || -code >= NR_CODES)
        return "unknown";
    return code_names[-code];
}

int error_exit_code(int code)
{
    if (code == CAIRN_OK)
        return 0;
    return code == CAIRN_E_USAGE ? 2 : 1;
}
