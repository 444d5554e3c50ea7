/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks: opening, reading, writing, closing.  Snapshots are in disk_snapshot.c.
 */
#include "disk.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "checked.h"
#include "control.h"
#include "disk_recover.h"
#include "json_memory.h"
#include "lease.h"
#include "local_chain.h"
#include "sealing.h"

#define EXTENTS_AT_ONCE 64
#define HOLDER_PATH_MAX 160 /* bytes of a folder's path in the name of a lease's holder */

struct disk_level *disk_top(struct cairn_disk *disk)
{
    SCOPED_LOCK(&disk->lock);
    return disk_level_ref(disk->top);
}

/* -- Opening -------------------------------------------------------------------------------- */

/* A switch of active layers must not wait for ever behind a stream of writes. */
static void init_gate(pthread_rwlock_t *gate)
{
    pthread_rwlockattr_t attr;

    pthread_rwlockattr_init(&attr);
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(gate, &attr);
    pthread_rwlockattr_destroy(&attr);
}

/* Layers that wait for the next snapshot; what is published for them is made again then. */
static void release_sealed(struct cairn_disk *disk)
{
    char name[DISK_SEALED_NAME_MAX];

    for (uint32_t i = 0; i < disk->nr_sealed; i++) {
        disk_level_unref(disk->sealed[i].level);
        if (disk->sealed[i].compact)
            disk_folder_remove(disk->folder, disk_compact_name(disk->sealed[i].number, name));
    }
}

static void disk_free(struct cairn_disk *disk)
{
    disk_level_unref(disk->top);
    release_sealed(disk);
    remote_disk_unref(disk->remote);
    disk_folder_close(disk->folder);
    pthread_mutex_destroy(&disk->snapshot_lock);
    pthread_rwlock_destroy(&disk->gate);
    pthread_mutex_destroy(&disk->lock);
    free(disk->notice);
    free(disk);
}
CLEANUP_DEFINE(struct cairn_disk *, disk_free)

static int disk_new(struct cairn_client *client, struct cairn_disk **ret_disk,
                    struct cairn_error *err)
{
    struct cairn_disk *disk = calloc(1, sizeof(*disk));

    if (!disk)
        return error_no_memory(err, "a disk");
    disk->client = client;
    pthread_mutex_init(&disk->snapshot_lock, NULL);
    pthread_mutex_init(&disk->lock, NULL);
    init_gate(&disk->gate);
    *ret_disk = disk;
    return CAIRN_OK;
}

/* The bottom of the stack. */
static int open_remote(struct cairn_disk *disk, const struct ref *ref, struct cairn_error *err)
{
    int ret = remote_disk_open(disk->client, ref, NULL, &disk->remote, err);

    if (ret == CAIRN_OK)
        ret = disk_level_new_remote(remote_disk_ref(disk->remote), &disk->top, err);
    return ret;
}

int cairn_disk_open_ref(struct cairn_client *client, const char *ref_text,
                        struct cairn_disk **ret_disk, struct cairn_error *err)
{
    CLEANUP(disk_free_p) struct cairn_disk *disk = NULL;
    struct ref ref;
    int ret = ref_parse(ref_text, &ref, err);

    if (ret == CAIRN_OK)
        ret = disk_new(client, &disk, err);
    if (ret == CAIRN_OK)
        ret = open_remote(disk, &ref, err);
    if (ret != CAIRN_OK)
        return ret;
    disk->read_only = true;
    disk->virtual_size = remote_disk_size(disk->remote);
    *ret_disk = steal_ptr(disk);
    return CAIRN_OK;
}

/* Put a local layer on top of the stack. */
static int push_level(struct cairn_disk *disk, disk_level_open_fn open, const char *name,
                      const struct active_options *options, struct cairn_error *err)
{
    CLEANUP_FREE char *path = disk_folder_path(disk->folder, name);
    struct disk_level *level;
    int ret;

    if (!path)
        return error_no_memory(err, "a path");
    ret = disk_level_new_local(open, path, options, disk->top, &level, err);
    if (ret != CAIRN_OK)
        return ret;
    disk_level_unref(disk->top);
    disk->top = level;
    return CAIRN_OK;
}

