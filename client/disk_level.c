/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A local layer reads through to what is below by its backing callback, so that reading a stack is
 * reading its top.  What is below changes when a sealed layer has become part of the remote chain;
 * the lock guards only the pointer, never a read.
 */
#include "disk_level.h"

#include <string.h>

#include "checked.h"

#define MAP_AT_ONCE 32

struct disk_level {
    atomic_uint refs;
    struct remote_disk *remote; /* the bottom, or NULL */
    struct active *active;      /* a local layer, or NULL */
    pthread_mutex_t lock;
    struct disk_level *below; /* guarded by lock */
};

static int level_new(struct disk_level **ret_level, struct cairn_error *err)
{
    struct disk_level *level = calloc(1, sizeof(*level));

    if (!level)
        return error_no_memory(err, "a level of a disk");
    atomic_init(&level->refs, 1);
    pthread_mutex_init(&level->lock, NULL);
    *ret_level = level;
    return CAIRN_OK;
}

int disk_level_new_remote(struct remote_disk *rd, struct disk_level **ret_level,
                          struct cairn_error *err)
{
    int ret = level_new(ret_level, err);

    if (ret == CAIRN_OK)
        (*ret_level)->remote = rd;
    else
        remote_disk_unref(rd);
    return ret;
}

static int read_below(void *ctx, void *buf, size_t len, uint64_t guest_off, struct cairn_error *err)
{
    CLEANUP(disk_level_unref_p) struct disk_level *below = disk_level_below(ctx);
    uint64_t size = disk_level_size(below);
    size_t inside = guest_off < size ? (size_t)min_u64(len, size - guest_off) : 0;

    memset((char *)buf + inside, 0, len - inside);
    return inside > 0 ? disk_level_pread(below, buf, inside, guest_off, err) : CAIRN_OK;
}

/* What is below a hole, into the rest of the result. */
static int map_hole(struct disk_level *level, const struct extent *hole, struct extent *ret_extents,
                    size_t max, size_t *ret_nr, struct cairn_error *err)
{
    CLEANUP(disk_level_unref_p) struct disk_level *below = disk_level_below(level);
    uint64_t size = disk_level_size(below);

    if (hole->guest_off >= size) { /* a part of level's own hole, which what is beneath ends in */
        ret_extents[0] = *hole;
        *ret_nr = 1;
        return CAIRN_OK;
    }
    return disk_level_map(below, hole->guest_off, min_u64(hole->len, size - hole->guest_off),
                          ret_extents, max, ret_nr, err);
}

static int map_below(void *ctx, uint64_t guest_off, uint64_t len, struct extent *ret_extent,
                     struct cairn_error *err)
{
    const struct extent hole = {.guest_off = guest_off, .len = len, .kind = EXTENT_HOLE};
    size_t nr;

    return map_hole(ctx, &hole, ret_extent, 1, &nr, err);
}

int disk_level_new_local(disk_level_open_fn open, const char *path,
                         const struct active_options *options, struct disk_level *below,
                         struct disk_level **ret_level, struct cairn_error *err)
{
    CLEANUP(disk_level_unref_p) struct disk_level *level = NULL;
    struct active_options with_backing = *options;
    int ret = level_new(&level, err);

    if (ret != CAIRN_OK)
        return ret;
    level->below = disk_level_ref(below);
    with_backing.backing =
        (struct active_backing){.pread = read_below, .ctx = level, .map_one = map_below};
    ret = open(path, &with_backing, &level->active, err);
    if (ret == CAIRN_OK)
        *ret_level = steal_ptr(level);
    return ret;
}

struct disk_level *disk_level_ref(struct disk_level *level)
{
    atomic_fetch_add_explicit(&level->refs, 1, memory_order_relaxed);
    return level;
}

/* A stack may be hundreds of levels deep: a loop. */
void disk_level_unref(struct disk_level *level)
{
    while (level && atomic_fetch_sub_explicit(&level->refs, 1, memory_order_acq_rel) == 1) {
        struct disk_level *below = level->below;

        active_close(level->active, NULL);
        remote_disk_unref(level->remote);
        pthread_mutex_destroy(&level->lock);
        free(level);
        level = below;
    }
}

int disk_level_close(struct disk_level *level, struct cairn_error *err)
{
    return active_close(steal_ptr(level->active), err);
}

struct active *disk_level_active(struct disk_level *level)
{
    return level->active;
}

uint64_t disk_level_size(struct disk_level *level)
{
    return level->remote ? remote_disk_size(level->remote) : active_virtual_size(level->active);
}

struct disk_level *disk_level_below(struct disk_level *level)
{
    SCOPED_LOCK(&level->lock);
    return level->below ? disk_level_ref(level->below) : NULL;
}

void disk_level_set_below(struct disk_level *level, struct disk_level *below)
{
    struct disk_level *old;

    disk_level_ref(below);
    pthread_mutex_lock(&level->lock);
    old = level->below;
    level->below = below;
    pthread_mutex_unlock(&level->lock);
    disk_level_unref(old);
}

int disk_level_pread(struct disk_level *level, void *buf, size_t len, uint64_t guest_off,
                     struct cairn_error *err)
{
    if (level->remote)
        return remote_disk_pread(level->remote, buf, len, guest_off, err);
    return active_pread(level->active, buf, len, guest_off, err);
}

static int map_local(struct disk_level *level, uint64_t guest_off, uint64_t len,
                     struct extent *ret_extents, size_t max, size_t *ret_nr,
                     struct cairn_error *err)
{
    struct extent own[MAP_AT_ONCE];
    size_t nr_own;
    int ret = active_map(level->active, guest_off, len, own, max < MAP_AT_ONCE ? max : MAP_AT_ONCE,
                         &nr_own, err);

    *ret_nr = 0;
    for (size_t i = 0; ret == CAIRN_OK && i < nr_own && *ret_nr < max; i++) {
        const struct extent *last;
        size_t nr = 1;

        if (own[i].kind != EXTENT_HOLE)
            ret_extents[*ret_nr] = own[i];
        else
            ret = map_hole(level, &own[i], ret_extents + *ret_nr, max - *ret_nr, &nr, err);
        if (ret != CAIRN_OK)
            break;
        *ret_nr += nr;
        last = &ret_extents[*ret_nr - 1];
        if (last->guest_off + last->len != own[i].guest_off + own[i].len)
            break; /* below there was more than fits: the caller goes on from here */
    }
    return ret;
}

int disk_level_map(struct disk_level *level, uint64_t guest_off, uint64_t len,
                   struct extent *ret_extents, size_t max, size_t *ret_nr, struct cairn_error *err)
{
    if (level->remote)
        return remote_disk_map(level->remote, guest_off, len, ret_extents, max, ret_nr, err);
    return map_local(level, guest_off, len, ret_extents, max, ret_nr, err);
}
