/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the active layer: what its files share.
 *
 *   active.c         open, close, seal, flush, facts
 *   active_create.c  a new file
 *   active_header.c  the header: writing it, and which shapes are taken
 *   active_l2.c      L2 entries: finding, checking, changing them; runs of one status
 *   active_read.c    reading, map
 *   active_write.c   writing
 *   active_partial.c subclusters written in part, and their copy-on-write
 *   active_zero.c    zeroing, discarding
 *   active_resize.c  another virtual size
 *   inflight.c       who may go on beside whom
 *   refcount.c       host clusters
 *   table_cache.c, table_commit.c   metadata in memory, and its order on the way out
 *   hostfile.c       system calls
 *
 * One lock guards all state in memory.  It is held for look-ups and changes, never for I/O: every
 * function that has to read or write lets go of it, and its caller looks again at what it knew.
 * An operation works in steps, each within one page of L2 entries; between the start of a step and
 * its end the operation is registered in flight, which keeps what it found out valid.
 */
#ifndef ENGINE_ACTIVE_INTERNAL_H
#define ENGINE_ACTIVE_INTERNAL_H

#include <stdatomic.h>

#include "active.h"
#include "hostfile.h"
#include "inflight.h"
#include "qcow2.h"
#include "refcount.h"
#include "table_cache.h"

/* Where things are, as the header says; constant while the file is open and not resized. */
struct active_shape {
    uint64_t virtual_size;
    uint64_t l1_off;
    uint32_t l1_size; /* entries */
    unsigned cluster_bits;
};

enum active_parent_state {
    ACTIVE_NO_PARENT,
    ACTIVE_PARENT_PENDING,
    ACTIVE_PARENT_RECORDING, /* somebody is about to record one */
    ACTIVE_PARENT_KNOWN,
    ACTIVE_PARENT_FOREIGN, /* a backing file that is none of ours */
};

/* Subclusters written in part: active_partial.c. */
struct partials {
    TAILQ_HEAD(, partial) list; /* oldest first */
    unsigned nr;
    uint64_t last_serial;
};

struct active {
    pthread_mutex_t lock; /* the only one; guards what is marked (L) */
    struct hostfile file;
    struct table_cache *tables;  /* (L) */
    struct refcounts *refcounts; /* (L) */
    struct inflight inflight;    /* (L) */
    struct partials partials;    /* (L) */
    bool sealed;                 /* (L) */
    bool immutable;              /* (L) sealed, and that will not be undone */
    struct active_shape shape;
    struct active_backing backing;
    bool beneath; /* is there, or will there be, something that a hole falls through to? */
    enum active_parent_state parent_state; /* (L) */
    struct digest parent;                  /* (L); if parent_state is KNOWN */
    atomic_uint_fast64_t backing_bytes;
};

/* -- Geometry ---------------------------------------------------------------------------------- */

static inline uint64_t active_cluster_size(const struct active *a)
{
    return UINT64_C(1) << a->shape.cluster_bits;
}

static inline unsigned active_sub_bits(const struct active *a)
{
    return a->shape.cluster_bits - QCOW2_SUBCLUSTER_BITS;
}

static inline uint64_t active_sub_size(const struct active *a)
{
    return UINT64_C(1) << active_sub_bits(a);
}

/* The subcluster of its cluster that a guest offset lies in. */
static inline unsigned active_sub_index(const struct active *a, uint64_t guest_off)
{
    return (unsigned)(guest_off >> active_sub_bits(a)) % QCOW2_SUBCLUSTERS;
}

/* Guest bytes whose L2 entries are in one page: the farthest that one step goes. */
static inline uint64_t active_span_size(const struct active *a)
{
    return (uint64_t)(TABLE_PAGE_SIZE / QCOW2_L2E_SIZE_EXTL2) << a->shape.cluster_bits;
}

/* Guest bytes that one L2 table maps. */
static inline uint64_t active_table_span(const struct active *a)
{
    return UINT64_C(1) << (2 * a->shape.cluster_bits - 4);
}

/* Is [guest_off, guest_off + len) within the disk?  CAIRN_E_USAGE. */
int active_check_range(const struct active *a, uint64_t len, uint64_t guest_off,
                       struct cairn_error *err);
/* May it be written to? */
int active_check_writable_locked(const struct active *a, struct cairn_error *err);

