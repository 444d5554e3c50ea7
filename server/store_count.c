/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counting what is asked of the object store, and the store in /metrics.  Bytes that the kernel
 * sends straight from a backend's file count as read once the reply is made (store_note_sent).
 */
#include "store_count.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "metrics.h"
#include "nowait.h"

static const char *const call_names[NR_STORE_CALLS] = {
    [STORE_CALL_PUT] = "put",   [STORE_CALL_HEAD] = "head", [STORE_CALL_GET] = "get",
    [STORE_CALL_OPEN] = "open", [STORE_CALL_READ] = "read", [STORE_CALL_DELETE] = "delete",
    [STORE_CALL_LIST] = "list", [STORE_CALL_CAS] = "cas",   [STORE_CALL_UPLOAD] = "upload",
};

static const char *const objects_names[NR_STORE_OBJECTS] = {
    [STORE_OBJECTS_BLOBS] = "blobs",
    [STORE_OBJECTS_INDEX] = "index",
    [STORE_OBJECTS_REPOS] = "repos",
    [STORE_OBJECTS_UPLOADS] = "uploads",
};

enum store_objects store_objects_of(const char *key)
{
    if (strncmp(key, "blobs/", 6) == 0)
        return STORE_OBJECTS_BLOBS;
    return strncmp(key, "index/", 6) == 0 ? STORE_OBJECTS_INDEX : STORE_OBJECTS_REPOS;
}

static bool is_failure(int code)
{
    return code != CAIRN_OK && code != CAIRN_E_NOT_FOUND && code != CAIRN_E_CONFLICT &&
           code != CAIRN_E_LIMIT;
}

int store_count_call(struct store_counts *counts, enum store_call call, uint64_t since_us, int code)
{
    histogram_add(&counts->latency[call], clock_now_us() - since_us);
    if (is_failure(code))
        atomic_fetch_add_explicit(&counts->failures[call], 1, memory_order_relaxed);
    return code;
}

void store_count_read(struct store_counts *counts, enum store_objects objects, uint64_t len)
{
    atomic_fetch_add_explicit(&counts->read_bytes[objects], len, memory_order_relaxed);
}

void store_count_written(struct store_counts *counts, uint64_t len)
{
    atomic_fetch_add_explicit(&counts->written_bytes, len, memory_order_relaxed);
}

/* -- Sources ---------------------------------------------------------------------------------- */

struct counted_source {
    struct source is; /* first: source_ops get it */
    struct source *inner;
    struct store_counts *counts;
    enum store_objects objects;
};

static int counted_pread(struct source *src, void *buf, size_t len, uint64_t off,
                         struct cairn_error *err)
{
    const struct counted_source *counted = (const struct counted_source *)src;
    uint64_t since_us = clock_now_us();
    int code = nowait_check(err);

    if (code != CAIRN_OK)
        return code;
    code = source_pread(counted->inner, buf, len, off, err);
    if (code == CAIRN_OK)
        store_count_read(counted->counts, counted->objects, len);
    return store_count_call(counted->counts, STORE_CALL_READ, since_us, code);
}

static void counted_free(struct source *src)
{
    struct counted_source *counted = (struct counted_source *)src;

    source_free(counted->inner);
    free(counted);
}

static const struct source_ops counted_ops = {.pread = counted_pread, .free = counted_free};

int store_count_source(struct store_counts *counts, enum store_objects objects, struct source *src,
                       struct source **ret_src, struct cairn_error *err)
{
    struct counted_source *counted = malloc(sizeof(*counted));

    if (!counted) {
        source_free(src);
        return error_no_memory(err, "a source of the store");
    }
    *counted = (struct counted_source){
        .is = {.ops = &counted_ops, .size = src->size, .name = src->name},
        .inner = src,
        .counts = counts,
        .objects = objects,
    };
    *ret_src = &counted->is;
    return CAIRN_OK;
}

/* -- /metrics --------------------------------------------------------------------------------- */

#define LABELS_MAX 32

static const char *label(const char *name, const char *value, char labels[LABELS_MAX])
{
    snprintf(labels, LABELS_MAX, "%s=\"%s\"", name, value);
    return labels;
}

static void write_values(struct metrics *m, const char *name, const char *const *values,
                         const atomic_uint_fast64_t *counts, unsigned nr)
{
    char labels[LABELS_MAX];

    for (unsigned i = 0; i < nr; i++)
        metrics_value(m, label(name, values[i], labels),
                      atomic_load_explicit(&counts[i], memory_order_relaxed));
}

void store_count_write_metrics(const struct store_counts *counts, struct metrics *m)
{
    char labels[LABELS_MAX];

    metrics_family(m, "cairn_store_call_seconds", "histogram",
                   "Time of the calls of the object store.");
    for (unsigned i = 0; i < NR_STORE_CALLS; i++)
        metrics_histogram(m, label("call", call_names[i], labels), &counts->latency[i]);
    metrics_family(m, "cairn_store_failures_total", "counter",
                   "Calls of the object store that failed for other reasons than what is there.");
    write_values(m, "call", call_names, counts->failures, NR_STORE_CALLS);
    metrics_family(m, "cairn_store_read_bytes_total", "counter",
                   "Bytes read from the object store, or sent straight from its files.");
    write_values(m, "objects", objects_names, counts->read_bytes, NR_STORE_OBJECTS);
    metrics_family(m, "cairn_store_written_bytes_total", "counter",
                   "Bytes written to the object store.");
    metrics_value(m, NULL, atomic_load_explicit(&counts->written_bytes, memory_order_relaxed));
}
