/* SPDX-License-Identifier: Apache-2.0 */
/* The token in an Authorization header: Bearer (RFC 6750), or the password of Basic (RFC 7617). */
#ifndef SERVER_CREDENTIALS_H
#define SERVER_CREDENTIALS_H

#include <stddef.h>

#define CREDENTIALS_MAX 1024 /* of the decoded header; the longest token is shorter */

enum credentials {
    CREDENTIALS_NONE,      /* no header, or Basic without a password, as OCI clients without a login
                              send it */
    CREDENTIALS_TOKEN,     /* *ret_token, *ret_len, which lie in buf */
    CREDENTIALS_MALFORMED, /* another scheme, bad base64, too long */
};

/* authorization may be NULL.  buf is to be wiped by the caller. */
enum credentials credentials_parse(const char *authorization, char buf[CREDENTIALS_MAX],
                                   const char **ret_token, size_t *ret_len);

#endif
