/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is asked of the object store: calls with their latency, failures, bytes.  One for each open
 * store, filled in by its front (store.c).  Thread-safe.
 */
#ifndef SERVER_STORE_COUNT_H
#define SERVER_STORE_COUNT_H

#include "histogram.h"
#include "source.h"

enum store_call {
    STORE_CALL_PUT,
    STORE_CALL_HEAD,
    STORE_CALL_GET,
    STORE_CALL_OPEN,
    STORE_CALL_READ, /* of a source that was opened */
    STORE_CALL_DELETE,
    STORE_CALL_LIST,
    STORE_CALL_CAS,
    STORE_CALL_UPLOAD,
    NR_STORE_CALLS,
};

/* What is read, by the first component of its key. */
enum store_objects {
    STORE_OBJECTS_BLOBS,
    STORE_OBJECTS_INDEX,
    STORE_OBJECTS_REPOS,
    STORE_OBJECTS_UPLOADS,
    NR_STORE_OBJECTS,
};
enum store_objects store_objects_of(const char *key);

struct store_counts {
    struct histogram latency[NR_STORE_CALLS];
    atomic_uint_fast64_t failures[NR_STORE_CALLS]; /* not: absent, present already, too large */
    atomic_uint_fast64_t read_bytes[NR_STORE_OBJECTS];
    atomic_uint_fast64_t written_bytes;
};

/* A call that began at since_us (clock_now_us) gave code, which is returned. */
int store_count_call(struct store_counts *counts, enum store_call call, uint64_t since_us,
                     int code);
void store_count_read(struct store_counts *counts, enum store_objects objects, uint64_t len);
void store_count_written(struct store_counts *counts, uint64_t len);

/* src with its reads counted; src is taken over, also on failure.  counts must outlive it. */
int store_count_source(struct store_counts *counts, enum store_objects objects, struct source *src,
                       struct source **ret_src, struct cairn_error *err);

struct metrics;
void store_count_write_metrics(const struct store_counts *counts, struct metrics *m);

#endif
