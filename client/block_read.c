/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A run of extents is cut into pieces of one layer each, small enough for one look-up in the
 * cache.  What the cache does not have of a piece are gaps, runs of blocks.  Gaps that adjoin in
 * guest space are fetched together: from the layer's blob if they adjoin there, too, in whole
 * blocks; else as guest bytes, and then a block that the run holds a part of only is not kept.
 *
 * Gaps are claimed before they are fetched, and looked at again once they are claimed, for somebody
 * may just have filled them.  While others hold a gap we wait, holding nothing ourselves: so nobody
 * waits in a circle.  Whoever takes too long over it is not waited for: the gap is fetched twice.
 */
#include "block_read.h"

#include <string.h>

#include "checked.h"

#define NR_PIECES 16u
#define NR_GAPS   16u
/* Longer than a fetch takes; a process that was stopped in the middle of one costs us this, once
 * in a while. */
#define CLAIM_WAIT_MS 5000u
/* Others may claim it again and again, each for a part of it, or failing. */
#define CLAIM_TRIES 8u

struct piece {
    uint32_t ordinal;
    struct block_layer *layer; /* NULL: nothing is cached */
    bool borrowed;
    uint64_t layer_size;
    uint64_t host_off, guest_off;
    size_t len; /* inside the layer */
    uint8_t *buf;
    struct block_set missing;
};

struct gap {
    struct piece *piece;
    uint64_t first;
    unsigned nr;
    struct block_claim claim;
};

static uint64_t gap_host_off(const struct gap *g)
{
    return g->first * BLOCK_SIZE;
}

/* Where the gap's blocks end in the layer. */
static uint64_t gap_host_end(const struct gap *g)
{
    return min_u64((g->first + g->nr) * BLOCK_SIZE, g->piece->layer_size);
}

/* The part of the gap that the piece wants, as offset in the piece and length. */
static size_t gap_wanted(const struct gap *g, size_t *ret_len)
{
    uint64_t from = max_u64(gap_host_off(g), g->piece->host_off);
    uint64_t to = min_u64(gap_host_end(g), g->piece->host_off + g->piece->len);

    *ret_len = (size_t)(to - from);
    return (size_t)(from - g->piece->host_off);
}

/* -- Pieces ----------------------------------------------------------------------------------- */

static unsigned look(struct piece *p)
{
    if (p->layer)
        return block_layer_read(p->layer, p->buf, p->len, p->host_off, &p->missing);
    p->missing.first = p->host_off / BLOCK_SIZE;
    p->missing.nr = (unsigned)(div_round_up(p->host_off + p->len, BLOCK_SIZE) - p->missing.first);
    memset(p->missing.bits, 0xff, sizeof(p->missing.bits));
    return p->missing.nr;
}

static void piece_release(struct piece *p)
{
    if (!p->borrowed)
        block_layer_unref(p->layer);
}

/* A place in a run of extents. */
struct cursor {
    const struct extent *run;
    size_t nr, at;
    uint64_t done; /* of run[at] */
    uint8_t *buf;
};

/* The piece of a layer where the cursor is.  The layer's place in the cache knows its size, too:
 * for a read of one of thousands of layers, one thing less to bring into the processor's cache. */
static void open_piece(const struct block_fetch *fetch, const struct cursor *c, struct piece *p)
{
    const struct extent *e = &c->run[c->at];
    uint64_t stored;

    *p = (struct piece){.ordinal = e->layer,
                        .host_off = e->host_off + c->done,
                        .guest_off = e->guest_off + c->done,
                        .buf = c->buf};
    p->layer = fetch->open(fetch->ctx, e->layer, &p->borrowed);
    p->layer_size = p->layer ? block_layer_size(p->layer) : fetch->layer_size(fetch->ctx, e->layer);
    stored = p->host_off < p->layer_size ? p->layer_size - p->host_off : 0;
    p->len = (size_t)min_u64(min_u64(e->len - c->done, stored), BLOCK_SPAN);
}

static void advance(struct cursor *c, uint64_t len)
{
    c->buf += len;
    c->done += len;
    if (c->done < c->run[c->at].len)
        return;
    c->done = 0;
    c->at++;
}

/* The next piece; what lies past the end of its layer becomes zeros at once. */
static bool next_piece(const struct block_fetch *fetch, struct cursor *c, struct piece *p)
{
    while (c->at < c->nr) {
        uint64_t rest = c->run[c->at].len - c->done;

        open_piece(fetch, c, p);
        if (p->len > 0) {
            advance(c, p->len);
            return true;
        }
        piece_release(p);
        memset(c->buf, 0, (size_t)rest);
        advance(c, rest);
    }
    return false;
}

/* -- Fetching gaps ---------------------------------------------------------------------------- */

