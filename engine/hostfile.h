/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file of an active layer: whole reads and writes with the file, the offset and the reason in
 * the message, and the lock against a second writer.  Internal to the engine.
 *
 * Everything the active layer does to its file goes through here, so this is also where a test
 * makes it fail or records it: a hook sees each operation before it happens.
 */
#ifndef ENGINE_HOSTFILE_H
#define ENGINE_HOSTFILE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "error.h"

enum hostfile_op {
    HOSTFILE_READ,
    HOSTFILE_WRITE,
    HOSTFILE_SYNC,
    HOSTFILE_TRUNCATE, /* host_off is the new size */
    HOSTFILE_PUNCH,
};

struct hostfile_event {
    enum hostfile_op op;
    uint64_t host_off;
    uint64_t len;
    const struct iovec *iov; /* WRITE: what is written */
    int nr_iov;
};

struct hostfile_hook {
    /* Called from any thread before an operation.  Not 0: the operation is not done and fails with
     * this errno. */
    int (*before)(void *ctx, const struct hostfile_event *event);
    void *ctx;
};

struct hostfile {
    int fd;                           /* owned */
    char *name;                       /* for messages, owned */
    const struct hostfile_hook *hook; /* borrowed; NULL: none.  Set while nothing runs */
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
