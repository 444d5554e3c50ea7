/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sealing: whatever image goes in, what comes out passes `qemu-img check`, shows the same content
 * (`qemu-img compare`) with the same status over a backing file (`qemu-img map`), and is what it
 * becomes when it is sealed again.
 */
#include "active_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <sys/stat.h>

#include "chain_index.h"
#include "checked.h"
#include "scale.h"
#include "seal.h"

/* -- Sealing ----------------------------------------------------------------------------------- */

static const struct seal_options as_it_is = {.compression = SEAL_UNCOMPRESSED};
static const struct seal_options with_zlib = {.compression = SEAL_ZLIB};
static const struct seal_options with_zstd = {.compression = SEAL_ZSTD};

static int seal_with_hook(const char *in, const char *out, const struct seal_options *options,
                          const struct hostfile_hook *hook, struct seal_result *ret_result,
                          struct cairn_error *err)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    struct hostfile file;
    int rc;

    must(source_open_file(in, NULL, &src, err), err);
    must(hostfile_init(&file, open(out, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666), out, err),
         err);
    file.hook = hook;
    rc = seal_image(src, &file, options, ret_result, err);
    hostfile_release(&file);
    return rc;
}

static struct seal_result seal(const char *in, const char *out, const struct seal_options *options)
{
    struct seal_result result;
    struct cairn_error err;
    struct stat st;

    must(seal_with_hook(in, out, options, NULL, &result, &err), &err);
    assert_int_equal(stat(out, &st), 0);
    assert_int_equal(st.st_size, result.new_bytes);
    return result;
}

/* -- qemu-img map ------------------------------------------------------------------------------ */

struct status {
    uint64_t end;
    enum { BELOW, ZERO, DATA } what;
};

struct status_list {
    size_t nr;
    struct status s[65536];
};

static struct status_list *statuses(const char *image)
{
    struct status_list *list = malloc(sizeof(*list));
    json_t *map, *entry;
    size_t i;

    assert_non_null(list);
    sh("qemu-img map --output=json %s", image);
    map = json_load_file("sh.log", 0, NULL);
    assert_non_null(map);
    list->nr = json_array_size(map);
    assert_true(list->nr <= sizeof(list->s) / sizeof(list->s[0]));
    json_array_foreach(map, i, entry)
    {
        bool below = json_integer_value(json_object_get(entry, "depth")) > 0;
        bool data = json_is_true(json_object_get(entry, "data"));

        list->s[i].end = (uint64_t)(json_integer_value(json_object_get(entry, "start")) +
                                    json_integer_value(json_object_get(entry, "length")));
        list->s[i].what = below ? BELOW : data ? DATA : ZERO;
    }
    json_decref(map);
    return list;
}

/* What falls through still does, and nothing else; zeros stay zeros, unless they are in the middle
 * of a compressed cluster.  Returns bytes that were data and are zeros. */
static uint64_t compare_statuses(const char *before, const char *after, bool compressed)
{
    CLEANUP_FREE struct status_list *a = statuses(before), *b = statuses(after);
    uint64_t found = 0, at = 0;

    for (size_t i = 0, j = 0; i < a->nr && j < b->nr;) {
        uint64_t end = min_u64(a->s[i].end, b->s[j].end);

        assert_int_equal(a->s[i].what == BELOW, b->s[j].what == BELOW);
        assert_true(a->s[i].what != ZERO || b->s[j].what == ZERO || compressed);
        if (a->s[i].what == DATA && b->s[j].what == ZERO)
            found += end - at;
        at = end;
        i += a->s[i].end == end;
        j += b->s[j].end == end;
    }
    assert_int_equal(a->nr > 0 ? a->s[a->nr - 1].end : 0, at);
    return found;
}

/* -- The oracle -------------------------------------------------------------------------------- */

static struct seal_result assert_seals_with(const char *image, const struct seal_options *options)
{
    struct seal_result result = seal(image, "sealed.qcow2", options);
    uint64_t found;

