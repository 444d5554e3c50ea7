/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Check and repair of hostile images.  A repair works on a copy in a memory file, and must keep
 * what it promises: the guest's disk maps and reads as before, metadata that cannot be repaired
 * does not make it write elsewhere, and a second repair finds nothing to do.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "checked.h"
#include "layer.h"
#include "qcow2_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What the guest sees: a hash over extents and, if they are its alone, their bytes. */
struct view {
    struct source *src;
    bool with_data;
    uint64_t hash;
};

static void mix(struct view *v, const void *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++)
        v->hash = (v->hash ^ ((const uint8_t *)bytes)[i]) * UINT64_C(0x100000001b3);
}

static int take_extent(void *arg, const struct extent *e, struct cairn_error *err)
{
    struct view *v = arg;
    const uint64_t numbers[] = {e->guest_off, e->len, e->kind, e->host_off, e->compressed_len};
    uint64_t len = min_u64(e->kind == EXTENT_COMPRESSED ? e->compressed_len : e->len, 4096);
    uint8_t buf[4096];

    mix(v, numbers, sizeof(numbers));
    if (!v->with_data || (e->kind != EXTENT_DATA && e->kind != EXTENT_COMPRESSED))
        return CAIRN_OK;
    if (source_pread_padded(v->src, buf, len, e->host_off, err) != CAIRN_OK)
        abort();
    mix(v, buf, len);
    return CAIRN_OK;
}

/* False: the guest sees nothing, for the image is refused. */
static bool look(struct source *src, bool with_data, uint64_t *ret_hash)
{
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    struct view v = {.src = src, .with_data = with_data};

    if (layer_open(src, LAYER_QCOW2, &layer, NULL) != CAIRN_OK ||
        layer_scan(layer, take_extent, &v, NULL) != CAIRN_OK)
        return false;
    *ret_hash = v.hash;
    return true;
}

static void count_finding(void *arg, const struct qcow2_finding *finding)
{
    if (!finding->text || !qcow2_check_kind_name(finding->kind) || finding->nr == 0)
        abort();
    ++*(uint64_t *)arg;
}

static bool check(struct source *src, struct qcow2_check **ret_check)
{
    uint64_t nr = 0;
    const struct qcow2_check_options options = {.found = count_finding, .arg = &nr};

    if (qcow2_check_new(src, &options, ret_check, NULL) != CAIRN_OK)
        return false;
    if (nr != min_u64(qcow2_check_get_result(*ret_check)->findings, QCOW2_CHECK_FINDINGS_MAX))
        abort();
    return true;
}

/* A failed repair is none; what it did until then was as right. */
static bool repair(struct hostfile *file, enum qcow2_repair_mode mode)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(qcow2_check_free_p) struct qcow2_check *c = NULL;

    if (source_from_fd(dup(file->fd), "image", &src, NULL) != CAIRN_OK || !check(src, &c))
        abort(); /* an image that could be checked before a repair can be checked after it */
    return qcow2_repair(c, file, mode, NULL) == CAIRN_OK;
}

static uint64_t hash_file(struct hostfile *file)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    struct view v = {0};
    uint8_t buf[4096];

    if (source_from_fd(dup(file->fd), "image", &src, NULL) != CAIRN_OK)
        abort();
    for (uint64_t off = 0; off < src->size; off += sizeof(buf)) {
        size_t len = min_u64(sizeof(buf), src->size - off);

        if (source_pread(src, buf, len, off, NULL) != CAIRN_OK)
            abort();
        mix(&v, buf, len);
    }
    return v.hash;
}

static void repair_copy(const uint8_t *data, size_t size, bool visible, bool with_data,
                        uint64_t seen)
{
    enum qcow2_repair_mode mode = data[size - 1] & 1 ? QCOW2_REPAIR_LEAKS : QCOW2_REPAIR_ALL;
    CLEANUP(source_free_p) struct source *src = NULL;
    struct hostfile file;
    uint64_t once, again;

    if (hostfile_init(&file, memfd_create("image", MFD_CLOEXEC), "image", NULL) != CAIRN_OK ||
        hostfile_pwrite(&file, data, size, 0, NULL) != CAIRN_OK)
        abort();
    if (repair(&file, mode)) {
        once = hash_file(&file);
        if (repair(&file, mode) && hash_file(&file) != once)
            abort();
    }
    if (source_from_fd(dup(file.fd), "image", &src, NULL) != CAIRN_OK)
        abort();
    if (visible && (!look(src, with_data, &again) || again != seen))
        abort();
    hostfile_release(&file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(qcow2_check_free_p) struct qcow2_check *c = NULL;
    bool visible, with_data;
    uint64_t seen = 0;

    if (size == 0 || size > 1 << 20 ||
        source_from_memory(data, size, "image", &src, NULL) != CAIRN_OK || !check(src, &c))
        return 0;
    with_data = qcow2_check_get_result(c)->overlaps == 0;
    visible = look(src, with_data, &seen);
    repair_copy(data, size, visible, with_data, seen);
    return 0;
}
