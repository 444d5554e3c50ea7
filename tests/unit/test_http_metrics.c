/* SPDX-License-Identifier: Apache-2.0 */
/* Figures of requests: what is counted where, exactly, and how many series there can be. */
#include "test.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "http_metrics.h"
#include "http_request.h"

/* -- Reading figures back through the text of /metrics ------------------------------------- */

static void write_nothing(void *ctx, struct metrics *m)
{
    (void)ctx;
    (void)m;
}

/* metrics_handle asks the request's server; here is one with nothing but figures. */
static char *text_of(struct http_figures *figures)
{
    struct cairn_error err;
    struct http_server *server = calloc(1, sizeof(*server));
    struct http_request req = {.server = server};
    struct metrics_source none = {write_nothing, NULL};
    struct http_reply reply;
    char *text;

    assert_non_null(server);
    server->figures = figures;
    pthread_mutex_init(&server->lock, NULL);
    assert_int_equal(workers_new(1, 1, &server->workers, &err), CAIRN_OK);
    http_reply_init(&reply, "id");
    metrics_handle(&none, &req, &reply);
    assert_int_equal(reply.status, 200);
    text = strndup(reply.buf, (size_t)reply.len);
    http_reply_release(&reply);
    workers_free(server->workers);
    pthread_mutex_destroy(&server->lock);
    free(server);
    return text;
}

static void assert_line(const char *text, const char *line)
{
    char whole[512];

    snprintf(whole, sizeof(whole), "\n%s\n", line);
    if (!strstr(text, whole))
        fail_msg("no line %s in\n%s", line, text);
}

static unsigned count_lines(const char *text, const char *start)
{
    unsigned nr = 0;

    for (const char *p = text; (p = strstr(p, start)); p++)
        nr += p == text || p[-1] == '\n';
    return nr;
}

static struct http_figures *new_figures(void)
{
    struct http_figures *figures;
    struct cairn_error err;

    assert_int_equal(http_figures_new(&figures, &err), CAIRN_OK);
    return figures;
}

/* -- Tests ---------------------------------------------------------------------------------- */

static void test_what_is_added_is_shown(void **state)
{
    struct http_figures *figures = new_figures();
    struct http_exchange x = {.route = "/a/<b>",
                              .method = HTTP_GET,
                              .status = 206,
                              .us = 70,
                              .received = 3,
                              .sent = 1000,
                              .complete = true};
    char *text;

    (void)state;
    http_figures_add(figures, &x);
    x.us = 100;
    http_figures_add(figures, &x);
    x.us = 101;
    x.complete = false;
    http_figures_add(figures, &x);
    x.status = 404;
    x.us = 70000000;
    x.sent = 0;
    http_figures_add(figures, &x);
    x.method = HTTP_PUT;
    x.status = 0;
    http_figures_add(figures, &x);
    text = text_of(figures);
#define LABELS "route=\"/a/<b>\",method=\"GET\""
    assert_line(text, "cairn_http_requests_total{" LABELS ",status=\"206\"} 3");
    assert_line(text, "cairn_http_requests_total{" LABELS ",status=\"404\"} 1");
    assert_line(text,
                "cairn_http_requests_total{route=\"/a/<b>\",method=\"PUT\",status=\"none\"} 1");
    assert_line(text, "cairn_http_request_seconds_bucket{" LABELS ",le=\"0.000050\"} 0");
    assert_line(text, "cairn_http_request_seconds_bucket{" LABELS ",le=\"0.000100\"} 2");
    assert_line(text, "cairn_http_request_seconds_bucket{" LABELS ",le=\"0.000250\"} 3");
    assert_line(text, "cairn_http_request_seconds_bucket{" LABELS ",le=\"60.000000\"} 3");
    assert_line(text, "cairn_http_request_seconds_bucket{" LABELS ",le=\"+Inf\"} 4");
    assert_line(text, "cairn_http_request_seconds_count{" LABELS "} 4");
    assert_line(text, "cairn_http_request_seconds_sum{" LABELS "} 70.000271");
    assert_line(text, "cairn_http_received_bytes_total{" LABELS "} 12");
    assert_line(text, "cairn_http_sent_bytes_total{" LABELS "} 3000");
    assert_line(text, "cairn_http_cut_requests_total{" LABELS "} 2");
#undef LABELS
    free(text);
    http_figures_free(figures);
}

