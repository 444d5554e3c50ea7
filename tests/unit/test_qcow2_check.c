/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Check and repair against qemu-img check: images of many shapes that the real tools made, damaged
 * in many ways.  Our figures must be its figures; after a repair it must find nothing, and read
 * what it read before.
 */
#include "qemu.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>

#include "qcow2_check.h"
#include "qcow2_damage.h"
#include "scale.h"

/* -- Images ------------------------------------------------------------------------------------ */

#define FILL                                                                                       \
    "write -P 1 0 96k' -c 'write -P 2 200k 40k' -c 'write -z 300k 64k' -c 'write -P 3 700k 33k"

struct shape {
    const char *name;
    const char *options; /* of qemu-img create */
    const char *more;    /* shell commands on the file i, "" for none */
};

#define SNAPSHOT "qemu-img snapshot -c s1 i && qemu-io -c 'write -P 9 4k 90k' i"
#define COMPRESS                                                                                   \
    "qemu-io -c 'write -c -P 5 1M 64k' i && qemu-io -c 'write -c -P 6 1152k 64k' i && "            \
    "qemu-io -c 'write -c -P 6 1280k 64k' i"

static const struct shape shapes[] = {
    {"v2", "compat=0.10", ""},
    {"v2-512-snapshot", "compat=0.10,cluster_size=512", SNAPSHOT},
    {"v3", "compat=1.1", ""},
    {"bits1", "refcount_bits=1,cluster_size=4k", ""},
    {"bits2", "refcount_bits=2,cluster_size=512", SNAPSHOT},
    {"bits4", "refcount_bits=4,cluster_size=2k", SNAPSHOT},
    {"bits8", "refcount_bits=8,cluster_size=32k", SNAPSHOT " && " COMPRESS},
    {"bits16-512", "cluster_size=512", SNAPSHOT " && qemu-img snapshot -c s2 i"},
    {"bits32", "refcount_bits=32,cluster_size=1k", SNAPSHOT},
    {"bits64", "refcount_bits=64,cluster_size=64k", SNAPSHOT},
    {"bits64-512", "refcount_bits=64,cluster_size=512", ""},
    {"2m", "cluster_size=2M", ""},
    {"extl2", "extended_l2=on,cluster_size=16k", SNAPSHOT},
    {"extl2-128k", "extended_l2=on,cluster_size=128k",
     "qemu-io -c 'write -c -P 5 1M 128k' i && qemu-io -c 'write -c -P 6 1280k 128k' i"},
    {"deflate", "cluster_size=64k", COMPRESS " && " SNAPSHOT},
    {"zstd", "cluster_size=64k,compression_type=zstd", COMPRESS},
    {"bitmaps", "cluster_size=4k",
     "qemu-img bitmap --add i b0 && qemu-img bitmap --add -g 512 i b1 && "
     "qemu-io -c 'write -P 8 64k 16k' i"},
    {"lazy", "lazy_refcounts=on,cluster_size=4k", SNAPSHOT},
    {"data-file", "data_file=d,cluster_size=4k", ""},
    {"prealloc", "preallocation=metadata,cluster_size=4k", ""},
};
#define NR_SHAPES (sizeof(shapes) / sizeof(shapes[0]))

static void make(const struct shape *shape)
{
    bool small_writes = strstr(shape->name, "prealloc") == NULL;

    sh("rm -f i d && qemu-img create -f qcow2 -o '%s' i 2M", shape->options);
    sh("qemu-io -d unmap -c '%s' i", small_writes ? FILL : "write -P 1 0 96k");
    if (*shape->more)
        sh("%s", shape->more);
}

/* -- The oracle -------------------------------------------------------------------------------- */

static const char *const figures[] = {
    "check-errors",        "corruptions",         "leaks",
    "image-end-offset",    "total-clusters",      "allocated-clusters",
    "compressed-clusters", "fragmented-clusters",
};
#define NR_FIGURES (sizeof(figures) / sizeof(figures[0]))

