/* SPDX-License-Identifier: Apache-2.0 */
/*
 * active_stress: random work on an active layer from many threads, checked byte by byte.
 *
 *   active_stress run  [options]   rounds of work on a new layer each; every read is checked, and
 *                                  at the end the layer, its image through qemu-img, and the
 *                                  mirror have to agree
 *   active_stress kill [options]   the same work in a child that is killed at a random moment,
 * again and again; afterwards each sector must hold what was flushed, or something that was written
 * later
 *
 *   --seconds N  --seed N  --threads N  --dir FOLDER (default: a new one under $TMPDIR)
 *
 * What is checked, and how: the disk is dealt out to the threads in stripes (from 512 bytes up, so
 * that threads meet in one subcluster, to large ones), and a thread keeps to its own.  Every sector
 * names itself and the version that was written to it, so a byte from anywhere else is seen.  The
 * state of all sectors is kept in memory shared with the parent, which outlives a killed child:
 *
 *   issued   the version last written, noted before it is
 *   exact    the version that the sector has at least: flushed, or found after a crash
 *   floor    versions up to here, except exact, are gone and must not come back
 *   zero_ok  may the sector be zeros?  2: its last version is; 1: an earlier one is, after floor
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "active.h"
#include "bytes.h"
#include "checked.h"
#include "scratch.h"

#define SECTOR      512
#define MAX_THREADS 64
#define MAX_OP      (512 << 10)

struct sector {
    uint32_t issued, exact, floor;
    uint8_t zero_ok;
};

/* Shared between the parent and its children. */
struct world {
    uint64_t nr_ops;
    atomic_bool failed;
    struct sector sectors[];
};

struct options {
    bool kill;
    unsigned seconds, threads;
    uint64_t seed;
    char dir[256];
};

/* One layer and how it is worked on. */
struct round {
    const struct options *options;
    uint64_t seed;
    uint64_t size;      /* of the disk */
    uint64_t base_size; /* of the raw file beneath; 0: there is none */
    uint64_t stripe;
    uint64_t cluster_size;
    size_t cache_bytes;
    int base_fd;
    char image[300], base[300];
    struct world *world;
    struct active *active;
    struct timespec until;
};

static void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
static void die(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(1);
}

/* xorshift*: good enough, and the same everywhere. */
static uint64_t next(uint64_t *rng)
{
    *rng ^= *rng >> 12;
    *rng ^= *rng << 25;
    *rng ^= *rng >> 27;
    return *rng * UINT64_C(0x2545f4914f6cdd1d);
}

static uint64_t below(uint64_t *rng, uint64_t n)
{
    return (next(rng) >> 11) % n;
}

static uint64_t seed_of(uint64_t seed, uint64_t n)
{
    uint64_t rng = (seed + 1) * UINT64_C(0x9e3779b97f4a7c15) + n * UINT64_C(0xbf58476d1ce4e5b9);

    rng = rng ? rng : 1;
    for (int i = 0; i < 4; i++)
        next(&rng);
    return rng;
}

/* -- What a sector holds ----------------------------------------------------------------------- */

/* Every 8 bytes say where they belong and which version they are of; version 0 is the base. */
static void fill_sector(uint8_t *to, uint64_t sector, uint32_t version)
{
    for (uint64_t i = 0; i < SECTOR / 8; i++)
        bytes_put_le64(to + 8 * i, (sector * (SECTOR / 8) + i) << 24 | (version & 0xffffff));
}

/* The version that a sector's bytes are of; -1 if they are of no version of this sector. */
static int64_t version_of(const uint8_t *bytes, uint64_t sector)
{
    uint8_t expected[SECTOR];
    uint32_t version = (uint32_t)(bytes_get_le64(bytes) & 0xffffff);

    fill_sector(expected, sector, version);
    return memcmp(bytes, expected, SECTOR) == 0 ? (int64_t)version : -1;
}

static bool all_zeros(const uint8_t *bytes)
{
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, SECTOR - 1) == 0;
}

static bool sector_ok(const struct sector *s, const uint8_t *bytes, uint64_t nr)
{
    int64_t version = version_of(bytes, nr);

    /* Sector 0 of version 0 begins with a zero word, but does not go on so. */
    if (all_zeros(bytes))
        return s->zero_ok;
    return version == (int64_t)s->exact || (version > (int64_t)s->floor && version <= s->issued);
}

