/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The text of /metrics.  Counters are read one by one while they go on counting: a scrape is no
 * snapshot, and need not be.
 */
#include "metrics.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define METRICS_TYPE "text/plain; version=0.0.4; charset=utf-8"

struct metrics {
    FILE *out;
    const char *family, *type, *help;
    bool begun; /* it has a value, and so its two lines of comment */
};

void metrics_family(struct metrics *m, const char *name, const char *type, const char *help)
{
    m->family = name;
    m->type = type;
    m->help = help;
    m->begun = false;
}

static void begin_value(struct metrics *m, const char *suffix, const char *labels)
{
    if (!m->begun)
        fprintf(m->out, "# HELP %s %s\n# TYPE %s %s\n", m->family, m->help, m->family, m->type);
    m->begun = true;
    fprintf(m->out, "%s%s", m->family, suffix);
    if (labels)
        fprintf(m->out, "{%s}", labels);
}

void metrics_value(struct metrics *m, const char *labels, uint64_t value)
{
    begin_value(m, "", labels);
    fprintf(m->out, " %" PRIu64 "\n", value);
}

static void print_seconds(struct metrics *m, uint64_t us)
{
    fprintf(m->out, "%" PRIu64 ".%06" PRIu64, us / 1000000, us % 1000000);
}

void metrics_seconds(struct metrics *m, const char *labels, uint64_t us)
{
    begin_value(m, "", labels);
    fputc(' ', m->out);
    print_seconds(m, us);
    fputc('\n', m->out);
}

uint64_t metrics_field(const void *figures, size_t field)
{
    uint64_t value;

    memcpy(&value, (const char *)figures + field, sizeof(value));
    return value;
}

void metrics_rows(struct metrics *m, const struct metrics_row *rows, size_t nr, const void *figures)
{
    for (const struct metrics_row *row = rows; row < rows + nr; row++) {
        metrics_family(m, row->name, row->type, row->help);
        metrics_value(m, NULL, metrics_field(figures, row->field));
    }
}

void metrics_histogram(struct metrics *m, const char *labels, const struct histogram *h)
{
    const char *comma = labels ? "," : "";
    uint64_t nr = 0;

    labels = labels ? labels : "";
    for (unsigned i = 0; i < HISTOGRAM_CLASSES; i++) {
        nr += atomic_load_explicit(&h->counts[i], memory_order_relaxed);
        begin_value(m, "_bucket", NULL);
        fprintf(m->out, "{%s%sle=\"", labels, comma);
        if (i < HISTOGRAM_CLASSES - 1)
            print_seconds(m, histogram_bounds_us[i]);
        else
            fputs("+Inf", m->out);
        fprintf(m->out, "\"} %" PRIu64 "\n", nr);
    }
    begin_value(m, "_sum", *labels ? labels : NULL);
    fputc(' ', m->out);
    print_seconds(m, atomic_load_explicit(&h->sum_us, memory_order_relaxed));
    fputc('\n', m->out);
    begin_value(m, "_count", *labels ? labels : NULL);
    fprintf(m->out, " %" PRIu64 "\n", nr);
}

void metrics_handle(void *ctx, const struct http_request *req, struct http_reply *reply)
{
    const struct metrics_source *source = ctx;
    struct cairn_error err;
    struct metrics m = {0};
    char *text = NULL;
    size_t len = 0;

    m.out = open_memstream(&text, &len);
    if (m.out) {
        http_write_metrics(req, &m);
        source->write(source->ctx, &m);
    }
    if (m.out && fclose(m.out) == 0) {
        http_reply_buffer(reply, 200, METRICS_TYPE, text, len);
        return;
    }
    free(text);
    error_no_memory(&err, "/metrics");
    http_reply_failure(reply, &err);
}
