/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Going on to write where a hostile image left off: the active layer is opened on it and does what
 * the script says.  Whatever the image, nothing leaves the file, and it takes no more time and
 * memory than so small an image can need.
 *
 * An image in which a check finds no errors is, for all that the guest can know, a good one: then
 * the disk must read as it does to everybody else, before, meanwhile and after; what was written
 * must read back, and nothing else may have changed; the image must still be without errors, and
 * leak no more than before.  (In an image with wrong refcounts a write may well land in another
 * cluster's data: that is why attaching repairs what a crash left.)
 *
 * A script: a byte of flags, then operations of 6 bytes.
 */
#include <string.h>

#include "active_internal.h"
#include "alloc_meter.h"
#include "bytes.h"
#include "checked.h"
#include "fuzz_disk.h"
#include "fuzz_image.h"
#include "qcow2_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum script_flags {
    SCRIPT_REPAIR = 1,     /* first, as attaching does after a crash */
    SCRIPT_NO_BENEATH = 2, /* there is nothing beneath the layer */
};
#define OPERATION_LEN  6
#define OPERATIONS_MAX 24

/* A file grows, without holding anything there, to the first cluster that is not counted: refcount
 * blocks in 1 MiB count so much. */
#define GROWTH_MAX ((uint64_t)16 << 30)
#define MEMORY_MAX ((size_t)2 << 20) /* for tables, and what operations hold */

/* -- What the disk must show ------------------------------------------------------------------- */

/* Parts of the disk, all of it if it is small. */
#define NR_WINDOWS  8
#define WINDOW_SIZE 8192

struct window {
    uint64_t guest_off;
    uint64_t len;
    bool known;
    uint8_t bytes[WINDOW_SIZE];
};

static struct window windows[NR_WINDOWS];
static bool has_beneath;

/* What lies beneath: every sector another byte, none of them 0. */
static void fill_beneath(uint8_t *buf, size_t len, uint64_t guest_off)
{
    while (len > 0) {
        size_t n = min_u64(len, 512 - guest_off % 512);

        memset(buf, has_beneath ? 0x80 | (int)(guest_off / 512 % 128) : 0, n);
        buf += n;
        guest_off += n;
        len -= n;
    }
}

static int read_beneath(void *ctx, void *buf, size_t len, uint64_t guest_off,
                        struct cairn_error *err)
{
    (void)ctx, (void)err;
    fill_beneath(buf, len, guest_off);
    return CAIRN_OK;
}

static void place_windows(uint64_t virtual_size)
{
    uint64_t reach = min_u64(virtual_size, FUZZ_REACH);
    uint64_t step = max_u64(round_down(reach / NR_WINDOWS, WINDOW_SIZE), WINDOW_SIZE);

    for (unsigned i = 0; i < NR_WINDOWS; i++) {
        uint64_t off = i * step;

        windows[i].guest_off = off;
        windows[i].len = off < reach ? min_u64(WINDOW_SIZE, reach - off) : 0;
        windows[i].known = false;
    }
}

/* The part of a range that lies in a window: false if there is none. */
static bool in_window(const struct window *w, uint64_t guest_off, uint64_t len, uint64_t *ret_off,
                      uint64_t *ret_len)
{
    uint64_t start = max_u64(guest_off, w->guest_off);
    uint64_t end = min_u64(guest_off + len, w->guest_off + w->len);

    if (start >= end)
        return false;
    *ret_off = start - w->guest_off;
    *ret_len = end - start;
    return true;
}

/* What an operation has made of a range; not ok: nobody knows. */
static void note(uint64_t guest_off, uint64_t len, uint8_t byte, bool ok)
{
    uint64_t off, n;

    for (unsigned i = 0; i < NR_WINDOWS; i++) {
        if (!in_window(&windows[i], guest_off, len, &off, &n))
            continue;
        windows[i].known &= ok;
        memset(windows[i].bytes + off, byte, n);
    }
}

/* The disk has a new size: what is added is zeros. */
static void note_size(uint64_t virtual_size, bool ok)
{
    for (unsigned i = 0; i < NR_WINDOWS; i++) {
        struct window *w = &windows[i];
        uint64_t before = w->len;

        w->len =
            w->guest_off < virtual_size ? min_u64(WINDOW_SIZE, virtual_size - w->guest_off) : 0;
        w->known &= ok;
        if (w->len > before)
            memset(w->bytes + before, 0, w->len - before);
    }
}

