/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layers against the field's own tools: the mapping against `qemu-img map`, the content against
 * `qemu-img convert`, for images of all shapes.
 */
#include "qemu.h"

#include <jansson.h>

#include "chain_index.h"
#include "checked.h"
#include "layer.h"
#include "qcow2.h"

/* -- What a scan gives ------------------------------------------------------------------------- */

struct list {
    struct extent e[65536];
    size_t nr;
};

static int collect(void *arg, const struct extent *e, struct cairn_error *err)
{
    struct list *list = arg;

    (void)err;
    assert_true(list->nr < sizeof(list->e) / sizeof(list->e[0]));
    list->e[list->nr++] = *e;
    return CAIRN_OK;
}

static struct layer *open_layer(struct source *src, enum layer_format format)
{
    struct cairn_error err;
    struct layer *layer;

    if (layer_open(src, format, &layer, &err) != CAIRN_OK)
        fail_msg("%s", err.message);
    return layer;
}

static void scan(struct layer *layer, struct list *list)
{
    struct cairn_error err;

    list->nr = 0;
    if (layer_scan(layer, collect, list, &err) != CAIRN_OK)
        fail_msg("%s", err.message);
}

static unsigned kinds_seen; /* a bit per enum extent_kind */

/* What every scan promises, whatever the image. */
static void assert_well_formed(const struct list *list, const struct layer_attr *attr)
{
    uint64_t end = 0;

    for (size_t i = 0; i < list->nr; i++) {
        const struct extent *e = &list->e[i];

        assert_true(e->guest_off >= end && e->len > 0);
        kinds_seen |= 1U << e->kind;
        assert_true(is_aligned(e->guest_off | e->len, 512));
        assert_int_not_equal(e->kind, EXTENT_HOLE);
        assert_int_equal(e->kind == EXTENT_COMPRESSED, e->compressed_len > 0);
        assert_int_equal(e->kind == EXTENT_ZERO, e->host_off == 0 && attr->format == LAYER_QCOW2);
        assert_true(i == 0 || !extent_mergeable(&list->e[i - 1], e));
        end = e->guest_off + e->len;
    }
    assert_true(end <= attr->virtual_size);
}

/* -- Mapping against qemu-img map ------------------------------------------------------------- */

struct mapping {
    uint64_t start, len, host_off;
    bool data, has_host_off;
};

struct mappings {
    struct mapping m[65536];
    size_t nr;
};

static void add_mapping(struct mappings *list, const struct mapping *m)
{
    struct mapping *last = list->nr > 0 ? &list->m[list->nr - 1] : NULL;

    if (last && last->start + last->len == m->start && last->data == m->data &&
        last->has_host_off == m->has_host_off &&
        (!m->has_host_off || last->host_off + last->len == m->host_off)) {
        last->len += m->len;
        return;
    }
    list->m[list->nr++] = *m;
}

static void mappings_of_extents(const struct list *extents, struct mappings *ret)
{
    ret->nr = 0;
    for (size_t i = 0; i < extents->nr; i++) {
        const struct extent *e = &extents->e[i];
        struct mapping m = {.start = e->guest_off,
                            .len = e->len,
                            .host_off = e->host_off,
                            .data = !extent_reads_zero(e->kind),
                            .has_host_off = extent_kind_linear(e->kind)};

        add_mapping(ret, &m);
    }
}

static void mappings_of_qemu(const char *image, struct mappings *ret)
{
    json_t *map, *entry;
    size_t i;

    ret->nr = 0;
    sh("qemu-img map --output=json %s", image);
    map = json_load_file("sh.log", 0, NULL);
    assert_non_null(map);
    json_array_foreach(map, i, entry)
    {
        json_t *off = json_object_get(entry, "offset");
        struct mapping m = {
            .start = (uint64_t)json_integer_value(json_object_get(entry, "start")),
            .len = (uint64_t)json_integer_value(json_object_get(entry, "length")),
            .host_off = (uint64_t)json_integer_value(off),
            .data = json_is_true(json_object_get(entry, "data")),
            .has_host_off = off != NULL,
        };

        if (json_is_true(json_object_get(entry, "present")))
            add_mapping(ret, &m);
    }
    json_decref(map);
}

