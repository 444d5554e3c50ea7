/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The metadata of an active layer in memory: a bounded cache of 4 KiB pages of its tables, which
 * knows in what order they must reach the disk.  Internal to the engine.
 *
 * Changes are gathered in a batch.  A commit closes the batch, opens the next, and writes the
 * closed one out kind by kind in the order of enum table_kind; before a page of one kind is
 * written, everything that its kind depends on (table_after in table_cache.c) has been made
 * durable.  Host clusters that the batch let go of become free after its last page is durable:
 * not before, for until then a crash would bring back the tables that point at them.
 *
 * Changes go on while a commit runs: a page of the closed batch that is changed again before it
 * was written is first copied, and the copy is what the commit writes.  A commit that fails gives
 * its changes back to the open batch, so nothing is lost but time; a failed fdatasync is final,
 * for after it nobody knows what is on the disk (the cache then refuses changes and commits).
 *
 * All functions ending in _locked need the lock given at creation; those that may have to do I/O
 * (get, flush) let go of it meanwhile and say so.
 */
#ifndef ENGINE_TABLE_CACHE_H
#define ENGINE_TABLE_CACHE_H

#include <pthread.h>

#include "hostfile.h"

#define TABLE_PAGE_SIZE 4096

/* In an order in which dependencies only point backwards. */
enum table_kind {
    TABLE_DATA, /* not in the cache: guest data, and tables that are written whole before use */
    TABLE_REFBLOCK,
    TABLE_REFTABLE,
    TABLE_HEADER,
    TABLE_L2,
    TABLE_L1,
    TABLE_KINDS,
};

struct table_cache;
struct table_page;

/* A range of host clusters has become free, durably.  Called with the lock held, which it may let
 * go of meanwhile. */
typedef int (*table_freed_fn)(void *ctx, uint64_t host_off, uint64_t len, struct cairn_error *err);

/* max_bytes: raised to a working minimum of 256 KiB.  file and lock are borrowed. */
int table_cache_new(struct hostfile *file, pthread_mutex_t *lock, size_t max_bytes,
                    struct table_cache **ret_cache, struct cairn_error *err);
/* Throws away what was not committed.  NULL is allowed. */
void table_cache_free(struct table_cache *c);
void table_cache_on_freed(struct table_cache *c, table_freed_fn freed, void *ctx);

/*
 * The page at host_off (a multiple of TABLE_PAGE_SIZE), pinned: it stays until table_put_locked.
 * One place has one kind; a file whose tables overlap is CAIRN_E_CORRUPT.  May let go of the lock:
 * whatever the caller has looked at before, it must look at again.
 */
int table_get_locked(struct table_cache *c, enum table_kind kind, uint64_t host_off,
                     struct table_page **ret_page, struct cairn_error *err);
void table_put_locked(struct table_cache *c, struct table_page *page);

/* The page's bytes, to look at while the lock is held. */
const uint8_t *table_bytes_locked(const struct table_page *page);
/* The same to change at once, as part of the open batch.  Keeps the lock.  A fault point. */
int table_modify_locked(struct table_cache *c, struct table_page *page, uint8_t **ret_bytes,
                        struct cairn_error *err);

/* Forget the pages of a range of the file, which is about to become something else. */
void table_forget_locked(struct table_cache *c, uint64_t host_off, uint64_t len);

/* Something was written to the file beside the cache: what is committed from here on relies on
 * it, and the next flush makes it durable. */
void table_note_data_locked(struct table_cache *c);

/* Room for nr calls of table_free_locked, which then cannot fail. */
int table_reserve_frees_locked(struct table_cache *c, size_t nr, struct cairn_error *err);
/* The open batch no longer refers to these host clusters: free them once it is durable. */
void table_free_locked(struct table_cache *c, uint64_t host_off, uint64_t len);
/* So many frees wait for a commit that there should be one before there are more. */
bool table_frees_pressing_locked(const struct table_cache *c);

/*
 * Make everything durable that was written, noted or changed before the call.  Callers who come
 * while a commit runs share the next one.  Does nothing where there is nothing to do; one
 * fdatasync where there is only data.  Lets go of the lock.
 */
int table_flush_locked(struct table_cache *c, struct cairn_error *err);
/* Has anything changed since the last commit began? */
bool table_dirty_locked(const struct table_cache *c);
/* CAIRN_E_IO once an fdatasync has failed. */
int table_check_locked(const struct table_cache *c, struct cairn_error *err);

struct table_stats {
    size_t bytes;      /* in memory now */
    uint64_t nr_syncs; /* of the file, so far */
    uint64_t nr_commits;
};
void table_get_stats_locked(const struct table_cache *c, struct table_stats *ret_stats);

#endif