/* -- A new folder --------------------------------------------------------------------------- */

static void describe_new(const struct cairn_disk *disk, const struct ref *ref,
                         struct disk_state *ret_state)
{
    memset(ret_state, 0, sizeof(*ret_state));
    ref_format(ref, ret_state->made_from);
    ref_format(ref, ret_state->ref);
    memcpy(ret_state->repo, ref->repo, sizeof(ret_state->repo));
    ret_state->manifest = remote_disk_pinned(disk->remote)->digest;
    ret_state->chain_id = *remote_disk_chain_id(disk->remote);
    ret_state->virtual_size = remote_disk_size(disk->remote);
}

/* The active layer gets its place after disk.json: see the head of disk_folder.c. */
static int make_folder(struct cairn_disk *disk, const char *ref_text, struct cairn_error *err)
{
    struct disk_state state;
    struct ref ref;
    int ret = ref_parse(ref_text, &ref, err);

    if (ret == CAIRN_OK)
        ret = open_remote(disk, &ref, err);
    if (ret == CAIRN_OK) {
        const struct active_options options = {
            .virtual_size = remote_disk_size(disk->remote),
            .parent = remote_disk_chain_id(disk->remote),
        };

        describe_new(disk, &ref, &state);
        ret = push_level(disk, active_create, DISK_FOLDER_NEXT, &options, err);
    }
    if (ret == CAIRN_OK)
        ret = disk_folder_prepare(disk->folder, &state, err);
    if (ret == CAIRN_OK)
        ret = disk_folder_commit(disk->folder, err);
    if (ret == CAIRN_OK)
        ret = disk_folder_promote_next(disk->folder, err);
    return ret;
}

/* -- A folder that exists ------------------------------------------------------------------- */

/* ref must be one that the folder knows; as tags move on, only names are compared. */
static int check_ref(const char *folder, const struct disk_state *state, const char *ref_text,
                     struct cairn_error *err)
{
    char text[REF_STR_MAX];
    struct ref ref;
    int ret;

    if (!ref_text)
        return CAIRN_OK;
    ret = ref_parse(ref_text, &ref, err);
    if (ret != CAIRN_OK)
        return ret;
    ref_format(&ref, text);
    if (strcmp(text, state->made_from) == 0 || strcmp(text, state->ref) == 0)
        return CAIRN_OK;
    return error_set(err, CAIRN_E_CONFLICT,
                     "%s: the disk was made from %s, last snapshot to %s, and is not %s; leave out "
                     "the ref to open it as it is",
                     folder, state->made_from, state->ref, text);
}

/* The lowest local layer stands on the remote chain; layers above were pending or checked when
 * their parent was recorded. */
static int check_parent(const struct cairn_disk *disk, const char *name, struct cairn_error *err)
{
    const struct digest *expected = remote_disk_chain_id(disk->remote);
    char got_text[DIGEST_STR_MAX], expected_text[DIGEST_STR_MAX];
    struct digest got;

    if (!active_parent(disk_level_active(disk->top), &got) || digest_equal(&got, expected))
        return CAIRN_OK;
    return error_set(err, CAIRN_E_CORRUPT, "%s: it was started on chain %s, disk.json says %s",
                     name, digest_format(&got, got_text), digest_format(expected, expected_text));
}

static int open_level(struct cairn_disk *disk, const char *name, bool lowest,
                      struct cairn_error *err)
{
    const struct active_options options = {.read_only = disk->read_only};
    int ret = push_level(disk, active_open, name, &options, err);

    if (ret == CAIRN_OK && lowest)
        ret = check_parent(disk, name, err);
    return ret;
}

static int open_sealed(struct cairn_disk *disk, uint32_t number, struct cairn_error *err)
{
    char name[DISK_SEALED_NAME_MAX];
    int ret = open_level(disk, disk_sealed_name(number, name), disk->nr_sealed == 0, err);

    if (ret == CAIRN_OK)
        ret = active_seal(disk_level_active(disk->top), err);
    if (ret == CAIRN_OK)
        disk->sealed[disk->nr_sealed++] =
            (struct disk_sealed){.number = number, .level = disk_level_ref(disk->top)};
    return ret;
}

