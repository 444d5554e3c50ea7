/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stack that a disk is: levels, each over the one below it.  The bottom level is the remote
 * chain; every other is a local layer, of which all but the top one are sealed.  Levels are
 * reference-counted, and a level holds the one below it, so that a level that is taken out of the
 * stack goes when the last read through it ends.  Thread-safe, except that a level is made and
 * let go by one thread.
 */
#ifndef CLIENT_DISK_LEVEL_H
#define CLIENT_DISK_LEVEL_H

#include "active.h"
#include "remote_disk.h"

struct disk_level;

/* The bottom; takes over the reference to rd. */
int disk_level_new_remote(struct remote_disk *rd, struct disk_level **ret_level,
                          struct cairn_error *err);

/*
 * A local layer over below, of which it takes a reference of its own.  open makes or opens it, as
 * active_create or active_open do: options->backing is filled in here.
 */
typedef int (*disk_level_open_fn)(const char *path, const struct active_options *options,
                                  struct active **ret_active, struct cairn_error *err);
int disk_level_new_local(disk_level_open_fn open, const char *path,
                         const struct active_options *options, struct disk_level *below,
                         struct disk_level **ret_level, struct cairn_error *err);

struct disk_level *disk_level_ref(struct disk_level *level);
void disk_level_unref(struct disk_level *level); /* NULL is allowed */
CLEANUP_DEFINE(struct disk_level *, disk_level_unref)

/* Close a local layer ahead of its last reference, for the sake of its error; nothing may be done
 * with the level any more but to let go of it. */
int disk_level_close(struct disk_level *level, struct cairn_error *err);

/* Borrowed; NULL for the bottom. */
struct active *disk_level_active(struct disk_level *level);

/* Of a local layer, or of the chain. */
uint64_t disk_level_size(struct disk_level *level);

/* What level stands on, with a reference; NULL for the bottom. */
struct disk_level *disk_level_below(struct disk_level *level);
/* Let level stand on below (a reference is taken), which shows the same as what it stood on. */
void disk_level_set_below(struct disk_level *level, struct disk_level *below);

/* Through the stack from level down, within its size.  Past the end of what a level stands on there
 * are zeros, whatever lies beneath that. */
int disk_level_pread(struct disk_level *level, void *buf, size_t len, uint64_t guest_off,
                     struct cairn_error *err);

/* Extents from level down, as for active_map; HOLE: no level has it.  At least one, unless it
 * fails. */
int disk_level_map(struct disk_level *level, uint64_t guest_off, uint64_t len,
                   struct extent *ret_extents, size_t max, size_t *ret_nr, struct cairn_error *err);

#endif