/* What qemu-img says, or NULL if it refuses to look. */
static json_t *qemu_check(const char *file)
{
    char command[256];
    json_t *root;

    snprintf(command, sizeof(command),
             "qemu-img check -f qcow2 --output=json %s >check.json 2>check.log", file);
    (void)!system(command);
    root = json_load_file("check.json", 0, NULL);
    if (root && !json_object_get(root, "image-end-offset") &&
        !json_object_get(root, "corruptions") && !json_object_get(root, "check-errors")) {
        json_decref(root);
        root = NULL;
    }
    return root;
}

static uint64_t qemu_figure(const json_t *root, unsigned i)
{
    return (uint64_t)json_integer_value(json_object_get(root, figures[i]));
}

static uint64_t our_figure(const struct qcow2_check_result *r, unsigned i)
{
    const uint64_t all[NR_FIGURES] = {
        r->check_errors,        r->corruptions,         r->leaks,
        r->image_end_offset,    r->total_clusters,      r->allocated_clusters,
        r->compressed_clusters, r->fragmented_clusters,
    };

    return all[i];
}

static bool same_figures(const json_t *root, const struct qcow2_check_result *r)
{
    for (unsigned i = 0; i < NR_FIGURES; i++)
        if (qemu_figure(root, i) != our_figure(r, i))
            return false;
    return true;
}

static void print_figures(const char *what, const json_t *root, const struct qcow2_check_result *r)
{
    print_message("%s\n", what);
    for (unsigned i = 0; i < NR_FIGURES; i++)
        print_message("  %-20s qemu %" PRIu64 ", ours %" PRIu64 "\n", figures[i],
                      qemu_figure(root, i), our_figure(r, i));
}

/* -- Ours -------------------------------------------------------------------------------------- */

static bool verbose;
static unsigned failures; /* so that one run shows all */

static void print_finding(void *arg, const struct qcow2_finding *f)
{
    (void)arg;
    if (verbose)
        print_message("    %s x%" PRIu64 ": %s\n", qcow2_check_kind_name(f->kind), f->nr, f->text);
}

static int check(const char *file, enum qcow2_repair_mode mode,
                 struct qcow2_check_result *ret_result, struct cairn_error *err)
{
    const struct qcow2_check_options options = {.found = print_finding};
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(qcow2_check_free_p) struct qcow2_check *c = NULL;
    struct hostfile host = {.fd = -1};
    int r = source_open_file(file, file, &src, err);

    if (r == CAIRN_OK)
        r = qcow2_check_new(src, &options, &c, err);
    if (r == CAIRN_OK)
        *ret_result = *qcow2_check_get_result(c);
    if (r == CAIRN_OK && mode != QCOW2_REPAIR_NONE) {
        r = hostfile_init(&host, open(file, O_RDWR | O_CLOEXEC), file, err);
        if (r == CAIRN_OK)
            r = qcow2_repair(c, &host, mode, err);
        hostfile_release(&host);
    }
    return r;
}

static void assert_same(const char *what, const char *file)
{
    json_t *root = qemu_check(file);
    struct qcow2_check_result r;
    struct cairn_error err;

    assert_non_null(root);
    if (check(file, QCOW2_REPAIR_NONE, &r, &err) != CAIRN_OK)
        fail_msg("%s: %s", what, err.message);
    if (!same_figures(root, &r)) {
        print_figures(what, root, &r);
        (void)!system("cat check.log >&2");
        verbose = true;
        check(file, QCOW2_REPAIR_NONE, &r, &err);
        verbose = false;
        failures++;
    }
    json_decref(root);
}

/* -- Tests ------------------------------------------------------------------------------------- */

static void repair_and_compare(const char *what, const struct poke *poke)
{
    struct qcow2_check_result r;
    struct cairn_error err;
    int ret = check("x", QCOW2_REPAIR_ALL, &r, &err);

    if (ret != CAIRN_OK)
        fail_msg("%s: repair: %s", what, err.message);
    if (poke->expect & REPAIRED && !(poke->expect & SHARES && strncmp(what, "bits1:", 6) == 0) &&
        system("qemu-img check -f qcow2 x >check.log 2>&1") != 0) {
        print_message("%s: not repaired\n", what);
        (void)!system("cat check.log >&2");
        failures++;
    }
    if (poke->expect & EXACT)
        assert_same(what, "x");
    if (poke->expect & CONTENT)
        sh("qemu-img compare -f qcow2 -F qcow2 i x");
}

