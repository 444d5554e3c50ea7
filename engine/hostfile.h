/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file of an active layer: whole reads and writes with the file, the offset and the reason in
 * the message, and the lock against a second writer.  Internal to the engine.
 *
 * Everything that is done to an active layer goes through here, so this is also where a test makes
 * it fail or records it: a hook sees each operation before and after, with the name that its caller
 * gave it (fault.h).
 */
#ifndef ENGINE_HOSTFILE_H
#define ENGINE_HOSTFILE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "error.h"
#include "fault.h"

enum hostfile_op {
    HOSTFILE_READ,
    HOSTFILE_WRITE,
    HOSTFILE_SYNC,
    HOSTFILE_TRUNCATE, /* host_off is the new size */
    HOSTFILE_PUNCH,
    HOSTFILE_LINK,
    HOSTFILE_SYNC_FOLDER,
    HOSTFILE_CHANGE, /* not of the file: of len bytes in memory that will be written to host_off */
};

struct hostfile;

struct hostfile_event {
    enum hostfile_op op;
    enum fault_point point; /* FAULT_NONE where it has no name */
    const struct hostfile *file;
    uint64_t host_off;
    uint64_t len;
    const struct iovec *iov; /* WRITE: what is written; before the operation only */
    int nr_iov;
};

struct hostfile_hook {
    /* Called from any thread before an operation.  Not 0: the operation is not done and fails with
     * this errno. */
    int (*before)(void *ctx, const struct hostfile_event *event);
    void *ctx;
    /* Called after an operation that was done, unless it is NULL.  (A change in memory has no
     * "after" of its own: it is called where before is.) */
    void (*after)(void *ctx, const struct hostfile_event *event);
};

struct hostfile {
    int fd;                           /* owned */
    char *name;                       /* for messages, owned */
    const struct hostfile_hook *hook; /* borrowed; NULL: none.  Set while nothing runs; at first
                                         fault_hook */
    atomic_bool no_punch;             /* the file system cannot: not asked again */
};

/* Takes fd over, also on failure. */
int hostfile_init(struct hostfile *file, int fd, const char *name, struct cairn_error *err);
void hostfile_release(struct hostfile *file);

/* Exactly len bytes; where the file ends before, CAIRN_E_CORRUPT, for a table named the place. */
int hostfile_pread(struct hostfile *file, void *buf, size_t len, uint64_t host_off,
                   struct cairn_error *err);
int hostfile_pwrite(struct hostfile *file, const void *buf, size_t len, uint64_t host_off,
                    struct cairn_error *err);
/* All of iov, which is used up in doing so. */
int hostfile_pwritev(struct hostfile *file, struct iovec *iov, int nr_iov, uint64_t host_off,
                     struct cairn_error *err);
/* Write zeros (and so allocate the space: later writes there do not run out of it). */
int hostfile_zero(struct hostfile *file, uint64_t len, uint64_t host_off, struct cairn_error *err);
int hostfile_sync(struct hostfile *file, struct cairn_error *err);
int hostfile_truncate(struct hostfile *file, uint64_t size, struct cairn_error *err);
int hostfile_size(const struct hostfile *file, uint64_t *ret_size, struct cairn_error *err);

/* Give the file, which is open under the name temporary, the name path: CAIRN_E_CONFLICT if that is
 * taken.  And make the folder's entry durable. */
int hostfile_link(struct hostfile *file, const char *temporary, const char *path,
                  struct cairn_error *err);
int hostfile_sync_folder(struct hostfile *file, const char *path, struct cairn_error *err);

/* Only for the hook: a table in memory is about to be changed.  Nothing without fault points. */
#ifdef CAIRN_FAULTS
int hostfile_change(struct hostfile *file, size_t len, uint64_t host_off, struct cairn_error *err);
#else
static inline int hostfile_change(struct hostfile *file, size_t len, uint64_t host_off,
                                  struct cairn_error *err)
{
    (void)file, (void)len, (void)host_off, (void)err;
    return CAIRN_OK;
}
#endif

/* Give the space of a range back to the file system.  It may not be able to: no promise. */
void hostfile_punch(struct hostfile *file, uint64_t len, uint64_t host_off);

/*
 * One writer at a time, against other processes and other handles of this one: CAIRN_E_CONFLICT.
 * The bytes locked are those that QEMU locks for its "write" permission, so that QEMU does not
 * open the file beside us (except read-only with force-share), nor we beside QEMU.
 */
int hostfile_lock(struct hostfile *file, struct cairn_error *err);
/*
 * A reader that needs the file to stay as it is, of a descriptor that may be read-only:
 * CAIRN_E_CONFLICT if somebody writes; nobody begins to while the file is open here.
 */
int hostfile_lock_reading(struct hostfile *file, struct cairn_error *err);
/* From one writer to none at all: readers, QEMU's among them, may come, writers still not. */
int hostfile_lock_readers(struct hostfile *file, struct cairn_error *err);

#endif
