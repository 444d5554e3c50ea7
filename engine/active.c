/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The active layer as a whole: opening and closing it, its flushes, its end as a sealed file.
 * Look at active_internal.h for the way through the other parts.
 */
#include "active.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

#include "active_internal.h"
#include "checked.h"
#include "cleanup.h"

#define DEFAULT_CACHE_BYTES ((size_t)16 << 20)

/* -- Open and close ---------------------------------------------------------------------------- */

static void free_active(struct active *a)
{
    refcounts_free(a->refcounts);
    table_cache_free(a->tables);
    hostfile_release(&a->file);
    inflight_release(&a->inflight);
    partials_release(&a->partials);
    pthread_mutex_destroy(&a->lock);
    free(a);
}

static int open_file(struct active *a, const char *path, bool read_only, struct cairn_error *err)
{
    int fd = open(path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
    int rc;

    if (fd < 0)
        return error_set_errno(err, errno, "cannot open %s", path);
    rc = hostfile_init(&a->file, fd, path, err);
    if (rc)
        return rc;
    return read_only ? hostfile_lock_reading(&a->file, err) : hostfile_lock(&a->file, err);
}

static int set_up_tables(struct active *a, const struct active_header *h, size_t cache_bytes,
                         struct cairn_error *err)
{
    struct refcount_layout layout = {
        .cluster_bits = h->shape.cluster_bits,
        .table_off = h->table_off,
        .table_clusters = h->table_clusters,
    };
    int rc = hostfile_size(&a->file, &layout.file_size, err);

    if (!rc)
        rc = table_cache_new(&a->file, &a->lock, cache_bytes ? cache_bytes : DEFAULT_CACHE_BYTES,
                             &a->tables, err);
    if (!rc)
        rc = refcounts_new(a->tables, &a->file, &a->lock, &layout, &a->refcounts, err);
    return rc;
}

static int set_up(struct active *a, const char *path, const struct active_options *options,
                  struct cairn_error *err)
{
    struct active_header h;
    int rc = open_file(a, path, options->read_only, err);

    if (!rc)
        rc = active_header_read(&a->file, options->foreign_backing, &h, err);
    if (rc)
        return rc;
    a->shape = h.shape;
    a->sealed = a->immutable = options->read_only;
    a->backing = options->backing;
    a->beneath = options->backing.pread || h.parent_state != ACTIVE_NO_PARENT;
    a->parent = h.parent;
    a->parent_state = h.parent_state;
    return set_up_tables(a, &h, options->cache_bytes, err);
}

int active_open(const char *path, const struct active_options *options, struct active **ret_active,
                struct cairn_error *err)
{
    struct active *a = calloc(1, sizeof(*a));
    int rc;

    if (!a)
        return error_no_memory(err, "an active layer");
    pthread_mutex_init(&a->lock, NULL);
    inflight_init(&a->inflight);
    partials_init(&a->partials);
    a->file.fd = -1;
    rc = set_up(a, path, options, err);
    if (rc) {
        free_active(a);
        return rc;
    }
    *ret_active = a;
    return CAIRN_OK;
}

/* Write everything back: a first flush lets clusters become free, a second counts them so. */
static int settle_locked(struct active *a, struct cairn_error *err)
{
    int rc = table_check_locked(a->tables, err);

    while (!rc && table_dirty_locked(a->tables))
        rc = table_flush_locked(a->tables, err);
    if (!rc)
        rc = refcount_trim_locked(a->refcounts, err);
    return rc ? rc : table_flush_locked(a->tables, err);
}

int active_close(struct active *a, struct cairn_error *err)
{
    int rc = CAIRN_OK;

    if (!a)
        return CAIRN_OK;
    pthread_mutex_lock(&a->lock);
    if (!a->sealed) {
        int settled;

        rc = partial_complete_all_locked(a, err);
        settled = settle_locked(a, rc ? NULL : err);
        rc = rc ? rc : settled;
    }
    pthread_mutex_unlock(&a->lock);
    free_active(a);
    return rc;
}

/* -- Facts ------------------------------------------------------------------------------------- */

uint64_t active_virtual_size(const struct active *a)
{
    return a->shape.virtual_size;
}

bool active_parent(struct active *a, struct digest *ret_chain_id)
{
    SCOPED_LOCK(&a->lock);

    if (a->parent_state != ACTIVE_PARENT_KNOWN)
        return false;
    *ret_chain_id = a->parent;
    return true;
}

int active_check_range(const struct active *a, uint64_t len, uint64_t guest_off,
                       struct cairn_error *err)
{
    if (range_in(guest_off, len, a->shape.virtual_size))
        return CAIRN_OK;
    return error_set(err, CAIRN_E_USAGE,
                     "%s: %" PRIu64 " bytes at guest offset 0x%" PRIx64
                     " reach past the end of the disk (%" PRIu64 " bytes)",
                     a->file.name, len, guest_off, a->shape.virtual_size);
}

int active_check_writable_locked(const struct active *a, struct cairn_error *err)
{
    if (a->sealed)
        return error_set(err, CAIRN_E_CONFLICT, "%s is sealed", a->file.name);
    return table_check_locked(a->tables, err);
}

/* Guest bytes that are data: a walk over the entries, for nobody else needs a running count. */
static uint64_t count_data(struct active *a)
{
    uint64_t sum = 0;

    for (uint64_t off = 0; off < a->shape.virtual_size;) {
        struct extent run;
        int rc;

        pthread_mutex_lock(&a->lock);
        rc = l2_get_run_locked(a, off, a->shape.virtual_size - off, &run, NULL);
        pthread_mutex_unlock(&a->lock);
        if (rc)
            break;
        sum += run.kind == EXTENT_DATA ? run.len : 0;
        off += run.len;
    }
    return sum;
}

void active_get_stats(struct active *a, struct active_stats *ret_stats)
{
    struct active_stats stats = {
        .backing_bytes = atomic_load(&a->backing_bytes),
        .data_bytes = count_data(a),
    };
    struct table_stats tables;

    pthread_mutex_lock(&a->lock);
    table_get_stats_locked(a->tables, &tables);
    pthread_mutex_unlock(&a->lock);
    stats.cache_bytes = tables.bytes;
    if (hostfile_size(&a->file, &stats.file_bytes, NULL))
        stats.file_bytes = 0;
    *ret_stats = stats;
}

/* -- Durability -------------------------------------------------------------------------------- */

int active_flush(struct active *a, struct cairn_error *err)
{
    SCOPED_LOCK(&a->lock);
    int rc = partial_complete_all_locked(a, err);
    int flushed = table_flush_locked(a->tables, rc ? NULL : err);

    return rc ? rc : flushed;
}

static int write_parent_locked(struct active *a, const struct digest *chain_id,
                               struct cairn_error *err)
{
    struct active_header h = {
        .shape = a->shape,
        .parent_state = ACTIVE_PARENT_KNOWN,
        .parent = *chain_id,
    };
    struct table_page *page;
    uint8_t *bytes;
    int rc = table_get_locked(a->tables, TABLE_HEADER, 0, &page, err);

    if (rc)
        return rc;
    refcount_table_locked(a->refcounts, &h.table_off, &h.table_clusters);
    rc = table_modify_locked(FAULT_AT(a->tables, FAULT_HEADER_PARENT), page, &bytes, err);
    if (!rc)
        active_header_encode(&h, bytes);
    table_put_locked(a->tables, page);
    return rc ? rc : table_flush_locked(a->tables, err);
}

int active_set_parent(struct active *a, const struct digest *chain_id, struct cairn_error *err)
{
    SCOPED_LOCK(&a->lock);
    const enum active_parent_state before = a->parent_state;
    char id[DIGEST_STR_MAX];
    int rc = table_check_locked(a->tables, err);

    if (rc || (before == ACTIVE_PARENT_KNOWN && digest_equal(&a->parent, chain_id)))
        return rc;
    if (before != ACTIVE_PARENT_PENDING && before != ACTIVE_PARENT_KNOWN)
        return error_set(err, CAIRN_E_CONFLICT, "%s has no place for a parent, cannot record %s",
                         a->file.name, digest_format(chain_id, id));
    a->parent_state = ACTIVE_PARENT_RECORDING;
    rc = write_parent_locked(a, chain_id, err);
    if (!rc)
        a->parent = *chain_id;
    a->parent_state = rc ? before : ACTIVE_PARENT_KNOWN;
    return rc;
}

int active_seal(struct active *a, struct cairn_error *err)
{
    SCOPED_LOCK(&a->lock);
    int rc;

    if (a->sealed)
        return CAIRN_OK;
    rc = partial_complete_all_locked(a, err);
    if (rc)
        return rc;
    a->sealed = true; /* nobody writes from here on, unless this fails */
    rc = settle_locked(a, err);
    if (!rc)
        rc = hostfile_lock_readers(&a->file, err);
    a->sealed = a->immutable = rc == CAIRN_OK;
    return rc;
}
