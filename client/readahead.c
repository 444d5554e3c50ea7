/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams and windows.
 *
 * A stream is a place from which reads have gone on forwards, in about the order of their offsets:
 * a guest has many reads in flight, and they overtake each other.  After a few of them the reader
 * at the stream's front reads a whole window for all who follow; those that come meanwhile wait for
 * it.  The window grows from one to the next while most of it was asked for, shrinks where not, and
 * a stream whose smallest window did not pay has to prove itself anew.  Reads that belong to no
 * stream, and large ones, go straight to the disk; they replace the stream that was used least
 * recently, which costs a busy one nothing.
 *
 * The disk never changes, so a window is right for ever.  What went wrong with bytes that nobody
 * asked for concerns nobody: when a window fails, its readers read for themselves, except that all
 * believe a service that cannot be reached, for each would wait as long again.
 *
 * The lock covers streams and windows, never a read of the disk.
 */
#include "readahead.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "checked.h"

#define NR_STREAMS 8u
#define LARGE_READ (64u << 10) /* as large as the smallest window: nothing to gain */
#define WINDOW_MIN (64u << 10)
#define WINDOW_MAX (1u << 20)
#define SLACK      (128u << 10) /* how far reads of one stream overtake each other */
#define RUN_MIN    4u           /* reads that make a stream */

struct window {
    unsigned refs; /* of its stream, and of readers */
    bool loaded;
    int code; /* once loaded */
    uint64_t guest_off;
    size_t len;
    size_t used; /* bytes that were asked for */
    struct cairn_error err;
    char bytes[];
};

struct stream {
    uint64_t next; /* behind the farthest read */
    unsigned run;  /* reads that moved next on; 0: unused */
    uint64_t last_used;
    size_t window_len;     /* of the next window */
    struct window *window; /* the latest, may be NULL */
};

struct readahead {
    struct readahead_disk disk;
    pthread_mutex_t lock; /* covers everything below */
    pthread_cond_t loaded;
    uint64_t clock;
    struct stream streams[NR_STREAMS];
};

int readahead_new(const struct readahead_disk *disk, struct readahead **ret_ra,
                  struct cairn_error *err)
{
    struct readahead *ra = calloc(1, sizeof(*ra));

    if (!ra)
        return error_no_memory(err, "read-ahead");
    ra->disk = *disk;
    pthread_mutex_init(&ra->lock, NULL);
    pthread_cond_init(&ra->loaded, NULL);
    *ret_ra = ra;
    return CAIRN_OK;
}

static void window_put_locked(struct window *w)
{
    if (w && --w->refs == 0)
        free(w);
}

void readahead_free(struct readahead *ra)
{
    if (!ra)
        return;
    for (unsigned i = 0; i < NR_STREAMS; i++)
        window_put_locked(ra->streams[i].window);
    pthread_cond_destroy(&ra->loaded);
    pthread_mutex_destroy(&ra->lock);
    free(ra);
}

/* -- Streams -------------------------------------------------------------------------------- */

static bool window_covers(const struct window *w, uint64_t guest_off, size_t len)
{
    return w && guest_off >= w->guest_off && range_in(guest_off - w->guest_off, len, w->len);
}

static bool stream_near(const struct stream *s, uint64_t guest_off)
{
    return s->run > 0 && guest_off + SLACK >= s->next && guest_off <= s->next + SLACK;
}

/* The stream that a read belongs to; *ret_covered: and its window has the bytes, or will have. */
static struct stream *find_stream_locked(struct readahead *ra, uint64_t guest_off, size_t len,
                                         bool *ret_covered)
{
    struct stream *near = NULL;

    for (unsigned i = 0; i < NR_STREAMS; i++) {
        struct stream *s = &ra->streams[i];

        if (window_covers(s->window, guest_off, len)) {
            *ret_covered = true;
            return s;
        }
        if (!near && stream_near(s, guest_off))
            near = s;
    }
    *ret_covered = false;
    return near;
}

static void replace_oldest_locked(struct readahead *ra, uint64_t next)
{
    struct stream *oldest = &ra->streams[0];

    for (unsigned i = 1; i < NR_STREAMS; i++)
        if (ra->streams[i].last_used < oldest->last_used)
            oldest = &ra->streams[i];
    window_put_locked(oldest->window);
    *oldest =
        (struct stream){.next = next, .run = 1, .last_used = ++ra->clock, .window_len = WINDOW_MIN};
}

