/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libcairn: disks that are chains of QCOW2 layers, kept by a cairnd service and written locally.
 *
 * Link with `pkg-config --libs cairn`.  Handles are opaque; strings handed out are malloc'ed and
 * the caller's to free(); errors are returned as negative codes and described in the caller's
 * struct cairn_error (cairn_error.h), which may be NULL.  Disk and client handles may be used from
 * any number of threads at once, except to free them.  The library does not log, does not exit,
 * and installs no signal handlers.
 */
#ifndef CAIRN_H
#define CAIRN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cairn_error.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CAIRN_API __attribute__((visibility("default")))

/* "0.1.0" */
CAIRN_API const char *cairn_version(void);
/* A stable word for a code ("not-found"), and the exit code that programs use for it (0, 1, 2). */
CAIRN_API const char *cairn_code_name(int code);
CAIRN_API int cairn_exit_code(int code);

/* -- Progress and cancelling ----------------------------------------------------------------- */

/*
 * Called now and then during long operations, from one thread at a time, also while nothing but
 * waiting goes on; total_bytes may grow, and is 0 while it is not known.  It must not call the
 * library.  what names the step ("push sha256:9f2c…").  Return not 0 to cancel: the operation ends
 * with CAIRN_E_CANCELLED and can be repeated, going on where it was.
 */
typedef int (*cairn_progress_fn)(void *ctx, const char *what, uint64_t done_bytes,
                                 uint64_t total_bytes);

/* -- The service ------------------------------------------------------------------------------ */

struct cairn_client;

struct cairn_client_options {
    size_t struct_size; /* set by CAIRN_CLIENT_OPTIONS_INIT */
    const char *server; /* base URL, or several separated by commas; NULL: $CAIRN_SERVER, then
                           http://127.0.0.1:7117 */
    /* A token is sent to these servers only, and without TLS only within this host, unless
     * insecure_token or $CAIRN_INSECURE_TOKEN (`1`) allows it. */
    const char *token; /* NULL: see token_file */
    const char
        *token_file; /* a file that holds it, read again when the service refuses what it
                        held; NULL, and token as well: $CAIRN_TOKEN, $CAIRN_TOKEN_FILE, none */
    bool insecure_token;
    const char *cacert;   /* PEM: the authorities that servers' certificates are checked with; NULL:
                             $CAIRN_CACERT, then the system's */
    const char *cert;     /* PEM: this client's certificate; NULL: $CAIRN_CERT, then none */
    const char *key;      /* PEM: its key; NULL: $CAIRN_KEY, then cert has it */
    unsigned deadline_ms; /* for one read or small request, retries included; 0: 30,000 */
    const char *cache;    /* folder of this host's block cache, shared by all processes and disks of
                             this user, made if need be; NULL: $CAIRN_CACHE, then none */
    uint64_t cache_bytes; /* what it may take on the disk, at least 64 MiB; 0: 10 GiB */
    cairn_progress_fn progress; /* may be NULL */
    void *progress_ctx;
};
#define CAIRN_CLIENT_OPTIONS_INIT                                                                  \
    {                                                                                              \
        .struct_size = sizeof(struct cairn_client_options)                                         \
    }

/* options may be NULL.  Does not connect. */
CAIRN_API int cairn_client_new(const struct cairn_client_options *options,
                               struct cairn_client **ret_client, struct cairn_error *err);
CAIRN_API void cairn_client_free(struct cairn_client *client);

/*
 * Push an image file and its local backing chain as ref; only blobs that the service lacks travel,
 * and an interrupted push goes on where it was.  format: "qcow2", "raw", or NULL to go by the
 * file's name (".raw", ".img": raw; else qcow2).  Backing files are found by the names that the
 * images hold, relative to the image, and only here, on the user's own files: regular files and
 * block devices, never `json:` or a protocol.  Backing formats are those recorded; an image that
 * records none is an error.  *ret_ref: `repo@sha256:…`.
 */
CAIRN_API int cairn_push(struct cairn_client *client, const char *file, const char *format,
                         const char *ref, char **ret_ref, struct cairn_error *err);