static int open_pinned(struct cairn_disk *disk, const struct disk_state *state,
                       struct cairn_error *err)
{
    char got[DIGEST_STR_MAX], expected[DIGEST_STR_MAX];
    struct ref ref = {.digest = state->manifest};
    int ret;

    memcpy(ref.repo, state->repo, sizeof(ref.repo));
    ret = open_remote(disk, &ref, err);
    if (ret == CAIRN_OK && !digest_equal(remote_disk_chain_id(disk->remote), &state->chain_id))
        ret = error_set(err, CAIRN_E_CORRUPT,
                        "disk.json: field \"chainId\" is %s, that of its manifest is %s",
                        digest_format(&state->chain_id, expected),
                        digest_format(remote_disk_chain_id(disk->remote), got));
    if (ret == CAIRN_OK && remote_disk_size(disk->remote) != state->virtual_size)
        ret =
            error_set(err, CAIRN_E_CORRUPT,
                      "disk.json: field \"virtualSize\" is %" PRIu64 ", that of its chain %" PRIu64,
                      state->virtual_size, remote_disk_size(disk->remote));
    return ret;
}

static int resume_folder(struct cairn_disk *disk, const struct disk_state *state,
                         struct cairn_error *err)
{
    int ret = open_pinned(disk, state, err);

    if (ret == CAIRN_OK && !disk->read_only && disk_folder_is_marked(disk->folder))
        ret = disk_recover(disk, err);
    for (uint32_t i = 0; ret == CAIRN_OK && i < state->nr_sealed; i++)
        ret = open_sealed(disk, state->sealed[i], err);
    if (ret == CAIRN_OK)
        ret = open_level(disk, DISK_FOLDER_ACTIVE, state->nr_sealed == 0, err);
    return ret;
}

static int fill_folder(struct cairn_disk *disk, const char *folder, const char *ref,
                       struct cairn_error *err)
{
    const struct disk_state *state = disk_folder_state(disk->folder);
    int ret;

    if (!state && disk->read_only)
        return error_set(err, CAIRN_E_NOT_FOUND, "%s: holds no disk that could be read", folder);
    if (!state)
        return make_folder(disk, ref, err);
    ret = check_ref(folder, state, ref, err);
    if (ret != CAIRN_OK)
        return ret;
    ret = resume_folder(disk, state, err);
    return ret == CAIRN_OK ? ret : error_prefix(err, ret, "%s", folder);
}

static int open_folder(struct cairn_client *client, const char *folder, const char *ref,
                       bool read_only, struct cairn_disk **ret_disk, struct cairn_error *err)
{
    CLEANUP(disk_free_p) struct cairn_disk *disk = NULL;
    int ret = disk_new(client, &disk, err);

    if (ret != CAIRN_OK)
        return ret;
    disk->read_only = read_only;
    ret = disk_folder_open(folder, ref && !read_only, &disk->folder, err);
    if (ret == CAIRN_OK)
        ret = fill_folder(disk, folder, ref, err);
    if (ret == CAIRN_OK && !read_only)
        ret = disk_folder_mark(disk->folder, err);
    if (ret != CAIRN_OK)
        return ret;
    disk->state = *disk_folder_state(disk->folder);
    disk->virtual_size = disk_level_size(disk->top);
    *ret_disk = steal_ptr(disk);
    return CAIRN_OK;
}

int cairn_disk_open_folder(struct cairn_client *client, const char *folder, const char *ref,
                           struct cairn_disk **ret_disk, struct cairn_error *err)
{
    return open_folder(client, folder, ref, false, ret_disk, err);
}

int cairn_disk_open_folder_read_only(struct cairn_client *client, const char *folder,
                                     const char *ref, struct cairn_disk **ret_disk,
                                     struct cairn_error *err)
{
    return open_folder(client, folder, ref, true, ret_disk, err);
}

const char *cairn_disk_notice(const struct cairn_disk *disk)
{
    return disk->notice;
}

int cairn_disk_close(struct cairn_disk *disk, struct cairn_error *err)
{
    int ret = CAIRN_OK;

    if (!disk)
        return CAIRN_OK;
    control_stop(disk->control);
    if (disk->folder)
        ret = disk_level_close(disk->top, err);
    lease_free(disk->lease);
    if (ret == CAIRN_OK && !disk->read_only && !disk->unchecked && !disk->folder_failed)
        disk_folder_unmark(disk->folder);
    disk_free(disk);
    return ret;
}

