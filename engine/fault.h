/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fault points: every step by which the engine changes an image, by name, so that a test can make
 * just that one fail, or have the process die just before or just after it.  Internal to the
 * engine.
 *
 * A step is an operation on the file (hostfile.h) or a change to a table in memory
 * (table_modify_locked).  Its call names it: FAULT_AT(file, FAULT_COMMIT_L2) is file, and makes the
 * next step of this thread the point COMMIT_L2.  The file's hook sees the point in the event,
 * before and after; there is no other way to make a point fire, and none to do so from outside a
 * program.
 *
 * Built without CAIRN_FAULTS, as release builds are, all that is left of FAULT_AT is its first
 * argument: no code, no data.
 *
 * tests/unit/test_fault_sweep.c fails every point in every way, and fails itself if a point is
 * never reached, or if anything is changed without a name.
 */
#ifndef ENGINE_FAULT_H
#define ENGINE_FAULT_H

/* POINT(constant, name).  Steps in the order in which an image meets them. */
#define FAULT_POINTS(POINT)                                                                        \
    /* A new active layer: active_create.c */                                                      \
    POINT(CREATE_ZEROS, "create.zeros")                                                            \
    POINT(CREATE_REFBLOCK, "create.refblock")                                                      \
    POINT(CREATE_REFTABLE, "create.reftable")                                                      \
    POINT(CREATE_HEADER, "create.header")                                                          \
    POINT(CREATE_SYNC, "create.sync")                                                              \
    POINT(CREATE_LINK, "create.link")                                                              \
    POINT(CREATE_SYNC_FOLDER, "create.sync-folder")                                                \
    /* Host clusters: refcount.c */                                                                \
    POINT(COUNT_UP, "count.up")                                                                    \
    POINT(COUNT_UP_END, "count.up-end")                                                            \
    POINT(COUNT_DOWN, "count.down")                                                                \
    POINT(GROW_FILE, "grow.file")                                                                  \
    POINT(GROW_REFBLOCK, "grow.refblock")                                                          \
    POINT(GROW_REFBLOCK_LINK, "grow.refblock-link")                                                \
    POINT(GROW_REFTABLE_BLOCK, "grow.reftable-block")                                              \
    POINT(GROW_REFTABLE, "grow.reftable")                                                          \
    POINT(GROW_REFTABLE_LINK, "grow.reftable-link")                                                \
    POINT(TRIM, "trim")                                                                            \
    /* Guest data and its tables: active_l2.c, active_write.c, active_partial.c, … */            \
    POINT(L2_TABLE, "l2.table")                                                                    \
    POINT(L2_TABLE_LINK, "l2.table-link")                                                          \
    POINT(L2_TABLE_DROP, "l2.table-drop")                                                          \
    POINT(L2_PLACE, "l2.place")                                                                    \
    POINT(L2_MARK, "l2.mark")                                                                      \
    POINT(L2_ZERO, "l2.zero")                                                                      \
    POINT(DATA_WRITE, "data.write")                                                                \
    POINT(DATA_REST, "data.rest")                                                                  \
    POINT(L2_MARK_REST, "l2.mark-rest")                                                            \
    POINT(DATA_READ, "data.read")                                                                  \
    /* The header of an active layer: active.c */                                                  \
    POINT(HEADER_PARENT, "header.parent")                                                          \
    /* Another virtual size: active_resize.c */                                                    \
    POINT(RESIZE_L1, "resize.l1")                                                                  \
    POINT(HEADER_SHAPE, "header.shape")                                                            \
    /* Tables on their way to and from the file: table_cache.c, table_commit.c */                  \
    POINT(TABLE_LOAD, "table.load")                                                                \
    POINT(COMMIT_REFBLOCK, "commit.refblock")                                                      \
    POINT(COMMIT_REFTABLE, "commit.reftable")                                                      \
    POINT(COMMIT_HEADER, "commit.header")                                                          \
    POINT(COMMIT_L2, "commit.l2")                                                                  \
    POINT(COMMIT_L1, "commit.l1")                                                                  \
    POINT(SYNC_BEFORE_REFTABLE, "sync.before-reftable")                                            \
    POINT(SYNC_BEFORE_HEADER, "sync.before-header")                                                \
    POINT(SYNC_BEFORE_L2, "sync.before-l2")                                                        \
    POINT(SYNC_BEFORE_L1, "sync.before-l1")                                                        \
    POINT(SYNC_LAST, "sync.last")                                                                  \
    POINT(PUNCH, "punch")                                                                          \
    /* Any image: qcow2_repair.c, qcow2_rebuild.c, qcow2_backing.c */                              \
    POINT(REPAIR_FEATURES, "repair.features")                                                      \
    POINT(REPAIR_FEATURES_SYNC, "repair.features-sync")                                            \
    POINT(REPAIR_REFBLOCK, "repair.refblock")                                                      \
    POINT(REPAIR_REFBLOCK_SYNC, "repair.refblock-sync")                                            \
    POINT(REPAIR_COPIED, "repair.copied")                                                          \
    POINT(REPAIR_COPIED_SYNC, "repair.copied-sync")                                                \
    POINT(REBUILD_REFBLOCK, "rebuild.refblock")                                                    \
    POINT(REBUILD_REFTABLE, "rebuild.reftable")                                                    \
    POINT(REBUILD_SYNC, "rebuild.sync")                                                            \
    POINT(REBUILD_HEADER, "rebuild.header")                                                        \
    POINT(REBUILD_HEADER_SYNC, "rebuild.header-sync")                                              \
    POINT(BACKING_HEADER, "backing.header")                                                        \
    /* The file that sealing writes: seal_file.c */                                                \
    POINT(SEAL_BYTES, "seal.bytes")                                                                \
    POINT(SEAL_HEADER, "seal.header")                                                              \
    POINT(SEAL_SYNC, "seal.sync")

enum fault_point {
    FAULT_NONE, /* a step without a name */
#define FAULT_POINT_CONSTANT(constant, name) FAULT_##constant,
    FAULT_POINTS(FAULT_POINT_CONSTANT)
#undef FAULT_POINT_CONSTANT
        FAULT_POINTS_END,
};

#ifdef CAIRN_FAULTS

struct hostfile_hook;

#define FAULT_AT(target, point) (fault_next = (point), (target))

extern _Thread_local enum fault_point fault_next;

/* The point of the step that begins now. */
enum fault_point fault_take(void);
const char *fault_name(enum fault_point point);

/* The hook that files get when they are opened, so that a test reaches those that a function opens
 * for itself.  Borrowed; set while nothing runs. */
extern const struct hostfile_hook *fault_hook;

#else

#define FAULT_AT(target, point) ((void)(point), (target))
#define fault_take()            FAULT_NONE
#define fault_hook              NULL

#endif

#endif
