/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sweep: each fault point × {EIO, ENOSPC, crash before, crash after, power cut} × {once, from
 * then on}.
 *
 * A scenario is work on an image that meets some of the points; all of them together must meet all
 * points, and no step without a name.  Each case does this work in a child process with one fault.
 * An operation may fail, if it says so as it should; then the handle goes on, or refuses to where a
 * failed sync says so.  A crash ends the child; "from then on" the next ones crash as well.
 * Afterwards, without faults: the check finds no error (leaks are allowed), each sector holds what
 * was flushed or something written later, work goes on, and in the end there is nothing to repair.
 *
 * Each point is swept in the first scenario that meets it, at the first and the last time that it
 * does; in the others there is one power cut, at the last time.  qemu-img looks at a part of the
 * images.
 *
 * CAIRN_TEST_SWEEP=full: everything in every scenario, at more times, and qemu-img looks at all.
 */
#include "fault_layer.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "bytes.h"
#include "qcow2_backing.h"
#include "qcow2_check.h"
#include "qemu.h"
#include "seal.h"

#define CRASHES 3 /* one after the other, where crashes go on */

struct scenario {
    const char *name;
    unsigned cluster_bits;
    void (*prepare)(void);         /* the file before; NULL: there is none */
    void (*work)(struct active *); /* NULL: see other_work */
    void (*other_work)(void);
    enum fault_point again; /* swept here, too, whatever scenario has met it */
    void (*mend)(void);     /* makes IMAGE an active layer without errors again */
    /* what prepare makes */
    uint8_t *bytes;
    size_t len;
    uint64_t size;
    struct shared before;
};

static struct scenario *scenario; /* of this case */

/* -- Scenarios with an active layer ------------------------------------------------------------ */

#define LARGE (64 * KIB)
#define SMALL (16 * KIB)

static void life(struct active *a)
{
    put(a, 0, 3 * SECTOR, 40 * SECTOR);
    put(a, 0, LARGE, 2 * LARGE + SECTOR);
    put(a, 1, 0, LARGE);
    flush(a);
    zero(a, 0, LARGE, LARGE, true);
    zero(a, 0, 2 * LARGE, 8 * KIB, false);
    put(a, 0, 3 * LARGE, 3 * LARGE);
    flush(a);
    set_parent(a);
    discard(a, 0, 3 * LARGE, LARGE);
    discard(a, 1, 0, LARGE);
    flush(a);
    put(a, 1, LARGE, 3 * LARGE);
    put(a, 0, SECTOR, SECTOR);
    close_layer(a);
    a = open_layer();
    if (!a)
        return;
    read_all(a);
    put(a, 1, 4 * LARGE - SECTOR, 3 * SECTOR);
    discard(a, 0, 5 * LARGE, LARGE);
    seal(a);
    read_all(a);
    close_layer(a);
}

/* Cluster by cluster, until the refcount structure has to grow. */
static void outgrow(struct active *a)
{
    put(a, 0, 0, SECTOR);
    put(a, 1, SMALL - SECTOR, 2 * SECTOR);
    put(a, 0, 4 * SMALL, 4 * SMALL);
    flush(a);
    discard(a, 0, 5 * SMALL, SMALL);
    put(a, 1, 4 * SMALL, 2 * SMALL);
    flush(a);
    put(a, 0, 6 * SMALL, SMALL);
    close_layer(a);
}

/* An L2 table that nothing is put into, in a host cluster with other bytes. */
static void empty_table(struct active *a)
{
    put(a, 0, 0, 2 * LARGE);
    flush(a);
    shared->plan.obstacle = FAULT_PUNCH;
    discard(a, 0, LARGE, LARGE);
    flush(a);
    put_in_vain(a, FAULT_L2_PLACE);
    flush(a);
    put(a, 1, LARGE, SECTOR);
    close_layer(a);
}

static void other_sizes(struct active *a)
{
    resize(a, WITH_BOTH); /* where a crash has left another */
    put(a, 0, WINDOW - LARGE, LARGE);
    put(a, 1, 0, LARGE + SECTOR);
    resize(a, WITHOUT_WINDOW_1);
    put(a, 0, SECTOR, SECTOR);
    resize(a, WITH_BOTH);
    read_all(a);
    if (size_of(a) == WITH_BOTH)
        put(a, 1, LARGE, SECTOR);
    resize(a, OF_TWO_L1_CLUSTERS);
    put(a, 0, LARGE, LARGE);
    resize(a, WITH_BOTH);
    close_layer(a);
}