/* -- Looking from outside ---------------------------------------------------------------------- */

static bool check_image(struct qcow2_check_result *ret_result)
{
    CLEANUP(source_free_p) struct source *src = fuzz_image_source();
    CLEANUP(qcow2_check_free_p) struct qcow2_check *c = NULL;
    struct cairn_error err;

    if (qcow2_check_new(src, NULL, &c, &err) != CAIRN_OK)
        return false;
    *ret_result = *qcow2_check_get_result(c);
    return true;
}

static void repair_image(void)
{
    CLEANUP(source_free_p) struct source *src = fuzz_image_source();
    CLEANUP(qcow2_check_free_p) struct qcow2_check *c = NULL;
    struct hostfile file;
    struct cairn_error err;

    if (qcow2_check_new(src, NULL, &c, &err) != CAIRN_OK)
        return;
    FUZZ_CHECK(hostfile_init(&file, fuzz_image_fd(), "image", &err) == CAIRN_OK);
    file.hook = fuzz_image_hook(GROWTH_MAX);
    (void)qcow2_repair(c, &file, QCOW2_REPAIR_ALL, &err);
    hostfile_release(&file);
}

/* Is the image one that must work?  It may not end within a cluster, where readers find zeros. */
static bool is_good(const struct image *image, struct qcow2_check_result *ret_result)
{
    if (!check_image(ret_result))
        return false;
    return ret_result->corruptions + ret_result->check_errors + ret_result->overlaps == 0 &&
           ret_result->compressed_clusters == 0 &&
           is_aligned(fuzz_image_size(),
                      UINT64_C(1) << bytes_get_be32(image->bytes + QCOW2_HDR_CLUSTER_BITS));
}

/* The windows as a reader of the file sees them: looked at for the first time, or compared. */
static bool look(bool compare)
{
    CLEANUP(source_free_p) struct source *src = fuzz_image_source();
    CLEANUP(layer_free_p) struct layer *layer = NULL;
    static uint8_t buf[WINDOW_SIZE];
    struct fuzz_disk disk;
    struct cairn_error err;
    bool ok;

    if (layer_open(src, LAYER_QCOW2, &layer, &err) != CAIRN_OK)
        return false;
    if (!compare)
        place_windows(layer_get_attr(layer)->virtual_size);
    ok = fuzz_disk_init(&disk, src, layer);
    for (unsigned i = 0; ok && i < NR_WINDOWS; i++) {
        struct window *w = &windows[i];

        ok = fuzz_disk_read(&disk, compare ? buf : w->bytes, w->len, w->guest_off, fill_beneath);
        if (compare && ok && w->known)
            FUZZ_CHECK(memcmp(buf, w->bytes, w->len) == 0);
        if (!compare)
            w->known = ok;
    }
    fuzz_disk_release(&disk);
    return ok;
}

/* -- The active layer -------------------------------------------------------------------------- */

struct session {
    struct active *active;
    bool good, was_open;
    uint64_t virtual_size;
    uint8_t next_byte; /* that is written */
    bool finished;     /* closed without an error */
};

static bool session_open(struct session *s)
{
    const struct active_options options = {.backing = {.pread = has_beneath ? read_beneath : NULL},
                                           .cache_bytes = 1};
    struct cairn_error err;

    if (active_open(fuzz_image_path(), &options, &s->active, &err) != CAIRN_OK) {
        if (s->good && s->was_open)
            FUZZ_CHECK_OK(err.code, &err);
        return false;
    }
    s->was_open = true;
    s->active->file.hook = fuzz_image_hook(GROWTH_MAX);
    s->virtual_size = active_virtual_size(s->active);
    return true;
}

static void compare_windows(const struct session *s)
{
    static uint8_t buf[WINDOW_SIZE];
    struct cairn_error err;

    for (unsigned i = 0; i < NR_WINDOWS && windows[i].len > 0; i++) {
        const struct window *w = &windows[i];

        int rc = active_pread(s->active, buf, w->len, w->guest_off, &err);

        if (!s->good || !w->known)
            continue;
        FUZZ_CHECK_OK(rc, &err);
        FUZZ_CHECK(memcmp(buf, w->bytes, w->len) == 0);
    }
}

