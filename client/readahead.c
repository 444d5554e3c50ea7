/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams and windows.
 *
 * A stream is a place from which reads have gone on forwards, in about the order of their offsets:
 * a guest has many reads in flight, and they overtake each other.  After a few of them the reader
 * at the stream's front reads a whole window for all who follow; those that come meanwhile wait for
 * it.  Once half of a window was asked for, the next, twice as large, is loaded in the background;
 * a window of which less was asked for is followed by a smaller one, when a reader comes to need
 * it, and a stream whose smallest window did not pay has to prove itself anew.  So has one whose
 * window was on this host already.  Reads that belong to no stream, and large ones, go straight to
 * the disk; they replace the stream that was used least recently, which costs a busy one nothing.
 *
 * The disk never changes, so a window is right for ever.  What went wrong with bytes that nobody
 * asked for concerns nobody: when a window fails, its readers read for themselves, except that all
 * who waited for it believe a service that cannot be reached, for each would wait as long again.
 *
 * The lock covers streams and windows, never a read of the disk.
 */
#include "readahead.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/queue.h>

#include "checked.h"

#define NR_STREAMS 8u
#define WINDOW_MIN READAHEAD_LARGE
#define WINDOW_MAX (1u << 20)
#define SLACK      (128u << 10) /* how far reads of one stream overtake each other */
#define RUN_MIN    4u           /* reads that make a stream */

enum window_state { WINDOW_QUEUED, WINDOW_LOADING, WINDOW_LOADED };

struct window {
    STAILQ_ENTRY(window) queued;
    unsigned refs; /* of its stream, of readers, of the queue */
    enum window_state state;
    int code;  /* once loaded */
    bool near; /* once loaded: it was on this host */
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
    size_t window_len;     /* of the latest window */
    struct window *window; /* where reads are; may be NULL */
    struct window *ahead;  /* goes on where window ends; may be NULL */
};

struct readahead {
    struct readahead_disk disk;
    pthread_mutex_t lock; /* covers everything below */
    pthread_cond_t loaded, queued;
    uint64_t clock;
    struct stream streams[NR_STREAMS];
    STAILQ_HEAD(, window) queue;
    bool has_loader, stopping;
    pthread_t loader;
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
    pthread_cond_init(&ra->queued, NULL);
    STAILQ_INIT(&ra->queue);
    *ret_ra = ra;
    return CAIRN_OK;
}

static void window_put_locked(struct window *w)
{
    if (w && --w->refs == 0)
        free(w);
}

static void drop_windows_locked(struct stream *s)
{
    window_put_locked(steal_ptr(s->window));
    window_put_locked(steal_ptr(s->ahead));
}

static void stop_loader(struct readahead *ra)
{
    pthread_mutex_lock(&ra->lock);
    ra->stopping = true;
    pthread_cond_signal(&ra->queued);
    pthread_mutex_unlock(&ra->lock);
    pthread_join(ra->loader, NULL);
}

void readahead_free(struct readahead *ra)
{
    if (!ra)
        return;
    if (ra->has_loader)
        stop_loader(ra);
    for (unsigned i = 0; i < NR_STREAMS; i++)
        drop_windows_locked(&ra->streams[i]);
    pthread_cond_destroy(&ra->queued);
    pthread_cond_destroy(&ra->loaded);
    pthread_mutex_destroy(&ra->lock);
    free(ra);
}

/* -- Loading -------------------------------------------------------------------------------- */

static void load_locked(struct readahead *ra, struct window *w)
{
    bool near = false;
    int code;

    w->state = WINDOW_LOADING;
    pthread_mutex_unlock(&ra->lock);
    code = ra->disk.pread(ra->disk.ctx, w->bytes, w->len, w->guest_off, &near, &w->err);
    pthread_mutex_lock(&ra->lock);
    w->code = code;
    w->near = near;
    w->state = WINDOW_LOADED;
    pthread_cond_broadcast(&ra->loaded);
}

static void unqueue_locked(struct readahead *ra, struct window *w)
{
    STAILQ_REMOVE(&ra->queue, w, window, queued);
    window_put_locked(w);
}

/* The thread that loads windows in the background.  A window of which only the queue's reference
 * is left is wanted by nobody any more. */
static void *run_loader(void *arg)
{
    struct readahead *ra = arg;
    SCOPED_LOCK(&ra->lock);

    for (;;) {
        struct window *w = STAILQ_FIRST(&ra->queue);

        if (!w && ra->stopping)
            return NULL;
        if (!w) {
            pthread_cond_wait(&ra->queued, &ra->lock);
            continue;
        }
        STAILQ_REMOVE_HEAD(&ra->queue, queued);
        if (w->refs > 1 && !ra->stopping)
            load_locked(ra, w);
        window_put_locked(w);
    }
}

