/* SPDX-License-Identifier: Apache-2.0 */
/*
 * active_script: an active layer, driven by a script, for tests that compare it with QEMU.
 *
 *   active_script IMAGE BACKING OUT < SCRIPT
 *
 * BACKING is a raw file of what lies beneath, past whose end are zeros, or "-" for nothing.  Bytes
 * read go to OUT, one after another; maps go to stdout.  One command a line, sizes and offsets in
 * bytes:
 *
 *   create SIZE CLUSTER_BITS     open CACHE_BYTES (0: the default)
 *   write OFF LEN FILE           the bytes of FILE, again and again
 *   zero OFF LEN                 keeps host clusters
 *   unmap OFF LEN                zero, and frees them
 *   discard OFF LEN              flush
 *   read OFF LEN                 map
 *   resize SIZE BENEATH          the size of what lies beneath, 2^64 - 1: not known
 *   seal                         close
 *   kill                         the process, at once
 *
 * The first command that fails ends it: `line N: the error` on stderr, exit code 1.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "active.h"
#include "checked.h"

struct script {
    const char *image;
    int backing_fd; /* -1: nothing beneath */
    FILE *out;
    struct active *active;
    unsigned line;
};

struct command {
    uint64_t off, len; /* the first and the second number */
    char file[1024];
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

static void *allocate(uint64_t len)
{
    void *buf = malloc(len ? (size_t)len : 1);

    if (!buf)
        die("no memory for %" PRIu64 " bytes", len);
    return buf;
}

/* -- What lies beneath ------------------------------------------------------------------------- */

static int read_backing(void *ctx, void *buf, size_t len, uint64_t guest_off,
                        struct cairn_error *err)
{
    const struct script *s = ctx;
    size_t done = 0;

    while (done < len) {
        ssize_t n =
            pread(s->backing_fd, (uint8_t *)buf + done, len - done, (off_t)(guest_off + done));

        if (n < 0)
            return error_set_errno(err, errno, "the backing file");
        if (n == 0)
            break;
        done += (size_t)n;
    }
    memset((uint8_t *)buf + done, 0, len - done);
    return CAIRN_OK;
}

static struct active_options layer_options(struct script *s)
{
    static const struct digest parent = {{0xd1, 0xff}};
    struct active_options options = {0};

