/* SPDX-License-Identifier: Apache-2.0 */
/* Strictness about requests beyond libmicrohttpd's. */
#ifndef SERVER_HTTP_STRICT_H
#define SERVER_HTTP_STRICT_H

#include <microhttpd.h>

#include "http.h"

struct http_refusal {
    unsigned status;
    const char *oci_code, *message;
};

/* Why a request whose headers are there is not taken; NULL: it is.  Where a refused one ends is not
 * certain: nothing more may be read from its connection. */
const struct http_refusal *http_strict_check(struct MHD_Connection *connection, const char *version,
                                             const struct http_limits *limits);

#endif
