/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading ahead of need: small sequential reads of an immutable disk become few large ones.
 * All functions may be called from any thread.
 */
#ifndef CLIENT_READAHEAD_H
#define CLIENT_READAHEAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"
#include "error.h"

struct readahead;

/* The disk beneath: reads exactly len bytes at guest_off, inside the disk; *ret_near: nothing had
 * to be fetched from elsewhere.  Called from any thread. */
struct readahead_disk {
    int (*pread)(void *ctx, void *buf, size_t len, uint64_t guest_off, bool *ret_near,
                 struct cairn_error *err);
    void *ctx;
    uint64_t size; /* bytes */
};

int readahead_new(const struct readahead_disk *disk, struct readahead **ret_ra,
                  struct cairn_error *err);
/* No read is under way; waits for what is being loaded.  NULL is allowed. */
void readahead_free(struct readahead *ra);
CLEANUP_DEFINE(struct readahead *, readahead_free)

/* Reads of as many bytes, as many as the smallest window, go straight to the disk: there is nothing
 * to gain for them. */
#define READAHEAD_LARGE (64u << 10)

/* Read exactly len bytes at guest_off, inside the disk. */
int readahead_pread(struct readahead *ra, void *buf, size_t len, uint64_t guest_off,
                    struct cairn_error *err);

/* A range that is not large was read without it, for it was at hand: the stream goes on.  Never
 * waits. */
void readahead_note(struct readahead *ra, size_t len, uint64_t guest_off);

#endif