/*
 * Push an internal snapshot of a qcow2 file, by name or ID, as a disk of its own: its content
 * becomes one layer on top of the file's backing chain.  VM state is not pushed.  *ret_ref:
 * `repo@sha256:…`.
 */
CAIRN_API int cairn_push_internal(struct cairn_client *client, const char *file,
                                  const char *snapshot, const char *ref, char **ret_ref,
                                  struct cairn_error *err);

/*
 * Push all internal snapshots of a qcow2 file, in the order of its snapshot table, and its active
 * disk: each is a layer that holds what differs from an older one, or from the file's backing
 * chain, namely the one from which it differs least.  So what they share is stored once, also where
 * the image was reverted.  What differs is told from the tables.  VM states and bitmaps are not
 * pushed.
 *
 * Snapshot NAME becomes the tag `TAG-NAME`, in which each byte that a tag cannot have is `-`; one
 * without a name goes by its ID, and where several would get the same tag, each gets its ID behind
 * it, `TAG-NAME-ID`.  What collides even so, or is longer than a tag can be, is refused before
 * anything is sent.  The active disk becomes ref itself.
 *
 * Layers are made in $TMPDIR (/var/tmp), one at a time.  Tags appear one after the other; a push
 * that was interrupted is repeated.  The same image gives the same layers.
 *
 * *ret_json: {"ref":"repo@sha256:…","snapshots":[{"id","name","tag","ref"}…]}.
 */
CAIRN_API int cairn_push_internal_all(struct cairn_client *client, const char *file,
                                      const char *ref, char **ret_json, struct cairn_error *err);

enum cairn_pull_mode {
    CAIRN_PULL_FLAT = 0,  /* one qcow2 file */
    CAIRN_PULL_RAW = 1,   /* one sparse raw file */
    CAIRN_PULL_CHAIN = 2, /* out is a folder: every layer as it is stored, and `top.qcow2`… see
                             cairn(1) */
};
/* out must not exist (CHAIN: may be an empty folder, or one that an earlier pull began). */
CAIRN_API int cairn_pull(struct cairn_client *client, const char *ref, enum cairn_pull_mode mode,
                         const char *out, struct cairn_error *err);

/*
 * The same of an internal snapshot of the disk's top layer, by name or ID, into one file.  The
 * service does not index snapshots: the tables of all layers are read first.
 */
CAIRN_API int cairn_pull_internal(struct cairn_client *client, const char *ref,
                                  const char *snapshot, enum cairn_pull_mode mode, const char *out,
                                  struct cairn_error *err);

/* A JSON document, as the service's disk API gives it (DESIGN 5.2), and of a qcow2 top layer its
 * internal snapshots as "snapshots", as in cairn_image_info; where the service tells, also what its
 * repository holds, and what it may hold if there is a quota:
 * "usage":{"usedBytes","allowedBytes"}. */
CAIRN_API int cairn_info(struct cairn_client *client, const char *ref, char **ret_json,
                         struct cairn_error *err);
/* As the disk API gives them, verified to be JSON. */
CAIRN_API int cairn_map(struct cairn_client *client, const char *ref, char **ret_json,
                        struct cairn_error *err);
CAIRN_API int cairn_diff(struct cairn_client *client, const char *since_ref, const char *ref,
                         char **ret_json, struct cairn_error *err);
/* The same of an internal snapshot of the top layer, as cairn_pull_internal reads it. */
CAIRN_API int cairn_map_internal(struct cairn_client *client, const char *ref, const char *snapshot,
                                 char **ret_json, struct cairn_error *err);
/* {"layers":[{"depth","digest","size","mediaType","chainId","virtualSize"…}…]}, top first. */
CAIRN_API int cairn_log(struct cairn_client *client, const char *ref, char **ret_json,
                        struct cairn_error *err);
/* {"repositories":[…]}, or of one repository {"name","tags":[{"tag","digest"}…],"usage"}, the last
 * as in cairn_info. */
CAIRN_API int cairn_list(struct cairn_client *client, const char *repo, char **ret_json,
                         struct cairn_error *err);
/* {"leases":[{"id","repository","manifest","holder","ttl","created","renewed","expires"}…]}, of one
 * repository or (NULL) all. */
