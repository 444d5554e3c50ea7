/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk folder: `disk.json`, which says what the disk is made of, and the local layers beside it.
 * One process has a folder open at a time.  Not thread-safe; a disk has one user of its folder at
 * a time.
 *
 *   lock             locked by the process that has the folder open
 *   disk.json        struct disk_state; only ever replaced as a whole
 *   active.qcow2     the active layer
 *   sealed-<n>.qcow2 layers that are sealed and not yet published
 *   compact-<n>.qcow2 a sealed layer as it is published (disk_compact.c); made again at need
 *   next.qcow2       an active layer in the making
 *   in-use           the mark: there from before the first write until after a clean close
 *   control.sock, nbd.sock, attach.pid, attach.log   of a running disk
 */
#ifndef CLIENT_DISK_FOLDER_H
#define CLIENT_DISK_FOLDER_H

#include "manifest.h"

#define DISK_FOLDER_ACTIVE  "active.qcow2"
#define DISK_FOLDER_NEXT    "next.qcow2"
#define DISK_FOLDER_CONTROL "control.sock"

/* Each is a published snapshot that failed; a bound for what disk.json can make us open. */
#define DISK_SEALED_MAX 64

/* What was done for a disk that had not been closed cleanly. */
struct disk_repair {
    int64_t time;   /* seconds since 1970; 0: never */
    uint64_t leaks; /* clusters given back */
};

struct disk_state {
    char made_from[REF_STR_MAX]; /* the ref that the folder was made from */
    char ref[REF_STR_MAX];       /* what it was last snapshot to; at first made_from */
    char repo[256];              /* with manifest: the remote chain below the local layers */
    struct digest manifest;
    struct digest chain_id; /* of that chain */
    uint64_t virtual_size;  /* of that chain; local layers have their own */
    uint32_t nr_sealed;
    uint32_t sealed[DISK_SEALED_MAX]; /* numbers of sealed-<n>.qcow2, ascending: oldest first */
    struct disk_repair last_repair;
};

/* The folder-relative names of a sealed layer, and of what is published for it. */
#define DISK_SEALED_NAME_MAX 32
char *disk_sealed_name(uint32_t number, char name[DISK_SEALED_NAME_MAX]);
char *disk_compact_name(uint32_t number, char name[DISK_SEALED_NAME_MAX]);
/* The number of exactly such a name, else 0. */
uint32_t disk_sealed_number(const char *name);
uint32_t disk_compact_number(const char *name);

struct disk_folder;

/*
 * Open and lock.  If create, a folder that does not exist is made, and one without disk.json is
 * taken if it is empty; else both are CAIRN_E_NOT_FOUND.  A folder that has a disk.json
 * is brought into order: what a crash left half done is finished or undone (disk_snapshot.c),
 * and files that nothing refers to are removed.
 */
int disk_folder_open(const char *path, bool create, struct disk_folder **ret_folder,
                     struct cairn_error *err);
/* Let go; NULL is allowed. */
void disk_folder_close(struct disk_folder *folder);
CLEANUP_DEFINE(struct disk_folder *, disk_folder_close)

/* NULL: the folder is new, there is no disk.json. */
const struct disk_state *disk_folder_state(const struct disk_folder *folder);

/* The absolute path of a file in it, malloc'ed; NULL: out of memory. */
char *disk_folder_path(const struct disk_folder *folder, const char *name);
int disk_folder_fd(const struct disk_folder *folder); /* borrowed */

/*
 * Replace disk.json, in two steps: prepare writes the new one beside the old, durably, and may
 * fail for want of space; commit puts it in place.  After a commit that failed it is not known
 * which of the two is there.
 */
int disk_folder_prepare(struct disk_folder *folder, const struct disk_state *state,
                        struct cairn_error *err);
int disk_folder_commit(struct disk_folder *folder, struct cairn_error *err);
/* Forget what was prepared. */
void disk_folder_abandon(struct disk_folder *folder);

/* Files of the folder: a second name for the active layer; the next one in the active's place;
 * removal, of which failure is left to the next open. */
int disk_folder_link_active(struct disk_folder *folder, uint32_t sealed, struct cairn_error *err);
int disk_folder_promote_next(struct disk_folder *folder, struct cairn_error *err);
void disk_folder_remove(struct disk_folder *folder, const char *name);

/*
 * The mark by which the next open knows that the disk was not closed cleanly.  Setting it is
 * durable (and fine if it is there); a removal that a power cut undoes costs a needless check.
 */
bool disk_folder_is_marked(const struct disk_folder *folder);
int disk_folder_mark(struct disk_folder *folder, struct cairn_error *err);
void disk_folder_unmark(struct disk_folder *folder);

/* disk.json of a folder that may be open elsewhere, and whether it bears the mark. */
int disk_folder_read_state(const char *path, struct disk_state *ret_state, bool *ret_marked,
                           struct cairn_error *err);

/* The document's text and back, for tests; what in messages is its name. */
int disk_state_encode(const struct disk_state *state, char **ret_json, struct cairn_error *err);
int disk_state_parse(const void *json, size_t len, const char *what, struct disk_state *ret_state,
                     struct cairn_error *err);

#endif
