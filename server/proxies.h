/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who a client is where a proxy stands in between, for the log.
 *
 * X-Forwarded-For says who asked whom: "client, first proxy, second proxy".  Anybody may send one,
 * so it is asked only where the peer is a trusted proxy, and believed from its right end on, as far
 * as trusted proxies have written it: each of them vouches for the one address before its own. What
 * stands left of an address that is not trusted, or of anything that is no address, is hearsay, and
 * not even looked at.
 *
 * Nothing is allowed or refused by what this finds out.
 */
#ifndef SERVER_PROXIES_H
#define SERVER_PROXIES_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>

#include "cleanup.h"
#include "error.h"

struct proxies;

/* "192.0.2.7,10.0.0.0/8,2001:db8::/32": CAIRN_E_USAGE names the one that is wrong. */
int proxies_parse(const char *text, struct proxies **ret_proxies, struct cairn_error *err);
void proxies_free(struct proxies *proxies);
CLEANUP_DEFINE(struct proxies *, proxies_free)

/* Is it one of them?  IPv4 also as a part of IPv6. */
bool proxies_trust(const struct proxies *proxies, const struct sockaddr *peer);

/*
 * The client of a trusted peer's request, by its nr values of X-Forwarded-For, the last one first:
 * its address, in buf.  NULL: they do not tell, so it is the peer.
 */
const char *proxies_client(const struct proxies *proxies, const char *const *values, size_t nr,
                           char buf[INET6_ADDRSTRLEN]);

#endif