CAIRN_API int cairn_leases(struct cairn_client *client, const char *repo, char **ret_json,
                           struct cairn_error *err);
/* Let new_ref (another tag, possibly of another repository) name what ref names. */
CAIRN_API int cairn_tag(struct cairn_client *client, const char *ref, const char *new_ref,
                        struct cairn_error *err);
/* Delete a tag, or by digest a manifest with all its tags. */
CAIRN_API int cairn_remove(struct cairn_client *client, const char *ref, struct cairn_error *err);

enum cairn_remove_flags {
    CAIRN_REMOVE_TAGS = 1,    /* also a manifest that has tags, with them */
    CAIRN_REMOVE_DRY_RUN = 2, /* only tell */
};
/*
 * The same, telling what goes: {"ref","manifest","tags":[…]}.  Without CAIRN_REMOVE_TAGS a manifest
 * that has tags is CAIRN_E_CONFLICT, and the message names them.
 */
CAIRN_API int cairn_remove_with(struct cairn_client *client, const char *ref, unsigned flags,
                                char **ret_json, struct cairn_error *err);

/* -- Jobs of the service ---------------------------------------------------------------------- */

/*
 * Start a job of a kind ("scrub", "gc"), with options as a JSON object (NULL: none).  Of each kind
 * one runs at a time: if one does, *ret_id names it and *ret_joined is true.
 */
CAIRN_API int cairn_job_start(struct cairn_client *client, const char *kind, const char *options,
                              char **ret_id, bool *ret_joined, struct cairn_error *err);
/* {"id","kind","state":"running|done|failed|cancelled|interrupted","progress","result","error"…} */
CAIRN_API int cairn_job_get(struct cairn_client *client, const char *id, char **ret_json,
                            struct cairn_error *err);
/* {"jobs":[…]} of a kind (NULL: all), without their results. */
CAIRN_API int cairn_job_list(struct cairn_client *client, const char *kind, char **ret_json,
                             struct cairn_error *err);
/* Follow it, with progress, until it has ended, or was interrupted for a minute and nobody took it
 * up.  Cancelling that leaves the job alone. */
CAIRN_API int cairn_job_wait(struct cairn_client *client, const char *id, char **ret_json,
                             struct cairn_error *err);
CAIRN_API int cairn_job_cancel(struct cairn_client *client, const char *id,
                               struct cairn_error *err);

/* -- Verifying -------------------------------------------------------------------------------- */

/*
 * Is a disk whole?  Its manifest against its digest; each layer's size, bytes against digest,
 * tables and recorded parent; the chain ID that the service gives.  The bytes are fetched, which
 * needs no more than the right to pull; if where_stored, the service reads them itself (a scrub of
 * this disk, which needs the right to administrate), and only tables travel.
 *
 * {"ref","manifest","chainId","depth","bytes","state":"good|damaged","problems":[{"layer","text"}]}
 * Returns CAIRN_OK if that could be found out, whatever it is.
 */
CAIRN_API int cairn_verify(struct cairn_client *client, const char *ref, bool where_stored,
                           char **ret_json, struct cairn_error *err);
/* The same for the disk of a folder, with its local layers; of one that is attached, the active
 * layer is left out, as it changes ("skipped"). */
CAIRN_API int cairn_verify_folder(struct cairn_client *client, const char *folder,
                                  bool where_stored, char **ret_json, struct cairn_error *err);

/* -- Sealing ---------------------------------------------------------------------------------- */

/*
 * Sealing writes an image anew, as what it shows and nothing else: guest data in guest order, no
 * preallocated, leaked or unreferenced clusters, no internal snapshots and bitmaps; data that is
 * zeros takes no space.  What falls through to a backing file still does; backing name, recorded
 * parent, cluster size and subclusters stay.  The same content, held in the same ranges, and the
 * same options give the same bytes, so the same digest (of compressed clusters: with the same
 * version of zlib or zstd).
 */
enum cairn_compress {
    CAIRN_COMPRESS_NONE = 0, /* clusters that are compressed before are stored uncompressed */
    CAIRN_COMPRESS_ZLIB = 1, /* what every QEMU reads */
    CAIRN_COMPRESS_ZSTD = 2, /* QEMU 5.1 and later */
};