static void assert_maps_like_qemu(const char *image, const struct list *extents)
{
    struct mappings *ours = malloc(sizeof(*ours)), *theirs = malloc(sizeof(*theirs));

    mappings_of_extents(extents, ours);
    mappings_of_qemu(image, theirs);
    for (size_t i = 0; i < ours->nr && i < theirs->nr; i++) {
        assert_int_equal(ours->m[i].start, theirs->m[i].start);
        assert_int_equal(ours->m[i].len, theirs->m[i].len);
        assert_int_equal(ours->m[i].data, theirs->m[i].data);
        assert_int_equal(ours->m[i].has_host_off, theirs->m[i].has_host_off);
        if (ours->m[i].has_host_off)
            assert_int_equal(ours->m[i].host_off, theirs->m[i].host_off);
    }
    assert_int_equal(ours->nr, theirs->nr);
    free(ours);
    free(theirs);
}

/* -- Content against qemu-img convert --------------------------------------------------------- */

static void read_compressed(struct source *src, const struct layer_attr *attr,
                            const struct extent *e, uint8_t *to)
{
    size_t cluster_size = (size_t)1 << attr->cluster_bits;
    size_t in_len = (size_t)min_u64(e->compressed_len, src->size - e->host_off);
    CLEANUP_FREE uint8_t *in = malloc(in_len), *out = malloc(cluster_size);
    struct cairn_error err;

    assert_int_equal(source_pread(src, in, in_len, e->host_off, NULL), CAIRN_OK);
    if (layer_decompress(attr->compression, in, in_len, out, cluster_size, &err) != CAIRN_OK)
        fail_msg("%s", err.message);
    memcpy(to, out + (e->guest_off & (cluster_size - 1)), e->len);
}

static void assert_reads_like_qemu(const char *image, struct source *src,
                                   const struct layer_attr *attr, const struct list *list)
{
    CLEANUP_FREE uint8_t *ours = calloc(1, attr->virtual_size), *theirs = NULL;
    size_t len;

    for (size_t i = 0; i < list->nr; i++) {
        const struct extent *e = &list->e[i];

        if (e->kind == EXTENT_COMPRESSED)
            read_compressed(src, attr, e, ours + e->guest_off);
        else if (e->kind == EXTENT_DATA)
            assert_int_equal(
                source_pread_padded(src, ours + e->guest_off, e->len, e->host_off, NULL), CAIRN_OK);
    }
    sh("qemu-img convert -O raw %s out.raw", image);
    theirs = load_file("out.raw", &len);
    assert_int_equal(len, attr->virtual_size);
    assert_memory_equal(ours, theirs, len);
}

static void assert_agrees_with_qemu(const char *image)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    CLEANUP_FREE struct list *list = malloc(sizeof(*list));

    assert_int_equal(source_open_file(image, NULL, &src, NULL), CAIRN_OK);
    layer = open_layer(src, LAYER_QCOW2);
    scan(layer, list);
    assert_well_formed(list, layer_get_attr(layer));
    assert_maps_like_qemu(image, list);
    assert_reads_like_qemu(image, src, layer_get_attr(layer), list);
}

/* -- The matrix ------------------------------------------------------------------------------- */

static uint32_t lcg;

static uint32_t random_below(uint32_t n)
{
    lcg = lcg * 1664525 + 1013904223;
    return (lcg >> 8) % n;
}

/* Ranges in sectors, some of them whole clusters, so that every kind of entry comes about. */
static size_t random_command(char *to, size_t max, const char *verbs[], uint32_t nr_verbs,
                             uint64_t size, uint64_t cluster_size)
{
    uint32_t unit = random_below(2) ? (uint32_t)(cluster_size / 512) : 1;
    uint32_t units = (uint32_t)(size / 512 / unit);
    uint32_t start = random_below(units);
    uint32_t max_len = units - start < 40 ? units - start : 40;
    uint32_t len = 1 + random_below(max_len);

    return (size_t)snprintf(to, max, " -c '%s %llu %llu'", verbs[random_below(nr_verbs)],
                            (unsigned long long)start * unit * 512,
                            (unsigned long long)len * unit * 512);
}

static void write_at_random(const char *image, uint64_t size, uint64_t cluster_size)
{
    const char *verbs[] = {"write -P 17", "write -P 93", "write -z",
                           "write -z -u", "discard",     "write -P 201"};
    char commands[6000];
    size_t used = 0;

    for (int i = 0; i < 40; i++)
        used +=
            random_command(commands + used, sizeof(commands) - used, verbs, 6, size, cluster_size);
    sh("qemu-io -d unmap%s %s", commands, image);
}

