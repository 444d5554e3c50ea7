/* SPDX-License-Identifier: Apache-2.0 */
/* Whom X-Forwarded-For makes the client, whatever stands in it. */
#include "test.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#include "proxies.h"

static struct cairn_error err;

static struct proxies *parse(const char *text)
{
    struct proxies *proxies = NULL;

    assert_int_equal(proxies_parse(text, &proxies, &err), CAIRN_OK);
    return proxies;
}

static bool trusts(const char *text, const char *peer)
{
    CLEANUP(proxies_free_p) struct proxies *proxies = parse(text);
    struct sockaddr_in in = {.sin_family = AF_INET};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6};

    if (inet_pton(AF_INET, peer, &in.sin_addr) == 1)
        return proxies_trust(proxies, (struct sockaddr *)&in);
    assert_int_equal(inet_pton(AF_INET6, peer, &in6.sin6_addr), 1);
    return proxies_trust(proxies, (struct sockaddr *)&in6);
}

static void test_networks_have_their_addresses(void **state)
{
    static const struct {
        const char *networks, *peer;
        bool trusted;
    } cases[] = {
        {"192.0.2.7", "192.0.2.7", true},
        {"192.0.2.7", "192.0.2.8", false},
        {"192.0.2.7", "::ffff:192.0.2.7", true},
        {"::ffff:192.0.2.7", "192.0.2.7", true},
        {"10.0.0.0/8", "10.255.255.255", true},
        {"10.0.0.0/8", "11.0.0.0", false},
        {"172.16.0.0/12", "172.31.1.2", true},
        {"172.16.0.0/12", "172.32.0.0", false},
        {"0.0.0.0/0", "203.0.113.1", true},
        {"0.0.0.0/0", "2001:db8::1", false},
        {"::/0", "2001:db8::1", true},
        {"::/0", "203.0.113.1", false},
        {"2001:db8::/33", "2001:db8:7fff::1", true},
        {"2001:db8::/33", "2001:db8:8000::1", false},
        {"::1", "::1", true},
        {"192.0.2.7 ,\t::1, 10.0.0.0/8", "::1", true},
        {"192.0.2.7,::1,10.0.0.0/8", "10.1.1.1", true},
        {"192.0.2.7,::1,10.0.0.0/8", "192.0.2.7", true},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (trusts(cases[i].networks, cases[i].peer) != cases[i].trusted)
            print_error("'%s' and %s\n", cases[i].networks, cases[i].peer);
        assert_int_equal(trusts(cases[i].networks, cases[i].peer), cases[i].trusted);
    }
}

static void test_other_families_are_not_trusted(void **state)
{
    CLEANUP(proxies_free_p) struct proxies *proxies = parse("0.0.0.0/0,::/0");
    const struct sockaddr local = {.sa_family = AF_UNIX};

    (void)state;
    assert_false(proxies_trust(proxies, &local));
}

static void test_what_is_no_network_is_refused(void **state)
{
    static const char *const bad[] = {
        "",
        ",",
        "10.0.0.0/8,",
        ",::1",
        "haproxy",
        "10.0.0",
        "10.0.0.256",
        "10.0.0.01",
        "10.0.0.1/33",
        "10.0.0.1/",
        "10.0.0.1/-1",
        "10.0.0.0/8/8",
        "10.0.0.1/8",
        "::1/129",
        "2001:db8::1/64",
        "[::1]",
        "fe80::1%eth0",
        "1.2.3.4:80",
        "10.0.0.0 /8",
        "/8",
        "::/0x0",
        "10.0.0.1 ::1",
        "10.0.0.1;::1",
        "1111:2222:3333:4444:5555:6666:7777:8888:9999:aaaa:bbbb:cccc:dddd:eeee:ffff"};
    struct proxies *proxies = NULL;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        if (proxies_parse(bad[i], &proxies, &err) != CAIRN_E_USAGE)
            print_error("'%s' was taken\n", bad[i]);
        assert_null(proxies);
        assert_non_null(strstr(err.message, "expected an address, or a network"));
    }
    assert_int_equal(proxies_parse("::1,10.0.0.9/8,10.0.0.1", &proxies, &err), CAIRN_E_USAGE);
    assert_non_null(strstr(err.message, "\"10.0.0.9/8\""));
}

static void test_a_list_is_bounded(void **state)
{
    struct proxies *proxies = NULL;
    char text[4 * 1025 + 1] = "";

    (void)state;
    for (unsigned i = 0; i < 1025; i++)
        memcpy(text + 4 * i, i < 1024 ? "::1," : "::1", i < 1024 ? 5 : 4);
    assert_int_equal(proxies_parse(text, &proxies, &err), CAIRN_E_USAGE);
    assert_non_null(strstr(err.message, "1025 networks"));
    assert_null(proxies);
    proxies_free(parse(text + 4));
}