struct cairn_seal_options {
    size_t struct_size; /* set by CAIRN_SEAL_OPTIONS_INIT */
    /* Clusters that are held whole are compressed, where it saves a sixteenth or more. */
    enum cairn_compress compress;
    int level; /* zlib 1 to 9, zstd 1 to 19; 0: what is usual */
};
#define CAIRN_SEAL_OPTIONS_INIT                                                                    \
    {                                                                                              \
        .struct_size = sizeof(struct cairn_seal_options)                                           \
    }

/* -- Disks ------------------------------------------------------------------------------------ */

struct cairn_disk;

/*
 * Open a ref read-only; the chain is pinned by digest when it is opened.
 */
CAIRN_API int cairn_disk_open_ref(struct cairn_client *client, const char *ref,
                                  struct cairn_disk **ret_disk, struct cairn_error *err);
/*
 * Open a disk folder for writing.  If folder does not exist or is empty it is made, on top of ref;
 * else ref must be NULL or what the folder was made from, or has been snapshot to.  One process
 * has a folder open at a time (CAIRN_E_CONFLICT).
 *
 * If the disk was not closed cleanly, its active layer is checked first, with progress.  Leaked
 * clusters, which a crash leaves, are given back, and cairn_disk_notice says so; for any other
 * damage the open fails with CAIRN_E_CORRUPT and nothing is changed.
 */
CAIRN_API int cairn_disk_open_folder(struct cairn_client *client, const char *folder,
                                     const char *ref, struct cairn_disk **ret_disk,
                                     struct cairn_error *err);
/*
 * The same for a folder that holds a disk, to read it: its layers are not written to, also if the
 * disk was not closed cleanly.
 */
CAIRN_API int cairn_disk_open_folder_read_only(struct cairn_client *client, const char *folder,
                                               const char *ref, struct cairn_disk **ret_disk,
                                               struct cairn_error *err);
/* What opening found that its user should be told, in one line; NULL: nothing.  Borrowed. */
CAIRN_API const char *cairn_disk_notice(const struct cairn_disk *disk);
/* Flush and let go; errors of the flush are returned, the handle is freed all the same. */
CAIRN_API int cairn_disk_close(struct cairn_disk *disk, struct cairn_error *err);

CAIRN_API uint64_t cairn_disk_size(const struct cairn_disk *disk); /* bytes */
CAIRN_API bool cairn_disk_read_only(const struct cairn_disk *disk);

/* Any alignment within the size; each reads or writes all of len or fails. */
CAIRN_API int cairn_disk_pread(struct cairn_disk *disk, void *buf, size_t len, uint64_t guest_off,
                               struct cairn_error *err);
CAIRN_API int cairn_disk_pwrite(struct cairn_disk *disk, const void *buf, size_t len,
                                uint64_t guest_off, struct cairn_error *err);
/* may_unmap: free the space; else keep it allocated. */
CAIRN_API int cairn_disk_zero(struct cairn_disk *disk, uint64_t len, uint64_t guest_off,
                              bool may_unmap, struct cairn_error *err);
CAIRN_API int cairn_disk_discard(struct cairn_disk *disk, uint64_t len, uint64_t guest_off,
                                 struct cairn_error *err);
/* Everything completed before, by any thread, survives a power cut afterwards. */
CAIRN_API int cairn_disk_flush(struct cairn_disk *disk, struct cairn_error *err);

enum cairn_extent_flags {
    CAIRN_EXTENT_HOLE = 1, /* no storage of its own */
    CAIRN_EXTENT_ZERO = 2, /* reads as zeros */
};
struct cairn_extent {
    uint64_t guest_off, len; /* bytes */
    unsigned flags;          /* of enum cairn_extent_flags */
};
/* Fill at most max extents covering the range from its start, in order, without gaps. */
CAIRN_API int cairn_disk_extents(struct cairn_disk *disk, uint64_t guest_off, uint64_t len,
                                 struct cairn_extent *ret_extents, size_t max, size_t *ret_nr,
                                 struct cairn_error *err);