static void init_sectors(struct round *r)
{
    for (uint64_t i = 0; i < r->size / SECTOR; i++)
        r->world->sectors[i] = (struct sector){.zero_ok = i * SECTOR >= r->base_size ? 2 : 0};
}

static void make_base(struct round *r)
{
    static uint8_t buf[1 << 20];

    r->base_fd = open(r->base, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (r->base_fd < 0)
        die("%s: %s", r->base, strerror(errno));
    for (uint64_t off = 0; off < r->base_size; off += sizeof(buf)) {
        size_t n = (size_t)min_u64(sizeof(buf), r->base_size - off);

        for (size_t i = 0; i < n; i += SECTOR)
            fill_sector(buf + i, (off + i) / SECTOR, 0);
        if (pwrite(r->base_fd, buf, n, (off_t)off) != (ssize_t)n)
            die("%s: %s", r->base, strerror(errno));
    }
}

static int read_base(void *ctx, void *buf, size_t len, uint64_t guest_off, struct cairn_error *err)
{
    const struct round *r = ctx;
    size_t n = guest_off < r->base_size ? (size_t)min_u64(len, r->base_size - guest_off) : 0;

    if (n > 0 && pread(r->base_fd, buf, n, (off_t)guest_off) != (ssize_t)n)
        return error_set_errno(err, errno, "%s", r->base);
    memset((uint8_t *)buf + n, 0, len - n);
    return CAIRN_OK;
}

/* -- Operations -------------------------------------------------------------------------------- */

struct worker {
    struct round *round;
    unsigned index;
    uint64_t rng;
    uint8_t *buf;
    /* Ranges of sectors changed since this worker's last flush. */
    struct {
        uint64_t first, nr;
    } changed[4096];
    size_t nr_changed;
    uint64_t nr_ops;
};

static void failed(struct worker *w, const char *what, uint64_t off, uint64_t len,
                   const struct cairn_error *err)
{
    fprintf(stderr, "seed %" PRIu64 ": %s of %" PRIu64 " bytes at 0x%" PRIx64 ": %s\n",
            w->round->options->seed, what, len, off, err->message);
    atomic_store(&w->round->world->failed, true);
}

/* A range within one of the worker's stripes, of whole sectors. */
static void choose_range(struct worker *w, uint64_t *ret_off, uint64_t *ret_len)
{
    const struct round *r = w->round;
    uint64_t nr_stripes = r->size / r->stripe / r->options->threads;
    uint64_t hot = below(&w->rng, 2) ? nr_stripes : nr_stripes / 16 + 1;
    uint64_t stripe = below(&w->rng, hot) * r->options->threads + w->index;
    uint64_t unit = below(&w->rng, 3) ? SECTOR : r->cluster_size / 32;
    uint64_t most = min_u64(r->stripe, below(&w->rng, 32) ? 16 * unit : MAX_OP);
    uint64_t len = (1 + below(&w->rng, div_round_up(most, unit))) * unit;
    uint64_t at;

    len = min_u64(len, r->stripe);
    at = round_down(below(&w->rng, r->stripe - len + 1), unit);
    *ret_off = stripe * r->stripe + round_down(at, SECTOR);
    *ret_len = len;
}

static void do_flush(struct worker *w)
{
    struct cairn_error err;

    if (active_flush(w->round->active, &err)) {
        failed(w, "flush", 0, 0, &err);
        return;
    }
    for (size_t i = 0; i < w->nr_changed; i++) {
        for (uint64_t n = 0; n < w->changed[i].nr; n++) {
            struct sector *s = &w->round->world->sectors[w->changed[i].first + n];

            s->zero_ok = s->zero_ok == 2 ? 2 : 0;
            s->exact = s->floor = s->issued;
        }
    }
    w->nr_changed = 0;
}

/* Note new versions of a range of sectors, before they are written.  zero_ok is 2 where the last
 * version is zeros, 1 where an earlier one is that may still be found after a crash. */
static void issue(struct worker *w, uint64_t off, uint64_t len, bool zero)
{
    if (w->nr_changed == sizeof(w->changed) / sizeof(w->changed[0]))
        do_flush(w);
    for (uint64_t i = off / SECTOR; i < (off + len) / SECTOR; i++) {
        struct sector *s = &w->round->world->sectors[i];

        s->issued++;
        s->zero_ok = zero ? 2 : (s->zero_ok != 0);
    }
    w->changed[w->nr_changed].first = off / SECTOR;
    w->changed[w->nr_changed++].nr = len / SECTOR;
}

/* The worker's own sectors are quiet: each holds its last version, or what a crash left. */
static bool expected_now(const struct sector *s, const uint8_t *bytes, uint64_t nr)
{
    if (s->zero_ok == 2)
        return all_zeros(bytes);
    if (s->issued == s->floor)
        return version_of(bytes, nr) == (int64_t)s->exact;
    return version_of(bytes, nr) == (int64_t)s->issued;
}

static void do_read(struct worker *w, uint64_t off, uint64_t len)
{
    struct cairn_error err;

    if (active_pread(w->round->active, w->buf, len, off, &err)) {
        failed(w, "read", off, len, &err);
        return;
    }
    for (uint64_t i = 0; i < len / SECTOR; i++) {
        uint64_t nr = off / SECTOR + i;
        const struct sector *s = &w->round->world->sectors[nr];

        if (!expected_now(s, w->buf + i * SECTOR, nr)) {
            error_set(&err, CAIRN_E_CORRUPT,
                      "sector %" PRIu64 " begins with %016" PRIx64
                      ", exact %u floor %u issued %u zero_ok %u",
                      nr, bytes_get_le64(w->buf + i * SECTOR), s->exact, s->floor, s->issued,
                      s->zero_ok);
            failed(w, "check", off, len, &err);
            return;
        }
    }
}

static void do_write(struct worker *w, uint64_t off, uint64_t len)
{
    struct cairn_error err;

    issue(w, off, len, false);
    for (uint64_t i = 0; i < len / SECTOR; i++) {
        uint64_t nr = off / SECTOR + i;

        fill_sector(w->buf + i * SECTOR, nr, w->round->world->sectors[nr].issued);
    }
    if (active_pwrite(w->round->active, w->buf, len, off, &err))
        failed(w, "write", off, len, &err);
}

/* A part of a sector: what is there must stay.  Byte by byte the same version, so the mirror
 * stays exact. */
static void do_write_part(struct worker *w, uint64_t off)
{
    const struct sector *s = &w->round->world->sectors[off / SECTOR];
    uint64_t from = below(&w->rng, SECTOR), len = 1 + below(&w->rng, SECTOR - from);
    struct cairn_error err;

    if (active_pread(w->round->active, w->buf, SECTOR, off, &err))
        failed(w, "read", off, SECTOR, &err);
    else if (!expected_now(s, w->buf, off / SECTOR))
        do_read(w, off, SECTOR);
    else if (active_pwrite(w->round->active, w->buf + from, len, off + from, &err))
        failed(w, "write", off + from, len, &err);
}

static void do_zero(struct worker *w, uint64_t off, uint64_t len)
{
    struct cairn_error err;

    issue(w, off, len, true);
    if (active_zero(w->round->active, len, off, below(&w->rng, 2), &err))
        failed(w, "zero", off, len, &err);
}

static void do_discard(struct worker *w, uint64_t off, uint64_t len)
{
    const struct round *r = w->round;
    uint64_t first = round_up(off, r->cluster_size);
    uint64_t end = off + len == r->size ? off + len : round_down(off + len, r->cluster_size);
    struct cairn_error err;

    if (first < end)
        issue(w, first, end - first, true);
    if (active_discard(r->active, len, off, &err))
        failed(w, "discard", off, len, &err);
}

static void step(struct worker *w)
{
    uint64_t off, len;
    uint64_t what = below(&w->rng, 100);

    choose_range(w, &off, &len);
    if (what < 45)
        do_write(w, off, len);
    else if (what < 70)
        do_read(w, off, len);
    else if (what < 80)
        do_zero(w, off, len);
    else if (what < 88)
        do_discard(w, off, len);
    else if (what < 96)
        do_write_part(w, off);
    else
        do_flush(w);
    w->nr_ops++;
}

static bool time_is_up(const struct round *r)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec > r->until.tv_sec ||
           (now.tv_sec == r->until.tv_sec && now.tv_nsec >= r->until.tv_nsec);
}