/* Compressed clusters on free ground, by themselves: QEMU 7.2 takes them nowhere else. */
static void write_compressed(const char *image, uint64_t size, uint64_t cluster_size)
{
    for (int i = 0; i < 3; i++)
        sh("qemu-io -c 'write -c -P %d %llu %llu' %s", 40 + i,
           (unsigned long long)round_down(size / 4 * (uint64_t)i, cluster_size),
           (unsigned long long)cluster_size, image);
}

static void test_one_shape(const char *options, uint64_t cluster_size, uint64_t size, uint32_t seed)
{
    print_message("  %s, cluster size %llu, seed %u\n", options, (unsigned long long)cluster_size,
                  seed);
    lcg = seed;
    sh("qemu-img create -f qcow2 -o %s,cluster_size=%llu i.qcow2 %llu", options,
       (unsigned long long)cluster_size, (unsigned long long)size);
    write_compressed("i.qcow2", size, cluster_size);
    write_at_random("i.qcow2", size, cluster_size);
    assert_agrees_with_qemu("i.qcow2");
}

static void test_images_of_all_shapes(void **state)
{
    const struct {
        uint64_t cluster_size, size;
    } sizes[] = {{512, 700 * 512}, {4096, 3 << 20}, {65536, (9 << 20) + 1536}, {2 << 20, 30 << 20}};
    const char *options[] = {
        "compat=0.10",
        "compat=1.1",
        "compat=1.1,compression_type=zstd,refcount_bits=1",
        "compat=1.1,extended_l2=on",
        "compat=1.1,extended_l2=on,compression_type=zstd,lazy_refcounts=on",
    };
    const char *given = getenv("CAIRN_SEED"); /* of the first shape */
    uint32_t seed = given ? (uint32_t)strtoul(given, NULL, 0) : 1;

    (void)state;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        for (size_t o = 0; o < sizeof(options) / sizeof(options[0]); o++)
            if (o < 3 || sizes[i].cluster_size >= 16384)
                test_one_shape(options[o], sizes[i].cluster_size, sizes[i].size, seed++);
    assert_int_equal(kinds_seen, 1U << EXTENT_ZERO | 1U << EXTENT_ZERO_ALLOC | 1U << EXTENT_DATA |
                                     1U << EXTENT_COMPRESSED);
}

static void test_compressed_images(void **state)
{
    (void)state;
    /* About 6 bits a byte: compresses, but never to a few bytes; with runs of zeros between. */
    sh("head -c 5000000 /dev/urandom | base64 -w0 > text.raw && truncate -s 9000448 text.raw");
    for (int i = 0; i < 8; i++) {
        const char *sizes[] = {"512", "4k", "64k", "2M"};

        sh("qemu-img convert -c -O qcow2 -o cluster_size=%s,compression_type=%s text.raw c.qcow2",
           sizes[i / 2], i % 2 ? "zstd" : "zlib");
        assert_agrees_with_qemu("c.qcow2");
    }
}

static void test_preallocated_images(void **state)
{
    (void)state;
    sh("qemu-img create -f qcow2 -o preallocation=metadata,extended_l2=on p.qcow2 5M");
    sh("qemu-io -c 'write -P 5 70000 3000' -c 'write -z 1M 300k' p.qcow2");
    assert_agrees_with_qemu("p.qcow2");
    sh("qemu-img create -f qcow2 -o preallocation=falloc,cluster_size=4k p.qcow2 5M");
    sh("qemu-io -c 'write -P 5 70000 3000' -c 'write -z 1M 300k' p.qcow2");
    assert_agrees_with_qemu("p.qcow2");
}

static void test_refcounts_of_all_widths(void **state)
{
    (void)state;
    for (unsigned bits = 1; bits <= 64; bits *= 2) {
        sh("qemu-img create -f qcow2 -o refcount_bits=%u,cluster_size=4k w.qcow2 3M && "
           "qemu-io -c 'write -P 1 100k 2M' -c 'write -z 1M 64k' w.qcow2",
           bits);
        assert_agrees_with_qemu("w.qcow2");
    }
}