static bool start_loader_locked(struct readahead *ra)
{
    if (!ra->has_loader)
        ra->has_loader = pthread_create(&ra->loader, NULL, run_loader, ra) == 0;
    return ra->has_loader;
}

/* Have the window loaded, by this thread if nobody has begun. */
static void await_locked(struct readahead *ra, struct window *w)
{
    if (w->state == WINDOW_QUEUED) {
        unqueue_locked(ra, w);
        load_locked(ra, w);
    }
    while (w->state != WINDOW_LOADED)
        pthread_cond_wait(&ra->loaded, &ra->lock);
}

/* -- Streams -------------------------------------------------------------------------------- */

static uint64_t window_end(const struct window *w)
{
    return w->guest_off + w->len;
}

static bool window_has(const struct window *w, uint64_t guest_off)
{
    return w && guest_off >= w->guest_off && guest_off < window_end(w);
}

/* Do the stream's windows hold the range, or will they? */
static bool stream_covers(const struct stream *s, uint64_t guest_off, size_t len)
{
    uint64_t end = guest_off + len;

    if (window_has(s->window, guest_off))
        return end <= window_end(s->ahead ? s->ahead : s->window);
    return window_has(s->ahead, guest_off) && end <= window_end(s->ahead);
}

static bool stream_near(const struct stream *s, uint64_t guest_off)
{
    return s->run > 0 && guest_off + SLACK >= s->next && guest_off <= s->next + SLACK;
}

/* The stream that a read belongs to, if any. */
static struct stream *find_stream_locked(struct readahead *ra, uint64_t guest_off, size_t len)
{
    struct stream *near = NULL;

    for (unsigned i = 0; i < NR_STREAMS; i++) {
        struct stream *s = &ra->streams[i];

        if (stream_covers(s, guest_off, len))
            return s;
        if (!near && stream_near(s, guest_off))
            near = s;
    }
    return near;
}

