/* SPDX-License-Identifier: Apache-2.0 */
#include "proxies.h"

#include <arpa/inet.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "byte_count.h"
#include "quote.h"

#define NETWORKS_MAX 1024
#define IPV4_PREFIX  96 /* bits that all of IPv4 has in common, as a part of IPv6 */

struct network {
    struct in6_addr address;
    unsigned bits;
};

struct proxies {
    size_t nr;
    struct network networks[];
};

/* -- Lists of addresses ------------------------------------------------------------------- */

/* What is left of a list with commas, which is taken apart from its end. */
struct list {
    const char *text;
    size_t len;
    bool ended;
};

struct item {
    const char *text; /* without spaces around it */
    size_t len;
};

static bool is_space(char c)
{
    return c == ' ' || c == '\t';
}

static struct item take_last(struct list *list)
{
    const char *end = list->text + list->len, *start = end;

    while (start > list->text && start[-1] != ',')
        start--;
    list->ended = start == list->text;
    list->len = list->ended ? 0 : (size_t)(start - 1 - list->text);
    while (start < end && is_space(*start))
        start++;
    while (end > start && is_space(end[-1]))
        end--;
    return (struct item){start, (size_t)(end - start)};
}

/* IPv4 or IPv6 without brackets, port or zone. */
static bool parse_address(const char *text, size_t len, struct in6_addr *ret_address)
{
    static const struct in6_addr mapped = {.s6_addr = {[10] = 0xff, [11] = 0xff}};
    char buf[INET6_ADDRSTRLEN];
    struct in6_addr address;

    if (len >= sizeof(buf))
        return false;
    memcpy(buf, text, len);
    buf[len] = 0;
    if (inet_pton(AF_INET6, buf, &address) != 1) {
        address = mapped;
        if (inet_pton(AF_INET, buf, &address.s6_addr[IPV4_PREFIX / 8]) != 1)
            return false;
    }
    *ret_address = address;
    return true;
}

/* -- Networks ----------------------------------------------------------------------------- */

/* The first bits of an address, and zeros. */
static struct in6_addr masked(const struct in6_addr *address, unsigned bits)
{
    struct in6_addr result = {0};

    memcpy(result.s6_addr, address->s6_addr, bits / 8);
    if (bits % 8)
        result.s6_addr[bits / 8] = (uint8_t)(address->s6_addr[bits / 8] & (0xff00 >> bits % 8));
    return result;
}

static bool same_address(const struct in6_addr *a, const struct in6_addr *b)
{
    return memcmp(a, b, sizeof(*a)) == 0;
}

/* A network wider than all of IPv4, as ::/0, is one of IPv6 alone. */
static bool is_trusted(const struct proxies *proxies, const struct in6_addr *address)
{
    const bool is_v4 = IN6_IS_ADDR_V4MAPPED(address);

    for (size_t i = 0; i < proxies->nr; i++) {
        const struct network *network = &proxies->networks[i];
        struct in6_addr prefix = masked(address, network->bits);

        if (same_address(&prefix, &network->address) && (!is_v4 || network->bits >= IPV4_PREFIX))
            return true;
    }
    return false;
}

static bool parse_network(const struct item *item, struct network *ret_network)
{
    const char *slash = memchr(item->text, '/', item->len);
    const size_t len = slash ? (size_t)(slash - item->text) : item->len;
    const bool is_v6 = memchr(item->text, ':', len);
    const uint64_t max = is_v6 ? 128 : 128 - IPV4_PREFIX;
    struct in6_addr prefix;
    uint64_t bits = max;

    if (!parse_address(item->text, len, &ret_network->address) ||
        (slash && !number_parse(slash + 1, item->len - len - 1, &bits)) || bits > max)
        return false;
    ret_network->bits = (unsigned)(bits + (is_v6 ? 0 : IPV4_PREFIX));
    prefix = masked(&ret_network->address, ret_network->bits);
    return same_address(&prefix, &ret_network->address);
}

static size_t count_items(const char *text)
{
    size_t nr = 1;

    for (; *text; text++)
        nr += *text == ',';
    return nr;
}

int proxies_parse(const char *text, struct proxies **ret_proxies, struct cairn_error *err)
{
    const size_t nr = count_items(text);
    CLEANUP(proxies_free_p) struct proxies *proxies = NULL;
    struct list list = {text, strlen(text), false};
    char quoted[QUOTE_MAX];

    if (nr > NETWORKS_MAX)
        return error_set(err, CAIRN_E_USAGE, "%zu networks, expected at most %d", nr, NETWORKS_MAX);
    proxies = calloc(1, sizeof(*proxies) + nr * sizeof(proxies->networks[0]));
    if (!proxies)
        return error_no_memory(err, "trusted proxies");
    while (!list.ended) {
        struct item item = take_last(&list);

        if (!parse_network(&item, &proxies->networks[proxies->nr++]))
            return error_set(err, CAIRN_E_USAGE,
                             "%s, expected an address, or a network such as 10.0.0.0/8 or "
                             "2001:db8::/32 with zeros behind its prefix",
                             quote_bytes(item.text, item.len, quoted));
    }
    *ret_proxies = steal_ptr(proxies);
    return CAIRN_OK;
}

void proxies_free(struct proxies *proxies)
{
    free(proxies);
}

/* -- Requests ----------------------------------------------------------------------------- */

bool proxies_trust(const struct proxies *proxies, const struct sockaddr *peer)
{
    struct in6_addr address = {.s6_addr = {[10] = 0xff, [11] = 0xff}};

    if (peer->sa_family == AF_INET)
        memcpy(&address.s6_addr[IPV4_PREFIX / 8],
               (const char *)peer + offsetof(struct sockaddr_in, sin_addr), 4);
    else if (peer->sa_family == AF_INET6)
        memcpy(&address, (const char *)peer + offsetof(struct sockaddr_in6, sin6_addr),
               sizeof(address));
    else
        return false;
    return is_trusted(proxies, &address);
}

static const char *address_name(const struct in6_addr *address, char buf[INET6_ADDRSTRLEN])
{
    return IN6_IS_ADDR_V4MAPPED(address)
               ? inet_ntop(AF_INET, &address->s6_addr[IPV4_PREFIX / 8], buf, INET6_ADDRSTRLEN)
               : inet_ntop(AF_INET6, address, buf, INET6_ADDRSTRLEN);
}

const char *proxies_client(const struct proxies *proxies, const char *const *values, size_t nr,
                           char buf[INET6_ADDRSTRLEN])
{
    struct in6_addr client;
    bool known = false, go_on = true;

    for (size_t i = 0; i < nr && go_on; i++) {
        struct list list = {values[i], strlen(values[i]), false};

        while (go_on && !list.ended) {
            struct item item = take_last(&list);
            bool is_one = parse_address(item.text, item.len, &client);

            known |= is_one;
            go_on = is_one && is_trusted(proxies, &client);
        }
    }
    return known ? address_name(&client, buf) : NULL;
}