/* It may refuse to read what others can: clusters that several entries share. */
static bool can_read_windows(const struct session *s)
{
    static uint8_t buf[WINDOW_SIZE];
    struct cairn_error err;

    for (unsigned i = 0; i < NR_WINDOWS; i++)
        if (windows[i].len > 0 &&
            active_pread(s->active, buf, windows[i].len, windows[i].guest_off, &err) != CAIRN_OK)
            return false;
    return true;
}

/* After a discard each sector is as it was, or zeros. */
static void learn_discarded(const struct session *s, uint64_t guest_off, uint64_t len)
{
    static uint8_t buf[WINDOW_SIZE];
    static const uint8_t zeros[512];
    struct cairn_error err;
    uint64_t off, n;

    for (unsigned i = 0; i < NR_WINDOWS; i++) {
        struct window *w = &windows[i];

        if (!w->known || !in_window(w, guest_off, len, &off, &n))
            continue;
        FUZZ_CHECK_OK(active_pread(s->active, buf, w->len, w->guest_off, &err), &err);
        for (uint64_t at = 0; at < w->len; at += 512)
            FUZZ_CHECK(memcmp(buf + at, w->bytes + at, 512) == 0 ||
                       (at + 512 > off && at < off + n && memcmp(buf + at, zeros, 512) == 0));
        memcpy(w->bytes, buf, w->len);
    }
}

static void write_some(struct session *s, uint64_t guest_off, uint64_t len)
{
    static uint8_t buf[65536];
    struct cairn_error err;
    uint8_t byte = s->next_byte++;

    memset(buf, byte, len);
    note(guest_off, len, byte, active_pwrite(s->active, buf, len, guest_off, &err) == CAIRN_OK);
}

/* To where the range begins, or longer by it. */
static void resize(struct session *s, uint64_t guest_off, uint64_t len, bool longer)
{
    uint64_t to = round_down(longer ? s->virtual_size + len : guest_off, 512);
    struct cairn_error err;
    bool ok = active_resize(s->active, to, UINT64_MAX, &err) == CAIRN_OK;

    s->virtual_size = active_virtual_size(s->active);
    FUZZ_CHECK(!ok || s->virtual_size == to);
    note_size(s->virtual_size, ok);
}

static void map_some(const struct session *s, uint64_t guest_off, uint64_t len)
{
    struct extent extents[4];
    struct cairn_error err;
    size_t nr;

    if (active_map(s->active, guest_off, len, extents, 4, &nr, &err) != CAIRN_OK)
        return;
    for (size_t i = 0; i < nr; i++)
        FUZZ_CHECK(range_in(extents[i].guest_off, extents[i].len, s->virtual_size) &&
                   extents[i].guest_off >= guest_off &&
                   extents[i].guest_off + extents[i].len <= guest_off + len);
}

/* False: there is no active layer any more. */
static bool session_reopen(struct session *s)
{
    struct cairn_error err;
    int rc = active_close(steal_ptr(s->active), &err);

    if (s->good)
        FUZZ_CHECK_OK(rc, &err);
    return session_open(s);
}

enum operation {
    OP_WRITE,
    OP_WRITE_AGAIN, /* twice as likely as the others */
    OP_ZERO,
    OP_UNMAP,
    OP_DISCARD,
    OP_FLUSH,
    OP_COMPARE,
    OP_MAP,
    OP_REOPEN,
    OP_SEAL,
    OP_LONGER,
    OP_SHORTER,
    NR_OPERATIONS,
};