/* A layer with something in it. */
static void make_layer(void)
{
    struct active *a = open_layer();

    put(a, 0, 0, 2 * SECTOR);
    put(a, 0, 2 * LARGE, LARGE + SECTOR);
    put(a, 1, 0, LARGE);
    flush(a);
    discard(a, 0, 3 * LARGE, LARGE);
    close_layer(a);
}

static void poke(uint64_t host_off, uint64_t value, size_t len)
{
    int fd = open(IMAGE, O_WRONLY | O_CLOEXEC);
    uint8_t bytes[8];

    bytes_put_be64(bytes, value);
    if (pwrite(fd, bytes + 8 - len, len, (off_t)host_off) != (ssize_t)len)
        complain("poke: %s", strerror(errno));
    close(fd);
}

/* All host clusters below nr_clusters are counted in the first block, as far as it goes; the file
 * ends there. */
static void use_up(uint64_t nr_clusters)
{
    make_layer();
    for (uint64_t i = 0; i < min_u64(nr_clusters, SMALL / 2); i++)
        poke(2 * SMALL + 2 * i, 1, 2);
    if (truncate(IMAGE, (off_t)(nr_clusters * SMALL)) < 0)
        complain("truncate: %s", strerror(errno));
}

static void use_up_a_block(void)
{
    use_up(SMALL / 2 - 3);
}

static void use_up_the_table(void)
{
    use_up((UINT64_C(256) << 30) / SMALL - 3);
}

/* -- Scenarios with any image ------------------------------------------------------------------ */

static struct qcow2_check_result check(const char *file, enum qcow2_repair_mode mode)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(qcow2_check_free_p) struct qcow2_check *c = NULL;
    struct qcow2_check_result result;
    struct hostfile host = {.fd = -1};

    if (source_open_file(file, file, &src, &err) || qcow2_check_new(src, NULL, &c, &err))
        complain("%s cannot be checked: %s", file, err.message);
    result = *qcow2_check_get_result(c);
    if (mode == QCOW2_REPAIR_NONE)
        return result;
    if (!succeeded("open for repair",
                   hostfile_init(&host, open(file, O_RDWR | O_CLOEXEC), file, &err)))
        complain("%s cannot be opened", file);
    succeeded("repair", qcow2_repair(c, &host, mode, &err));
    hostfile_release(&host);
    return result;
}

static void damage(void)
{
    uint64_t entry = QCOW2_HDR_INCOMPATIBLE_FEATURES;

    make_layer();
    poke(QCOW2_HDR_AUTOCLEAR_FEATURES, 1 << 5, 8);
    poke(entry, QCOW2_INCOMPAT_EXTL2 | QCOW2_INCOMPAT_DIRTY, 8);
    poke(2 * LARGE + 2 * 5, 0, 2);    /* refcount of the first data cluster */
    poke(2 * LARGE + 2 * 3000, 1, 2); /* a leak */
    poke(4 * LARGE + 2 * QCOW2_L2E_SIZE_EXTL2, 6 * LARGE, 8); /* no copied bit */
    shared->corruptions = check(IMAGE, QCOW2_REPAIR_NONE).corruptions;
    if (shared->corruptions == 0)
        complain("there is nothing to repair");
}

/* One error that takes a new refcount structure; the old one counts everything in use. */
static void spoil_the_reftable(void)
{
    make_layer();
    poke(LARGE + QCOW2_REFTABLE_ENTRY_SIZE, SECTOR, 8);
    shared->corruptions = check(IMAGE, QCOW2_REPAIR_NONE).corruptions;
    if (shared->corruptions != 1)
        complain("%" PRIu64 " errors, expected one", shared->corruptions);
}

static void repair_all(void)
{
    check(IMAGE, QCOW2_REPAIR_ALL);
}

static void set_backing_to(const char *name)
{
    int fd = open(IMAGE, O_RDWR | O_CLOEXEC);

    succeeded("set_backing", qcow2_set_backing(fd, IMAGE, name, LAYER_QCOW2, NULL, &err));
    close(fd);
}