static void damage_and_compare(const struct shape *shape, const struct poke *poke)
{
    char what[256];
    struct image image;
    bool done;

    snprintf(what, sizeof(what), "%s: %s", shape->name, poke->name);
    image_load(&image, "i");
    done = poke->poke(&image);
    if (done)
        image_save(&image, "x");
    free(image.bytes);
    if (!done)
        return;
    if (poke->expect & EXACT)
        assert_same(what, "x");
    repair_and_compare(what, poke);
}

/* Each damage meets a third of the shapes, each shape a third of the damage: which, by the seed. */
static void test_damage(void **state)
{
    uint64_t seed = scale_seed();

    (void)state;
    for (size_t s = 0; s < NR_SHAPES; s++) {
        make(&shapes[s]);
        for (size_t p = 0; p < NR_POKES; p++)
            if ((s + p + seed) % 3 == 0 || scale_is_long())
                damage_and_compare(&shapes[s], &pokes[p]);
    }
    assert_int_equal(failures, 0);
}

/* What is left of leaks and corruptions after --repair leaks is at most what QEMU leaves. */
static void repair_leaks_and_compare(const struct shape *shape, const struct poke *poke)
{
    struct qcow2_check_result r;
    struct image image;
    json_t *ours, *theirs;

    image_load(&image, "i");
    if (poke->poke(&image)) {
        image_save(&image, "x");
        image_save(&image, "y");
        (void)!system("qemu-img check -f qcow2 -r leaks y >check.log 2>&1");
        assert_int_equal(check("x", QCOW2_REPAIR_LEAKS, &r, NULL), CAIRN_OK);
        ours = qemu_check("x");
        theirs = qemu_check("y");
        for (unsigned i = 0; i < 3; i++)
            if (qemu_figure(ours, i) > qemu_figure(theirs, i)) {
                print_message("%s: %s: %s: %" PRIu64 ", after qemu-img %" PRIu64 "\n", shape->name,
                              poke->name, figures[i], qemu_figure(ours, i), qemu_figure(theirs, i));
                failures++;
            }
        json_decref(ours);
        json_decref(theirs);
    }
    free(image.bytes);
}

static void test_repair_of_leaks(void **state)
{
    static const unsigned some[] = {1, 5, 9, 14};

    uint64_t seed = scale_seed();

    (void)state;
    failures = 0;
    for (size_t s = 0; s < sizeof(some) / sizeof(some[0]); s++) {
        make(&shapes[some[s]]);
        for (size_t p = 0; p < NR_POKES; p++)
            if ((s + p + seed) % 2 == 0 || scale_is_long())
                repair_leaks_and_compare(&shapes[some[s]], &pokes[p]);
    }
    assert_int_equal(failures, 0);
}

/* -- At random --------------------------------------------------------------------------------- */

static uint64_t rng;

static uint64_t random_below(uint64_t n)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return rng % n;
}

/* An entry of the tables that matter, anywhere in them. */
static uint64_t random_entry(const struct image *i)
{
    uint64_t cluster_size = UINT64_C(1) << i->cluster_bits;
    uint64_t near_start = random_below(cluster_size < 1024 ? cluster_size / 8 : 128) * 8;
    uint64_t l1e = i->l1 + random_below(bytes_get_be32(i->bytes + QCOW2_HDR_L1_SIZE)) * 8;
    uint64_t l2 = get(i, l1e) & QCOW2_OFFSET_MASK;

    switch (random_below(6)) {
    case 0:
        return l1e;
    case 1:
        return i->reftable + random_below(4) * 8;
    case 2:
        return get(i, i->reftable) + near_start;
    default:
        return l2 + cluster_size <= i->len && l2 != 0 ? l2 + near_start : l1e;
    }
}

/* A value for it: another entry's, another cluster's, or itself with a bit that matters flipped. */
static uint64_t random_value(const struct image *i, uint64_t old)
{
    uint64_t nr = (i->len >> i->cluster_bits) + 2, other = random_entry(i);

    switch (random_below(6)) {
    case 0:
        return other + 8 <= i->len ? get(i, other) : 0;
    case 1:
        return random_below(nr) << i->cluster_bits;
    case 2:
        return random_below(nr) << i->cluster_bits | QCOW2_OFLAG_COPIED;
    case 3:
        return old ^ QCOW2_OFLAG_COPIED;
    case 4:
        return old ^ UINT64_C(1) << (9 + random_below(12));
    default:
        return old ^ UINT64_C(1) << random_below(64);
    }
}