static void advance_locked(struct readahead *ra, struct stream *s, uint64_t end)
{
    s->last_used = ++ra->clock;
    if (end <= s->next)
        return;
    s->next = end;
    s->run++;
}

/* The size of the stream's next window, by how the last one paid; 0: not yet again. */
static size_t next_window_len(struct stream *s)
{
    const struct window *last = s->window;

    if (!last)
        return s->window_len;
    if (last->used >= last->len / 2)
        return (size_t)min_u64(2 * (uint64_t)s->window_len, WINDOW_MAX);
    if (s->window_len == WINDOW_MIN) {
        s->run = 1;
        return 0;
    }
    return s->window_len / 2;
}

/*
 * A window from the front of the stream on, for a read that is about to move the front to beyond
 * guest_off; NULL if it is no time for one.  It is the stream's, with a reference for the caller,
 * who has to load it.
 */
static struct window *open_window_locked(struct readahead *ra, struct stream *s, uint64_t guest_off,
                                         size_t len)
{
    uint64_t from = min_u64(s->next, guest_off);
    struct window *w;
    size_t want;

    if (s->run < RUN_MIN || guest_off < s->next)
        return NULL;
    want = next_window_len(s);
    window_put_locked(steal_ptr(s->window));
    if (want == 0)
        return NULL;
    s->window_len = want;
    want = (size_t)min_u64(want + SLACK * (from < guest_off), ra->disk.size - from);
    w = malloc(sizeof(*w) + want);
    if (!w)
        return NULL; /* the read itself needs no memory */
    *w = (struct window){.refs = 2, .guest_off = from, .len = want};
    if (!window_covers(w, guest_off, len)) {
        free(w);
        return NULL;
    }
    s->window = w;
    return w;
}

/* -- Reading -------------------------------------------------------------------------------- */

static void load(struct readahead *ra, struct window *w)
{
    int code = ra->disk.pread(ra->disk.ctx, w->bytes, w->len, w->guest_off, &w->err);

    pthread_mutex_lock(&ra->lock);
    w->code = code;
    w->loaded = true;
    pthread_cond_broadcast(&ra->loaded);
    pthread_mutex_unlock(&ra->lock);
}

/* The window that a read is to take its bytes from, with a reference, and whether it has to be
 * loaded first; NULL if the read is on its own. */
static struct window *find_window(struct readahead *ra, uint64_t guest_off, size_t len,
                                  bool *ret_load)
{
    struct window *w = NULL;
    struct stream *s;
    bool covered;

    SCOPED_LOCK(&ra->lock);
    *ret_load = false;
    s = find_stream_locked(ra, guest_off, len, &covered);
    if (!s) {
        replace_oldest_locked(ra, guest_off + len);
        return NULL;
    }
    if (covered) {
        w = s->window;
        w->refs++;
    } else {
        w = open_window_locked(ra, s, guest_off, len);
        *ret_load = w != NULL;
    }
    if (w)
        w->used += len;
    advance_locked(ra, s, guest_off + len);
    return w;
}

static void wait_for(struct readahead *ra, const struct window *w)
{
    SCOPED_LOCK(&ra->lock);
    while (!w->loaded)
        pthread_cond_wait(&ra->loaded, &ra->lock);
}

static void put_window(struct readahead *ra, struct window *w)
{
    SCOPED_LOCK(&ra->lock);
    /* A failed window must not go on failing others. */
    for (unsigned i = 0; i < NR_STREAMS && w->code; i++) {
        if (ra->streams[i].window == w) {
            window_put_locked(steal_ptr(ra->streams[i].window));
            ra->streams[i].run = 1;
        }
    }
    window_put_locked(w);
}

int readahead_pread(struct readahead *ra, void *buf, size_t len, uint64_t guest_off,
                    struct cairn_error *err)
{
    struct window *w;
    bool to_load;
    int code;

    if (len >= LARGE_READ || !(w = find_window(ra, guest_off, len, &to_load)))
        return ra->disk.pread(ra->disk.ctx, buf, len, guest_off, err);
    if (to_load)
        load(ra, w);
    else
        wait_for(ra, w);
    code = w->code;
    if (code == CAIRN_OK)
        memcpy(buf, w->bytes + (guest_off - w->guest_off), len);
    else if (code == CAIRN_E_UNAVAILABLE && err)
        *err = w->err;
    put_window(ra, w);
    if (code == CAIRN_OK || code == CAIRN_E_UNAVAILABLE)
        return code;
    return ra->disk.pread(ra->disk.ctx, buf, len, guest_off, err);
}
