/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every allocation of the active layer fails once, from its creation to its seal.  What failed for
 * want of memory is done again, and must succeed then: so the guest's bytes are known at the end,
 * and the file has neither errors nor leaks, whatever failed.
 */
#include "alloc_fail.h"

#include "active_fixture.h"
#include "qcow2_check.h"

#define CACHE_BYTES ((size_t)1) /* as few pages as it takes */
#define DISK_SIZE   (512 * MIB)

#define STEP 37 /* MiB between what is written */

static uint8_t model[4 * DISK_SIZE / MIB]; /* the first byte of each MiB, 0 where none is known */

/* -- Doing things twice ------------------------------------------------------------------------ */

struct run {
    int code;                /* of what failed first, by which the sweep goes on … */
    struct cairn_error *err; /* … and its message */
    struct cairn_error why;  /* of the call under way */
    bool close_failed;       /* what it could not write back may leak */
};

/* Another try, if it was memory that lacked, and that for the first time. */
static bool again(struct run *run, int code)
{
    if (code == CAIRN_OK)
        return false;
    if (run->code != CAIRN_OK || code != CAIRN_E_NO_MEMORY)
        fail_msg("%s: %d, %s", run->code ? "a second failure" : "not memory", code,
                 run->why.message);
    run->code = code;
    *run->err = run->why;
    return true;
}

#define DO(run, call)                                                                              \
    do {                                                                                           \
    } while (again(run, call))

/* The handle is gone in any case. */
static void close_layer(struct run *run, struct active *a)
{
    DO(run, active_flush(a, &run->why));
    run->close_failed |= again(run, active_close(a, &run->why));
}

static struct active_options options(void)
{
    return (struct active_options){.virtual_size = DISK_SIZE,
                                   .cluster_bits = 16,
                                   .parent_pending = true,
                                   .backing = {.pread = read_base, .ctx = &base},
                                   .cache_bytes = CACHE_BYTES};
}

static struct active *make_layer(struct run *run)
{
    const struct active_options o = options();
    struct active *a = NULL;

    unlink(IMAGE);
    memset(model, 0, sizeof(model));
    DO(run, active_create(IMAGE, &o, &a, &run->why));
    return a;
}

static struct active *open_layer(struct run *run)
{
    const struct active_options o = options();
    struct active *a = NULL;

    DO(run, active_open(IMAGE, &o, &a, &run->why));
    return a;
}

/* -- The steps --------------------------------------------------------------------------------- */

static void write_far_apart(struct run *run, struct active *a)
{
    uint8_t bytes[700];

    for (uint64_t mib = 0; mib < active_virtual_size(a) / MIB; mib += STEP) {
        model[mib] = (uint8_t)(mib % 255 + 1);
        memset(bytes, model[mib], sizeof(bytes));
        DO(run, active_pwrite(a, bytes, sizeof(bytes), mib * MIB, &run->why));
    }
}

static void zero_and_discard(struct run *run, struct active *a)
{
    DO(run, active_zero(a, 2 * CLUSTER, STEP * MIB, true, &run->why));
    DO(run, active_zero(a, 5000, 2 * STEP * MIB, false, &run->why));
    DO(run, active_discard(a, MIB, 3 * STEP * MIB, &run->why));
    model[STEP] = model[2 * STEP] = model[3 * STEP] = 0;
}

static void read_back(struct run *run, struct active *a)
{
    for (uint64_t mib = 0; mib < active_virtual_size(a) / MIB; mib += STEP) {
        uint8_t byte;

        DO(run, active_pread(a, &byte, 1, mib * MIB, &run->why));
        assert_int_equal(byte, model[mib]);
    }
}

static void map_some(struct run *run, struct active *a)
{
    struct extent e[8];
    size_t nr;

    DO(run, active_map(a, 0, active_virtual_size(a), e, 8, &nr, &run->why));
    assert_int_equal(nr, 8);
}

/* -- What is to be seen of the file, unarmed -------------------------------------------------- */

static void check_file(const struct run *run)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(qcow2_check_free_p) struct qcow2_check *check = NULL;
    const struct qcow2_check_result *found;
    struct cairn_error err;

    must(source_open_file(IMAGE, NULL, &src, &err), &err);
    must(qcow2_check_new(src, NULL, &check, &err), &err);
    found = qcow2_check_get_result(check);
    assert_int_equal(found->corruptions + found->check_errors + found->overlaps, 0);
    if (!run->close_failed)
        assert_int_equal(found->leaks, 0);
}

static void verify(void *arg, int code)
{
    const struct run *last = arg;
    struct run run = {.err = NULL};
    struct active *a;

    (void)code;
    check_file(last);
    a = open_layer(&run);
    read_back(&run, a);
    must(active_close(a, &run.why), &run.why);
}

/* -- Lives ------------------------------------------------------------------------------------- */

static int write_and_close(void *arg, struct cairn_error *err)
{
    struct run *run = arg;
    struct active *a;

    *run = (struct run){.err = err};
    a = make_layer(run);
    write_far_apart(run, a);
    DO(run, active_flush(a, &run->why));
    zero_and_discard(run, a);
    read_back(run, a);
    close_layer(run, a);
    return run->code;
}

static int go_on_and_seal(void *arg, struct cairn_error *err)
{
    struct run *run = arg;
    struct active *a;

    *run = (struct run){.err = err};
    a = make_layer(run);
    write_far_apart(run, a);
    close_layer(run, a);
    a = open_layer(run);
    map_some(run, a);
    zero_and_discard(run, a);
    write_far_apart(run, a);
    DO(run, active_set_parent(a, &parent_id, &run->why));
    DO(run, active_seal(a, &run->why));
    read_back(run, a);
    close_layer(run, a);
    return run->code;
}

static int resize(void *arg, struct cairn_error *err)
{
    struct run *run = arg;
    struct active *a;

    *run = (struct run){.err = err};
    a = make_layer(run);
    write_far_apart(run, a);
    DO(run, active_resize(a, DISK_SIZE / 2, UINT64_MAX, &run->why));
    memset(model + DISK_SIZE / 2 / MIB, 0, DISK_SIZE / 2 / MIB);
    DO(run, active_resize(a, 4 * DISK_SIZE, UINT64_MAX, &run->why));
    close_layer(run, a);
    return run->code;
}

static void sweep(const char *name, int (*go)(void *arg, struct cairn_error *err))
{
    struct run run;

    alloc_sweep_run(&(struct alloc_sweep){.name = name, .run = go, .verify = verify}, &run);
}

static void test_write_and_close(void **state)
{
    (void)state;
    sweep("create, write, zero, discard, flush, read, close", write_and_close);
}

static void test_go_on_and_seal(void **state)
{
    (void)state;
    sweep("open, map, write, record a parent, seal", go_on_and_seal);
}

static void test_resize(void **state)
{
    (void)state;
    sweep("resize", resize);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_write_and_close),
        cmocka_unit_test(test_go_on_and_seal),
        cmocka_unit_test(test_resize),
    };

    return cmocka_run_group_tests(tests, qemu_setup, qemu_teardown);
}