uint64_t cairn_disk_size(const struct cairn_disk *disk)
{
    return disk->virtual_size;
}

bool cairn_disk_read_only(const struct cairn_disk *disk)
{
    return disk->read_only;
}

/* -- Reading -------------------------------------------------------------------------------- */

static int out_of_range(const struct cairn_disk *disk, uint64_t guest_off, uint64_t len,
                        struct cairn_error *err)
{
    return error_set(err, CAIRN_E_USAGE,
                     "%" PRIu64 " bytes at %" PRIu64 " leave the disk, which has %" PRIu64, len,
                     guest_off, disk->virtual_size);
}

int cairn_disk_pread(struct cairn_disk *disk, void *buf, size_t len, uint64_t guest_off,
                     struct cairn_error *err)
{
    CLEANUP(disk_level_unref_p) struct disk_level *top = NULL;

    if (!range_in(guest_off, len, disk->virtual_size))
        return out_of_range(disk, guest_off, len, err);
    if (len == 0)
        return CAIRN_OK;
    if (!disk->folder) /* one level for ever: no lock, no reference */
        return disk_level_pread(disk->top, buf, len, guest_off, err);
    top = disk_top(disk);
    return disk_level_pread(top, buf, len, guest_off, err);
}

static unsigned flags_of(uint8_t kind)
{
    if (!extent_reads_zero(kind))
        return 0;
    return kind == EXTENT_ZERO_ALLOC ? CAIRN_EXTENT_ZERO : CAIRN_EXTENT_ZERO | CAIRN_EXTENT_HOLE;
}

/* Sums up extents into what callers see, cut to [from, to). */
static size_t public_extents(const struct extent *extents, size_t nr, uint64_t from, uint64_t to,
                             struct cairn_extent *ret_extents)
{
    size_t nr_out = 0;

    for (size_t i = 0; i < nr; i++) {
        uint64_t start = max_u64(extents[i].guest_off, from);
        uint64_t end = min_u64(extents[i].guest_off + extents[i].len, to);
        unsigned flags = flags_of(extents[i].kind);

        if (nr_out > 0 && ret_extents[nr_out - 1].flags == flags)
            ret_extents[nr_out - 1].len += end - start;
        else
            ret_extents[nr_out++] =
                (struct cairn_extent){.guest_off = start, .len = end - start, .flags = flags};
    }
    return nr_out;
}

int cairn_disk_extents(struct cairn_disk *disk, uint64_t guest_off, uint64_t len,
                       struct cairn_extent *ret_extents, size_t max, size_t *ret_nr,
                       struct cairn_error *err)
{
    CLEANUP(disk_level_unref_p) struct disk_level *top = NULL;
    struct extent extents[EXTENTS_AT_ONCE];
    uint64_t start = round_down(guest_off, 512);
    size_t nr;
    int ret;

    if (!range_in(guest_off, len, disk->virtual_size))
        return out_of_range(disk, guest_off, len, err);
    *ret_nr = 0;
    if (len == 0 || max == 0)
        return CAIRN_OK;
    top = disk_top(disk);
    ret = disk_level_map(top, start, round_up(guest_off + len, 512) - start, extents,
                         (size_t)min_u64(max, EXTENTS_AT_ONCE), &nr, err);
    if (ret == CAIRN_OK)
        *ret_nr = public_extents(extents, nr, guest_off, guest_off + len, ret_extents);
    return ret;
}

/* -- Writing -------------------------------------------------------------------------------- */

/* Hold the gate, shared, and the active layer with it, until the end of the scope. */
static void gate_leave(pthread_rwlock_t **gate)
{
    if (*gate)
        pthread_rwlock_unlock(*gate);
}

static int gate_enter(struct cairn_disk *disk, uint64_t guest_off, uint64_t len,
                      pthread_rwlock_t **ret_gate, struct active **ret_active,
                      struct cairn_error *err)
{
    if (disk->read_only)
        return error_set(err, CAIRN_E_DENIED, "the disk is open read-only");
    if (!range_in(guest_off, len, disk->virtual_size))
        return out_of_range(disk, guest_off, len, err);
    pthread_rwlock_rdlock(&disk->gate);
    *ret_gate = &disk->gate;
    *ret_active = disk_level_active(disk->top);
    return CAIRN_OK;
}