/* -- active_header.c --------------------------------------------------------------------------- */

struct active_header {
    struct active_shape shape;
    uint64_t table_off; /* of the refcount table */
    uint32_t table_clusters;
    enum active_parent_state parent_state;
    struct digest parent;
};

/* Fill the file's first TABLE_PAGE_SIZE bytes. */
void active_header_encode(const struct active_header *h, uint8_t bytes[TABLE_PAGE_SIZE]);
/* Read it, and refuse what create would not have made. */
int active_header_read(struct hostfile *file, bool foreign_backing, struct active_header *ret_h,
                       struct cairn_error *err);

/* -- active_create.c --------------------------------------------------------------------------- */

/* Can a disk of clusters like that have this size? */
int active_check_size(uint64_t virtual_size, unsigned cluster_bits, struct cairn_error *err);
/* The layout of a new file. */
int active_plan(const struct active_options *options, struct active_header *ret_h,
                struct cairn_error *err);

/* -- active_l2.c ------------------------------------------------------------------------------- */

struct l2_entry {
    uint64_t host_off; /* 0: no host cluster */
    uint32_t alloc;    /* bit n: subcluster n has data at the host cluster */
    uint32_t zero;     /* bit n: subcluster n reads as zeros; never both */
};

/*
 * The page with guest_off's L2 entry, pinned.  Where there is no L2 table: with create a new one,
 * else NULL.  May let go of the lock.
 */
int l2_get_page_locked(struct active *a, uint64_t guest_off, bool create,
                       struct table_page **ret_page, struct cairn_error *err);

/* The checked entry of the cluster that guest_off lies in.  Keeps the lock. */
int l2_get_entry_locked(const struct active *a, const struct table_page *page, uint64_t guest_off,
                        struct l2_entry *ret_entry, struct cairn_error *err);
/* Change it in bytes, which table_modify_locked gave. */
void l2_put_entry(const struct active *a, uint8_t *bytes, uint64_t guest_off,
                  const struct l2_entry *e);

/* Unlink the L2 table of guest_off, all of whose entries are durably empty, and free it. */
int l2_drop_table_locked(struct active *a, uint64_t guest_off, struct cairn_error *err);

/* refcount_alloc_locked, which knows of no L1 table: wrong refcounts do not give it away. */
int l2_alloc_locked(struct active *a, uint64_t want, uint64_t goal, uint64_t *ret_host_off,
                    uint64_t *ret_nr, struct cairn_error *err);

/* The subclusters of guest_off's cluster that [guest_off, end) touches, as a mask. */
uint32_t l2_mask(const struct active *a, uint64_t guest_off, uint64_t end);

/* The longest run of one status from guest_off on, at most len: as an extent with layer 0. */
int l2_get_run_locked(struct active *a, uint64_t guest_off, uint64_t len, struct extent *ret_run,
                      struct cairn_error *err);

/* -- active_partial.c ------------------------------------------------------------------------- */

void partials_init(struct partials *t);
void partials_release(struct partials *t);

/*
 * [guest_off, end), within one subcluster that has nothing of its own yet, is in the file now.
 * *ret_whole: all of the subcluster is; then the caller marks it, and the note is forgotten.
 */
int partial_note_locked(struct active *a, uint64_t guest_off, uint64_t end, bool *ret_whole,
                        struct cairn_error *err);
/* The subclusters that the range touches have another status now. */
void partial_forget_locked(struct active *a, uint64_t guest_off, uint64_t end);

/* What follows lets go of the lock, and may wait for others and for what lies beneath: the caller
 * has no operation running. */

/* Before a write that may need a note: see that there are not too many. */
int partial_make_room_locked(struct active *a, struct cairn_error *err);
/* Those that there are at the call; stops at the first that cannot be completed. */
int partial_complete_all_locked(struct active *a, struct cairn_error *err);
/* l2_get_run_locked; where the run falls through, nothing of it is written in part. */
int partial_get_run_locked(struct active *a, uint64_t guest_off, uint64_t len,
                           struct extent *ret_run, struct cairn_error *err);

/* -- active_read.c ----------------------------------------------------------------------------- */

/* What lies beneath; not counted. */
int active_read_beneath(struct active *a, void *buf, size_t len, uint64_t guest_off,
                        struct cairn_error *err);

#endif