    sh("qemu-img check sealed.qcow2");
    sh("qemu-img compare %s sealed.qcow2", image);
    found = compare_statuses(image, "sealed.qcow2", options->compression != SEAL_UNCOMPRESSED);
    assert_true(result.zero_bytes >= found);
    seal("sealed.qcow2", "again.qcow2", options);
    sh("cmp sealed.qcow2 again.qcow2");
    return result;
}

static void assert_seals(const char *image)
{
    assert_seals_with(image, &as_it_is);
    assert_seals_with(image, &with_zlib);
    sh("cp sealed.qcow2 zlib.qcow2");
    assert_seals_with(image, &with_zstd);
    /* However it is stored, it is the same content. */
    seal("zlib.qcow2", "again.qcow2", &with_zstd);
    sh("cmp sealed.qcow2 again.qcow2");
}

/* -- Images of all shapes ---------------------------------------------------------------------- */

static uint32_t lcg;

static uint32_t random_below(uint32_t n)
{
    lcg = lcg * 1664525 + 1013904223;
    return (lcg >> 8) % n;
}

/* Half of what is written compresses well, some are zeros, and some do not compress. */
static void write_at_random(const char *image, uint64_t size, uint64_t cluster_size, int nr)
{
    static const char *const verbs[] = {"write -P 17", "write -s noise -q", "write -P 0",
                                        "write -z",    "write -z -u",       "discard",
                                        "write -P 201"};
    char commands[6000];
    size_t used = 0;

    for (int i = 0; i < nr; i++) {
        uint32_t unit = random_below(2) ? (uint32_t)(cluster_size / 512) : 1;
        uint32_t units = (uint32_t)(size / 512 / unit);
        uint32_t start = random_below(units);
        uint32_t len = 1 + random_below((uint32_t)min_u64(units - start, 40));

        used += (size_t)snprintf(commands + used, sizeof(commands) - used, " -c '%s %llu %llu'",
                                 verbs[random_below(7)], (unsigned long long)start * unit * 512,
                                 (unsigned long long)len * unit * 512);
    }
    sh("qemu-io -d unmap%s %s", commands, image);
}

/* A compressed cluster on free ground, by itself: QEMU 7.2 takes it nowhere else. */
static void write_compressed(const char *image, uint64_t size, uint64_t cluster_size)
{
    sh("qemu-io -c 'write -c -P 40 %llu %llu' %s",
       (unsigned long long)round_down(size / 2, cluster_size), (unsigned long long)cluster_size,
       image);
}

struct shape {
    const char *options;
    uint64_t cluster_size, size;
};

static void test_shape(const struct shape *shape, const char *backing, uint32_t seed)
{
    print_message("  %s, cluster size %llu%s, seed %u\n", shape->options,
                  (unsigned long long)shape->cluster_size, backing, seed);
    lcg = seed;
    sh("qemu-img create -f qcow2 -o %s,cluster_size=%llu %s i.qcow2 %llu", shape->options,
       (unsigned long long)shape->cluster_size, backing, (unsigned long long)shape->size);
    write_compressed("i.qcow2", shape->size, shape->cluster_size);
    write_at_random("i.qcow2", shape->size, shape->cluster_size, 30);
    assert_seals("i.qcow2");
}

