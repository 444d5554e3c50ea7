/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections to Redis against peers that say what a script tells them: whatever they say, and
 * however slowly, an exchange ends by its deadline, with right answers or none.
 */
#include "test.h"

#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "redis_internal.h"

#define SECOND_US ((uint64_t)1000 * 1000)
#define LONG_US   (60 * SECOND_US) /* nobody waits so long */
#define MIB       ((size_t)1 << 20)

/* What a peer does once it was spoken to. */
struct script {
    const char *says;
    size_t at_a_time;  /* bytes; 0: all at once */
    unsigned pause_ms; /* before each piece */
    size_t filler;     /* so many zeros behind it */
    unsigned times;    /* all that; 0: once */
    bool hangs_up;
};

struct peer {
    int listener;
    struct redis_address address;
    const struct script *script;
    pthread_t thread;
};

static bool send_all(int fd, const char *bytes, size_t len)
{
    while (len > 0) {
        ssize_t n = send(fd, bytes, len, MSG_NOSIGNAL);

        if (n <= 0)
            return false;
        bytes += n;
        len -= (size_t)n;
    }
    return true;
}

static bool say(int fd, const struct script *script)
{
    static const char zeros[64 << 10];
    size_t len = strlen(script->says), piece = script->at_a_time ? script->at_a_time : len;

    for (size_t at = 0; at < len; at += piece) {
        usleep(1000 * script->pause_ms);
        if (!send_all(fd, script->says + at, piece < len - at ? piece : len - at))
            return false;
    }
    for (size_t left = script->filler; left > 0;) {
        size_t n = left < sizeof(zeros) ? left : sizeof(zeros);

        if (!send_all(fd, zeros, n))
            return false;
        left -= n;
    }
    return true;
}

/* One connection, until the other side closes it. */
static void *run_peer(void *arg)
{
    const struct peer *peer = arg;
    int fd = accept(peer->listener, NULL, NULL);
    char bytes[4096];

    if (recv(fd, bytes, sizeof(bytes), 0) > 0) {
        unsigned times = peer->script->times ? peer->script->times : 1;

        while (times > 0 && say(fd, peer->script))
            times--;
        while (!peer->script->hangs_up && recv(fd, bytes, sizeof(bytes), 0) > 0)
            ;
    }
    close(fd);
    return NULL;
}

static void peer_listen(struct peer *peer)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(in);

    peer->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(peer->listener, (struct sockaddr *)&in, len), 0);
    assert_int_equal(listen(peer->listener, 64), 0);
    assert_int_equal(getsockname(peer->listener, (struct sockaddr *)&in, &len), 0);
    strcpy(peer->address.host, "127.0.0.1");
    peer->address.port = ntohs(in.sin_port);
}

static struct redis_conn *peer_start(struct peer *peer, const struct script *script)
{
    struct redis_conn *c;

    peer->script = script;
    peer_listen(peer);
    assert_int_equal(pthread_create(&peer->thread, NULL, run_peer, peer), 0);
    c = redis_conn_open(&peer->address);
    assert_non_null(c);
    return c;
}

static void peer_stop(struct peer *peer, struct redis_conn *c)
{
    redis_conn_close(c);
    pthread_join(peer->thread, NULL);
    close(peer->listener);
}

/* Ask nr questions, and take the answers. */
static bool ask(struct redis_conn *c, struct redis_answer *answers, size_t nr, uint64_t for_us)
{
    const char *const argv[] = {"GET", "key"};
    const size_t lens[] = {3, 3};

    for (size_t i = 0; i < nr; i++)
        assert_true(redis_conn_add(c, 2, argv, lens));
    return redis_conn_exchange(c, answers, nr, clock_now_us() + for_us);
}

static void release(struct redis_answer *answers, size_t nr)
{
    for (size_t i = 0; i < nr; i++)
        redis_answer_release(&answers[i]);
}

/* Ask nr questions of a peer; did that go well? */
static bool try(const struct script *script, size_t nr, uint64_t for_us)
{
    struct redis_answer answers[4];
    struct peer peer;
    struct redis_conn *c = peer_start(&peer, script);
    bool good = ask(c, answers, nr, for_us);

    release(answers, nr);
    peer_stop(&peer, c);
    return good;
}

