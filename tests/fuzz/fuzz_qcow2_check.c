/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Check and repair of hostile images.  A repair must keep what it promises: the guest's disk maps
 * and reads as before, metadata that cannot be repaired does not make it write elsewhere, what it
 * can repair is repaired, and a second repair finds nothing to write.
 *
 * The script's first byte chooses what is repaired: leaks if it is odd, else all.
 */
#include <string.h>

#include "alloc_meter.h"
#include "bytes.h"
#include "checked.h"
#include "fuzz_image.h"
#include "layer.h"
#include "qcow2.h"
#include "qcow2_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A new refcount structure: a table and a few blocks, of 2 MiB at most each. */
#define GROWTH_MAX ((uint64_t)16 << 20)

/* -- What the guest sees ----------------------------------------------------------------------- */

/* A hash over extents and, if they are its alone, their bytes. */
struct view {
    struct source *src;
    bool with_data;
    uint64_t hash;
};

static void mix(struct view *v, const void *bytes, size_t len)
{
    const uint8_t *from = bytes;
    uint64_t word = 0;

    for (size_t i = 0; i < len; i += sizeof(word)) {
        memcpy(&word, from + i, min_u64(sizeof(word), len - i));
        v->hash = (v->hash ^ word) * UINT64_C(0x9e3779b97f4a7c15);
        v->hash ^= v->hash >> 29;
    }
}

static int take_extent(void *arg, const struct extent *e, struct cairn_error *err)
{
    struct view *v = arg;
    const uint64_t numbers[] = {e->guest_off, e->len, e->kind, e->host_off, e->compressed_len};
    uint64_t len = min_u64(e->kind == EXTENT_COMPRESSED ? e->compressed_len : e->len, 4096);
    static uint8_t buf[4096];

    mix(v, numbers, sizeof(numbers));
    if (!v->with_data || (e->kind != EXTENT_DATA && e->kind != EXTENT_COMPRESSED))
        return CAIRN_OK;
    FUZZ_CHECK(source_pread_padded(v->src, buf, len, e->host_off, err) == CAIRN_OK);
    mix(v, buf, len);
    return CAIRN_OK;
}

/* False: the guest sees nothing, for the image is refused. */
static bool look(bool with_data, uint64_t *ret_hash)
{
    CLEANUP(source_free_p) struct source *src = fuzz_image_source();
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    struct view v = {.src = src, .with_data = with_data};

    if (layer_open(src, LAYER_QCOW2, &layer, NULL) != CAIRN_OK ||
        layer_scan(layer, take_extent, &v, NULL) != CAIRN_OK)
        return false;
    *ret_hash = v.hash;
    return true;
}

/* -- Check and repair -------------------------------------------------------------------------- */

struct findings {
    uint64_t described;
    unsigned kinds; /* a bit for each kind */
};

static void count_finding(void *arg, const struct qcow2_finding *finding)
{
    struct findings *f = arg;

    FUZZ_CHECK(finding->text && qcow2_check_kind_name(finding->kind) && finding->nr > 0);
    f->described++;
    f->kinds |= 1U << finding->kind;
}

/* A check of the image as it is now. */
struct look_over {
    struct source *src;
    struct qcow2_check *check;
    struct findings findings;
    struct qcow2_check_result result;
};

static bool look_over_init(struct look_over *o)
{
    const struct qcow2_check_options options = {.found = count_finding, .arg = &o->findings};
    struct cairn_error err;
    int rc;

    *o = (struct look_over){.src = fuzz_image_source()};
    alloc_meter_start(alloc_bound_checking(o->src->size));
    rc = qcow2_check_new(o->src, &options, &o->check, &err);
    alloc_meter_stop();
    if (rc != CAIRN_OK)
        return false;
    o->result = *qcow2_check_get_result(o->check);
    FUZZ_CHECK(o->findings.described == min_u64(o->result.findings, QCOW2_CHECK_FINDINGS_MAX));
    return true;
}

static void look_over_release(struct look_over *o)
{
    qcow2_check_free(o->check);
    source_free(o->src);
}

static bool is_clean(const struct qcow2_check_result *r)
{
    return r->corruptions + r->leaks + r->check_errors + r->overlaps == 0;
}

/* Is everything that was found of a kind that this repair can repair without a guess? */
static bool is_repairable(const struct look_over *o, enum qcow2_repair_mode mode)
{
    const unsigned leaks = 1U << QCOW2_CHECK_LEAK;
    const unsigned all = leaks | 1U << QCOW2_CHECK_REFCOUNT | 1U << QCOW2_CHECK_COPIED;

    return o->findings.described == o->result.findings &&
           !(o->findings.kinds & ~(mode == QCOW2_REPAIR_ALL ? all : leaks));
}

/* What a repair left, beside what was there before it. */
static void check_left(const struct look_over *before, const struct qcow2_check_result *left,
                       enum qcow2_repair_mode mode)
{
    if (is_repairable(before, mode))
        FUZZ_CHECK(is_clean(left));
    /* The complaints in the header go only with their reason. */
    if ((before->result.dirty && !left->dirty) ||
        (before->result.marked_corrupt && !left->marked_corrupt))
        FUZZ_CHECK(left->corruptions + left->check_errors + left->overlaps == 0);
}

/* After a repair there is nothing left to write.  Where tables overlap, or a list cannot be read
 * and so may, it can take another: to repair the one makes the other something else. */
static void check_settled(const struct look_over *before, struct hostfile *file,
                          enum qcow2_repair_mode mode)
{
    unsigned rounds = before->result.overlaps || before->result.check_errors ? 3 : 1;
    bool settled = false;

    for (unsigned i = 0; i < rounds && !settled; i++) {
        unsigned nr_writes = fuzz_image_nr_writes();
        struct look_over after;

        FUZZ_CHECK(look_over_init(&after));
        if (i == 0)
            check_left(before, &after.result, mode);
        FUZZ_CHECK(qcow2_repair(after.check, file, mode, NULL) == CAIRN_OK);
        settled = fuzz_image_nr_writes() == nr_writes;
        look_over_release(&after);
    }
    FUZZ_CHECK(settled);
}

static void repair(struct look_over *first, enum qcow2_repair_mode mode)
{
    struct hostfile file;

    FUZZ_CHECK(hostfile_init(&file, fuzz_image_fd(), "image", NULL) == CAIRN_OK);
    file.hook = fuzz_image_hook(GROWTH_MAX);
    if (qcow2_repair(first->check, &file, mode, NULL) == CAIRN_OK)
        check_settled(first, &file, mode);
    hostfile_release(&file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct image *image = fuzz_image_open(data, size);
    bool leaks = image->script_len > 0 && (image->script[0] & 1);
    uint64_t before = 0, after = 0;
    struct look_over first;

    if (look_over_init(&first)) {
        bool with_data = first.result.overlaps == 0;
        bool visible = look(with_data, &before);

        repair(&first, leaks ? QCOW2_REPAIR_LEAKS : QCOW2_REPAIR_ALL);
        if (visible)
            FUZZ_CHECK(look(with_data, &after) && before == after);
    }
    look_over_release(&first);
    fuzz_image_close();
    return 0;
}
