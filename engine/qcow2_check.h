/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Check of a qcow2 image: who refers to each host cluster, and is that what its refcount says?
 *
 * The check believes no refcount.  It counts references itself, from the header down: active L1
 * table, snapshots' L1 tables, L2 tables, clusters; snapshot table, bitmaps, encryption header,
 * refcount table and blocks.  Then it compares with what is stored, and the copied bits with that.
 * It counts what `qemu-img check` of QEMU 7.2 counts, and one thing more: overlaps, host clusters
 * that hold metadata and something else as well, whatever their refcount is.
 *
 * No entry makes it read what an image names outside itself, and none makes it read a table twice:
 * tables with many referrers are walked once, with a multiplicity.  So work is bounded by the size
 * of the file, and memory by that of qcow2's tables in it (limits in qcow2.h) plus
 * cluster_counts.h.
 *
 * What it does not do: look into guest data, into compressed data, into a backing or data file.
 */
#ifndef ENGINE_QCOW2_CHECK_H
#define ENGINE_QCOW2_CHECK_H

#include "hostfile.h"
#include "source.h"

/* Kinds of findings.  "Counted": in corruptions, unless said otherwise. */
enum qcow2_check_kind {
    QCOW2_CHECK_LEAK,        /* refcount too high; counted in leaks */
    QCOW2_CHECK_REFCOUNT,    /* refcount too low: data is at risk */
    QCOW2_CHECK_COPIED,      /* the copied bit contradicts the refcount */
    QCOW2_CHECK_OVERLAP,     /* metadata that is something else, too; counted in overlaps */
    QCOW2_CHECK_RESERVED,    /* reserved bits are set */
    QCOW2_CHECK_UNALIGNED,   /* an offset that is not at the start of a cluster */
    QCOW2_CHECK_PAST_END,    /* an offset past the end of the file */
    QCOW2_CHECK_SUBCLUSTERS, /* a subcluster bitmap that contradicts its entry or itself */
    QCOW2_CHECK_LIMIT,       /* more references than a refcount can hold, or a table too large */
    QCOW2_CHECK_REFBLOCK,    /* a refcount block that is not where one can be */
    QCOW2_CHECK_UNREADABLE,  /* a list that cannot be read; counted in check_errors */
};
/* A stable lower-case word for it, for JSON. */
const char *qcow2_check_kind_name(enum qcow2_check_kind kind);

#define QCOW2_CHECK_NO_OFFSET UINT64_MAX

struct qcow2_finding {
    enum qcow2_check_kind kind;
    uint64_t nr;        /* how many this stands for: an entry of a shared table counts often */
    uint64_t host_off;  /* of the cluster or table concerned; or QCOW2_CHECK_NO_OFFSET */
    uint64_t guest_off; /* of the part of the guest's disk concerned; or QCOW2_CHECK_NO_OFFSET */
    const char *text;   /* one line, valid during the call */
};

/* At most this many findings are described by one check; all are counted. */
#define QCOW2_CHECK_FINDINGS_MAX 1000

struct qcow2_check_options {
    void (*found)(void *arg, const struct qcow2_finding *finding); /* may be NULL */
    /* Not 0: end with CAIRN_E_CANCELLED.  In bytes of L2 tables.  May be NULL. */
    int (*progress)(void *arg, uint64_t done, uint64_t total);
    void *arg;
};

struct qcow2_check_result {
    uint64_t corruptions, leaks, check_errors;   /* as in `qemu-img check` */
    uint64_t overlaps;                           /* host clusters */
    uint64_t findings;                           /* described or not */
    uint64_t total_clusters, allocated_clusters; /* guest clusters */
    uint64_t compressed_clusters, fragmented_clusters;
    uint64_t image_end_offset;
    bool dirty, marked_corrupt; /* the header's bits */
};

struct qcow2_check;

/*
 * Check.  Errors: the header cannot be read, is of an unsupported kind, or its L1 table is not
 * where one can be; then there is nothing to check by.  src is borrowed, until free.
 */
int qcow2_check_new(struct source *src, const struct qcow2_check_options *options,
                    struct qcow2_check **ret_check, struct cairn_error *err);
void qcow2_check_free(struct qcow2_check *check);
CLEANUP_DEFINE(struct qcow2_check *, qcow2_check_free)

const struct qcow2_check_result *qcow2_check_get_result(const struct qcow2_check *check);

/* -- Repair ------------------------------------------------------------------------------------ */

enum qcow2_repair_mode {
    QCOW2_REPAIR_NONE,
    QCOW2_REPAIR_LEAKS, /* lower refcounts that are too high, and what follows from that */
    QCOW2_REPAIR_ALL,   /* raise them as well, rebuild refcount structures, fix copied bits */
};

/*
 * Repair what a check has found, in the file that it looked at, which the caller has opened for
 * writing and locked.  What cannot be repaired without a guess stays as it is, and a new check
 * says it again.  Guest data is not touched.  The check is used up: free it, and check again.
 * See qcow2_repair.c for the order of writes.
 */
int qcow2_repair(struct qcow2_check *check, struct hostfile *file, enum qcow2_repair_mode mode,
                 struct cairn_error *err);

#endif