static void test_images_of_all_shapes(void **state)
{
    const struct shape shapes[] = {
        {"compat=0.10", 512, 700 * 512},
        {"compat=0.10", 65536, (9 << 20) + 1536},
        {"compat=1.1", 512, 300 * 512},
        {"compat=1.1,refcount_bits=1", 4096, 3 << 20},
        {"compat=1.1,refcount_bits=64,compression_type=zstd", 65536, 5 << 20},
        {"compat=1.1,lazy_refcounts=on", 1 << 20, (20 << 20) + 512},
        {"compat=1.1", 2 << 20, 30 << 20},
        {"compat=1.1,extended_l2=on", 16384, (2 << 20) + 512},
        {"compat=1.1,extended_l2=on,compression_type=zstd", 65536, 9 << 20},
        {"compat=1.1,extended_l2=on", 131072, (12 << 20) + 1536},
        {"compat=1.1,extended_l2=on", 2 << 20, 30 << 20},
    };
    const char *given = getenv("CAIRN_SEED"); /* of the first shape */
    uint32_t seed = given ? (uint32_t)strtoul(given, NULL, 0) : 1;
    uint64_t part = scale_seed();

    (void)state;
    sh("head -c 40M /dev/urandom > noise");
    sh("qemu-img create -f qcow2 base.qcow2 11M && qemu-io -c 'write -P 77 0 11M' base.qcow2");
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
        if ((i / 2 + part) % 2 == 0 || scale_is_long()) /* with and without a base */
            test_shape(&shapes[i], (i + seed) % 2 ? "-b base.qcow2 -F qcow2" : "",
                       seed + (uint32_t)i);
}

static void test_preallocation_is_dropped(void **state)
{
    static const char *const kinds[] = {"metadata", "falloc", "full"};
    struct seal_result result;

    (void)state;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        sh("qemu-img create -f qcow2 -o preallocation=%s,cluster_size=64k p.qcow2 5M && "
           "qemu-io -c 'write -P 5 70000 3000' p.qcow2",
           kinds[i]);
        result = assert_seals_with("p.qcow2", &as_it_is);
        assert_int_equal(result.data_clusters, 1);
        assert_true(result.new_bytes <= 6 * 65536);
    }
    sh("qemu-img create -f qcow2 -o extended_l2=on,preallocation=metadata p.qcow2 5M");
    result = assert_seals_with("p.qcow2", &as_it_is);
    assert_int_equal(result.data_clusters, 0);
}

static void test_leaks_and_snapshots_are_dropped(void **state)
{
    struct seal_result result;

    (void)state;
    sh("qemu-img create -f qcow2 s.qcow2 5M && qemu-io -c 'write -P 5 0 2M' s.qcow2 && "
       "qemu-img snapshot -c one s.qcow2 && qemu-img bitmap --add s.qcow2 b && "
       "qemu-io -c 'write -P 6 0 1M' s.qcow2");
    result = assert_seals_with("s.qcow2", &as_it_is);
    assert_int_equal(result.data_clusters, 32);
    assert_true(result.dropped_clusters >= 16); /* the snapshot's half */
    assert_int_equal(result.dropped_snapshots, 1);
    assert_int_equal(result.dropped_bitmaps, 1);
    sh("! qemu-img snapshot -l sealed.qcow2 | grep one");
    sh("! qemu-img info sealed.qcow2 | grep -i bitmap");
    sh("truncate -s +1M s.qcow2");
    assert_int_equal(seal("s.qcow2", "t.qcow2", &as_it_is).dropped_clusters,
                     result.dropped_clusters + 16);
    sh("cmp t.qcow2 sealed.qcow2");
}

static void test_nothing_is_dropped_of_a_tight_image(void **state)
{
    struct seal_result result;

    (void)state;
    sh("qemu-img create -f qcow2 i.qcow2 5M && qemu-io -c 'write -P 5 1M 2M' i.qcow2");
    result = seal("i.qcow2", "sealed.qcow2", &as_it_is);
    assert_int_equal(result.dropped_clusters, 0);
    assert_int_equal(result.zero_bytes, 0);
    assert_int_equal(result.new_bytes, result.old_bytes);
}

static void test_empty_images(void **state)
{
    (void)state;
    sh("qemu-img create -f qcow2 e.qcow2 0");
    assert_seals("e.qcow2");
    sh("qemu-img create -f qcow2 -o extended_l2=on,cluster_size=128k e.qcow2 16T");
    assert_seals("e.qcow2");
    sh("qemu-img create -f qcow2 -o cluster_size=512 e.qcow2 100G"); /* an L1 table of 25 MiB */
    sh("qemu-io -c 'write -P 1 99G 512' e.qcow2");
    seal("e.qcow2", "sealed.qcow2", &as_it_is);
    sh("qemu-img check sealed.qcow2");
    sh("qemu-io -c 'read -P 1 99G 512' -c 'read -P 0 98G 64k' sealed.qcow2");
}

