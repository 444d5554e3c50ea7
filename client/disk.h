/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside libcairn: what an open disk is.
 *
 * Reads take a reference to the top of the stack and hold no lock.  Whatever changes the active
 * layer holds the gate shared; a snapshot takes it exclusively while it switches active layers,
 * because sealing allows no write beside it.
 *
 * Lock order: snapshot_lock, gate, lock.
 */
#ifndef CLIENT_DISK_H
#define CLIENT_DISK_H

#include "disk_folder.h"
#include "disk_level.h"

struct control;
struct lease;

/* A sealed layer that is not yet part of a published chain. */
struct disk_sealed {
    uint32_t number;          /* sealed-<number>.qcow2 */
    struct disk_level *level; /* a reference */
    bool has_digest;
    struct manifest_layer layer; /* as it is published, if has_digest */
    bool compact;                /* it is published from compact-<number>.qcow2 */
};

struct cairn_disk {
    struct cairn_client *client;
    struct disk_folder *folder; /* NULL: a ref, read-only.  Changed under snapshot_lock */
    uint64_t virtual_size;      /* of the top of the stack */
    bool read_only;
    bool unchecked;          /* not closed cleanly before, and still not checked */
    char *notice;            /* what opening found that people should know, or NULL */
    struct control *control; /* NULL: nobody listens */
    struct lease *lease;     /* NULL: none was asked for */

    pthread_mutex_t snapshot_lock;
    struct disk_sealed sealed[DISK_SEALED_MAX]; /* oldest first; under snapshot_lock */
    uint32_t nr_sealed;
    bool folder_failed; /* see the head of disk_snapshot.c; under snapshot_lock */

    pthread_rwlock_t gate;

    pthread_mutex_t lock;
    struct disk_level *top;     /* changed under gate and lock: either allows to read it */
    struct remote_disk *remote; /* a reference; changed under snapshot_lock and lock */
    struct disk_state state;    /* a copy of the folder's, to describe; under lock */
};

/* The top of the stack, with a reference. */
struct disk_level *disk_top(struct cairn_disk *disk);

/* As cairn_disk_snapshot_with, with client's progress.  client is the disk's service. */
int disk_snapshot(struct cairn_disk *disk, struct cairn_client *client, const char *ref,
                  const struct cairn_seal_options *options, char **ret_ref, char **ret_notice,
                  struct cairn_error *err);

#endif