static void rebase(void)
{
    set_backing_to("some-other-image.qcow2");
    set_backing_to("another.qcow2");
}

static void drop_the_parent(void)
{
    make_layer();
    set_backing_to(NULL);
}

static void no_backing(void)
{
    set_backing_to(NULL);
}

static void seal_anew(void)
{
    const struct seal_options options = {.nr_threads = 1};
    CLEANUP(source_free_p) struct source *src = NULL;
    struct seal_result result;
    struct hostfile out;
    int fd = open(SEALED, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    if (source_open_file(IMAGE, IMAGE, &src, NULL) || hostfile_init(&out, fd, SEALED, NULL))
        complain("cannot open what is to be sealed");
    succeeded("seal anew", seal_image(src, &out, &options, &result, &err));
    hostfile_release(&out);
}

/* What was sealed is as good as the layer. */
static void seal_again(void)
{
    struct qcow2_check_result result;

    seal_anew();
    result = check(SEALED, QCOW2_REPAIR_NONE);
    if (result.corruptions || result.leaks || result.check_errors)
        complain("the sealed image has errors");
    if (rename(SEALED, IMAGE) < 0)
        complain("rename: %s", strerror(errno));
}

static struct scenario scenarios[] = {
    {.name = "the life of a layer", .cluster_bits = 16, .work = life},
    {.name = "an empty L2 table", .cluster_bits = 16, .work = empty_table, .again = FAULT_L2_TABLE},
    {.name = "other sizes", .cluster_bits = 16, .work = other_sizes},
    {.name = "a new refcount block",
     .cluster_bits = 14,
     .work = outgrow,
     .prepare = use_up_a_block},
    {.name = "a larger refcount table",
     .cluster_bits = 14,
     .work = outgrow,
     .prepare = use_up_the_table},
    {.name = "repair",
     .cluster_bits = 16,
     .prepare = damage,
     .other_work = repair_all,
     .mend = repair_all},
    {.name = "rebuilt refcounts",
     .cluster_bits = 16,
     .prepare = spoil_the_reftable,
     .other_work = repair_all,
     .mend = repair_all},
    {.name = "another backing name",
     .cluster_bits = 16,
     .prepare = drop_the_parent,
     .other_work = rebase,
     .mend = no_backing},
    {.name = "sealed anew",
     .cluster_bits = 16,
     .prepare = make_layer,
     .other_work = seal_anew,
     .mend = seal_again},
};
#define NR_SCENARIOS (sizeof(scenarios) / sizeof(scenarios[0]))

/* -- One case ---------------------------------------------------------------------------------- */

static const struct hostfile_hook *plan_hook(void)
{
    static struct hostfile_hook hook;

    hook =
        (struct hostfile_hook){.before = fault_before, .after = fault_after, .ctx = &shared->plan};
    return &hook;
}

/* In a child. */
static void work(void)
{
    struct active *a;

    if (!scenario->work) {
        scenario->other_work();
        return;
    }
    a = open_layer();
    if (a)
        scenario->work(a);
}

static void expect_no_errors(const char *when)
{
    struct qcow2_check_result result = check(IMAGE, QCOW2_REPAIR_NONE);

    if (result.corruptions || result.check_errors || result.overlaps)
        complain("%s: %" PRIu64 " errors, %" PRIu64 " overlaps", when,
                 result.corruptions + result.check_errors, result.overlaps);
}

#define AS_QCOW2                                                                                   \
    "'json:{\"driver\":\"qcow2\",\"backing\":null,"                                                \
    "\"file\":{\"driver\":\"file\",\"filename\":\"" IMAGE "\"}}'"

static void ask_qemu(void)
{
    static uint8_t bytes[WINDOW];
    static uint64_t may[NR_SECTORS];
    int fd;

    if (system("{ qemu-img check " AS_QCOW2 " || test $? = 3; } >qemu.log 2>&1") != 0)
        complain("qemu-img check does not pass");
    if (system("qemu-img convert -O raw " AS_QCOW2 " swept.raw >qemu.log 2>&1") != 0)
        complain("qemu-img convert fails");
    for (size_t i = 0; i < NR_SECTORS; i++) /* zeros where it falls through */
        may[i] = shared->later[i] | shared->later[i] >> BENEATH;
    fd = open("swept.raw", O_RDONLY | O_CLOEXEC);
    for (unsigned window = 0; window < 2; window++) {
        if (pread(fd, bytes, WINDOW, (off_t)window_off(window)) != (ssize_t)WINDOW) {
            if (window == 1 && shared->later[SIZE_AT] >> WITHOUT_WINDOW_1 & 1)
                break;
            complain("qemu-img convert has not written everything");
        }
        compare_window(bytes, window, may, "as QEMU reads it");
    }
    close(fd);
    unlink("swept.raw");
}

static bool with_qemu;

/* In a child, without faults: what is there, and that work goes on. */
static void verify(void)
{
    struct active *a;

    shared->plan = (struct fault_plan){.off = true};
    if (access(IMAGE, F_OK) < 0 && shared->created)
        complain("the layer is gone");
    if (scenario->mend) {
        uint64_t found = check(IMAGE, QCOW2_REPAIR_NONE).corruptions;

        if (found > shared->corruptions)
            complain("%" PRIu64 " errors, %" PRIu64 " before", found, shared->corruptions);
        scenario->mend();
    }
    after_crash();
    if (access(IMAGE, F_OK) == 0) {
        expect_no_errors("afterwards");
        if (with_qemu)
            ask_qemu();
    }
    a = open_layer();
    look(a, "afterwards");
    resize(a, WITH_BOTH);
    put(a, 0, 4 * KIB, WINDOW / 4);
    flush(a);
    discard(a, 0, 64 * KIB, 64 * KIB);
    put(a, 1, WINDOW / 2, WINDOW / 4);
    close_layer(a);
    expect_no_errors("after going on");
    check(IMAGE, QCOW2_REPAIR_LEAKS);
    if (check(IMAGE, QCOW2_REPAIR_NONE).leaks)
        complain("leaks after they were repaired");
    a = open_layer();
    look(a, "in the end");
    close_layer(a);
}

/* The exit status of a process that does it. */
static int in_child(void (*task)(void), const struct hostfile_hook *hook)
{
    pid_t pid = fork();
    int status;

    assert_true(pid >= 0);
    if (pid == 0) {
        fault_hook = hook;
        task();
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFSIGNALED(status))
        snprintf(shared->said, sizeof(shared->said), "died of signal %d", WTERMSIG(status));
    return WIFEXITED(status) ? WEXITSTATUS(status) : FAILED;
}

static void start(const struct fault_plan *plan)
{
    int fd;

    unlink(IMAGE);
    *shared = scenario->before;
    shared->plan = *plan;
    if (!scenario->prepare)
        return;
    fd = open(IMAGE, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_int_equal(write(fd, scenario->bytes, scenario->len), (ssize_t)scenario->len);
    assert_int_equal(ftruncate(fd, (off_t)scenario->size), 0);
    close(fd);
}

/* True: as it should be. */
static bool run_case(const struct fault_plan *plan)
{
    bool crash = plan->action >= ACTION_CRASH_BEFORE && plan->point != FAULT_NONE;
    int status;

    start(plan);
    status = in_child(work, plan_hook());
    if (plan->point != FAULT_NONE && shared->plan.nr_fired == 0)
        snprintf(shared->said, sizeof(shared->said), "the point was not met");
    else if (status != (crash ? FAULT_CRASHED : 0) && !shared->said[0])
        snprintf(shared->said, sizeof(shared->said), "the work ended with status %d", status);
    else if (shared->plan.met[FAULT_NONE])
        snprintf(shared->said, sizeof(shared->said), "a step has no name");
    for (unsigned i = 1; plan->from_then_on && i < CRASHES && status == FAULT_CRASHED; i++) {
        after_crash();
        shared->plan = *plan;
        shared->plan.nth = 1;
        status = in_child(work, plan_hook());
    }
    return !shared->said[0] && in_child(verify, NULL) == 0;
}

/* -- The sweep --------------------------------------------------------------------------------- */

static const char *const action_names[] = {"EIO", "ENOSPC", "crash before", "crash after",
                                           "power cut"};

struct sweep {
    bool full;
    bool done[FAULT_POINTS_END];
    unsigned nr_cases, nr_failed, nr_points;
};

static void sweep_one(struct sweep *sweep, const struct fault_plan *plan)
{
    with_qemu = sweep->full || sweep->nr_cases % 17 == 0;
    sweep->nr_cases++;
    if (run_case(plan))
        return;
    sweep->nr_failed++;
    print_error("%s, %s, time %u, %s, %s: %s\n", scenario->name, fault_name(plan->point), plan->nth,
                action_names[plan->action], plan->from_then_on ? "from then on" : "once",
                shared->said);
}

static void sweep_point(struct sweep *sweep, enum fault_point point, unsigned met)
{
    unsigned step = sweep->full ? 1 + met / 12 : met > 1 ? met - 1 : 1;

    for (unsigned nth = 1; nth <= met; nth += step)
        for (enum fault_action action = ACTION_EIO; action <= ACTION_POWER_CUT; action++)
            for (int from_then_on = 0; from_then_on < 2; from_then_on++)
                sweep_one(sweep, &(struct fault_plan){.point = point,
                                                      .action = action,
                                                      .nth = nth,
                                                      .from_then_on = from_then_on});
}

/* One case for a point that another scenario has been through. */
static void cut_the_power(struct sweep *sweep, enum fault_point point, unsigned met)
{
    sweep_one(sweep, &(struct fault_plan){.point = point, .action = ACTION_POWER_CUT, .nth = met});
}

static void sweep_scenario(struct sweep *sweep)
{
    unsigned met[FAULT_POINTS_END];

    with_qemu = true;
    if (!run_case(&(struct fault_plan){.point = FAULT_NONE}))
        fail_msg("%s: %s", scenario->name, shared->said);
    start(&(struct fault_plan){.point = FAULT_NONE});
    in_child(work, plan_hook());
    memcpy(met, shared->plan.met, sizeof(met));
    for (enum fault_point point = FAULT_NONE + 1; point < FAULT_POINTS_END; point++) {
        if (met[point] == 0)
            continue;
        if (sweep->done[point] && scenario->again != point && !sweep->full) {
            cut_the_power(sweep, point, met[point]);
            continue;
        }
        sweep->nr_points += !sweep->done[point];
        sweep->done[point] = true;
        sweep_point(sweep, point, met[point]);
    }
}

static void prepare(void)
{
    struct stat st;

    unlink(IMAGE);
    *shared = (struct shared){.cluster_bits = scenario->cluster_bits};
    for (size_t i = 0; i < NR_SECTORS; i++)
        shared->now[i] = shared->later[i] = UINT64_C(1) << BENEATH;
    shared->now[SIZE_AT] = shared->later[SIZE_AT] = 1U << WITH_BOTH;
    if (scenario->prepare) {
        if (in_child(scenario->prepare, NULL))
            fail_msg("%s: %s", scenario->name, shared->said);
        assert_int_equal(stat(IMAGE, &st), 0);
        scenario->size = (uint64_t)st.st_size;
        sh("head -c 2M " IMAGE " >prefix");
        scenario->bytes = load_file("prefix", &scenario->len);
    }
    scenario->before = *shared;
}

static void test_every_point_in_every_way(void **state)
{
    const char *how = getenv("CAIRN_TEST_SWEEP");
    struct sweep sweep = {.full = how && strcmp(how, "full") == 0};

    (void)state;
    for (scenario = scenarios; scenario < scenarios + NR_SCENARIOS; scenario++) {
        prepare();
        sweep_scenario(&sweep);
        free(scenario->bytes);
    }
    for (enum fault_point point = FAULT_NONE + 1; point < FAULT_POINTS_END; point++)
        if (!sweep.done[point])
            print_error("%s is never met\n", fault_name(point));
    print_message("%u fault points, %u cases, %u failures\n", sweep.nr_points, sweep.nr_cases,
                  sweep.nr_failed);
    assert_int_equal(sweep.nr_points, FAULT_POINTS_END - 1);
    assert_int_equal(sweep.nr_failed, 0);
}

static int setup(void **state)
{
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return shared == MAP_FAILED ? -1 : qemu_setup(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_point_in_every_way),
    };

    return cmocka_run_group_tests(tests, setup, qemu_teardown);
}
