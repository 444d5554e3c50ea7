/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading stored objects again, no faster than told, from where they are kept and not from the
 * memory of this machine: past the page cache (O_DIRECT), where the store has files and they can be
 * read so.  That also leaves the page cache to those who are being served.
 *
 * What cannot be read, or differs, is read once more: a transient failure is not damage.  A store
 * that does not answer is none either; only an I/O error of the object itself is.
 */
#include "scrub_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "clock.h"

#define CHUNK_MAX   (1u << 20)
#define CHUNK_MIN   (16u << 10)
#define CHUNK_ALIGN 4096u
#define CHUNKS_A_S  8                 /* of a low rate */
#define CREDIT_US   UINT64_C(1000000) /* what was slower before may be made up for */

int scrub_read_init(struct scrub_run *run, struct cairn_error *err)
{
    run->due_us = clock_now_us();
    if (posix_memalign(&run->buf, CHUNK_ALIGN, CHUNK_MAX) == 0)
        return CAIRN_OK;
    run->buf = NULL;
    return error_no_memory(err, "a buffer to read into");
}

void scrub_read_release(struct scrub_run *run)
{
    free(run->buf);
}

static size_t chunk_size(const struct scrub_run *run)
{
    uint64_t size = run->rate ? run->rate / CHUNKS_A_S : CHUNK_MAX;

    if (size > CHUNK_MAX)
        return CHUNK_MAX;
    return size < CHUNK_MIN ? CHUNK_MIN : (size_t)(size / CHUNK_ALIGN * CHUNK_ALIGN);
}

int scrub_phase(struct scrub_run *run, const char *phase, uint64_t total, const char *unit,
                struct cairn_error *err)
{
    run->progress = (struct job_progress){.phase = phase, .total = total, .unit = unit};
    return jobs_progress(run->job, &run->progress, err);
}

int scrub_pace(struct scrub_run *run, uint64_t len, struct cairn_error *err)
{
    uint64_t now = clock_now_us();
    int r = jobs_progress(run->job, &run->progress, err);

    if (r || !run->rate)
        return r;
    if (run->due_us + CREDIT_US < now)
        run->due_us = now - CREDIT_US;
    run->due_us += (uint64_t)((double)len * 1e6 / (double)run->rate);
    return run->due_us > now ? jobs_pause(run->job, run->due_us - now, err) : CAIRN_OK;
}

/* -- One object, opened ------------------------------------------------------------------- */

struct object {
    struct source *src; /* NULL: through fd */
    int fd;
    uint64_t size;
};

static void object_release(struct object *o)
{
    source_free(o->src);
    cleanup_close(&o->fd);
}

static int object_open(struct scrub_run *run, const char *key, struct object *o,
                       struct cairn_error *err)
{
    int r = store_open_fd(run->store, key, &o->fd, &o->size, err);

    if (r)
        return r;
    if (o->fd >= 0) {
        fcntl(o->fd, F_SETFL, O_DIRECT); /* where that is possible */
        return CAIRN_OK;
    }
    r = store_open_source(run->store, key, &o->src, err);
    if (!r)
        o->size = o->src->size;
    return r;
}

/* Whole aligned chunks are asked for, so that O_DIRECT does; the last is cut by the file's end. */
static int read_fd(struct scrub_run *run, struct object *o, const char *key, size_t len,
                   uint64_t off, struct cairn_error *err)
{
    const size_t room = (len + CHUNK_ALIGN - 1) / CHUNK_ALIGN * CHUNK_ALIGN;
    ssize_t n;

    do {
        n = pread(o->fd, run->buf, room, (off_t)off);
        if (n < 0 && errno == EINVAL && (fcntl(o->fd, F_GETFL) & O_DIRECT)) {
            fcntl(o->fd, F_SETFL, 0);
            errno = EINTR;
        }
    } while (n < 0 && errno == EINTR);
    if (n < 0)
        return error_set_errno(err, errno, "cannot read %s at %llu", key, (unsigned long long)off);
    if ((size_t)n < len)
        return error_set(err, CAIRN_E_IO, "%s ends at %llu, expected %llu bytes", key,
                         (unsigned long long)off + (unsigned long long)n,
                         (unsigned long long)o->size);
    store_note_sent(run->store, key, len);
    return CAIRN_OK;
}

static int read_chunk(struct scrub_run *run, struct object *o, const char *key, size_t len,
                      uint64_t off, struct cairn_error *err)
{
    return o->src ? source_pread(o->src, run->buf, len, off, err)
                  : read_fd(run, o, key, len, off, err);
}

/* -- Its digest --------------------------------------------------------------------------- */

static int hash_object(struct scrub_run *run, const char *key, bool count,
                       struct digest *ret_digest, uint64_t *ret_size, struct cairn_error *err)
{
    __attribute__((cleanup(object_release))) struct object o = {.fd = -1};
    CLEANUP(hasher_free_p) struct hasher *hasher = NULL;
    const size_t chunk = chunk_size(run);
    int r = object_open(run, key, &o, err);

    if (!r)
        r = hasher_new(&hasher, err);
    for (uint64_t off = 0; !r && off < o.size;) {
        size_t len = o.size - off < chunk ? (size_t)(o.size - off) : chunk;

        r = read_chunk(run, &o, key, len, off, err);
        if (r)
            break;
        hasher_update(hasher, run->buf, len);
        off += len;
        run->progress.done += count ? len : 0;
        scrub_count(run, "bytes", len);
        atomic_fetch_add(&run->scrub->nr_bytes, len);
        r = scrub_pace(run, len, err);
    }
    if (!r)
        hasher_finish(hasher, ret_digest);
    *ret_size = o.size;
    return r;
}

static int verify_once(struct scrub_run *run, const char *key, const struct digest *digest,
                       bool count, enum scrub_verdict *ret_verdict, char problem[SCRUB_PROBLEM_MAX],
                       struct cairn_error *err)
{
    char actual_text[DIGEST_STR_MAX];
    struct cairn_error why;
    struct digest actual;
    uint64_t size = 0;
    int r = hash_object(run, key, count, &actual, &size, &why);

    *ret_verdict = SCRUB_GOOD;
    if (r == CAIRN_E_NOT_FOUND) {
        *ret_verdict = SCRUB_GONE;
    } else if (r == CAIRN_E_IO) {
        *ret_verdict = SCRUB_DAMAGED;
        snprintf(problem, SCRUB_PROBLEM_MAX, "it cannot be read: %.200s", why.message);
    } else if (r) {
        *err = why;
        return r;
    } else if (!digest_equal(&actual, digest)) {
        *ret_verdict = SCRUB_DAMAGED;
        snprintf(problem, SCRUB_PROBLEM_MAX, "its %llu bytes have the digest %s",
                 (unsigned long long)size, digest_format(&actual, actual_text));
    }
    return CAIRN_OK;
}

int scrub_verify(struct scrub_run *run, const char *key, const struct digest *digest, bool count,
                 enum scrub_verdict *ret_verdict, char problem[SCRUB_PROBLEM_MAX],
                 struct cairn_error *err)
{
    int r = verify_once(run, key, digest, count, ret_verdict, problem, err);

    if (!r && *ret_verdict == SCRUB_DAMAGED)
        r = verify_once(run, key, digest, false, ret_verdict, problem, err);
    return r;
}