static void test_a_dirty_image_becomes_a_clean_one(void **state)
{
    (void)state;
    sh("qemu-img create -f qcow2 -o lazy_refcounts=on d.qcow2 1M && "
       "{ qemu-io -c 'write -P 7 0 100k' -c abort d.qcow2 || true; }");
    sh("qemu-img info d.qcow2 | grep 'lazy refcounts: true'");
    seal("d.qcow2", "sealed.qcow2", &as_it_is);
    sh("qemu-img check sealed.qcow2 && qemu-io -r -c 'read -P 7 0 100k' sealed.qcow2");
    sh("qemu-img info sealed.qcow2 | grep 'lazy refcounts: false'");
}

/* -- Zeros ------------------------------------------------------------------------------------- */

static void test_zeros_are_found(void **state)
{
    (void)state;
    /* By the cluster without subclusters, by the subcluster with them. */
    sh("qemu-img create -f qcow2 -o cluster_size=64k z.qcow2 1M && "
       "qemu-io -c 'write -P 1 0 1M' -c 'write -P 0 64k 72k' z.qcow2");
    assert_int_equal(assert_seals_with("z.qcow2", &as_it_is).zero_bytes, 64 * KIB);
    sh("qemu-img create -f qcow2 -o cluster_size=64k,extended_l2=on z.qcow2 1M && "
       "qemu-io -c 'write -P 1 0 1M' -c 'write -P 0 64k 73k' z.qcow2");
    assert_int_equal(assert_seals_with("z.qcow2", &as_it_is).zero_bytes, 72 * KIB);
}

static void test_zeros_hide_what_is_beneath(void **state)
{
    (void)state;
    sh("qemu-img create -f qcow2 b.qcow2 1M && qemu-io -c 'write -P 9 0 1M' b.qcow2");
    sh("qemu-img create -f qcow2 -b b.qcow2 -F qcow2 -o extended_l2=on z.qcow2 && "
       "qemu-io -c 'write -P 0 0 256k' -c 'write -z 512k 4k' z.qcow2");
    assert_int_equal(assert_seals_with("z.qcow2", &as_it_is).zero_bytes, 256 * KIB);
    assert_int_equal(compare_statuses("z.qcow2", "sealed.qcow2", false), 256 * KIB);
    sh("qemu-io -r -c 'read -P 0 0 256k' -c 'read -P 9 256k 256k' -c 'read -P 0 512k 4k' "
       "sealed.qcow2");
}

static void test_zeros_over_nothing_are_holes(void **state)
{
    (void)state;
    sh("qemu-img create -f qcow2 z.qcow2 1M && qemu-io -c 'write -P 0 0 512k' -c 'write -z 0 1M' "
       "z.qcow2");
    sh("qemu-img create -f qcow2 h.qcow2 1M");
    seal("z.qcow2", "z.sealed", &as_it_is);
    seal("h.qcow2", "h.sealed", &as_it_is);
    sh("cmp z.sealed h.sealed");
}

/* -- Compression ------------------------------------------------------------------------------- */

/* Six bits a byte, runs of zeros, and bytes that do not compress. */
static void make_text(const char *size)
{
    sh("{ head -c %s /dev/urandom | base64 -w0; head -c 1M /dev/zero; head -c %s /dev/urandom; "
       "head -c 100k /dev/urandom | base64; } > text.raw && truncate -s %%512 text.raw",
       size, size);
}

