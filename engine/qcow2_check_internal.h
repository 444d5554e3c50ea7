/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of check and repair share.  Internal to qcow2_check*.c and qcow2_repair*.c. */
#ifndef ENGINE_QCOW2_CHECK_INTERNAL_H
#define ENGINE_QCOW2_CHECK_INTERNAL_H

#include "cluster_counts.h"
#include "qcow2_check.h"
#include "qcow2_header.h"

/* What a host cluster holds; the low bits of a cluster's mark name the first kind seen. */
enum cluster_kind {
    CLUSTER_NONE,
    CLUSTER_HEADER,
    CLUSTER_L1,
    CLUSTER_L2,
    CLUSTER_REFTABLE,
    CLUSTER_REFBLOCK,
    CLUSTER_SNAPSHOTS,
    CLUSTER_BITMAP,
    CLUSTER_CRYPTO,
    CLUSTER_DATA,
};
const char *cluster_kind_name(enum cluster_kind kind);

#define MARK_KIND    0x0fU
#define MARK_CLASH   0x10U /* two kinds of metadata, neither a refcount table or block */
#define MARK_OVERLAP 0x20U /* two kinds, at least one of them metadata */
#define MARK_ONE     0x40U /* the stored refcount is 1 */
#define MARK_UNKNOWN 0x80U /* the stored refcount cannot be read */

/* More references to one cluster than this are as wrong as a refcount that does not fit. */
#define CHECK_COUNT_MAX UINT32_MAX

/* An L2 table and how many L1 entries name it. */
struct l2_ref {
    uint64_t host_off;
    uint64_t nr;
    uint64_t l1_index; /* the least */
};

/* Distinct L2 tables; sorted by host_off after l2_list_compact. */
struct l2_list {
    struct l2_ref *refs;
    size_t nr, max;
};

struct qcow2_check {
    struct source *src;
    struct qcow2_header hdr;
    struct qcow2_check_options options;
    struct qcow2_check_result result;

    uint64_t cluster_size;
    uint64_t nr_clusters;  /* of the file; the last may be a part, or a compressed cluster's rest */
    uint64_t refcount_max; /* what a refcount can say */
    bool data_file;        /* guest data is elsewhere */

    struct cluster_counts counts;
    struct l2_list active_l2, inactive_l2;
    uint64_t progress_done, progress_total;

    bool reftable_usable; /* lies in the file */
    uint64_t nr_reftable; /* entries, 0 if not usable */
    uint64_t *reftable;   /* host order */

    /* What a repair must know. */
    bool incomplete;      /* a table could not be walked, or a range that leaves the file was not
                             counted: what seems unused may be its */
    bool dangling;        /* entries name places past the end of the file: it must not grow there */
    bool overflow;        /* some cluster has more references than a refcount holds */
    bool reftable_shared; /* it is something else, too: to be read, not to be written to */
    bool needs_rebuild;   /* refcount table or blocks are not to be believed */

    /* If neither is true, and nothing dangles, no copied bit can be wrong. */
    bool uncopied; /* an active entry lacks the bit */
    bool not_one;  /* a stored refcount of something in use is not 1, or not known */
};

/* -- qcow2_check.c ----------------------------------------------------------------------------- */

/* Count a finding nr times and describe it. */
void check_found(struct qcow2_check *c, enum qcow2_check_kind kind, uint64_t nr, uint64_t host_off,
                 uint64_t guest_off, const char *fmt, ...) __attribute__((format(printf, 6, 7)));

/* nr references to each cluster that [host_off, host_off + len) touches. */
int check_refer(struct qcow2_check *c, uint64_t host_off, uint64_t len, uint64_t nr,
                enum cluster_kind kind, uint64_t guest_off, struct cairn_error *err);
/* The same for host clusters inside the file that hold the guest clusters from guest_off on. */
int check_refer_run(struct qcow2_check *c, uint64_t cluster, uint64_t nr_clusters, uint64_t nr,
                    uint64_t guest_off, struct cairn_error *err);

/* -- qcow2_check_tables.c: L1, L2 and bitmap tables ------------------------------------------- */

int check_active_l1(struct qcow2_check *c, struct cairn_error *err);
int check_snapshots(struct qcow2_check *c, struct cairn_error *err);
int check_bitmaps(struct qcow2_check *c, struct cairn_error *err);

/* -- qcow2_check_l2.c ------------------------------------------------------------------------- */

int l2_list_add(struct l2_list *list, uint64_t host_off, uint64_t nr, uint64_t l1_index,
                struct cairn_error *err);
void l2_list_compact(struct l2_list *list);
/* Refer to what the tables of a list name. */
int check_l2_tables(struct qcow2_check *c, const struct l2_list *list, bool active,
                    struct cairn_error *err);

/* A copied bit that is wrong: at host_off stands entry, it should be fixed. */
struct wrong_copied {
    uint64_t host_off;
    uint64_t entry, fixed;
    uint64_t nr; /* referrers of the table */
    uint64_t guest_off;
    bool l1;
};
typedef int (*wrong_copied_fn)(struct qcow2_check *c, const struct wrong_copied *wrong, void *arg,
                               struct cairn_error *err);
int check_copied(struct qcow2_check *c, wrong_copied_fn fn, void *arg, struct cairn_error *err);

/* -- qcow2_check_refcounts.c ------------------------------------------------------------------- */

/* Read the refcount table and refer to it and its blocks. */
int check_refcount_structure(struct qcow2_check *c, struct cairn_error *err);
/* Does this entry name a block that can be read and written? */
bool check_refblock_usable(const struct qcow2_check *c, uint64_t entry);

/* A run of clusters whose refcounts stand in one block. */
struct refblock {
    uint64_t first, nr; /* clusters, inside the file */
    uint64_t entry;     /* of the refcount table; 0: no block */
    bool readable;      /* else no refcount of it is known */
    uint8_t *bytes;     /* a cluster; zeros if there is no block in the file */
};
typedef int (*refblock_fn)(struct qcow2_check *c, struct refblock *block, void *arg,
                           struct cairn_error *err);
/* All blocks that matter: where a block or a reference is. */
int check_each_refblock(struct qcow2_check *c, refblock_fn fn, void *arg, struct cairn_error *err);

uint64_t refblock_get(const uint8_t *bytes, uint64_t i, unsigned order);
void refblock_put(uint8_t *bytes, uint64_t i, unsigned order, uint64_t value);
/* Clusters that one block counts, as a power of two. */
static inline unsigned refblock_bits(const struct qcow2_header *hdr)
{
    return hdr->cluster_bits + 3 - hdr->refcount_order;
}

int check_compare_refcounts(struct qcow2_check *c, struct cairn_error *err);
/* Is the stored refcount of a cluster 1?  *ret_known false: it cannot be said. */
int check_stored_is_one(struct qcow2_check *c, uint64_t cluster, bool *ret_one, bool *ret_known,
                        struct cairn_error *err);

/* -- qcow2_rebuild.c -------------------------------------------------------------------------- */

/* A new refcount structure in unused clusters, then the header's pointer to it.  *ret_done false:
 * there is no safe place for it, nothing was changed. */
int qcow2_rebuild_refcounts(struct qcow2_check *c, struct hostfile *file, bool *ret_done,
                            struct cairn_error *err);

#endif