int cairn_disk_pwrite(struct cairn_disk *disk, const void *buf, size_t len, uint64_t guest_off,
                      struct cairn_error *err)
{
    CLEANUP(gate_leave) pthread_rwlock_t *gate = NULL;
    struct active *active = NULL;
    int ret = gate_enter(disk, guest_off, len, &gate, &active, err);

    if (ret != CAIRN_OK || len == 0)
        return ret;
    return active_pwrite(active, buf, len, guest_off, err);
}

int cairn_disk_zero(struct cairn_disk *disk, uint64_t len, uint64_t guest_off, bool may_unmap,
                    struct cairn_error *err)
{
    CLEANUP(gate_leave) pthread_rwlock_t *gate = NULL;
    struct active *active = NULL;
    int ret = gate_enter(disk, guest_off, len, &gate, &active, err);

    if (ret != CAIRN_OK || len == 0)
        return ret;
    return active_zero(active, len, guest_off, may_unmap, err);
}

int cairn_disk_discard(struct cairn_disk *disk, uint64_t len, uint64_t guest_off,
                       struct cairn_error *err)
{
    CLEANUP(gate_leave) pthread_rwlock_t *gate = NULL;
    struct active *active = NULL;
    int ret = gate_enter(disk, guest_off, len, &gate, &active, err);

    if (ret != CAIRN_OK || len == 0)
        return ret;
    return active_discard(active, len, guest_off, err);
}

int cairn_disk_flush(struct cairn_disk *disk, struct cairn_error *err)
{
    CLEANUP(gate_leave) pthread_rwlock_t *gate = NULL;
    struct active *active = NULL;
    int ret;

    if (disk->read_only)
        return CAIRN_OK;
    ret = gate_enter(disk, 0, 0, &gate, &active, err);
    return ret == CAIRN_OK ? active_flush(active, err) : ret;
}

/* -- Describing ----------------------------------------------------------------------------- */

static json_t *repair_facts(const struct disk_repair *repair)
{
    const time_t when = (time_t)repair->time;
    char text[32];
    struct tm tm;

    if (!gmtime_r(&when, &tm) || strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &tm) == 0)
        text[0] = 0;
    return json_pack("{s:s, s:I}", "time", text, "leaksFreed", (json_int_t)repair->leaks);
}

/* What disk.json says, as JSON that users see; NULL: out of memory. */
static json_t *state_facts(const struct disk_state *state, uint64_t virtual_size)
{
    char manifest[DIGEST_STR_MAX], chain_id[DIGEST_STR_MAX], name[DISK_SEALED_NAME_MAX];
    json_t *layers = json_array();

    for (uint32_t i = 0; i < state->nr_sealed; i++)
        json_array_append_new(layers,
                              json_pack("{s:s}", "file", disk_sealed_name(state->sealed[i], name)));
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:o, s:o*}", "madeFrom", state->made_from,
                     "ref", state->ref, "repository", state->repo, "manifest",
                     digest_format(&state->manifest, manifest), "chainId",
                     digest_format(&state->chain_id, chain_id), "virtualSize",
                     (json_int_t)virtual_size, "layers", layers, "lastRepair",
                     state->last_repair.time ? repair_facts(&state->last_repair) : NULL);
}

static json_t *ref_facts(const struct remote_disk *rd)
{
    char text[REF_STR_MAX], chain_id[DIGEST_STR_MAX];

    return json_pack("{s:s, s:s, s:I}", "ref", ref_format(remote_disk_pinned(rd), text), "chainId",
                     digest_format(remote_disk_chain_id(rd), chain_id), "virtualSize",
                     (json_int_t)remote_disk_size(rd));
}