static void *work(void *arg)
{
    struct worker *w = arg;

    while (!atomic_load(&w->round->world->failed) && !time_is_up(w->round))
        step(w);
    return NULL;
}

/* All threads, until the time is up. */
static void work_on(struct round *r, uint64_t seed)
{
    pthread_t threads[MAX_THREADS];
    struct worker *workers = calloc(r->options->threads, sizeof(*workers));

    for (unsigned i = 0; workers && i < r->options->threads; i++) {
        struct worker *w = &workers[i];

        w->round = r;
        w->index = i;
        w->rng = seed_of(seed, i);
        w->buf = malloc(MAX_OP + r->stripe);
        if (!w->buf || pthread_create(&threads[i], NULL, work, w))
            die("cannot start a thread");
    }
    for (unsigned i = 0; workers && i < r->options->threads; i++) {
        pthread_join(threads[i], NULL);
        r->world->nr_ops += workers[i].nr_ops;
        free(workers[i].buf);
    }
    free(workers);
}

/* -- Oracles ----------------------------------------------------------------------------------- */

/* Run a command; its exit code. */
static int run_command(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static int run_command(const char *fmt, ...)
{
    char command[4096];
    va_list ap;
    int status;

    va_start(ap, fmt);
    vsnprintf(command, sizeof(command), fmt, ap);
    va_end(ap);
    status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* The image passes qemu-img check: without errors, and if it was closed without leaks.  What lies
 * beneath is left out: QEMU cannot open it, and check does not need it. */
static void check_image(const struct round *r, bool leaks_allowed)
{
    int code = run_command("qemu-img check -q 'json:{\"driver\":\"qcow2\",\"backing\":null,"
                           "\"file\":{\"driver\":\"file\",\"filename\":\"%s\"}}' "
                           ">'%s/check.log' 2>&1",
                           r->image, r->options->dir);

    if (code == 0 || (code == 3 && leaks_allowed))
        return;
    run_command("head -20 '%s/check.log' >&2", r->options->dir);
    die("seed %" PRIu64 ": qemu-img check of %s: %d", r->options->seed, r->image, code);
}

/* Every sector as a reader of bytes sees it; found versions become the exact ones. */
static void check_sector(struct round *r, uint64_t nr, const uint8_t *bytes, const char *who)
{
    struct sector *s = &r->world->sectors[nr];

    if (!sector_ok(s, bytes, nr))
        die("seed %" PRIu64 ": %s: sector %" PRIu64 " (0x%" PRIx64 ") begins with %016" PRIx64
            ", expected version %u or %u to %u, zeros %d",
            r->options->seed, who, nr, nr * SECTOR, bytes_get_le64(bytes), s->exact, s->floor + 1,
            s->issued, s->zero_ok);
    if (all_zeros(bytes)) {
        s->exact = s->issued;
        s->zero_ok = 2;
    } else {
        s->exact = (uint32_t)version_of(bytes, nr);
        s->zero_ok = 0;
    }
    s->floor = s->issued;
}

static void check_content(struct round *r)
{
    static uint8_t buf[1 << 20];
    struct cairn_error err;

    for (uint64_t off = 0; off < r->size; off += sizeof(buf)) {
        size_t n = (size_t)min_u64(sizeof(buf), r->size - off);

        if (active_pread(r->active, buf, n, off, &err))
            die("seed %" PRIu64 ": read at 0x%" PRIx64 ": %s", r->options->seed, off, err.message);
        for (size_t i = 0; i < n; i += SECTOR)
            check_sector(r, (off + i) / SECTOR, buf + i, "the layer");
    }
}

/* What QEMU reads, with the base put beneath a copy. */
static void check_as_qemu_reads(struct round *r)
{
    static uint8_t buf[1 << 20];
    const char *dir = r->options->dir;
    size_t n;
    FILE *f;
    char raw[320];

    snprintf(raw, sizeof(raw), "%s/qemu.raw", dir);
    if (run_command("cd '%s' && cp --sparse=always active.qcow2 copy.qcow2 && "
                    "qemu-img rebase -u -f qcow2 -F raw -b %s copy.qcow2 && "
                    "qemu-img convert -f qcow2 -O raw copy.qcow2 qemu.raw && rm copy.qcow2",
                    dir, r->base_size ? "base.raw" : "''"))
        die("seed %" PRIu64 ": qemu-img does not read the image", r->options->seed);
    f = fopen(raw, "rb");
    if (!f)
        die("%s: %s", raw, strerror(errno));
    for (uint64_t off = 0; off < r->size; off += n) {
        n = fread(buf, 1, (size_t)min_u64(sizeof(buf), r->size - off), f);
        if (n == 0 || n % SECTOR)
            die("%s ends at 0x%" PRIx64, raw, off);
        for (size_t i = 0; i < n; i += SECTOR)
            check_sector(r, (off + i) / SECTOR, buf + i, "qemu-img");
    }
    fclose(f);
}

/* -- Rounds ------------------------------------------------------------------------------------ */

static void set_up_round(struct round *r, const struct options *options, uint64_t nr)
{
    static const unsigned bits[] = {17, 17, 17, 14, 16, 21};
    static const uint64_t stripes[] = {512, 1024, 3584, 4096, 65536, 1 << 20, 4 << 20};
    uint64_t rng = seed_of(options->seed, nr);
    bool large = below(&rng, 4) == 0; /* more entries than the cache holds */

    *r = (struct round){.options = options, .seed = rng};
    r->cluster_size = UINT64_C(1) << (large ? 14 : bits[below(&rng, 6)]);
    r->size = large ? UINT64_C(1) << 30 : (UINT64_C(64) << 20) - SECTOR * below(&rng, 300);
    r->base_size = below(&rng, 4) ? r->size - SECTOR * below(&rng, r->size / SECTOR / 2) : 0;
    if (large)
        r->base_size = 0;
    r->stripe = stripes[below(&rng, 7)];
    r->cache_bytes = below(&rng, 2) ? 1 : 0;
    if (r->size / r->stripe < options->threads)
        r->stripe = 4096;
    snprintf(r->image, sizeof(r->image), "%s/active.qcow2", options->dir);
    snprintf(r->base, sizeof(r->base), "%s/base.raw", options->dir);
    unlink(r->image);
    make_base(r);
    r->world = mmap(NULL, sizeof(struct world) + r->size / SECTOR * sizeof(struct sector),
                    PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (r->world == MAP_FAILED)
        die("no memory for the mirror");
    init_sectors(r);
}

static void tear_down_round(struct round *r)
{
    munmap(r->world, sizeof(struct world) + r->size / SECTOR * sizeof(struct sector));
    close(r->base_fd);
}

static struct active_options layer_options(struct round *r)
{
    static const struct digest parent = {{0x5e}};
    struct active_options o = {
        .virtual_size = r->size,
        .cluster_bits = (unsigned)__builtin_ctzll(r->cluster_size),
        .cache_bytes = r->cache_bytes,
    };

    if (r->base_size) {
        o.parent = &parent;
        o.backing = (struct active_backing){.pread = read_base, .ctx = r};
    }
    return o;
}

static void open_layer(struct round *r, bool create)
{
    struct active_options o = layer_options(r);
    struct cairn_error err;
    int rc = create ? active_create(r->image, &o, &r->active, &err)
                    : active_open(r->image, &o, &r->active, &err);

    if (rc)
        die("seed %" PRIu64 ": %s", r->options->seed, err.message);
}

static void close_layer(struct round *r)
{
    struct cairn_error err;

    if (active_close(r->active, &err))
        die("seed %" PRIu64 ": %s", r->options->seed, err.message);
}

static void set_time(struct round *r, uint64_t ms)
{
    clock_gettime(CLOCK_MONOTONIC, &r->until);
    r->until.tv_sec += (time_t)(ms / 1000);
    r->until.tv_nsec += (long)(ms % 1000) * 1000000;
    if (r->until.tv_nsec >= 1000000000) {
        r->until.tv_sec++;
        r->until.tv_nsec -= 1000000000;
    }
}

/* Cut the disk off somewhere and let it grow again: what was past the cut is zeros, once and for
 * all. */
static void cut_and_grow(struct round *r, uint64_t *rng)
{
    uint64_t size = (1 + below(rng, r->size / SECTOR)) * SECTOR;
    uint64_t beneath_size = below(rng, 2) ? r->base_size : UINT64_MAX;
    struct cairn_error err;

    if (active_resize(r->active, size, beneath_size, &err) ||
        active_resize(r->active, r->size, beneath_size, &err))
        die("seed %" PRIu64 ": resize to %" PRIu64 ": %s", r->options->seed, size, err.message);
    for (uint64_t i = size / SECTOR; i < r->size / SECTOR; i++) {
        struct sector *s = &r->world->sectors[i];

        s->exact = s->floor = ++s->issued;
        s->zero_ok = 2;
    }
}

static void one_run(struct round *r)
{
    uint64_t rng = r->seed;
    unsigned times = 1 + (unsigned)below(&rng, 3);

    open_layer(r, true);
    for (unsigned i = 0; i < times; i++) { /* in between it is closed and opened again */
        set_time(r, 200 + below(&rng, 2000));
        work_on(r, next(&rng));
        if (atomic_load(&r->world->failed))
            die("seed %" PRIu64 ": failed", r->options->seed);
        check_content(r);
        close_layer(r);
        check_image(r, false);
        open_layer(r, false);
        if (below(&rng, 2))
            cut_and_grow(r, &rng);
    }
    check_content(r);
    close_layer(r);
    check_as_qemu_reads(r);
}

static void work_until_killed(struct round *r, uint64_t seed)
{
    open_layer(r, false);
    set_time(r, 60000);
    work_on(r, seed);
    _exit(1);
}

static void kill_after(struct round *r, uint64_t us, uint64_t seed)
{
    struct timespec delay = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};
    pid_t pid = fork();
    int status;

    if (pid < 0)
        die("cannot fork: %s", strerror(errno));
    if (pid == 0)
        work_until_killed(r, seed);
    nanosleep(&delay, NULL);
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    if (!WIFSIGNALED(status) || atomic_load(&r->world->failed))
        die("seed %" PRIu64 ": the child failed before it was killed", r->options->seed);
}

static unsigned one_kill_round(struct round *r)
{
    uint64_t rng = r->seed;
    unsigned kills = 3 + (unsigned)below(&rng, 8);

    open_layer(r, true);
    close_layer(r);
    for (unsigned i = 0; i < kills; i++) {
        kill_after(r, 1000 + below(&rng, 300000), next(&rng));
        check_image(r, true);
        open_layer(r, false);
        check_content(r);
        close_layer(r);
        check_image(r, true);
    }
    check_as_qemu_reads(r);
    return kills;
}

static void usage(void)
{
    die("usage: active_stress run|kill [--seconds N] [--seed N] [--threads N] [--dir FOLDER]");
}

static void parse(struct options *o, int argc, char **argv)
{
    if (argc < 2 || (strcmp(argv[1], "run") && strcmp(argv[1], "kill")))
        usage();
    o->kill = argv[1][0] == 'k';
    for (int i = 2; i < argc; i += 2) {
        if (i + 1 == argc)
            usage();
        if (!strcmp(argv[i], "--seconds"))
            o->seconds = (unsigned)strtoul(argv[i + 1], NULL, 10);
        else if (!strcmp(argv[i], "--seed"))
            o->seed = strtoull(argv[i + 1], NULL, 10);
        else if (!strcmp(argv[i], "--threads"))
            o->threads = (unsigned)strtoul(argv[i + 1], NULL, 10);
        else if (!strcmp(argv[i], "--dir"))
            snprintf(o->dir, sizeof(o->dir), "%s", argv[i + 1]);
        else
            usage();
    }
    if (o->threads < 1 || o->threads > MAX_THREADS)
        usage();
}

int main(int argc, char **argv)
{
    struct options options = {.seconds = 10, .threads = 8, .seed = (uint64_t)time(NULL)};
    bool own_dir;
    uint64_t nr_ops = 0, nr_rounds = 0, nr_kills = 0;
    time_t end;

    parse(&options, argc, argv);
    own_dir = options.dir[0] == 0;
    if (own_dir) {
        snprintf(options.dir, sizeof(options.dir), "%s/active-stress-XXXXXX", scratch_base());
        if (!mkdtemp(options.dir))
            die("%s: %s", options.dir, strerror(errno));
    }
    printf("seed %" PRIu64 "\n", options.seed);
    fflush(stdout);
    end = time(NULL) + (time_t)options.seconds;
    do {
        struct round r;

        set_up_round(&r, &options, nr_rounds);
        if (options.kill)
            nr_kills += one_kill_round(&r);
        else
            one_run(&r);
        nr_ops += r.world->nr_ops;
        nr_rounds++;
        tear_down_round(&r);
    } while (time(NULL) < end);
    if (options.kill)
        printf("%" PRIu64 " layers, %" PRIu64 " kills, 0 failures\n", nr_rounds, nr_kills);
    else
        printf("%" PRIu64 " layers, %" PRIu64 " operations, 0 failures\n", nr_rounds, nr_ops);
    return own_dir ? run_command("rm -rf '%s'", options.dir) : 0;
}