static bool claim(struct gap *g)
{
    return !g->piece->layer || block_claim_try(g->piece->layer, g->first, g->nr, &g->claim);
}

/* Look again at a gap: somebody may have filled it, or a part of it, meanwhile. */
static unsigned look_again(const struct gap *g, struct block_set *ret_missing)
{
    size_t len, at = gap_wanted(g, &len);

    if (!g->piece->layer)
        return g->nr;
    return block_layer_read(g->piece->layer, g->piece->buf + at, len, g->piece->host_off + at,
                            ret_missing);
}

/* Does b's layer go on where a ends, for the guest, too?  That blocks adjoin does not say so: of
 * clusters smaller than a block the layer may hold others between the two. */
static bool is_one_range(const struct gap *a, const struct gap *b)
{
    return a->piece->ordinal == b->piece->ordinal &&
           a->piece->host_off + a->piece->len == b->piece->host_off &&
           gap_host_end(a) == gap_host_off(b);
}

static void keep(const struct gap *g, const uint8_t *blocks)
{
    if (g->piece->layer)
        block_layer_write(g->piece->layer, blocks, g->first, g->nr);
}

/* Gaps that are one range of one layer: as whole blocks, beside the guest's buffer where that wants
 * only a part of them. */
static int fetch_blocks(const struct block_fetch *fetch, const struct gap *gaps, unsigned nr,
                        struct cairn_error *err)
{
    const struct piece *first = gaps[0].piece, *last = gaps[nr - 1].piece;
    uint64_t off = gap_host_off(&gaps[0]), end = gap_host_end(&gaps[nr - 1]);
    CLEANUP_FREE uint8_t *beside = NULL;
    uint8_t *blocks;
    int ret;

    if (off < first->host_off || end > last->host_off + last->len) {
        beside = malloc((size_t)(end - off));
        if (!beside)
            return error_no_memory(err, "blocks to be cached");
    }
    blocks = beside ? beside : first->buf + (off - first->host_off);
    ret = fetch->layer(fetch->ctx, first->ordinal, blocks, (size_t)(end - off), off, err);
    for (unsigned i = 0; ret == CAIRN_OK && i < nr; i++) {
        const struct gap *g = &gaps[i];
        size_t len, at = gap_wanted(g, &len);

        keep(g, blocks + (gap_host_off(g) - off));
        if (beside)
            memcpy(g->piece->buf + at, beside + (g->piece->host_off + at - off), len);
    }
    return ret;
}

/* Keep the blocks that lie in what the guest wanted. */
static void keep_whole(const struct gap *g)
{
    struct gap whole = {.piece = g->piece, .first = g->first, .nr = g->nr}; /* g is in a list */
    const struct piece *p = g->piece;

    if (gap_host_off(&whole) < p->host_off) {
        whole.first++;
        whole.nr--;
    }
    if (whole.nr > 0 && gap_host_end(&whole) > p->host_off + p->len)
        whole.nr--;
    if (whole.nr > 0)
        keep(&whole, p->buf + (gap_host_off(&whole) - p->host_off));
}

static int fetch_guest(const struct block_fetch *fetch, const struct gap *gaps, unsigned nr,
                       struct cairn_error *err)
{
    size_t first_len, last_len;
    size_t first_at = gap_wanted(&gaps[0], &first_len);
    size_t last_at = gap_wanted(&gaps[nr - 1], &last_len);
    uint64_t off = gaps[0].piece->guest_off + first_at;
    uint64_t end = gaps[nr - 1].piece->guest_off + last_at + last_len;
    int ret =
        fetch->guest(fetch->ctx, gaps[0].piece->buf + first_at, (size_t)(end - off), off, err);

    for (unsigned i = 0; ret == CAIRN_OK && i < nr; i++)
        keep_whole(&gaps[i]);
    return ret;
}

static int fetch_gaps(const struct block_fetch *fetch, const struct gap *gaps, unsigned nr,
                      struct cairn_error *err)
{
    for (unsigned i = 1; i < nr; i++)
        if (!is_one_range(&gaps[i - 1], &gaps[i]))
            return fetch_guest(fetch, gaps, nr, err);
    return nr > 0 ? fetch_blocks(fetch, gaps, nr, err) : CAIRN_OK;
}

/*
 * Claim gaps, from the first on, as long as they can be had and nobody has filled any of their
 * blocks; how many.  *ret_partly: the one behind them is claimed, too, and *ret_missing is what is
 * left of it.
 */
static unsigned claim_gaps(struct gap *gaps, unsigned nr, bool *ret_partly,
                           struct block_set *ret_missing)
{
    unsigned n = 0;

    *ret_partly = false;
    while (n < nr && claim(&gaps[n])) {
        if (look_again(&gaps[n], ret_missing) < gaps[n].nr) {
            *ret_partly = true;
            break;
        }
        n++;
    }
    return n;
}