/* NULL: the host keeps no blocks, or was not asked for any yet. */
static json_t *block_cache_facts(const struct block_cache_stats *stats)
{
    if (stats->hits + stats->misses == 0)
        return NULL;
    return json_pack("{s:I, s:I, s:I, s:I, s:I}", "hits", (json_int_t)stats->hits, "misses",
                     (json_int_t)stats->misses, "writes", (json_int_t)stats->writes, "bad",
                     (json_int_t)stats->bad, "evictions", (json_int_t)stats->evictions);
}

static json_t *remote_facts(struct remote_disk *rd)
{
    struct remote_disk_stats stats;

    remote_disk_get_stats(rd, &stats);
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:o*}", "depth",
                     (json_int_t)remote_disk_manifest(rd)->depth, "reads",
                     (json_int_t)stats.nr_reads, "readBytes", (json_int_t)stats.read_bytes,
                     "indexReads", (json_int_t)stats.nr_index_reads, "indexCacheBytes",
                     (json_int_t)stats.index_bytes, "blockCache", block_cache_facts(&stats.blocks));
}

static json_t *active_facts(struct active *active)
{
    struct active_stats stats;

    active_get_stats(active, &stats);
    return json_pack("{s:s, s:I, s:I, s:I, s:I}", "file", DISK_FOLDER_ACTIVE, "fileBytes",
                     (json_int_t)stats.file_bytes, "dataBytes", (json_int_t)stats.data_bytes,
                     "backingBytes", (json_int_t)stats.backing_bytes, "cacheBytes",
                     (json_int_t)stats.cache_bytes);
}

static int dump_facts(json_t *facts, char **ret_json, struct cairn_error *err)
{
    int ret = json_memory_dump(facts, JSON_COMPACT, ret_json, err);

    json_decref(facts);
    return ret;
}

int cairn_disk_info(struct cairn_disk *disk, char **ret_json, struct cairn_error *err)
{
    CLEANUP(disk_level_unref_p) struct disk_level *top = NULL;
    CLEANUP(remote_disk_unref_p) struct remote_disk *remote = NULL;
    struct disk_state state;
    json_t *facts;

    json_memory_begin();
    pthread_mutex_lock(&disk->lock);
    top = disk_level_ref(disk->top);
    remote = remote_disk_ref(disk->remote);
    state = disk->state;
    pthread_mutex_unlock(&disk->lock);
    facts = disk->folder ? state_facts(&state, disk->virtual_size) : ref_facts(remote);
    json_object_set_new(facts, "running", json_true());
    json_object_set_new(facts, "readOnly", json_boolean(disk->read_only));
    json_object_set_new(facts, "remote", remote_facts(remote));
    if (disk->folder)
        json_object_set_new(facts, "active", active_facts(disk_level_active(top)));
    return dump_facts(facts, ret_json, err);
}

/* `<host>:<folder>`, or of a disk without one `<host>[<pid>]`, malloc'ed. */
static int default_holder(const struct cairn_disk *disk, char **ret_holder, struct cairn_error *err)
{
    CLEANUP_FREE char *path = disk->folder ? disk_folder_path(disk->folder, "") : NULL;
    char host[HOST_NAME_MAX + 1] = "";
    size_t len = path ? strlen(path) : 0;
    int n;

    gethostname(host, sizeof(host) - 1);
    if (len > 1 && path[len - 1] == '/')
        path[--len] = 0;
    if (len > HOLDER_PATH_MAX) /* its end tells more than its beginning */
        n = asprintf(ret_holder, "%s:...%s", host, path + len - HOLDER_PATH_MAX);
    else if (path)
        n = asprintf(ret_holder, "%s:%s", host, path);
    else
        n = asprintf(ret_holder, "%s[%ld]", host, (long)getpid());
    return n < 0 ? error_no_memory(err, "a lease") : CAIRN_OK;
}

int cairn_disk_hold_lease(struct cairn_disk *disk, const struct cairn_lease_options *options,
                          struct cairn_error *err)
{
    static const struct cairn_lease_options defaults = CAIRN_LEASE_OPTIONS_INIT;
    const struct cairn_lease_options *o = options ? options : &defaults;
    CLEANUP_FREE char *holder = NULL;
    struct lease_options lease = {
        .holder = o->holder, .ttl_s = o->ttl_s, .tell = o->tell, .tell_ctx = o->tell_ctx};
    int ret = CAIRN_OK;