static void test_compressed_images(void **state)
{
    static const char *const sizes[] = {"512", "4k", "64k", "2M"};
    uint64_t part = scale_seed();

    (void)state;
    for (unsigned i = 0; i < 8; i++) {
        if ((i / 2 + i + part) % 2 && !scale_is_long())
            continue;
        make_text(i < 2 ? "100k" : "1M");
        sh("qemu-img convert -c -O qcow2 -o cluster_size=%s,compression_type=%s text.raw c.qcow2",
           sizes[i / 2], i % 2 ? "zstd" : "zlib");
        assert_seals("c.qcow2");
        assert_int_equal(seal("c.qcow2", "t.qcow2", &as_it_is).compressed_clusters, 0);
    }
}

static void test_compression_saves_space(void **state)
{
    struct seal_result plain, zlib, zstd, best;

    (void)state;
    make_text("4M");
    sh("qemu-img convert -O qcow2 text.raw c.qcow2");
    plain = seal("c.qcow2", "p.qcow2", &as_it_is);
    zlib = seal("c.qcow2", "l.qcow2", &with_zlib);
    zstd = seal("c.qcow2", "s.qcow2", &with_zstd);
    best = seal("c.qcow2", "b.qcow2", &(struct seal_options){.compression = SEAL_ZLIB, .level = 9});
    assert_true(zlib.compressed_clusters > 64 && zstd.compressed_clusters > 64);
    assert_true(zlib.data_clusters >= 62 && zlib.data_clusters <= 66); /* the random bytes */
    assert_true(zlib.new_bytes < plain.new_bytes * 9 / 10);
    assert_true(zstd.new_bytes < plain.new_bytes * 9 / 10);
    assert_true(best.new_bytes <= zlib.new_bytes);
}

/* A cluster that shows something of what is beneath has to stay as it is. */
static void test_partly_covered_clusters_are_not_compressed(void **state)
{
    (void)state;
    sh("qemu-img create -f qcow2 b.qcow2 1M && qemu-io -c 'write -P 9 0 1M' b.qcow2");
    sh("qemu-img create -f qcow2 -b b.qcow2 -F qcow2 -o extended_l2=on z.qcow2 && "
       "qemu-io -c 'write -P 1 0 64k' -c 'write -P 2 64k 60k' -c 'write -P 3 128k 32k' "
       "-c 'write -z 160k 32k' z.qcow2");
    for (int i = 0; i < 2; i++) {
        struct seal_result r = assert_seals_with("z.qcow2", i ? &with_zstd : &with_zlib);

        assert_int_equal(r.compressed_clusters, 2);
        assert_int_equal(r.data_clusters, 1);
    }
    sh("qemu-io -r -c 'read -P 9 124k 4k' sealed.qcow2");
}

/* Sixteen clusters that compress to next to nothing, each between two that do not. */
static void test_compressed_clusters_share_one_between_plain_ones(void **state)
{
    (void)state;
    sh("for i in $(seq 16); do head -c 64k /dev/urandom; head -c 64k /dev/zero | tr '\\0' x; done "
       "> a.raw && qemu-img convert -O qcow2 a.raw a.qcow2");
    assert_int_equal(assert_seals_with("a.qcow2", &with_zstd).compressed_clusters, 16);
    /* Header, data, compressed, L2, L1, refcount block, refcount table. */
    assert_int_equal(seal("a.qcow2", "z.qcow2", &with_zstd).new_bytes,
                     (1 + 16 + 1 + 1 + 1 + 1 + 1) * 64 * KIB);
}

static void test_the_zstd_bit_is_only_set_with_need(void **state)
{
    (void)state;
    sh("head -c 1M /dev/urandom > n.raw && qemu-img convert -O qcow2 n.raw n.qcow2");
    seal("n.qcow2", "zstd.qcow2", &with_zstd);
    seal("n.qcow2", "none.qcow2", &as_it_is);
    sh("cmp zstd.qcow2 none.qcow2");
}

