/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Snapshots.
 *
 * Local layers, top first: the active layer A, sealed layers S…, then the remote chain R.  Order of
 * the steps, with what a re-open finds after a crash behind each (the rules are disk_folder.c's):
 *
 *   1. Digests of what is sealed already, and from them the chain IDs that the layers above stand
 *      on: recorded in these, where that is pending or was another.  the disk as it was
 *   2. Unless A is empty, the switch, prepared while writes go on:
 *      a. next.qcow2, an active layer whose parent is pending        as it was; next is removed
 *      b. sealed-n.qcow2, a second link to A's file                  as it was; the link is removed
 *      c. disk.json.new: sealed-n is a sealed layer                  as it was; the file is removed
 *      d. a flush of A, so that there is little left to flush in 3.
 *   3. Writes wait:
 *      a. A is sealed and durable                                    as it was: a sealed file can
 * be opened for writing b. disk.json.new becomes disk.json, durably                   next.qcow2 is
 * the active layer c. next.qcow2 becomes active.qcow2                            the same, by its
 * right name d. the new active layer goes on top of the stack; writes go on.
 *   4. As 1, for the layer just sealed: compact-n.qcow2 is written from sealed-n.qcow2, which stays
 *      what the disk reads, and hashed.                              the same; compact-n is removed
 *   5. Blobs are pushed, the manifest is put.                        sealed layers wait for the
 * next snapshot, which finds them there
 *   6. The published chain is opened and leased, disk.json names it, and no sealed layers; then the
 * stack stands on it, and the sealed files are removed.                      the disk on the new
 * chain; files that are left over are removed
 *
 * What fails before 3 or after 3 leaves a disk that goes on; whatever is sealed is published by the
 * next snapshot.  If 3b or 3c fails, the file system refuses a rename or a sync, and it cannot be
 * known which disk.json a re-open would see: then nothing more may be written, because it might go
 * into a file that a re-open throws away.  The disk goes on reading and refuses writes.
 *
 * An active layer that holds nothing is not sealed: a snapshot of a disk that was not written to
 * publishes the chain that it stands on.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "disk.h"
#include "disk_compact.h"
#include "lease.h"

#define HASH_BYTES ((size_t)1 << 20)

/* One snapshot on its way. */
struct snapshot {
    struct cairn_disk *disk;
    struct cairn_client *client; /* with the progress of whoever asked */
    struct ref target;
    struct seal_options seal;
    char *notice;           /* what the user should be told, or NULL */
    struct digest chain_id; /* of remote chain and sealed layers */
    struct digest manifest; /* when it is published */
};

/* -- Digests and parents -------------------------------------------------------------------- */

static int hash_fd(struct cairn_client *client, int fd, const char *name, uint64_t size,
                   struct digest *ret_digest, struct cairn_error *err)
{
    CLEANUP(hasher_free_p) struct hasher *hasher = NULL;
    CLEANUP_FREE char *buf = malloc(HASH_BYTES);
    char what[DISK_SEALED_NAME_MAX + 8];
    uint64_t done = 0;
    int ret = buf ? hasher_new(&hasher, err) : error_no_memory(err, "hashing");

    snprintf(what, sizeof(what), "hash %s", name);
    while (ret == CAIRN_OK && done < size) {
        ssize_t n = pread(fd, buf, HASH_BYTES, (off_t)done);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_set_errno(err, errno, "%s: cannot read at %" PRIu64, name, done);
        if (n == 0)
            return error_set(err, CAIRN_E_CORRUPT, "%s: ends at %" PRIu64 ", its size was %" PRIu64,
                             name, done, size);
        hasher_update(hasher, buf, (size_t)n);
        done += (uint64_t)n;
        ret = client_progress(client, what, done, size, err);
    }
    if (ret == CAIRN_OK)
        hasher_finish(hasher, ret_digest);
    return ret;
}

static char *published_name(const struct disk_sealed *sealed, char name[DISK_SEALED_NAME_MAX])
{
    return sealed->compact ? disk_compact_name(sealed->number, name)
                           : disk_sealed_name(sealed->number, name);
}

static int hash_published(struct snapshot *snap, struct disk_sealed *sealed,
                          struct cairn_error *err)
{
    struct manifest_layer layer = {.format = LAYER_QCOW2};
    char name[DISK_SEALED_NAME_MAX];
    CLEANUP_CLOSE int fd = openat(disk_folder_fd(snap->disk->folder), published_name(sealed, name),
                                  O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;
    int ret;

    if (fd < 0 || fstat(fd, &st) != 0)
        return error_set_errno(err, errno, "%s: cannot open", name);
    layer.size = (uint64_t)st.st_size;
    ret = hash_fd(snap->client, fd, name, layer.size, &layer.digest, err);
    if (ret == CAIRN_OK) {
        sealed->layer = layer;
        sealed->has_digest = true;
    }
    return ret;
}

static int note_no_space(struct snapshot *snap, const struct disk_sealed *sealed,
                         struct cairn_error *err)
{
    char name[DISK_SEALED_NAME_MAX];

    if (snap->notice)
        return CAIRN_OK;
    if (asprintf(&snap->notice,
                 "%s: no space left to write it anew beside it; it is published as the guest's "
                 "writes have made it",
                 disk_sealed_name(sealed->number, name)) >= 0)
        return CAIRN_OK;
    snap->notice = NULL;
    return error_no_memory(err, "a message");
}

/* A sealed layer gets the form in which it is published, and so its digest. */
static int settle_form(struct snapshot *snap, struct disk_sealed *sealed, struct cairn_error *err)
{
    int ret;

    if (sealed->has_digest)
        return CAIRN_OK;
    ret = disk_compact(snap->disk->folder, sealed->number, &snap->seal, snap->client,
                       &sealed->compact, err);
    if (ret == CAIRN_OK && !sealed->compact)
        ret = note_no_space(snap, sealed, err);
    return ret == CAIRN_OK ? hash_published(snap, sealed, err) : ret;
}

static int wrong_parent(const char *name, const struct digest *got, const struct digest *expected,
                        struct cairn_error *err)
{
    char got_text[DIGEST_STR_MAX], expected_text[DIGEST_STR_MAX];

    return error_set(err, CAIRN_E_CORRUPT, "%s: it was started on chain %s, and stands on %s", name,
                     digest_format(got, got_text), digest_format(expected, expected_text));
}

/*
 * Let a local layer's record say chain_id.  The lowest one's has to say so, unless it is pending:
 * it was made for that chain.  Those above follow from the form of what is sealed beneath them,
 * which may be another one than a snapshot that failed has recorded: other options, another version
 * of a compressor, space that there was not.
 */
static int settle_parent(struct active *active, bool lowest, const char *name,
                         const struct digest *chain_id, struct cairn_error *err)
{
    struct digest parent;

    if (lowest && active_parent(active, &parent) && !digest_equal(&parent, chain_id))
        return wrong_parent(name, &parent, chain_id, err);
    return active_set_parent(active, chain_id, err);
}

/* Steps 1 and 4. */
static int settle_parents(struct snapshot *snap, struct cairn_error *err)
{
    struct cairn_disk *disk = snap->disk;
    int ret;

    snap->chain_id = *remote_disk_chain_id(disk->remote);
    for (uint32_t i = 0; i < disk->nr_sealed; i++) {
        struct disk_sealed *sealed = &disk->sealed[i];
        char name[DISK_SEALED_NAME_MAX];

        ret = settle_parent(disk_level_active(sealed->level), i == 0,
                            disk_sealed_name(sealed->number, name), &snap->chain_id, err);
        if (ret == CAIRN_OK)
            ret = settle_form(snap, sealed, err);
        if (ret != CAIRN_OK)
            return ret;
        digest_chain(&snap->chain_id, &sealed->layer.digest, &snap->chain_id);
    }
    return settle_parent(disk_level_active(disk->top), disk->nr_sealed == 0, DISK_FOLDER_ACTIVE,
                         &snap->chain_id, err);
}

/* -- The switch ----------------------------------------------------------------------------- */

/* Nothing was written, and the size is that of the level below. */
static int is_empty(struct cairn_disk *disk, bool *ret_empty, struct cairn_error *err)
{
    CLEANUP(disk_level_unref_p) struct disk_level *below = disk_level_below(disk->top);
    struct active *active = disk_level_active(disk->top);
    uint64_t guest_off = 0;

    *ret_empty = disk_level_size(below) == disk->virtual_size;
    while (*ret_empty && guest_off < disk->virtual_size) {
        struct extent e;
        size_t nr;
        int ret = active_map(active, guest_off, disk->virtual_size - guest_off, &e, 1, &nr, err);

        if (ret != CAIRN_OK)
            return ret;
        *ret_empty = e.kind == EXTENT_HOLE;
        guest_off = e.guest_off + e.len;
    }
    return CAIRN_OK;
}

struct layer_switch {
    uint32_t number;         /* of the sealed layer to be */
    struct disk_level *next; /* the active layer to be */
    struct disk_state state;
};

static int make_next(struct cairn_disk *disk, struct layer_switch *sw, struct cairn_error *err)
{
    CLEANUP_FREE char *path = disk_folder_path(disk->folder, DISK_FOLDER_NEXT);
    const struct active_options options = {
        .virtual_size = disk->virtual_size,
        .parent_pending = true,
    };

    if (!path)
        return error_no_memory(err, "a path");
    disk_folder_remove(disk->folder, DISK_FOLDER_NEXT);
    return disk_level_new_local(active_create, path, &options, disk->top, &sw->next, err);
}

/* Step 2; there is room for one more sealed layer. */
static int prepare_switch(struct cairn_disk *disk, struct layer_switch *sw, struct cairn_error *err)
{
    int ret;

    sw->number = disk->nr_sealed > 0 ? disk->sealed[disk->nr_sealed - 1].number + 1 : 1;
    sw->state = disk->state;
    sw->state.sealed[sw->state.nr_sealed++] = sw->number;
    ret = make_next(disk, sw, err);
    if (ret == CAIRN_OK)
        ret = disk_folder_link_active(disk->folder, sw->number, err);
    if (ret == CAIRN_OK)
        ret = disk_folder_prepare(disk->folder, &sw->state, err);
    if (ret == CAIRN_OK)
        ret = active_flush(disk_level_active(disk->top), err);
    return ret;
}

static void abandon_switch(struct cairn_disk *disk, struct layer_switch *sw)
{
    char name[DISK_SEALED_NAME_MAX];

    disk_level_unref(steal_ptr(sw->next));
    disk_folder_abandon(disk->folder);
    disk_folder_remove(disk->folder, DISK_FOLDER_NEXT);
    disk_folder_remove(disk->folder, disk_sealed_name(sw->number, name));
}

/* The references move: the top's to the list of the sealed, next's to the top. */
static void install_next(struct cairn_disk *disk, struct layer_switch *sw)
{
    disk->sealed[disk->nr_sealed++] =
        (struct disk_sealed){.number = sw->number, .level = disk->top};
    pthread_mutex_lock(&disk->lock);
    disk->top = steal_ptr(sw->next);
    disk->state = sw->state;
    pthread_mutex_unlock(&disk->lock);
}

/* Steps 3b to 3d. */
static int commit_switch(struct cairn_disk *disk, struct layer_switch *sw, struct cairn_error *err)
{
    int ret = disk_folder_commit(disk->folder, err);

    if (ret == CAIRN_OK)
        ret = disk_folder_promote_next(disk->folder, err);
    disk->folder_failed = ret != CAIRN_OK;
    if (ret != CAIRN_OK)
        return error_prefix(err, ret,
                            "the disk refuses writes until it is opened again, for its folder "
                            "could not be changed");
    install_next(disk, sw);
    return CAIRN_OK;
}

/* Steps 2 and 3. */
static int switch_active(struct cairn_disk *disk, struct cairn_error *err)
{
    struct layer_switch sw = {.next = NULL};
    int ret = prepare_switch(disk, &sw, err);

    if (ret == CAIRN_OK) {
        pthread_rwlock_wrlock(&disk->gate);
        ret = active_seal(disk_level_active(disk->top), err);
        if (ret == CAIRN_OK) {
            ret = commit_switch(disk, &sw, err);
            pthread_rwlock_unlock(&disk->gate);
            disk_level_unref(sw.next); /* if it was not installed */
            return ret;
        }
        pthread_rwlock_unlock(&disk->gate);
    }
    abandon_switch(disk, &sw);
    return ret;
}

/* -- Publishing ----------------------------------------------------------------------------- */

/* The remote chain's layers and the sealed ones. */
static int make_manifest(struct cairn_disk *disk, struct manifest **ret_m, struct cairn_error *err)
{
    const struct manifest *old = remote_disk_manifest(disk->remote);
    uint32_t depth = old->depth + disk->nr_sealed;
    CLEANUP_FREE struct manifest_layer *layers = calloc(depth, sizeof(*layers));
    int ret;

    if (!layers)
        return error_no_memory(err, "a manifest");
    memcpy(layers, old->layers, old->depth * sizeof(*layers));
    for (uint32_t i = 0; i < disk->nr_sealed; i++)
        layers[old->depth + i] = disk->sealed[i].layer;
    ret = manifest_new(layers, depth, ret_m, err);
    if (ret == CAIRN_OK && old->has_rebased_from) {
        (*ret_m)->has_rebased_from = true;
        (*ret_m)->rebased_from = old->rebased_from;
    }
    return ret;
}

static int push_sealed(struct snapshot *snap, struct disk_sealed *sealed, struct cairn_error *err)
{
    char name[DISK_SEALED_NAME_MAX];
    CLEANUP_FREE char *path = disk_folder_path(snap->disk->folder, published_name(sealed, name));

    if (!path)
        return error_no_memory(err, "a path");
    return client_push_blob(snap->client, snap->target.repo, path, &sealed->layer.digest, NULL,
                            err);
}

/* Nothing is sealed: the chain that is there gets another name. */
static int publish_unchanged(struct snapshot *snap, struct cairn_error *err)
{
    const struct ref *pinned = remote_disk_pinned(snap->disk->remote);
    char from[REF_STR_MAX], to[REF_STR_MAX];

    snap->manifest = pinned->digest;
    return cairn_tag(snap->client, ref_format(pinned, from), ref_format(&snap->target, to), err);
}

static int publish_layers(struct snapshot *snap, struct cairn_error *err)
{
    struct cairn_disk *disk = snap->disk;
    const char *repo = remote_disk_pinned(disk->remote)->repo;
    CLEANUP(manifest_free_p) struct manifest *m = NULL;
    int ret = CAIRN_OK;

    if (strcmp(repo, snap->target.repo) != 0)
        ret = client_mount_layers(snap->client, snap->target.repo,
                                  remote_disk_manifest(disk->remote), repo, err);
    for (uint32_t i = 0; ret == CAIRN_OK && i < disk->nr_sealed; i++)
        ret = push_sealed(snap, &disk->sealed[i], err);
    if (ret == CAIRN_OK)
        ret = make_manifest(disk, &m, err);
    if (ret == CAIRN_OK)
        ret = client_put_manifest(snap->client, &snap->target, m, &snap->manifest, err);
    return ret;
}

/* Step 5; again if what was sent has been collected before the manifest was put. */
static int publish(struct snapshot *snap, struct cairn_error *err)
{
    int ret;

    if (snap->disk->nr_sealed == 0)
        return publish_unchanged(snap, err);
    ret = publish_layers(snap, err);
    for (unsigned i = 0; ret == CAIRN_E_NOT_FOUND && i < CLIENT_RESENDS; i++)
        ret = publish_layers(snap, err);
    return ret;
}

/* -- Standing on what was published --------------------------------------------------------- */

static int open_published(struct snapshot *snap, struct remote_disk **ret_rd,
                          struct cairn_error *err)
{
    CLEANUP(remote_disk_unref_p) struct remote_disk *rd = NULL;
    struct ref pinned = snap->target;
    int ret;

    pinned.tag[0] = 0;
    pinned.digest = snap->manifest;
    ret = remote_disk_open(snap->disk->client, &pinned, snap->disk->remote, &rd, err);
    if (ret != CAIRN_OK)
        return ret;
    if (!digest_equal(remote_disk_chain_id(rd), &snap->chain_id))
        return wrong_parent("the published chain", remote_disk_chain_id(rd), &snap->chain_id, err);
    *ret_rd = steal_ptr(rd);
    return CAIRN_OK;
}

static int record_published(struct snapshot *snap, struct disk_state *ret_state,
                            struct cairn_error *err)
{
    struct cairn_disk *disk = snap->disk;
    int ret;

    *ret_state = disk->state;
    ref_format(&snap->target, ret_state->ref);
    memcpy(ret_state->repo, snap->target.repo, sizeof(ret_state->repo));
    ret_state->manifest = snap->manifest;
    ret_state->chain_id = snap->chain_id;
    if (disk->nr_sealed > 0)
        ret_state->virtual_size = disk_level_size(disk->sealed[disk->nr_sealed - 1].level);
    ret_state->nr_sealed = 0;
    ret = disk_folder_prepare(disk->folder, ret_state, err);
    return ret == CAIRN_OK ? disk_folder_commit(disk->folder, err) : ret;
}

static void drop_sealed(struct cairn_disk *disk)
{
    char name[DISK_SEALED_NAME_MAX];

    for (uint32_t i = 0; i < disk->nr_sealed; i++) {
        disk_level_unref(disk->sealed[i].level);
        disk_folder_remove(disk->folder, disk_sealed_name(disk->sealed[i].number, name));
        disk_folder_remove(disk->folder, disk_compact_name(disk->sealed[i].number, name));
    }
    disk->nr_sealed = 0;
}

/* Step 6. */
static int adopt(struct snapshot *snap, struct cairn_error *err)
{
    struct cairn_disk *disk = snap->disk;
    CLEANUP(remote_disk_unref_p) struct remote_disk *rd = NULL;
    CLEANUP(disk_level_unref_p) struct disk_level *bottom = NULL;
    struct remote_disk *old;
    struct disk_state state;
    int ret = open_published(snap, &rd, err);

    if (ret == CAIRN_OK)
        ret = disk_level_new_remote(remote_disk_ref(rd), &bottom, err);
    if (ret == CAIRN_OK && disk->lease)
        ret = lease_take_next(disk->lease, remote_disk_pinned(rd), err);
    if (ret != CAIRN_OK)
        return ret;
    ret = record_published(snap, &state, err);
    if (disk->lease)
        lease_settle(disk->lease, ret == CAIRN_OK);
    if (ret != CAIRN_OK)
        return ret;
    disk_level_set_below(disk->top, bottom);
    pthread_mutex_lock(&disk->lock);
    old = disk->remote;
    disk->remote = steal_ptr(rd);
    disk->state = state;
    pthread_mutex_unlock(&disk->lock);
    remote_disk_unref(old);
    drop_sealed(disk);
    return CAIRN_OK;
}

/* Steps 5 and 6. */
static int publish_sealed(struct snapshot *snap, struct cairn_error *err)
{
    int ret = publish(snap, err);

    return ret == CAIRN_OK ? adopt(snap, err) : ret;
}

/* Steps 2 to 4.  If as many layers wait as may, they are published first: until the rest follows,
 * the ref names what snapshots that failed would have shown. */
static int seal_active(struct snapshot *snap, struct cairn_error *err)
{
    struct cairn_disk *disk = snap->disk;
    bool empty;
    int ret = is_empty(disk, &empty, err);

    if (ret != CAIRN_OK || empty)
        return ret;
    if (disk->nr_sealed == DISK_SEALED_MAX)
        ret = publish_sealed(snap, err);
    if (ret == CAIRN_OK)
        ret = switch_active(disk, err);
    return ret == CAIRN_OK ? settle_parents(snap, err) : ret;
}

static int snapshot_steps(struct snapshot *snap, struct cairn_error *err)
{
    int ret;

    if (snap->disk->folder_failed)
        return error_set(err, CAIRN_E_IO,
                         "the disk's folder could not be changed before; open the disk again");
    ret = settle_parents(snap, err);
    if (ret == CAIRN_OK)
        ret = seal_active(snap, err);
    return ret == CAIRN_OK ? publish_sealed(snap, err) : ret;
}

static int describe_result(const struct snapshot *snap, char **ret_ref, struct cairn_error *err)
{
    struct ref pinned = snap->target;
    char text[REF_STR_MAX];

    pinned.tag[0] = 0;
    pinned.digest = snap->manifest;
    *ret_ref = strdup(ref_format(&pinned, text));
    return *ret_ref ? CAIRN_OK : error_no_memory(err, "a ref");
}

static int check_disk(const struct snapshot *snap, const char *ref_text, struct cairn_error *err)
{
    if (!snap->target.tag[0])
        return error_set(err, CAIRN_E_USAGE, "%s names a digest; a snapshot needs a tag", ref_text);
    if (snap->disk->read_only)
        return error_set(err, CAIRN_E_USAGE,
                         "the disk is open read-only: there is nothing to seal");
    return CAIRN_OK;
}

int disk_snapshot(struct cairn_disk *disk, struct cairn_client *client, const char *ref_text,
                  const struct cairn_seal_options *options, char **ret_ref, char **ret_notice,
                  struct cairn_error *err)
{
    struct snapshot snap = {.disk = disk, .client = client};
    struct cairn_seal_options given;
    int ret = ref_parse(ref_text, &snap.target, err);

    if (ret == CAIRN_OK)
        ret = check_disk(&snap, ref_text, err);
    if (ret == CAIRN_OK)
        ret = sealing_check(options, &given, err);
    if (ret != CAIRN_OK)
        return ret;
    snap.seal = sealing_options(&given);
    if (pthread_mutex_trylock(&disk->snapshot_lock) != 0)
        return error_set(err, CAIRN_E_CONFLICT, "a snapshot of this disk is under way");
    ret = snapshot_steps(&snap, err);
    pthread_mutex_unlock(&disk->snapshot_lock);
    if (ret == CAIRN_OK)
        ret = describe_result(&snap, ret_ref, err);
    if (ret == CAIRN_OK && ret_notice)
        *ret_notice = steal_ptr(snap.notice);
    free(snap.notice);
    return ret;
}

int cairn_disk_snapshot_with(struct cairn_disk *disk, const char *ref,
                             const struct cairn_seal_options *options, char **ret_ref,
                             char **ret_notice, struct cairn_error *err)
{
    return disk_snapshot(disk, disk->client, ref, options, ret_ref, ret_notice, err);
}

int cairn_disk_snapshot(struct cairn_disk *disk, const char *ref, char **ret_ref,
                        struct cairn_error *err)
{
    return disk_snapshot(disk, disk->client, ref, NULL, ret_ref, NULL, err);
}