static void test_one_text_at_two_addresses_is_one_route(void **state)
{
    struct http_figures *figures = new_figures();
    const char one[] = "/same", two[] = "/same";
    struct http_exchange x = {.route = one, .method = HTTP_GET, .status = 200, .complete = true};
    char *text;

    (void)state;
    http_figures_add(figures, &x);
    x.route = two;
    http_figures_add(figures, &x);
    text = text_of(figures);
    assert_line(text, "cairn_http_requests_total{route=\"/same\",method=\"GET\",status=\"200\"} 2");
    assert_int_equal(count_lines(text, "cairn_http_requests_total{"), 1);
    free(text);
    http_figures_free(figures);
}

static void test_statuses_and_methods_that_are_unknown_are_counted_together(void **state)
{
    struct http_figures *figures = new_figures();
    struct http_exchange x = {.route = "/x", .complete = true};
    char *text;

    (void)state;
    for (x.status = 600; x.status < 700; x.status++)
        http_figures_add(figures, &x);
    text = text_of(figures);
    assert_line(text,
                "cairn_http_requests_total{route=\"/x\",method=\"other\",status=\"none\"} 100");
    assert_int_equal(count_lines(text, "cairn_http_requests_total{"), 1);
    free(text);
    http_figures_free(figures);
}

static void test_the_number_of_routes_is_bounded(void **state)
{
    static char routes[200][8];
    struct http_figures *figures = new_figures();
    char *text;

    (void)state;
    for (unsigned i = 0; i < 200; i++) {
        const struct http_exchange x = {
            .route = routes[i], .method = HTTP_GET, .status = 200, .complete = true};

        snprintf(routes[i], sizeof(routes[i]), "/%u", i);
        http_figures_add(figures, &x);
    }
    text = text_of(figures);
    assert_int_equal(count_lines(text, "cairn_http_requests_total{"), 64);
    assert_line(text,
                "cairn_http_requests_total{route=\"other\",method=\"GET\",status=\"200\"} 137");
    free(text);
    http_figures_free(figures);
}

#define NR_THREADS 4
#define PER_THREAD 20000

static void *add_many(void *figures)
{
    static const char *const routes[] = {"/p", "/q", "/r"};

    for (unsigned i = 0; i < PER_THREAD; i++) {
        const struct http_exchange x = {.route = routes[i % 3],
                                        .method = HTTP_GET,
                                        .status = 200,
                                        .us = i % 1000,
                                        .sent = 2,
                                        .complete = true};

        http_figures_add(figures, &x);
    }
    return NULL;
}

static void test_threads_lose_nothing(void **state)
{
    struct http_figures *figures = new_figures();
    pthread_t threads[NR_THREADS];
    char *text, line[128];

    (void)state;
    for (unsigned i = 0; i < NR_THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, add_many, figures), 0);
    for (unsigned i = 0; i < NR_THREADS; i++)
        pthread_join(threads[i], NULL);
    text = text_of(figures);
    snprintf(line, sizeof(line), "cairn_http_sent_bytes_total{route=\"/p\",method=\"GET\"} %u",
             2 * NR_THREADS * ((PER_THREAD + 2) / 3));
    assert_line(text, line);
    assert_int_equal(count_lines(text, "cairn_http_requests_total{"), 3);
    free(text);
    http_figures_free(figures);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_added_is_shown),
        cmocka_unit_test(test_one_text_at_two_addresses_is_one_route),
        cmocka_unit_test(test_statuses_and_methods_that_are_unknown_are_counted_together),
        cmocka_unit_test(test_the_number_of_routes_is_bounded),
        cmocka_unit_test(test_threads_lose_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