static void test_wrong_levels_are_refused(void **state)
{
    const struct {
        struct seal_options options;
        const char *text;
    } cases[] = {
        {{.compression = SEAL_ZLIB, .level = 10}, "compression level 10, expected 1 to 9"},
        {{.compression = SEAL_ZSTD, .level = 20}, "compression level 20, expected 1 to 19"},
        {{.compression = SEAL_ZSTD, .level = -1}, "compression level -1, expected 1 to 19"},
        {{.compression = SEAL_UNCOMPRESSED, .level = 3}, "a level of 3 without compression"},
    };
    struct cairn_error err;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(seal_check_options(&cases[i].options, &err), CAIRN_E_USAGE);
        assert_string_equal(err.message, cases[i].text);
    }
}

/* -- The same content, the same bytes ---------------------------------------------------------- */

static void test_threads_do_not_matter(void **state)
{
    struct seal_options options = {.nr_threads = 1};

    (void)state;
    make_text("8M"); /* two batches */
    sh("qemu-img convert -O qcow2 -o cluster_size=64k,extended_l2=on text.raw c.qcow2");
    for (int type = SEAL_UNCOMPRESSED; type <= SEAL_ZSTD; type++) {
        options.compression = (enum seal_compression)type;
        options.nr_threads = 1;
        seal("c.qcow2", "one.qcow2", &options);
        options.nr_threads = 4;
        for (int i = 0; i < 2; i++) {
            seal("c.qcow2", "four.qcow2", &options);
            sh("cmp one.qcow2 four.qcow2");
        }
    }
}

/* Two guests write the same, each in its own order and pieces. */
static void test_the_order_of_writes_does_not_matter(void **state)
{
    struct cairn_error err;
    uint8_t *buf = malloc(CLUSTER);

    (void)state;
    for (int order = 0; order < 2; order++) {
        struct active *a;

        unlink(IMAGE);
        a = create(with_base());
        for (unsigned i = 0; i < 24; i++) {
            uint64_t n = order ? 23 - i : i;

            memset(buf, n % 5 ? (int)n : 0, CLUSTER);
            if (order == 0) {
                must(active_pwrite(a, buf, 40 * KIB, n * 3 * 96 * KIB, &err), &err);
            } else {
                must(active_pwrite(a, buf, 17 * KIB, n * 3 * 96 * KIB + 23 * KIB, &err), &err);
                must(active_pwrite(a, buf, 23 * KIB, n * 3 * 96 * KIB, &err), &err);
            }
        }
        if (order)
            must(active_pwrite(a, buf, 4 * KIB, 5 * MIB, &err), &err); /* and thinks again */
        must(active_zero(a, CLUSTER, 5 * MIB, order, &err), &err);
        must(active_close(a, &err), &err);
        seal(IMAGE, order ? "b.sealed" : "a.sealed", &with_zstd);
        seal(IMAGE, order ? "b.plain" : "a.plain", &as_it_is);
    }
    sh("cmp a.sealed b.sealed && cmp a.plain b.plain");
    free(buf);
}

/* -- Many tables ------------------------------------------------------------------------------- */

/* Clusters of 512 bytes: thousands of L2 tables, a refcount block for every 256 clusters, a
 * refcount table of several clusters; compressed clusters shared over the blocks' boundaries. */
static void test_many_tables(void **state)
{
    (void)state;
    sh("truncate -s 160M sparse.raw");
    sh("python3 -c '\n"
       "import random\n"
       "random.seed(7)\n"
       "with open(\"sparse.raw\", \"r+b\") as f:\n"
       "    for i in range(0, 160 << 20, 40 << 10):\n"
       "        f.seek(i)\n"
       "        f.write(bytes(random.choices(b\"abcdefgh\", k=1200)) + random.randbytes(900))\n"
       "    f.seek(3 << 20)\n"
       "    f.write(random.randbytes(16) * 65536 * 2)\n'");
    sh("qemu-img convert -O qcow2 -o cluster_size=512 sparse.raw m.qcow2");
    for (int i = 0; i < 2; i++) {
        seal("m.qcow2", "sealed.qcow2", i ? &with_zstd : &as_it_is);
        sh("qemu-img check sealed.qcow2 && qemu-img compare m.qcow2 sealed.qcow2");
    }
    seal("sealed.qcow2", "again.qcow2", &with_zstd);
    sh("cmp sealed.qcow2 again.qcow2");
}

