/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sealing hostile images: what can be sealed gives an image that a check finds nothing in, that
 * shows the same disk, and that gives itself when it is sealed again.
 *
 * The script's first byte chooses the compression.
 */
#include <string.h>
#include <sys/mman.h>

#include "alloc_meter.h"
#include "checked.h"
#include "fuzz_disk.h"
#include "fuzz_image.h"
#include "qcow2_check.h"
#include "seal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define EXTENTS_MAX 64 /* that are compared */
#define READ_MAX    4096
/* A small image may show a huge disk: its L2 entries may all name one cluster. */
#define DISK_MAX ((uint64_t)256 << 10)
#define MEMORY_MAX ((size_t)8 << 20)

/* A memory file for what is made. */
struct output {
    struct hostfile file;
    struct source *src; /* of what it holds */
};

static void output_init(struct output *out)
{
    FUZZ_CHECK(hostfile_init(&out->file, memfd_create("sealed", MFD_CLOEXEC), "sealed", NULL) ==
               CAIRN_OK);
    out->src = NULL;
}

static void output_release(struct output *out)
{
    source_free(out->src);
    hostfile_release(&out->file);
}

static bool seal(struct source *src, enum seal_compression compression, struct output *out)
{
    const struct seal_options options = {
        .compression = compression, .level = compression ? 1 : 0, .nr_threads = 1};
    struct seal_result result;
    struct cairn_error err;

    output_init(out);
    if (seal_image(src, &out->file, &options, &result, &err) != CAIRN_OK)
        return false;
    FUZZ_CHECK(source_from_fd(dup(out->file.fd), "sealed", &out->src, NULL) == CAIRN_OK);
    FUZZ_CHECK(out->src->size == result.new_bytes);
    return true;
}

/* -- Is it right? ------------------------------------------------------------------------------ */

static void check_clean(struct source *src)
{
    CLEANUP(qcow2_check_free_p) struct qcow2_check *c = NULL;
    const struct qcow2_check_result *r;

    FUZZ_CHECK(qcow2_check_new(src, NULL, &c, NULL) == CAIRN_OK);
    r = qcow2_check_get_result(c);
    FUZZ_CHECK(r->corruptions + r->leaks + r->check_errors + r->overlaps == 0);
}

/* A byte that no data is likely to be, so that a hole is told from zeros. */
static void fill_beneath(uint8_t *buf, size_t len, uint64_t guest_off)
{
    (void)guest_off;
    memset(buf, 0xa5, len);
}

static void compare_disks(struct source *old, struct source *new, bool beneath)
{
    CLEANUP(layer_free_p) struct layer *old_layer = NULL, *new_layer = NULL;
    static uint8_t a[READ_MAX], b[READ_MAX];
    struct fuzz_disk old_disk, new_disk;
    uint64_t size;

    FUZZ_CHECK(layer_open(old, LAYER_QCOW2, &old_layer, NULL) == CAIRN_OK);
    FUZZ_CHECK(layer_open(new, LAYER_QCOW2, &new_layer, NULL) == CAIRN_OK);
    FUZZ_CHECK(fuzz_disk_init(&old_disk, old, old_layer));
    FUZZ_CHECK(fuzz_disk_init(&new_disk, new, new_layer));
    size = old_disk.l1->virtual_size;
    FUZZ_CHECK(new_disk.l1->virtual_size == size);
    for (uint64_t off = 0; off < min_u64(size, (uint64_t)EXTENTS_MAX * READ_MAX); off += READ_MAX) {
        size_t len = min_u64(READ_MAX, size - off);

        FUZZ_CHECK(fuzz_disk_read(&old_disk, a, len, off, beneath ? fill_beneath : NULL));
        FUZZ_CHECK(fuzz_disk_read(&new_disk, b, len, off, beneath ? fill_beneath : NULL));
        FUZZ_CHECK(memcmp(a, b, len) == 0);
    }
    fuzz_disk_release(&old_disk);
    fuzz_disk_release(&new_disk);
}

static void compare_bytes(const struct output *one, const struct output *other)
{
    static uint8_t a[READ_MAX], b[READ_MAX];

    FUZZ_CHECK(one->src->size == other->src->size);
    for (uint64_t off = 0; off < one->src->size; off += READ_MAX) {
        size_t len = min_u64(READ_MAX, one->src->size - off);

        FUZZ_CHECK(source_pread(one->src, a, len, off, NULL) == CAIRN_OK &&
                   source_pread(other->src, b, len, off, NULL) == CAIRN_OK);
        FUZZ_CHECK(memcmp(a, b, len) == 0);
    }
}

/* A disk so large that sealing it would take long is none that this fuzzer can do much with. */
static bool is_suitable(struct source *src, bool *ret_beneath)
{
    CLEANUP(qcow2_image_free_p) struct qcow2_image *image = NULL;
    const struct qcow2_header *hdr;
    struct cairn_error err;

    if (qcow2_image_open(src, 0, &image, &err) != CAIRN_OK)
        return false;
    hdr = qcow2_image_header(image);
    *ret_beneath = hdr->backing_file.len > 0 || hdr->has_parent;
    return hdr->size <= DISK_MAX;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct image *image = fuzz_image_open(data, size);
    enum seal_compression compression =
        image->script_len > 0 ? (enum seal_compression)(image->script[0] % 3) : SEAL_UNCOMPRESSED;
    CLEANUP(source_free_p) struct source *src = fuzz_image_source();
    struct output once, again;
    bool beneath;

    if (is_suitable(src, &beneath)) {
        alloc_meter_start(MEMORY_MAX);
        if (seal(src, compression, &once)) {
            check_clean(once.src);
            compare_disks(src, once.src, beneath);
            FUZZ_CHECK(seal(once.src, compression, &again));
            compare_bytes(&once, &again);
            output_release(&again);
        }
        output_release(&once);
        alloc_meter_stop();
    }
    fuzz_image_close();
    return 0;
}