/* 10.0.0.0/8 and fd00::/8 are trusted; one value; NULL: it is the peer. */
static void test_the_client_is_who_the_last_trusted_proxy_names(void **state)
{
    static const struct {
        const char *value, *client;
    } cases[] = {
        {"203.0.113.1", "203.0.113.1"},
        {"2001:DB8:0::1", "2001:db8::1"},
        {"::ffff:203.0.113.1", "203.0.113.1"},
        {" \t203.0.113.1\t ", "203.0.113.1"},
        {"203.0.113.1, 10.0.0.2", "203.0.113.1"},
        {"203.0.113.1,fd00::7,10.0.0.2", "203.0.113.1"},
        /* who lies about himself lies to the left of himself */
        {"198.51.100.9, 203.0.113.1", "203.0.113.1"},
        {"10.0.0.2, 203.0.113.1", "203.0.113.1"},
        {"198.51.100.9, 10.0.0.9, 203.0.113.1, 10.0.0.2", "203.0.113.1"},
        {"nonsense, 203.0.113.1", "203.0.113.1"},
        {",,,, 203.0.113.1", "203.0.113.1"},
        /* a proxy's own request */
        {"10.0.0.3, 10.0.0.2", "10.0.0.3"},
        /* as far as it can be followed */
        {"203.0.113.1, unknown, 10.0.0.2", "10.0.0.2"},
        {"203.0.113.1,, 10.0.0.2", "10.0.0.2"},
        /* not at all */
        {"", NULL},
        {",", NULL},
        {" ", NULL},
        {"203.0.113.1,", NULL},
        {"203.0.113.1, unknown", NULL},
        {"203.0.113.1, _hidden", NULL},
        {"203.0.113.1, \"10.0.0.2\"", NULL},
        {"203.0.113.1, [2001:db8::1]", NULL},
        {"203.0.113.1:4711", NULL},
        {"203.0.113.1 client=6.6.6.6", NULL},
        {"203.0.113.1\nevent=ready", NULL},
        {"203.0.113.1%0a", NULL},
        {"203.0.113.01", NULL},
        {"0x7f.1", NULL},
        {"3405803777", NULL},
        {"fe80::1%eth0", NULL},
        {"for=203.0.113.1", NULL},
        {"\xc3\xa9\xff", NULL},
    };
    CLEANUP(proxies_free_p) struct proxies *proxies = parse("10.0.0.0/8,fd00::/8");

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char buf[INET6_ADDRSTRLEN] = "";
        const char *client = proxies_client(proxies, &cases[i].value, 1, buf);

        if (!client != !cases[i].client)
            print_error("'%s' gives %s\n", cases[i].value, client ? client : "nobody");
        assert_int_equal(!client, !cases[i].client);
        assert_string_equal(buf, client ? cases[i].client : "");
    }
}

static void test_several_values_are_one_list(void **state)
{
    static const char *const added[] = {"203.0.113.1", "198.51.100.9"};
    static const char *const through[] = {"10.0.0.2", "203.0.113.1, 10.0.0.3", "198.51.100.9"};
    static const char *const broken[] = {"10.0.0.2", "", "198.51.100.9"};
    CLEANUP(proxies_free_p) struct proxies *proxies = parse("10.0.0.0/8");
    char buf[INET6_ADDRSTRLEN] = "";

    (void)state;
    assert_string_equal(proxies_client(proxies, added, 2, buf), "203.0.113.1");
    assert_string_equal(proxies_client(proxies, through, 3, buf), "203.0.113.1");
    assert_string_equal(proxies_client(proxies, broken, 3, buf), "10.0.0.2");
    assert_null(proxies_client(proxies, NULL, 0, buf));
}

/* Exactly as long as the memory it is in, so that a sanitizer sees who reads past it. */
static void test_long_values(void **state)
{
    static const char *const ends[] = {"", ",203.0.113.1"};
    CLEANUP(proxies_free_p) struct proxies *proxies = parse("10.0.0.0/8");
    const size_t len = 1 << 20;

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        for (const char *fill = "1,: f"; *fill; fill++) {
            CLEANUP_FREE char *text = malloc(len + strlen(ends[i]) + 1);
            char buf[INET6_ADDRSTRLEN];
            const char *client, *value = text;

            assert_non_null(text);
            memset(text, *fill, len);
            memcpy(text + len, ends[i], strlen(ends[i]) + 1);
            client = proxies_client(proxies, &value, 1, buf);
            assert_string_equal(client ? client : "", i ? "203.0.113.1" : "");
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_networks_have_their_addresses),
        cmocka_unit_test(test_other_families_are_not_trusted),
        cmocka_unit_test(test_what_is_no_network_is_refused),
        cmocka_unit_test(test_a_list_is_bounded),
        cmocka_unit_test(test_the_client_is_who_the_last_trusted_proxy_names),
        cmocka_unit_test(test_several_values_are_one_list),
        cmocka_unit_test(test_long_values),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