/* Fetch what is left of a gap. */
static int fetch_rest(const struct block_fetch *fetch, const struct gap *g,
                      const struct block_set *missing, struct cairn_error *err)
{
    unsigned from = 0, at, nr;
    int ret = CAIRN_OK;

    while (ret == CAIRN_OK && block_set_next(missing, &from, &at, &nr)) {
        struct gap rest = {.piece = g->piece, .first = missing->first + at, .nr = nr};

        ret = fetch_blocks(fetch, &rest, 1, err);
    }
    return ret;
}

/* The first gap could not be had: wait for who has it.  False: enough of that. */
static bool wait_for_gap(const struct gap *g, unsigned *tries)
{
    if (*tries == CLAIM_TRIES || !block_claim_wait(g->piece->layer, g->first, g->nr, CLAIM_WAIT_MS))
        *tries = CLAIM_TRIES;
    else
        (*tries)++;
    return *tries < CLAIM_TRIES;
}

/* Fill gaps that adjoin in guest space. */
static int fill(const struct block_fetch *fetch, struct gap *gaps, unsigned nr,
                struct cairn_error *err)
{
    unsigned tries = 0;
    int ret = CAIRN_OK;

    for (unsigned i = 0, n; ret == CAIRN_OK && i < nr; i += n) {
        struct block_set missing;
        bool partly;

        n = claim_gaps(gaps + i, nr - i, &partly, &missing);
        if (n == 0 && !partly) {
            if (wait_for_gap(&gaps[i], &tries)) {
                /* To claim what is there by now would only have others wait in their turn. */
                n = look_again(&gaps[i], &missing) == 0;
                tries = n > 0 ? 0 : tries;
                continue;
            }
            n = 1; /* without a claim, then */
        }
        ret = fetch_gaps(fetch, gaps + i, n, err);
        if (ret == CAIRN_OK && partly)
            ret = fetch_rest(fetch, &gaps[i + n], &missing, err);
        n += partly;
        for (unsigned j = i; j < i + n; j++)
            block_claim_end(&gaps[j].claim);
        tries = 0;
    }
    return ret;
}

/* Does the guest go on with b where a ends? */
static bool adjoin(const struct gap *a, const struct gap *b)
{
    return b->piece == a->piece + 1 &&
           a->first + a->nr == a->piece->missing.first + a->piece->missing.nr &&
           b->first == b->piece->missing.first;
}

static int fill_pieces(const struct block_fetch *fetch, struct piece *pieces, unsigned nr,
                       struct cairn_error *err)
{
    struct gap gaps[NR_GAPS];
    unsigned n = 0;
    int ret = CAIRN_OK;

    for (unsigned i = 0; i < nr && ret == CAIRN_OK; i++) {
        const struct block_set *missing = &pieces[i].missing;
        unsigned from = 0, at, len;

        while (ret == CAIRN_OK && block_set_next(missing, &from, &at, &len)) {
            struct gap g = {.piece = &pieces[i], .first = missing->first + at, .nr = len};

            if (n == NR_GAPS || (n > 0 && !adjoin(&gaps[n - 1], &g))) {
                ret = fill(fetch, gaps, n, err);
                n = 0;
            }
            gaps[n++] = g;
        }
    }
    return ret == CAIRN_OK ? fill(fetch, gaps, n, err) : ret;
}

/* -- Runs ------------------------------------------------------------------------------------- */

int block_read_run(const struct block_fetch *fetch, const struct extent *run, size_t nr, void *buf,
                   struct cairn_error *err)
{
    struct cursor c = {.run = run, .nr = nr, .buf = buf};
    struct piece pieces[NR_PIECES];
    unsigned n;
    int ret = CAIRN_OK;

    do {
        unsigned nr_missing = 0;

        /* Opened before any is read: so the processor waits for all their layers at once. */
        for (n = 0; n < NR_PIECES && next_piece(fetch, &c, &pieces[n]);)
            n++;
        for (unsigned i = 0; i < n; i++)
            nr_missing += look(&pieces[i]);
        if (nr_missing > 0)
            ret = fill_pieces(fetch, pieces, n, err);
        for (unsigned i = 0; i < n; i++)
            piece_release(&pieces[i]);
    } while (ret == CAIRN_OK && n == NR_PIECES);
    return ret;
}

bool block_read_cached(const struct block_fetch *fetch, const struct extent *run, size_t nr,
                       void *buf)
{
    struct cursor c = {.run = run, .nr = nr, .buf = buf};
    struct piece p;
    bool all = true;

    while (all && next_piece(fetch, &c, &p)) {
        all = look(&p) == 0;
        piece_release(&p);
    }
    return all;
}