static void answers_in_pieces_are_put_together(void **state)
{
    static const char says[] = "$5\r\nhel\r\n\r\n$-1\r\n:7\r\n-READONLY no\r\n";

    (void)state;
    for (size_t piece = 1; piece < sizeof(says); piece += 3) {
        const struct script script = {.says = says, .at_a_time = piece, .pause_ms = 1};
        struct redis_answer a[4];
        struct peer peer;
        struct redis_conn *c = peer_start(&peer, &script);

        assert_true(ask(c, a, 4, LONG_US));
        assert_int_equal(a[0].kind, ANSWER_TEXT);
        assert_int_equal(a[0].len[0], 5);
        assert_memory_equal(a[0].text[0], "hel\r\n", 6);
        for (unsigned i = 1; i < 4; i++)
            assert_int_equal(a[i].kind, ANSWER_NONE);
        assert_false(a[1].is_error || a[2].is_error);
        assert_true(a[3].is_error && a[3].is_read_only);
        assert_true(redis_conn_is_quiet(c));
        release(a, 4);
        peer_stop(&peer, c);
    }
}

/* Each byte comes in time; all of them would take 20 seconds. */
static void a_slow_drip_ends_at_the_deadline(void **state)
{
    const struct script script = {.says = "$2000\r\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
                                          "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
                                          "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
                                          "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
                                  .at_a_time = 1,
                                  .pause_ms = 10,
                                  .times = 10};
    uint64_t began_us = clock_now_us();

    (void)state;
    assert_false(try(&script, 1, SECOND_US / 10));
    assert_true(clock_now_us() - began_us < 5 * SECOND_US);
}

static void what_came_in_time_is_of_use(void **state)
{
    const struct script script = {.says = "$1\r\na\r\n$1\r\n"};
    struct redis_answer a[2];
    struct peer peer;
    struct redis_conn *c = peer_start(&peer, &script);

    (void)state;
    assert_false(ask(c, a, 2, SECOND_US / 2));
    assert_int_equal(a[0].kind, ANSWER_TEXT);
    assert_string_equal(a[0].text[0], "a");
    assert_int_equal(a[1].kind, ANSWER_NONE);
    release(a, 2);
    peer_stop(&peer, c);
}

/* At once, not at the deadline. */
static void a_peer_that_hangs_up_fails(void **state)
{
    const struct script script = {.says = "$1\r\n", .pause_ms = 50, .hangs_up = true};
    uint64_t began_us = clock_now_us();

    (void)state;
    assert_false(try(&script, 1, LONG_US));
    assert_true(clock_now_us() - began_us < LONG_US / 2);
}

/* Taken for an answer to the next question, it would be wrong for ever after. */
static void more_answers_than_questions_fail(void **state)
{
    (void)state;
    assert_false(try(&(struct script){.says = "+OK\r\n+OK\r\n"}, 1, LONG_US));
    assert_false(try(&(struct script){.says = "$1\r\na\r\n\r\n"}, 1, LONG_US));
    assert_false(try(&(struct script){.says = "$-1\r\n$"}, 1, LONG_US));
}

static void a_late_answer_is_noticed(void **state)
{
    const struct script script = {.says = "+OK\r\n", .pause_ms = 30, .times = 2};
    struct redis_answer a;
    struct peer peer;
    struct redis_conn *c = peer_start(&peer, &script);

    (void)state;
    assert_true(ask(c, &a, 1, LONG_US));
    while (redis_conn_is_quiet(c))
        usleep(1000);
    release(&a, 1);
    peer_stop(&peer, c);
}

static void what_is_no_answer_fails(void **state)
{
    static const char *const says[] = {
        "*1000000000\r\n",
        "*1\r\n$1\r\na\r\n",
        "*2\r\n*2\r\n",
        "*2\r\n$1\r\na\r\n:1\r\n",
        "*2\r\n$1\r\na\r\n$-1\r\n",
        "*3\r\n$1\r\na\r\n",
        "$-7\r\n",
        "*-7\r\n",
        "HTTP/1.1 200 OK\r\n",
        "$99999999999999999999\r\n",
        ":12x\r\n",
    };

    (void)state;
    for (size_t i = 0; i < sizeof(says) / sizeof(says[0]); i++)
        if (try(&(struct script){.says = says[i]}, 1, SECOND_US / 2))
            fail_msg("taken for an answer: %s", says[i]);
}