/*
 * Where we differ from qemu-img, with intent: it takes an L1 entry without an L2 table for one at
 * offset 0, and walks L2 tables that begin inside a cluster.
 */
static bool comparable(const struct image *i)
{
    uint64_t nr = bytes_get_be32(i->bytes + QCOW2_HDR_L1_SIZE);

    for (uint64_t n = 0; n < nr; n++) {
        uint64_t entry = get(i, i->l1 + n * 8), host_off = entry & QCOW2_OFFSET_MASK;

        if (entry != 0 && (host_off == 0 || host_off & ((UINT64_C(1) << i->cluster_bits) - 1)))
            return false;
    }
    return true;
}

static void random_damage(struct image *i)
{
    for (uint64_t n = 1 + random_below(4); n > 0; n--) {
        uint64_t at = random_entry(i);

        if (at + 8 <= i->len)
            put(i, at, random_value(i, get(i, at)));
    }
}

/* The repair leaves what qemu-img also finds, and nothing else. */
static void random_round(const struct shape *shape, uint64_t seed)
{
    struct poke poke = {.name = "at random", .expect = 0};
    struct image image;
    char what[256];

    rng = (seed + 1) * UINT64_C(0x9e3779b97f4a7c15);
    snprintf(what, sizeof(what), "%s: seed %" PRIu64, shape->name, seed);
    image_load(&image, "i");
    random_damage(&image);
    image_save(&image, "x");
    image_save(&image, "damaged");
    if (comparable(&image)) {
        poke.expect = EXACT;
        assert_same(what, "x");
    }
    repair_and_compare(what, &poke);
    free(image.bytes);
}

static void test_random_damage(void **state)
{
    const char *rounds = getenv("CAIRN_CHECK_ROUNDS"); /* per shape; more by hand */
    uint64_t nr = rounds ? strtoull(rounds, NULL, 10) : 6;

    (void)state;
    failures = 0;
    for (size_t s = 0; s < NR_SHAPES; s++) {
        make(&shapes[s]);
        for (uint64_t seed = 0; seed < nr; seed++)
            random_round(&shapes[s], seed * NR_SHAPES + s);
    }
    assert_int_equal(failures, 0);
}

/* -- Interrupted ------------------------------------------------------------------------------- */

/* Everything fails from one operation that changes the file on, as after a crash. */
struct crash {
    unsigned after, seen;
};

static int crash_before(void *ctx, const struct hostfile_event *event)
{
    struct crash *crash = ctx;

    if (event->op == HOSTFILE_READ)
        return 0;
    return crash->seen++ >= crash->after ? EIO : 0;
}

/* Repair x, which crashes after some operations; true: it came to its end. */
static bool repair_crashing(unsigned after)
{
    struct crash crash = {.after = after};
    const struct hostfile_hook hook = {.before = crash_before, .ctx = &crash};
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(qcow2_check_free_p) struct qcow2_check *c = NULL;
    struct hostfile host;
    int r;

    assert_int_equal(source_open_file("x", "x", &src, NULL), CAIRN_OK);
    assert_int_equal(qcow2_check_new(src, NULL, &c, NULL), CAIRN_OK);
    assert_int_equal(hostfile_init(&host, open("x", O_RDWR | O_CLOEXEC), "x", NULL), CAIRN_OK);
    host.hook = &hook;
    r = qcow2_repair(c, &host, QCOW2_REPAIR_ALL, NULL);
    hostfile_release(&host);
    return r == CAIRN_OK;
}

static void crash_everywhere(const struct shape *shape, const struct poke *poke)
{
    struct qcow2_check_result r;
    struct image damaged;
    bool ended = false;

    image_load(&damaged, "i");
    if (poke->poke(&damaged))
        for (unsigned after = 0; !ended; after++) {
            image_save(&damaged, "x");
            ended = repair_crashing(after);
            assert_int_equal(check("x", QCOW2_REPAIR_ALL, &r, NULL), CAIRN_OK);
            assert_int_equal(check("x", QCOW2_REPAIR_NONE, &r, NULL), CAIRN_OK);
            if (r.corruptions || r.leaks || r.check_errors || r.overlaps || r.marked_corrupt)
                fail_msg("%s: %s: not repaired after a crash at %u", shape->name, poke->name,
                         after);
            if (after % 8 == 0)
                sh("qemu-img compare -f qcow2 -F qcow2 i x");
        }
    free(damaged.bytes);
}