/* -- The header -------------------------------------------------------------------------------- */

static void test_backing_and_parent_stay(void **state)
{
    const struct digest other = {{1, 2, 3}};
    struct active_options options = with_base();
    struct cairn_error err;
    struct digest parent;
    struct active *a;

    (void)state;
    sh("qemu-img create -f raw 'a b.raw' 1M && "
       "qemu-img create -f qcow2 -b 'a b.raw' -F raw b.qcow2");
    seal("b.qcow2", "sealed.qcow2", &as_it_is);
    sh("qemu-img info sealed.qcow2 | grep '^backing file: a b.raw' && "
       "qemu-img info sealed.qcow2 | grep '^backing file format: raw'");
    unlink(IMAGE);
    must(active_close(create(options), &err), &err);
    seal(IMAGE, "sealed.qcow2", &as_it_is);
    must(active_open("sealed.qcow2", &options, &a, &err), &err);
    assert_true(active_parent(a, &parent) && digest_equal(&parent, &parent_id));
    must(active_close(a, &err), &err);
    options.parent = NULL;
    options.parent_pending = true;
    unlink(IMAGE);
    must(active_close(create(options), &err), &err);
    seal(IMAGE, "sealed.qcow2", &as_it_is);
    must(active_open("sealed.qcow2", &options, &a, &err), &err);
    must(active_set_parent(a, &other, &err), &err);
    must(active_close(a, &err), &err);
}

/* A version 2 header is 40 bytes shorter. */
static void test_a_backing_name_that_does_not_fit_is_refused(void **state)
{
    struct seal_result result;
    struct cairn_error err;

    (void)state;
    sh("qemu-img create -f qcow2 -o compat=0.10,cluster_size=512 -u -F raw "
       "-b $(printf '%%0400d' 0) b.qcow2 1M");
    assert_int_equal(seal_with_hook("b.qcow2", "o.qcow2", &as_it_is, NULL, &result, &err),
                     CAIRN_E_LIMIT);
    assert_non_null(strstr(err.message, "first cluster of 512 bytes has no room"));
}

/* -- What goes wrong --------------------------------------------------------------------------- */

static void test_a_damaged_compressed_cluster_is_named(void **state)
{
    struct seal_result result;
    struct cairn_error err;

    (void)state;
    make_text("1M");
    sh("qemu-img convert -c -O qcow2 text.raw c.qcow2");
    sh("printf '\\377\\377\\377\\377' | dd of=c.qcow2 bs=1 seek=$((5 * 65536)) conv=notrunc");
    assert_int_equal(seal_with_hook("c.qcow2", "o.qcow2", &as_it_is, NULL, &result, &err),
                     CAIRN_E_CORRUPT);
    assert_non_null(strstr(err.message, "c.qcow2: compressed cluster at 0x50000"));
}

struct fault {
    unsigned countdown;
    enum hostfile_op op;
};

static int fail_at(void *ctx, const struct hostfile_event *event)
{
    struct fault *fault = ctx;

    return event->op == fault->op && fault->countdown-- == 0 ? ENOSPC : 0;
}

/* Each write and the sync, one by one. */
static void test_a_full_disk_is_said(void **state)
{
    struct fault fault;
    const struct hostfile_hook hook = {.before = fail_at, .ctx = &fault};
    struct seal_result result;
    struct cairn_error err;
    unsigned nr_failed = 0;
    int rc;

    (void)state;
    make_text("1M");
    sh("qemu-img convert -O qcow2 text.raw c.qcow2");
    for (;; nr_failed++) {
        fault = (struct fault){.countdown = nr_failed, .op = HOSTFILE_WRITE};
        rc = seal_with_hook("c.qcow2", "o.qcow2", &with_zstd, &hook, &result, &err);
        if (rc == CAIRN_OK)
            break;
        assert_int_equal(rc, CAIRN_E_NO_SPACE);
    }
    assert_true(nr_failed >= 4);
    fault = (struct fault){.op = HOSTFILE_SYNC};
    assert_int_equal(seal_with_hook("c.qcow2", "o.qcow2", &with_zstd, &hook, &result, &err),
                     CAIRN_E_NO_SPACE);
}