    if (o->struct_size != sizeof(*o))
        return error_set(err, CAIRN_E_USAGE,
                         "lease options are %zu bytes, this library's are %zu; use "
                         "CAIRN_LEASE_OPTIONS_INIT",
                         o->struct_size, sizeof(*o));
    if (disk->lease)
        return error_set(err, CAIRN_E_CONFLICT, "the disk holds a lease already");
    if (!lease.holder)
        ret = default_holder(disk, &holder, err);
    if (ret != CAIRN_OK)
        return ret;
    if (holder)
        lease.holder = holder;
    return lease_new(disk->client, remote_disk_pinned(disk->remote), &lease, &disk->lease, err);
}

/* -- Folders that may be running ------------------------------------------------------------ */

int cairn_disk_serve_control(struct cairn_disk *disk, struct cairn_error *err)
{
    if (!disk->folder)
        return error_set(err, CAIRN_E_USAGE, "a disk without a folder has no control socket");
    if (disk->control)
        return error_set(err, CAIRN_E_CONFLICT, "the disk's control socket is served already");
    return control_start(disk, &disk->control, err);
}

static int snapshot_stopped(struct cairn_client *client, const char *folder, const char *ref,
                            const struct cairn_seal_options *options, char **ret_ref,
                            char **ret_notice, struct cairn_error *err)
{
    struct cairn_disk *disk;
    int ret = cairn_disk_open_folder(client, folder, NULL, &disk, err);
    int closed;

    if (ret != CAIRN_OK)
        return ret;
    ret = cairn_disk_hold_lease(disk, NULL, err);
    if (ret == CAIRN_OK)
        ret = disk_snapshot(disk, client, ref, options, ret_ref, ret_notice, err);
    closed = cairn_disk_close(disk, ret == CAIRN_OK ? err : NULL);
    if (ret == CAIRN_OK && closed != CAIRN_OK) {
        free(steal_ptr(*ret_ref));
        ret = closed;
    }
    return ret;
}

int cairn_folder_snapshot_with(struct cairn_client *client, const char *folder, const char *ref,
                               const struct cairn_seal_options *options, char **ret_ref,
                               char **ret_notice, struct cairn_error *err)
{
    struct cairn_seal_options given;
    char *notice = NULL;
    bool running = false;
    int ret = sealing_check(options, &given, err);

    if (ret != CAIRN_OK)
        return ret;
    ret = control_ask_snapshot(client, folder, ref, &given, &running, ret_ref, &notice, err);
    if (!running)
        ret = snapshot_stopped(client, folder, ref, &given, ret_ref, &notice, err);
    if (ret == CAIRN_OK && ret_notice)
        *ret_notice = steal_ptr(notice);
    free(notice);
    return ret;
}

int cairn_folder_snapshot(struct cairn_client *client, const char *folder, const char *ref,
                          char **ret_ref, struct cairn_error *err)
{
    return cairn_folder_snapshot_with(client, folder, ref, NULL, ret_ref, NULL, err);
}

/* The size of a disk that is not running: its active layer's.  A crash may have left that under
 * another name; then it is that of the chain below. */
static uint64_t stopped_size(const char *folder, const struct disk_state *state)
{
    CLEANUP_FREE char *path = NULL;
    uint64_t size;

    if (asprintf(&path, "%s/" DISK_FOLDER_ACTIVE, folder) < 0)
        path = NULL;
    if (!path || local_qcow2_size(path, &size, NULL) != CAIRN_OK)
        return state->virtual_size;
    return size;
}

int cairn_folder_info(struct cairn_client *client, const char *folder, char **ret_json,
                      struct cairn_error *err)
{
    struct disk_state state;
    bool running, marked;
    json_t *facts;
    int ret = control_ask_info(client, folder, &running, ret_json, err);

    if (running)
        return ret;
    ret = disk_folder_read_state(folder, &state, &marked, err);
    if (ret != CAIRN_OK)
        return ret;
    facts = state_facts(&state, stopped_size(folder, &state));
    json_object_set_new(facts, "running", json_false());
    json_object_set_new(facts, "readOnly", json_false());
    json_object_set_new(facts, "closedCleanly", json_boolean(!marked));
    return dump_facts(facts, ret_json, err);
}