static void test_interrupted_repair_can_be_repeated(void **state)
{
    static const unsigned some[] = {3, 7, 12};

    (void)state;
    for (size_t s = 0; s < sizeof(some) / sizeof(some[0]); s++) {
        make(&shapes[some[s]]);
        for (size_t p = 0; p < NR_POKES; p++)
            if ((pokes[p].expect & (ALL | SHARES)) == ALL)
                crash_everywhere(&shapes[some[s]], &pokes[p]);
    }
}

/* -- Hostile sizes ----------------------------------------------------------------------------- */

/* 60 snapshots with one L1 table, whose entries all name one L2 table: looked at once. */
static void test_shared_tables_are_walked_once(void **state)
{
    struct qcow2_check_result r;
    struct image image;
    uint64_t snapshots, l1, l2;

    (void)state;
    sh("rm -f i; qemu-img create -f qcow2 -o cluster_size=64k i 8T && qemu-io -c 'write 0 64k' i "
       "&& "
       "for n in $(seq 60); do qemu-img snapshot -c $n i; done");
    image_load(&image, "i");
    snapshots = get(&image, QCOW2_HDR_SNAPSHOTS_OFFSET);
    l1 = get(&image, snapshots);
    l2 = get(&image, l1);
    for (unsigned e = 0; e < bytes_get_be32(image.bytes + snapshots + 8); e++)
        put(&image, l1 + 8 * e, l2);
    image_save(&image, "x");
    free(image.bytes);
    assert_int_equal(check("x", QCOW2_REPAIR_NONE, &r, NULL), CAIRN_OK);
    assert_true(r.corruptions > 0);
}

/* Terabytes of nothing cost nothing. */
static void test_sparse_file(void **state)
{
    struct qcow2_check_result r;

    (void)state;
    sh("rm -f i; qemu-img create -f qcow2 i 64M && qemu-io -c 'write 0 64k' i && truncate -s 8T i");
    assert_int_equal(check("i", QCOW2_REPAIR_NONE, &r, NULL), CAIRN_OK);
    assert_int_equal(r.corruptions + r.leaks + r.check_errors, 0);
}

static void test_luks_header_is_in_use(void **state)
{
    struct qcow2_check_result r;

    (void)state;
    /* QEMU 7.2 gives up when it measures its key derivation as 0 ms: then it is asked again. */
    sh("for n in $(seq 20); do rm -f i; qemu-img create -f qcow2 --object secret,id=s,data=x "
       "-o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 i 4M && exit 0; done; "
       "exit 1");
    assert_int_equal(check("i", QCOW2_REPAIR_NONE, &r, NULL), CAIRN_OK);
    assert_int_equal(r.corruptions + r.leaks + r.check_errors + r.overlaps, 0);
    assert_true(r.image_end_offset > 4 << 16);
}

static void test_refuses_unknown_features(void **state)
{
    struct qcow2_check_result r;
    struct cairn_error err;
    struct image image;

    (void)state;
    sh("rm -f i; qemu-img create -f qcow2 i 64M");
    image_load(&image, "i");
    put(&image, QCOW2_HDR_INCOMPATIBLE_FEATURES, UINT64_C(1) << 44);
    image_save(&image, "x");
    free(image.bytes);
    assert_int_equal(check("x", QCOW2_REPAIR_NONE, &r, &err), CAIRN_E_UNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_repair_of_leaks),
        cmocka_unit_test(test_interrupted_repair_can_be_repeated),
        cmocka_unit_test(test_shared_tables_are_walked_once),
        cmocka_unit_test(test_sparse_file),
        cmocka_unit_test(test_luks_header_is_in_use),
        cmocka_unit_test(test_refuses_unknown_features),
        cmocka_unit_test(test_random_damage),
    };

    return cmocka_run_group_tests(tests, qemu_setup, qemu_teardown);
}