/* Bytes: what, where to (a window, or the disk's end) and how it is aligned, offset, length. */
static bool operate(struct session *s, const uint8_t *op)
{
    const struct window *w = &windows[op[1] % NR_WINDOWS];
    uint64_t align = UINT64_C(1) << (op[1] >> 4);
    uint64_t base =
        op[1] & NR_WINDOWS ? s->virtual_size - min_u64(s->virtual_size, 65536) : w->guest_off;
    uint64_t guest_off = min_u64(round_down(base + bytes_get_be16(op + 2), align), s->virtual_size);
    uint64_t len = min_u64(round_up(bytes_get_be16(op + 4), min_u64(align, 32768)),
                           min_u64(s->virtual_size - guest_off, 65536));
    struct cairn_error err;

    switch ((enum operation)(op[0] % NR_OPERATIONS)) {
    case OP_WRITE:
    case OP_WRITE_AGAIN:
        write_some(s, guest_off, len);
        break;
    case OP_ZERO:
    case OP_UNMAP:
        note(guest_off, len, 0,
             active_zero(s->active, len, guest_off, op[0] % NR_OPERATIONS == OP_UNMAP, &err) ==
                 CAIRN_OK);
        break;
    case OP_DISCARD:
        if (active_discard(s->active, len, guest_off, &err) != CAIRN_OK)
            note(guest_off, len, 0, false);
        else if (s->good)
            learn_discarded(s, guest_off, len);
        break;
    case OP_FLUSH:
        (void)active_flush(s->active, &err);
        break;
    case OP_COMPARE:
        compare_windows(s);
        break;
    case OP_MAP:
        map_some(s, guest_off, len);
        break;
    case OP_REOPEN:
        return session_reopen(s);
    case OP_SEAL:
        (void)active_seal(s->active, &err);
        break;
    case OP_LONGER:
    case OP_SHORTER:
        resize(s, guest_off, bytes_get_be16(op + 4), op[0] % NR_OPERATIONS == OP_LONGER);
        break;
    case NR_OPERATIONS:
    default:
        break;
    }
    return true;
}

/* Not even wrong refcounts make the header somebody's data. */
static void check_header(const struct image *image)
{
    FUZZ_CHECK(bytes_get_be32(image->bytes + QCOW2_HDR_MAGIC) == QCOW2_MAGIC &&
               bytes_get_be32(image->bytes + QCOW2_HDR_VERSION) == 3);
}

static void run(struct session *s, const struct image *image)
{
    const uint8_t *script = image->script + 1;
    size_t len = image->script_len - 1;
    struct cairn_error err;
    bool open = session_open(s);
    int rc;

    if (open) {
        s->good = s->good && can_read_windows(s);
        compare_windows(s);
    }
    for (unsigned i = 0; open && i < OPERATIONS_MAX && len >= OPERATION_LEN; i++) {
        open = operate(s, script);
        script += OPERATION_LEN;
        len -= OPERATION_LEN;
    }
    if (!open)
        return;
    compare_windows(s);
    rc = active_close(s->active, &err);
    if (s->good)
        FUZZ_CHECK_OK(rc, &err);
    s->finished = rc == CAIRN_OK;
    check_header(image);
}

/* -- Before and after -------------------------------------------------------------------------- */

static const struct image *prepare(const uint8_t *data, size_t size)
{
    const struct image *image = fuzz_image_open(data, size);

    if (image->script_len > 0 && (image->script[0] & SCRIPT_REPAIR))
        repair_image();
    return image;
}

/* What leaks once the file is longer: refcounts past its end count nothing that is there yet. */
static uint64_t leaks_to_come(const uint8_t *data, size_t size)
{
    struct qcow2_check_result r;

    fuzz_image_close();
    prepare(data, size);
    fuzz_image_resize(fuzz_image_size() + GROWTH_MAX);
    FUZZ_CHECK(check_image(&r));
    return r.leaks;
}

/* A good image is as good as before. */
static void check_afterwards(const uint8_t *data, size_t size, uint64_t leaks)
{
    struct qcow2_check_result r;

    FUZZ_CHECK(check_image(&r));
    FUZZ_CHECK(r.corruptions + r.check_errors + r.overlaps == 0);
    FUZZ_CHECK(look(true));
    if (r.leaks > leaks)
        FUZZ_CHECK(r.leaks <= leaks_to_come(data, size));
}

/* What a session may hold.  The header is read with the cluster that it is in, as far as the file
 * goes; a repair may have made that longer. */
static size_t memory_max(void)
{
    return MEMORY_MAX + (size_t)min_u64(fuzz_image_size(), UINT64_C(1) << QCOW2_CLUSTER_BITS_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct session s = {.next_byte = 1};
    struct qcow2_check_result before;
    const struct image *image = prepare(data, size);
    bool has_script = image->script_len > 0;

    has_beneath = has_script && !(image->script[0] & SCRIPT_NO_BENEATH);
    s.good = is_good(image, &before) && look(false);
    if (!s.good)
        place_windows(FUZZ_REACH);
    alloc_meter_start(memory_max());
    if (has_script)
        run(&s, image);
    alloc_meter_stop();
    if (s.good && s.finished)
        check_afterwards(data, size, before.leaks);
    fuzz_image_close();
    return 0;
}