static void a_pair_is_an_answer(void **state)
{
    const struct script script = {.says = "*2\r\n$9\r\n127.0.0.1\r\n$4\r\n6379\r\n",
                                  .at_a_time = 7};
    struct redis_answer a;
    struct peer peer;
    struct redis_conn *c = peer_start(&peer, &script);

    (void)state;
    assert_true(ask(c, &a, 1, LONG_US));
    assert_int_equal(a.kind, ANSWER_PAIR);
    assert_string_equal(a.text[0], "127.0.0.1");
    assert_string_equal(a.text[1], "6379");
    release(&a, 1);
    peer_stop(&peer, c);
}

/* Long before the deadline: what is too much is not waited for. */
static void values_are_bounded(void **state)
{
    uint64_t began_us = clock_now_us();

    (void)state;
    assert_false(
        try(&(struct script){.says = "$1000000000\r\n", .filler = 1000 * MIB}, 1, LONG_US));
    /* Each by itself, with two bytes for the end of its line, would do. */
    assert_false(try(&(struct script){.says = "$20971520\r\n", .filler = 20 * MIB + 2, .times = 3},
                     3, LONG_US));
    assert_true(clock_now_us() - began_us < LONG_US);
}

/* -- The breaker ------------------------------------------------------------------------------ */

#define NR_AT_ONCE 16

/* A node at a port where connections are taken and nobody speaks. */
static void node_start(struct redis_node *node, struct peer *peer)
{
    struct redis_place place = {.nr_addresses = 1};

    peer_listen(peer);
    place.addresses[0] = peer->address;
    redis_node_init(node, &place);
    redis_node_locate(node);
}

static void failures_of_one_moment_count_once(void **state)
{
    struct redis_conn *conns[NR_AT_ONCE];
    uint64_t began_us[NR_AT_ONCE];
    struct redis_node node;
    struct peer peer;

    (void)state;
    node_start(&node, &peer);
    for (unsigned i = 0; i < NR_AT_ONCE; i++) {
        conns[i] = redis_node_take(&node, &began_us[i]);
        assert_non_null(conns[i]);
    }
    for (unsigned i = 0; i < NR_AT_ONCE; i++)
        redis_node_give(&node, conns[i], false, began_us[i]);
    assert_int_equal(node.opened, 1);
    assert_int_equal(node.nr_failures, NR_AT_ONCE);
    assert_null(redis_node_take(&node, &began_us[0]));
    redis_node_release(&node);
    close(peer.listener);
}

/* One tries, alone; if that fails, the others wait twice as long. */
static void an_open_breaker_lets_one_through_at_a_time(void **state)
{
    uint64_t began_us, backoff_us;
    struct redis_conn *c = NULL;
    struct redis_node node;
    struct peer peer;

    (void)state;
    node_start(&node, &peer);
    while (node.opened == 0) {
        c = redis_node_take(&node, &began_us);
        redis_node_give(&node, c, false, began_us);
    }
    backoff_us = node.backoff_us;
    while (!(c = redis_node_take(&node, &began_us)))
        usleep(1000);
    assert_null(redis_node_take(&node, &began_us));
    redis_node_give(&node, c, false, clock_now_us());
    assert_int_equal(node.opened, 2);
    assert_int_equal(node.backoff_us, 2 * backoff_us);
    while (!(c = redis_node_take(&node, &began_us)))
        usleep(1000);
    redis_node_give(&node, c, true, began_us);
    c = redis_node_take(&node, &began_us); /* closed again */
    assert_non_null(c);
    redis_node_give(&node, c, true, began_us);
    redis_node_release(&node);
    close(peer.listener);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_in_pieces_are_put_together),
        cmocka_unit_test(a_slow_drip_ends_at_the_deadline),
        cmocka_unit_test(what_came_in_time_is_of_use),
        cmocka_unit_test(a_peer_that_hangs_up_fails),
        cmocka_unit_test(more_answers_than_questions_fail),
        cmocka_unit_test(a_late_answer_is_noticed),
        cmocka_unit_test(what_is_no_answer_fails),
        cmocka_unit_test(a_pair_is_an_answer),
        cmocka_unit_test(values_are_bounded),
        cmocka_unit_test(failures_of_one_moment_count_once),
        cmocka_unit_test(an_open_breaker_lets_one_through_at_a_time),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