/* Lazy refcounts, and QEMU killed before it wrote them: the dirty bit stays. */
static void test_a_dirty_image_is_mapped_all_the_same(void **state)
{
    CLEANUP_FREE uint8_t *bytes = NULL;
    size_t len;

    (void)state;
    sh("qemu-img create -f qcow2 -o lazy_refcounts=on d.qcow2 3M; "
       "qemu-io -c 'write -P 1 100k 2M' -c flush -c abort d.qcow2 || true");
    bytes = load_file("d.qcow2", &len);
    assert_int_equal(bytes[QCOW2_HDR_INCOMPATIBLE_FEATURES + 7] & 1, 1);
    assert_agrees_with_qemu("d.qcow2");
}

static void test_snapshots_and_bitmaps_do_not_show(void **state)
{
    (void)state;
    sh("qemu-img create -f qcow2 s.qcow2 4M && qemu-io -c 'write -P 1 0 2M' s.qcow2 && "
       "qemu-img snapshot -c one s.qcow2 && qemu-io -c 'write -P 2 1M 2M' s.qcow2 && "
       "qemu-img bitmap --add s.qcow2 b0 && qemu-io -c 'write -P 3 64k 64k' s.qcow2");
    assert_agrees_with_qemu("s.qcow2");
}

/* -- Single behaviours ------------------------------------------------------------------------ */

static void test_extents_are_clipped_to_the_virtual_size(void **state)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    CLEANUP_FREE struct list *list = malloc(sizeof(*list));

    (void)state;
    sh("qemu-img create -f qcow2 t.qcow2 100000 && qemu-io -c 'write 0 99840' t.qcow2");
    assert_int_equal(source_open_file("t.qcow2", NULL, &src, NULL), CAIRN_OK);
    layer = open_layer(src, LAYER_QCOW2);
    scan(layer, list);
    assert_int_equal(layer_get_attr(layer)->virtual_size, 100352); /* qemu-img rounds up itself */
    assert_int_equal(list->nr, 1);
    assert_int_equal(list->e[0].len, 100352);
}

static void test_a_huge_empty_image_is_quick(void **state)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    CLEANUP_FREE struct list *list = malloc(sizeof(*list));

    (void)state;
    sh("qemu-img create -f qcow2 -o cluster_size=2M h.qcow2 256T && "
       "qemu-io -c 'write -P 1 200T 4k' h.qcow2");
    assert_int_equal(source_open_file("h.qcow2", NULL, &src, NULL), CAIRN_OK);
    layer = open_layer(src, LAYER_QCOW2);
    scan(layer, list);
    assert_int_equal(layer_get_attr(layer)->virtual_size, CHAIN_VIRTUAL_SIZE_MAX);
    assert_int_equal(list->nr, 1);
    assert_int_equal(list->e[0].guest_off, (uint64_t)200 << 40);
}

static void test_an_empty_image_has_no_extents(void **state)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    CLEANUP_FREE struct list *list = malloc(sizeof(*list));

    (void)state;
    sh("qemu-img create -f qcow2 z.qcow2 0");
    assert_int_equal(source_open_file("z.qcow2", NULL, &src, NULL), CAIRN_OK);
    layer = open_layer(src, LAYER_QCOW2);
    scan(layer, list);
    assert_int_equal(list->nr, 0);
    assert_int_equal(layer_get_attr(layer)->virtual_size, 0);
}

static void test_raw_is_one_extent_in_whole_sectors(void **state)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    CLEANUP_FREE struct list *list = malloc(sizeof(*list));

    (void)state;
    assert_int_equal(source_from_memory("QFI\xfb x", 6, "raw", &src, NULL), CAIRN_OK);
    layer = open_layer(src, LAYER_RAW);
    scan(layer, list);
    assert_int_equal(layer_get_attr(layer)->virtual_size, 512);
    assert_int_equal(list->nr, 1);
    assert_int_equal(list->e[0].kind, EXTENT_DATA);
    assert_int_equal(list->e[0].len, 512);
    assert_int_equal(list->e[0].host_off, 0);
    assert_null(layer_recorded_parent(layer));
}

static void test_empty_raw_has_no_extents(void **state)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    CLEANUP_FREE struct list *list = malloc(sizeof(*list));

    (void)state;
    assert_int_equal(source_from_memory("", 0, "raw", &src, NULL), CAIRN_OK);
    layer = open_layer(src, LAYER_RAW);
    scan(layer, list);
    assert_int_equal(list->nr, 0);
}