/*
 * Snapshot: seal the active layer, start a new one, push the sealed one, publish the manifest as
 * ref.  Reads and writes go on, except that writes wait while the active layer is switched; on a
 * failure after the switch the disk goes on, and repeating the call publishes what was sealed.
 * *ret_ref: `repo@sha256:…`.
 */
CAIRN_API int cairn_disk_snapshot(struct cairn_disk *disk, const char *ref, char **ret_ref,
                                  struct cairn_error *err);
/*
 * The same with options (may be NULL).  The layer is sealed into a second file in the disk's
 * folder, which goes when it is published.  Where the file system has no room for that, the layer
 * is published as the guest's writes have made it.  What a snapshot that failed has sealed already
 * is published as it is.  *ret_notice (ret_notice may be NULL): such things as the user should be
 * told, in one line, or NULL.
 */
CAIRN_API int cairn_disk_snapshot_with(struct cairn_disk *disk, const char *ref,
                                       const struct cairn_seal_options *options, char **ret_ref,
                                       char **ret_notice, struct cairn_error *err);
/* JSON facts of an open disk: ref, chain ID, size, local layers, counters. */
CAIRN_API int cairn_disk_info(struct cairn_disk *disk, char **ret_json, struct cairn_error *err);

/*
 * Hold a lease on the chain that the disk stands on, so that the service does not collect it
 * whatever becomes of its tags: renewed by a thread of its own, moved along by snapshots, released
 * when the disk is closed, and ended by itself a ttl after the host has died.  That the service
 * does not give or renew it is told and tried again, and never an error.  To be called once, after
 * the last fork.
 */
struct cairn_lease_options {
    size_t struct_size; /* set by CAIRN_LEASE_OPTIONS_INIT */
    const char *holder; /* what lists of leases show; NULL: the host and the disk's folder */
    unsigned ttl_s;     /* seconds, at most 86,400; 0: 600 */
    void (*tell)(void *ctx, const char *message); /* from any thread; NULL: nobody is told */
    void *tell_ctx;
};
#define CAIRN_LEASE_OPTIONS_INIT                                                                   \
    {                                                                                              \
        .struct_size = sizeof(struct cairn_lease_options)                                          \
    }
CAIRN_API int cairn_disk_hold_lease(struct cairn_disk *disk,
                                    const struct cairn_lease_options *options,
                                    struct cairn_error *err);

/*
 * Answer the control socket of the disk's folder (`control.sock`) from a thread of its own, until
 * the disk is closed: that is how cairn_folder_* reach a disk that another process has open.  To
 * be called after the last fork.
 */
CAIRN_API int cairn_disk_serve_control(struct cairn_disk *disk, struct cairn_error *err);

/* Snapshot or describe the disk of a folder, running (over its control socket) or stopped. */
CAIRN_API int cairn_folder_snapshot(struct cairn_client *client, const char *folder,
                                    const char *ref, char **ret_ref, struct cairn_error *err);
CAIRN_API int cairn_folder_snapshot_with(struct cairn_client *client, const char *folder,
                                         const char *ref, const struct cairn_seal_options *options,
                                         char **ret_ref, char **ret_notice,
                                         struct cairn_error *err);
CAIRN_API int cairn_folder_info(struct cairn_client *client, const char *folder, char **ret_json,
                                struct cairn_error *err);

/* -- Local images, no service ------------------------------------------------------------------ */

/* A new qcow2 file of the active layer's shape; backing (may be NULL) is recorded with its format.
 */
CAIRN_API int cairn_image_create(const char *file, uint64_t virtual_size, const char *backing,
                                 const char *backing_format, struct cairn_error *err);
enum cairn_resize {
    CAIRN_RESIZE_TO = 0, /* to size bytes */
    CAIRN_RESIZE_ADD = 1,
    CAIRN_RESIZE_SUBTRACT = 2,
};
/*
 * Change the virtual size of a qcow2 file, to size bytes or by them, rounded up to sectors.  What
 * is added reads as zeros, also over a backing file that is longer.  A smaller size is
 * CAIRN_E_USAGE unless may_shrink: what lies past it is lost.  Durable, and a power cut leaves the
 * old or the new size; after an error, too, it is one of them.  Of the shape that
 * cairn_image_create makes, else CAIRN_E_UNSUPPORTED; also the active.qcow2 of a disk folder, whose
 * disk then has the new size. CAIRN_E_CONFLICT if the file is in use.  *ret_size (may be NULL): the
 * new size.
 */