    if (s->backing_fd >= 0) {
        options.parent = &parent;
        options.backing = (struct active_backing){.pread = read_backing, .ctx = s};
    }
    return options;
}

/* -- Commands ---------------------------------------------------------------------------------- */

static int do_create(struct script *s, const struct command *c, struct cairn_error *err)
{
    struct active_options options = layer_options(s);

    options.virtual_size = c->off;
    options.cluster_bits = (unsigned)c->len;
    return active_create(s->image, &options, &s->active, err);
}

static int do_open(struct script *s, const struct command *c, struct cairn_error *err)
{
    struct active_options options = layer_options(s);

    options.cache_bytes = (size_t)c->off;
    return active_open(s->image, &options, &s->active, err);
}

static int do_close(struct script *s, const struct command *c, struct cairn_error *err)
{
    struct active *a = steal_ptr(s->active);

    (void)c;
    return active_close(a, err);
}

/* The bytes of a file, repeated. */
static void fill(uint8_t *buf, uint64_t len, const char *path)
{
    FILE *f = fopen(path, "rb");
    size_t have = f ? fread(buf, 1, (size_t)len, f) : 0;

    if (have == 0)
        die("%s: cannot be read, or is empty", path);
    fclose(f);
    for (uint64_t i = have; i < len; i++)
        buf[i] = buf[i - have];
}

static int do_write(struct script *s, const struct command *c, struct cairn_error *err)
{
    CLEANUP_FREE uint8_t *buf = allocate(c->len);

    fill(buf, c->len, c->file);
    return active_pwrite(s->active, buf, (size_t)c->len, c->off, err);
}

static int do_zero(struct script *s, const struct command *c, struct cairn_error *err)
{
    return active_zero(s->active, c->len, c->off, false, err);
}

static int do_unmap(struct script *s, const struct command *c, struct cairn_error *err)
{
    return active_zero(s->active, c->len, c->off, true, err);
}

static int do_discard(struct script *s, const struct command *c, struct cairn_error *err)
{
    return active_discard(s->active, c->len, c->off, err);
}

static int do_flush(struct script *s, const struct command *c, struct cairn_error *err)
{
    (void)c;
    return active_flush(s->active, err);
}

static int do_read(struct script *s, const struct command *c, struct cairn_error *err)
{
    CLEANUP_FREE uint8_t *buf = allocate(c->len);
    int rc = active_pread(s->active, buf, (size_t)c->len, c->off, err);

    if (!rc && fwrite(buf, 1, (size_t)c->len, s->out) != c->len)
        rc = error_set_errno(err, errno, "cannot write what was read");
    return rc;
}

/* One line for each extent: kind (enum extent_kind), guest offset, length, host offset. */
static int do_map(struct script *s, const struct command *c, struct cairn_error *err)
{
    uint64_t size = active_virtual_size(s->active);

    (void)c;
    for (uint64_t off = 0; off < size;) {
        struct extent e;
        size_t nr;
        int rc = active_map(s->active, off, size - off, &e, 1, &nr, err);

        if (rc)
            return rc;
        printf("%u %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", e.kind, e.guest_off, e.len, e.host_off);
        off += e.len;
    }
    return CAIRN_OK;
}

static int do_resize(struct script *s, const struct command *c, struct cairn_error *err)
{
    return active_resize(s->active, c->off, c->len, err);
}

static int do_seal(struct script *s, const struct command *c, struct cairn_error *err)
{
    (void)c;
    return active_seal(s->active, err);
}

static int do_kill(struct script *s, const struct command *c, struct cairn_error *err)
{
    (void)c;
    (void)err;
    fflush(s->out);
    fflush(stdout);
    raise(SIGKILL);
    return CAIRN_OK;
}

static const struct verb {
    const char *name;
    int nr_args;
    bool opens; /* else the layer must be open */
    int (*run)(struct script *s, const struct command *c, struct cairn_error *err);
} verbs[] = {
    {"create", 2, true, do_create}, {"open", 1, true, do_open},
    {"close", 0, false, do_close},  {"write", 3, false, do_write},
    {"zero", 2, false, do_zero},    {"unmap", 2, false, do_unmap},
    {"flush", 0, false, do_flush},  {"discard", 2, false, do_discard},
    {"read", 2, false, do_read},    {"resize", 2, false, do_resize},
    {"map", 0, false, do_map},      {"seal", 0, false, do_seal},
    {"kill", 0, false, do_kill},
};

static const struct verb *find_verb(const char *name)
{
    for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++)
        if (strcmp(name, verbs[i].name) == 0)
            return &verbs[i];
    return NULL;
}

static void run_line(struct script *s, const char *line)
{
    struct command c = {0};
    struct cairn_error err;
    char name[16] = "";
    int nr = sscanf(line, "%15s %" SCNu64 " %" SCNu64 " %1023s", name, &c.off, &c.len, c.file);
    const struct verb *verb = find_verb(name);

    if (!verb || nr - 1 != verb->nr_args || verb->opens != !s->active)
        die("line %u: not possible here: %s", s->line, line);
    if (verb->run(s, &c, &err))
        die("line %u: %s: %s", s->line, name, err.message);
}

int main(int argc, char **argv)
{
    struct script s = {.backing_fd = -1};
    struct cairn_error err;
    char line[1200];

    if (argc != 4)
        die("usage: active_script IMAGE BACKING OUT < SCRIPT");
    s.image = argv[1];
    if (strcmp(argv[2], "-") != 0 && (s.backing_fd = open(argv[2], O_RDONLY | O_CLOEXEC)) < 0)
        die("%s: %s", argv[2], strerror(errno));
    s.out = fopen(argv[3], "wb");
    if (!s.out)
        die("%s: %s", argv[3], strerror(errno));
    while (fgets(line, sizeof(line), stdin)) {
        s.line++;
        run_line(&s, line);
    }
    if (active_close(s.active, &err))
        die("at the end: %s", err.message);
    if (fclose(s.out))
        die("%s: %s", argv[3], strerror(errno));
    if (s.backing_fd >= 0)
        close(s.backing_fd);
    return 0;
}