static int stop_at_second(void *arg, const struct extent *e, struct cairn_error *err)
{
    (void)e;
    return ++*(int *)arg == 2 ? error_set(err, CAIRN_E_CANCELLED, "enough") : CAIRN_OK;
}

static void test_a_callback_can_stop_the_scan(void **state)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    struct cairn_error err;
    int calls = 0;

    (void)state;
    sh("qemu-img create -f qcow2 t.qcow2 1M && "
       "qemu-io -c 'write 0 4k' -c 'write 128k 4k' -c 'write 256k 4k' t.qcow2");
    assert_int_equal(source_open_file("t.qcow2", NULL, &src, NULL), CAIRN_OK);
    layer = open_layer(src, LAYER_QCOW2);
    assert_int_equal(layer_scan(layer, stop_at_second, &calls, &err), CAIRN_E_CANCELLED);
    assert_int_equal(calls, 2);
    assert_string_equal(err.message, "enough");
}

/* -- Decompression of garbage ----------------------------------------------------------------- */

static void test_garbage_does_not_decompress(void **state)
{
    uint8_t in[512], out[4096];
    struct cairn_error err;

    (void)state;
    memset(in, 0xff, sizeof(in));
    assert_int_equal(layer_decompress(LAYER_DEFLATE, in, sizeof(in), out, sizeof(out), &err),
                     CAIRN_E_CORRUPT);
    assert_non_null(strstr(err.message, "deflate data of 512 bytes gives 0 bytes"));
    assert_int_equal(layer_decompress(LAYER_ZSTD, in, sizeof(in), out, sizeof(out), &err),
                     CAIRN_E_CORRUPT);
    assert_int_equal(layer_decompress(LAYER_ZSTD, in, 0, out, sizeof(out), &err), CAIRN_E_CORRUPT);
    assert_int_equal(layer_decompress(LAYER_DEFLATE, in, 0, out, sizeof(out), &err),
                     CAIRN_E_CORRUPT);
}

static void test_less_than_a_cluster_is_corrupt(void **state)
{
    const uint8_t stored[] = {1, 3, 0, 0xfc, 0xff, 'a', 'b', 'c'}; /* deflate, stored: "abc" */
    struct cairn_error err;
    uint8_t out[512];

    (void)state;
    assert_int_equal(layer_decompress(LAYER_DEFLATE, stored, sizeof(stored), out, 3, &err),
                     CAIRN_OK);
    assert_memory_equal(out, "abc", 3);
    assert_int_equal(layer_decompress(LAYER_DEFLATE, stored, sizeof(stored), out, 512, &err),
                     CAIRN_E_CORRUPT);
    assert_non_null(strstr(err.message, "gives 3 bytes"));
}

static void test_a_zstd_window_beyond_any_cluster_is_refused(void **state)
{
    /* Magic, a frame header that asks for a window of 128 MiB, one empty last block. */
    const uint8_t frame[] = {0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x88, 0x01, 0x00, 0x00};
    struct cairn_error err;
    uint8_t out[512];

    (void)state;
    assert_int_equal(layer_decompress(LAYER_ZSTD, frame, sizeof(frame), out, sizeof(out), &err),
                     CAIRN_E_CORRUPT);
    assert_non_null(strstr(err.message, "too much memory"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_images_of_all_shapes),
        cmocka_unit_test(test_compressed_images),
        cmocka_unit_test(test_preallocated_images),
        cmocka_unit_test(test_refcounts_of_all_widths),
        cmocka_unit_test(test_a_dirty_image_is_mapped_all_the_same),
        cmocka_unit_test(test_snapshots_and_bitmaps_do_not_show),
        cmocka_unit_test(test_extents_are_clipped_to_the_virtual_size),
        cmocka_unit_test(test_a_huge_empty_image_is_quick),
        cmocka_unit_test(test_an_empty_image_has_no_extents),
        cmocka_unit_test(test_raw_is_one_extent_in_whole_sectors),
        cmocka_unit_test(test_empty_raw_has_no_extents),
        cmocka_unit_test(test_a_callback_can_stop_the_scan),
        cmocka_unit_test(test_garbage_does_not_decompress),
        cmocka_unit_test(test_less_than_a_cluster_is_corrupt),
        cmocka_unit_test(test_a_zstd_window_beyond_any_cluster_is_refused),
    };

    return cmocka_run_group_tests(tests, qemu_setup, qemu_teardown);
}