static void replace_oldest_locked(struct readahead *ra, uint64_t next)
{
    struct stream *oldest = &ra->streams[0];

    for (unsigned i = 1; i < NR_STREAMS; i++)
        if (ra->streams[i].last_used < oldest->last_used)
            oldest = &ra->streams[i];
    drop_windows_locked(oldest);
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

static bool window_paid(const struct window *w)
{
    return w->used >= w->len / 2;
}

/* The size of the stream's next window, by how the last one did; 0: not yet again. */
static size_t next_window_len(struct stream *s)
{
    const struct window *last = s->window;

    if (!last)
        return s->window_len;
    if (window_paid(last) && !last->near)
        return (size_t)min_u64(2 * (uint64_t)s->window_len, WINDOW_MAX);
    if (s->window_len <= WINDOW_MIN || last->near) { /* less: at the end of the disk */
        s->run = 1;
        s->window_len = WINDOW_MIN;
        return 0;
    }
    return s->window_len / 2;
}

/* A window that is to be loaded, with one reference; NULL: there is no memory, or nothing to read.
 * Not to read ahead is no error. */
static struct window *window_new(const struct readahead *ra, uint64_t guest_off, size_t len)
{
    struct window *w = NULL;

    if (guest_off < ra->disk.size)
        len = (size_t)min_u64(len, ra->disk.size - guest_off);
    if (guest_off < ra->disk.size)
        w = malloc(sizeof(*w) + len);
    if (w)
        *w = (struct window){.refs = 1, .guest_off = guest_off, .len = len};
    return w;
}

/*
 * A window from the front of the stream on, for a read beyond what its windows hold; false if it
 * is no time for one.
 */
static bool open_window_locked(struct readahead *ra, struct stream *s, uint64_t guest_off,
                               size_t len)
{
    size_t want;

    if (s->run < RUN_MIN || guest_off < s->next)
        return false;
    want = next_window_len(s);
    drop_windows_locked(s);
    if (want == 0)
        return false;
    s->window_len = want;
    s->window = window_new(ra, s->next, want + SLACK * (s->next < guest_off));
    if (!s->window)
        return false;
    if (!stream_covers(s, guest_off, len)) {
        drop_windows_locked(s);
        return false;
    }
    s->window->state = WINDOW_LOADING; /* by the caller */
    return true;
}

/* Once a window has paid, what follows it is loaded in the background. */
static void queue_ahead_locked(struct readahead *ra, struct stream *s)
{
    const struct window *w = s->window;
    struct window *ahead;

    if (!w || s->ahead || w->state != WINDOW_LOADED || w->code || w->near || !window_paid(w))
        return;
    ahead = window_new(ra, window_end(w), (size_t)min_u64(2 * (uint64_t)w->len, WINDOW_MAX));
    if (!ahead || !start_loader_locked(ra)) {
        free(ahead);
        return;
    }
    s->window_len = ahead->len;
    s->ahead = ahead;
    ahead->refs++;
    STAILQ_INSERT_TAIL(&ra->queue, ahead, queued);
    pthread_cond_signal(&ra->queued);
}

/* A read that the stream's windows cover: count it, and go on to the next window if it is there. */
static void use_windows_locked(struct readahead *ra, struct stream *s, uint64_t guest_off,
                               size_t len)
{
    if (window_has(s->window, guest_off)) {
        s->window->used += len;
    } else {
        s->ahead->used += len;
        window_put_locked(s->window);
        s->window = steal_ptr(s->ahead);
    }
    queue_ahead_locked(ra, s);
}

/* Forget a window that failed: it must not go on failing others. */
static void forget_failed_locked(struct readahead *ra)
{
    for (unsigned i = 0; i < NR_STREAMS; i++) {
        struct stream *s = &ra->streams[i];

        if ((s->window && s->window->state == WINDOW_LOADED && s->window->code) ||
            (s->ahead && s->ahead->state == WINDOW_LOADED && s->ahead->code)) {
            drop_windows_locked(s);
            s->run = 1;
        }
    }
}

/* -- Reading -------------------------------------------------------------------------------- */

/* What a read takes its bytes from: one window, or one and the next. */
struct sources {
    struct window *first, *second; /* referenced; first NULL: the read is on its own */
};

static struct sources take_sources_locked(struct stream *s, uint64_t guest_off, size_t len)
{
    struct sources from = {.first = window_has(s->window, guest_off) ? s->window : s->ahead};

    if (guest_off + len > window_end(from.first))
        from.second = s->ahead;
    from.first->refs++;
    if (from.second)
        from.second->refs++;
    return from;
}

static struct sources find_sources_locked(struct readahead *ra, uint64_t guest_off, size_t len)
{
    struct sources from = {0};
    struct stream *s;
    bool opened = false;

    forget_failed_locked(ra);
    s = find_stream_locked(ra, guest_off, len);
    if (!s) {
        replace_oldest_locked(ra, guest_off + len);
        return from;
    }
    if (stream_covers(s, guest_off, len) || (opened = open_window_locked(ra, s, guest_off, len))) {
        from = take_sources_locked(s, guest_off, len);
        use_windows_locked(ra, s, guest_off, len);
    }
    advance_locked(ra, s, guest_off + len);
    if (opened)
        load_locked(ra, from.first);
    return from;
}

/* Have them loaded; how that went. */
static int await_sources_locked(struct readahead *ra, const struct sources *from,
                                struct cairn_error *err)
{
    const struct window *failed = from->first;

    await_locked(ra, from->first);
    if (from->second && from->first->code == CAIRN_OK) {
        await_locked(ra, from->second);
        failed = from->second;
    }
    if (failed->code != CAIRN_OK && err)
        *err = failed->err;
    return failed->code;
}

static void copy_out(const struct sources *from, char *buf, size_t len, uint64_t guest_off)
{
    size_t at = (size_t)(guest_off - from->first->guest_off);
    size_t n = (size_t)min_u64(len, from->first->len - at);

    memcpy(buf, from->first->bytes + at, n);
    if (from->second)
        memcpy(buf + n, from->second->bytes, len - n);
}

static void put_sources(struct readahead *ra, const struct sources *from)
{
    SCOPED_LOCK(&ra->lock);
    window_put_locked(from->first);
    window_put_locked(from->second);
}

/* Read through windows; false: on its own, then. */
static bool pread_windows(struct readahead *ra, void *buf, size_t len, uint64_t guest_off,
                          int *ret_code, struct cairn_error *err)
{
    struct sources from;

    pthread_mutex_lock(&ra->lock);
    from = find_sources_locked(ra, guest_off, len);
    *ret_code = from.first ? await_sources_locked(ra, &from, err) : CAIRN_OK;
    pthread_mutex_unlock(&ra->lock);
    if (!from.first)
        return false;
    if (*ret_code == CAIRN_OK)
        copy_out(&from, buf, len, guest_off);
    put_sources(ra, &from);
    return *ret_code == CAIRN_OK || *ret_code == CAIRN_E_UNAVAILABLE;
}

int readahead_pread(struct readahead *ra, void *buf, size_t len, uint64_t guest_off,
                    struct cairn_error *err)
{
    bool near;
    int code;

    if (len < READAHEAD_LARGE && pread_windows(ra, buf, len, guest_off, &code, err))
        return code;
    return ra->disk.pread(ra->disk.ctx, buf, len, guest_off, &near, err);
}

void readahead_note(struct readahead *ra, size_t len, uint64_t guest_off)
{
    struct stream *s;

    if (pthread_mutex_trylock(&ra->lock) != 0)
        return;
    s = find_stream_locked(ra, guest_off, len);
    if (s) {
        if (stream_covers(s, guest_off, len))
            use_windows_locked(ra, s, guest_off, len);
        advance_locked(ra, s, guest_off + len);
    }
    pthread_mutex_unlock(&ra->lock);
}