CAIRN_API int cairn_image_resize(const char *file, enum cairn_resize how, uint64_t size,
                                 bool may_shrink, uint64_t *ret_size, struct cairn_error *err);
/* JSON: format, header fields, features, snapshots, bitmaps, extensions. */
CAIRN_API int cairn_image_info(const char *file, const char *format, char **ret_json,
                               struct cairn_error *err);

/* An entry of what `qemu-img map --output=json` lists, with its field names. */
struct cairn_map_entry {
    uint64_t start, length; /* of the guest's disk, in bytes */
    uint64_t offset;        /* of start in the layer's file, if has_offset */
    uint32_t depth;         /* 0: the top layer */
    bool present;           /* some layer has it */
    bool zero;              /* reads as zeros; else it is data */
    bool has_offset;
};
/*
 * What the file and its local backing chain map: entries in order, without gaps.  entry returns
 * not 0 to stop: CAIRN_E_CANCELLED.
 */
typedef int (*cairn_map_fn)(void *ctx, const struct cairn_map_entry *entry);
CAIRN_API int cairn_image_map(const char *file, const char *format, cairn_map_fn entry, void *ctx,
                              struct cairn_error *err);
/* The same of an internal snapshot of a qcow2 file, by name or ID, as far as its disk reached. */
CAIRN_API int cairn_image_map_internal(const char *file, const char *snapshot, cairn_map_fn entry,
                                       void *ctx, struct cairn_error *err);

/*
 * The dirty ranges of a persistent bitmap of a qcow2 file, in order, not adjacent, in whole
 * granules except at the end of the disk.  dirty returns not 0 to stop: CAIRN_E_CANCELLED.  A
 * bitmap that was not saved (in use), or that a program which knows no bitmaps left behind, is
 * CAIRN_E_CORRUPT: it does not tell what is dirty.  cairn_image_info lists the bitmaps.
 */
typedef int (*cairn_dirty_fn)(void *ctx, uint64_t start, uint64_t length);
CAIRN_API int cairn_image_bitmap(const char *file, const char *bitmap, cairn_dirty_fn dirty,
                                 void *ctx, struct cairn_error *err);

enum cairn_repair {
    CAIRN_REPAIR_NONE = 0,  /* look, change nothing */
    CAIRN_REPAIR_LEAKS = 1, /* give back clusters that nothing refers to */
    CAIRN_REPAIR_ALL = 2,   /* whatever can be repaired without guessing; never guest data */
};
/*
 * Check the metadata of a qcow2 file, and repair it in place.  JSON with the field names of
 * `qemu-img check --output=json` and, besides, `state` (the worst of "clean", "leaks",
 * "corruptions", "check-errors"), `overlaps`, and `findings`, a list of at most 1,000; after a
 * repair all of it describes what is left.  Returns CAIRN_OK whatever the state is.
 * CAIRN_E_CONFLICT if the file is being written to, CAIRN_E_UNSUPPORTED for raw files.  No file
 * that the image names is opened.  progress may be NULL.
 */
CAIRN_API int cairn_image_check(const char *file, const char *format, enum cairn_repair repair,
                                cairn_progress_fn progress, void *progress_ctx, char **ret_json,
                                struct cairn_error *err);

/*
 * Seal a qcow2 file into out, which must not exist and appears when it is complete.  file must not
 * be written to meanwhile (CAIRN_E_CONFLICT), and is not changed; out's backing name is file's.
 * CAIRN_E_UNSUPPORTED for raw files.  options and progress may be NULL.  *ret_json: {"file",
 * "output","compress","bytesBefore","bytesAfter","clustersDropped","zeroBytes","dataClusters",
 * "compressedClusters","snapshotsDropped","bitmapsDropped"}.
 */
CAIRN_API int cairn_image_seal(const char *file, const char *format, const char *out,
                               const struct cairn_seal_options *options, cairn_progress_fn progress,
                               void *progress_ctx, char **ret_json, struct cairn_error *err);

#ifdef __cplusplus
}
#endif

#endif
