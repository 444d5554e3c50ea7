/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random access to immutable bytes: how the engine reads a layer, whether it is a file, memory
 * or a remote object.  An implementation embeds struct source as its first member.
 */
#ifndef ENGINE_SOURCE_H
#define ENGINE_SOURCE_H

#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"
#include "error.h"

struct source;

struct source_ops {
    /* Read exactly len bytes at off; the range is inside the source.  Called from any thread. */
    int (*pread)(struct source *src, void *buf, size_t len, uint64_t off, struct cairn_error *err);
    void (*free)(struct source *src);
};

struct source {
    const struct source_ops *ops;
    uint64_t size;    /* in bytes, constant */
    const char *name; /* for messages: a file name, or "layer sha256:…"; owned by the source */
};

/*
 * Read exactly len bytes at off.  A range that leaves the source is CAIRN_E_CORRUPT, for the
 * only offsets that can be wrong are those that an image holds.  Thread-safe.
 */
int source_pread(struct source *src, void *buf, size_t len, uint64_t off, struct cairn_error *err);

/* The same, except that bytes past the end of the source read as zeros, as in QEMU. */
int source_pread_padded(struct source *src, void *buf, size_t len, uint64_t off,
                        struct cairn_error *err);

/* Accepts NULL. */
void source_free(struct source *src);
CLEANUP_DEFINE(struct source *, source_free)

/*
 * A regular file or block device, opened read-only (O_CLOEXEC).  name (may be NULL: then path)
 * is copied for messages.
 */
int source_open_file(const char *path, const char *name, struct source **ret_src,
                     struct cairn_error *err);

/* The same over a file descriptor, which the source owns from here on, also on failure. */
int source_from_fd(int fd, const char *name, struct source **ret_src, struct cairn_error *err);

/* Memory, borrowed: buf must outlive the source. */
int source_from_memory(const void *buf, size_t len, const char *name, struct source **ret_src,
                       struct cairn_error *err);

#endif