/* The header is what makes it an image: until it is there, the file is none. */
static void test_the_header_is_written_last(void **state)
{
    struct seal_result result;
    struct cairn_error err;
    struct fault fault = {.op = HOSTFILE_SYNC};
    const struct hostfile_hook hook = {.before = fail_at, .ctx = &fault};
    unsigned nr;

    (void)state;
    sh("qemu-img create -f qcow2 i.qcow2 5M && qemu-io -c 'write -P 5 1M 2M' i.qcow2");
    for (nr = 0;; nr++) {
        fault = (struct fault){.countdown = nr, .op = HOSTFILE_WRITE};
        if (seal_with_hook("i.qcow2", "o.qcow2", &as_it_is, &hook, &result, &err) == CAIRN_OK)
            break;
        sh("! head -c 4 o.qcow2 | grep -q QFI");
    }
    assert_true(nr >= 2);
    sh("head -c 4 o.qcow2 | grep -q QFI");
}

static int cancel_late(void *arg, uint64_t done, uint64_t total)
{
    uint64_t *last = arg;

    assert_true(done > *last && done <= total);
    *last = done;
    return done > total / 2;
}

static void test_progress_cancels(void **state)
{
    uint64_t last = 0;
    const struct seal_options options = {.progress = cancel_late, .progress_arg = &last};
    struct seal_result result;
    struct cairn_error err;

    (void)state;
    sh("head -c 50M /dev/urandom > n.raw && qemu-img convert -O qcow2 n.raw c.qcow2");
    assert_int_equal(seal_with_hook("c.qcow2", "o.qcow2", &options, NULL, &result, &err),
                     CAIRN_E_CANCELLED);
    assert_int_equal(last, 32 * MIB);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_images_of_all_shapes),
        cmocka_unit_test(test_preallocation_is_dropped),
        cmocka_unit_test(test_leaks_and_snapshots_are_dropped),
        cmocka_unit_test(test_nothing_is_dropped_of_a_tight_image),
        cmocka_unit_test(test_empty_images),
        cmocka_unit_test(test_a_dirty_image_becomes_a_clean_one),
        cmocka_unit_test(test_zeros_are_found),
        cmocka_unit_test(test_zeros_hide_what_is_beneath),
        cmocka_unit_test(test_zeros_over_nothing_are_holes),
        cmocka_unit_test(test_compressed_images),
        cmocka_unit_test(test_compression_saves_space),
        cmocka_unit_test(test_partly_covered_clusters_are_not_compressed),
        cmocka_unit_test(test_compressed_clusters_share_one_between_plain_ones),
        cmocka_unit_test(test_the_zstd_bit_is_only_set_with_need),
        cmocka_unit_test(test_wrong_levels_are_refused),
        cmocka_unit_test(test_threads_do_not_matter),
        cmocka_unit_test(test_the_order_of_writes_does_not_matter),
        cmocka_unit_test(test_many_tables),
        cmocka_unit_test(test_backing_and_parent_stay),
        cmocka_unit_test(test_a_backing_name_that_does_not_fit_is_refused),
        cmocka_unit_test(test_a_damaged_compressed_cluster_is_named),
        cmocka_unit_test(test_a_full_disk_is_said),
        cmocka_unit_test(test_the_header_is_written_last),
        cmocka_unit_test(test_progress_cancels),
    };

    return cmocka_run_group_tests(tests, qemu_setup, qemu_teardown);
}
