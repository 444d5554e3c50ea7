/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors, as users of libcairn and every part of Cairn see them.
 *
 * A function that can fail returns CAIRN_OK or one of the negative codes below, and describes
 * the failure in a struct cairn_error that the caller owns and passes last.  A caller that does
 * not care passes NULL.  The struct is plain data: it needs no initialisation before a call and
 * no release after it, and it is written only when a call fails.
 *
 * This header is part of libcairn's public interface and includes nothing of Cairn's.
 */
#ifndef CAIRN_ERROR_H
#define CAIRN_ERROR_H

#ifdef __cplusplus
extern "C" {
#endif

/* What a caller may have to tell apart; the values are part of the ABI. */
enum cairn_code {
    CAIRN_OK = 0,
    CAIRN_E_IO = -1,          /* reading or writing failed; sys_errno says how */
    CAIRN_E_CORRUPT = -2,     /* data contradicts its format, its checksum or itself */
    CAIRN_E_UNSUPPORTED = -3, /* valid, but a feature that Cairn refuses or does not know */
    CAIRN_E_NOT_FOUND = -4,   /* no such blob, manifest, tag, file */
    CAIRN_E_CONFLICT = -5,    /* exists already, or changed since it was looked at */
    CAIRN_E_LIMIT = -6,       /* larger than a stated limit */
    CAIRN_E_CANCELLED = -7,   /* the caller asked to stop */
    CAIRN_E_UNAVAILABLE = -8, /* a service cannot be reached or did not answer in time */
    CAIRN_E_USAGE = -9,       /* an argument that can never work */
    CAIRN_E_NO_MEMORY = -10,  /* an allocation failed */
    CAIRN_E_NO_SPACE = -11,   /* the disk or the quota is full */
    CAIRN_E_DENIED = -12,     /* authentication or permission is missing */
};

/* Longest message, including the terminating zero; longer ones are cut at the end. */
#define CAIRN_ERROR_MESSAGE_MAX 512

struct cairn_error {
    enum cairn_code code;
    int sys_errno;                         /* errno where the system said no, else 0 */
    char message[CAIRN_ERROR_MESSAGE_MAX]; /* one line, no newline at its end */
};

#ifdef __cplusplus
}
#endif

#endif
