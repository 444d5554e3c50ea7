/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host's block cache: bytes of layers, kept in one folder for all processes and all disks of a
 * host.  A block is 4 KiB of a layer's file, named by (layer digest, block number): it never
 * changes, so two disks over one golden image share its blocks.
 *
 * Nothing in the folder is believed that its checksum does not vouch for; what is damaged, torn by
 * a crash, or removed under us is missing, and missing is never an error.  All functions may be
 * called from any thread.
 */
#ifndef CLIENT_BLOCK_CACHE_H
#define CLIENT_BLOCK_CACHE_H

#include "cleanup.h"
#include "digest.h"
#include "error.h"

#define BLOCK_SIZE 4096u

struct block_cache;
struct block_layer;

#define BLOCK_CACHE_BYTES_MIN ((uint64_t)64 << 20)

/*
 * Open the cache in folder, which is made, for its owner alone, if it does not exist.  max_bytes
 * bounds what the folder takes on the disk, and holds for all who have it open: the smallest wins.
 */
int block_cache_open(const char *folder, uint64_t max_bytes, struct block_cache **ret_cache,
                     struct cairn_error *err);
struct block_cache *block_cache_ref(struct block_cache *cache);
void block_cache_unref(struct block_cache *cache); /* NULL is allowed */
CLEANUP_DEFINE(struct block_cache *, block_cache_unref)

/*
 * A layer's place in the cache; size is the layer's, in bytes.  What a handle holds on to is a file
 * descriptor: *ret_keep tells whether there are enough of them to keep this one for long.
 * CAIRN_E_IO and the like if the folder does not work: go on without.
 */
int block_cache_layer(struct block_cache *cache, const struct digest *layer, uint64_t size,
                      struct block_layer **ret_layer, bool *ret_keep, struct cairn_error *err);
void block_layer_unref(struct block_layer *layer); /* NULL is allowed */
CLEANUP_DEFINE(struct block_layer *, block_layer_unref)
uint64_t block_layer_size(const struct block_layer *layer);

/* -- Reading ---------------------------------------------------------------------------------- */

#define BLOCK_SET_MAX 256u                                       /* blocks in a set */
#define BLOCK_SPAN    ((size_t)(BLOCK_SET_MAX - 1) * BLOCK_SIZE) /* any such range is in one */

/* Blocks first to first + nr - 1; bit i is block first + i. */
struct block_set {
    uint64_t first;
    unsigned nr;
    uint64_t bits[BLOCK_SET_MAX / 64];
};

static inline bool block_set_has(const struct block_set *set, unsigned i)
{
    return set->bits[i / 64] >> i % 64 & 1;
}

/* The first run of blocks in the set from *from on; false: there is none.  *from moves behind. */
bool block_set_next(const struct block_set *set, unsigned *from, unsigned *ret_at,
                    unsigned *ret_nr);

/*
 * Fill buf, len bytes at host_off of the layer (len at most BLOCK_SPAN, the range inside the
 * layer), with what is here; how many of its blocks are not, and which.  No lock is taken, and the
 * bytes go straight into buf where they are whole blocks.
 */
unsigned block_layer_read(struct block_layer *layer, void *buf, size_t len, uint64_t host_off,
                          struct block_set *ret_missing);

/*
 * Keep nr blocks from first on, at most BLOCK_SET_MAX; the last block of a layer ends with it, and
 * so may buf.  Best effort.
 */
void block_layer_write(struct block_layer *layer, const void *buf, uint64_t first, unsigned nr);

/* -- Fetching once ---------------------------------------------------------------------------- */

/*
 * Whoever fetches blocks claims them first; others who want them wait for those instead of fetching
 * them, too.  A claim ends with its process.  It is a courtesy: nothing is wrong if blocks are
 * fetched twice.
 */
struct block_claim {
    struct block_layer *layer; /* borrowed; NULL: no claim */
    struct block_claim *next;
    uint64_t first, end;
};

/* False: somebody else has some of them claimed.  The claim stays where it is until it is ended. */
bool block_claim_try(struct block_layer *layer, uint64_t first, unsigned nr,
                     struct block_claim *ret_claim);
void block_claim_end(struct block_claim *claim); /* nothing to do for one that was not had */
/* Wait until the blocks are not claimed; false: after timeout_ms they still were, or so were
 * others a short while ago: then it does not wait. */
bool block_claim_wait(struct block_layer *layer, uint64_t first, unsigned nr, unsigned timeout_ms);

/* -- Figures ---------------------------------------------------------------------------------- */

struct block_cache_stats {
    uint64_t hits, misses; /* blocks */
    uint64_t writes;       /* blocks kept */
    uint64_t bad;          /* of the misses: something was there that its checksum denies */
    uint64_t evictions;    /* segments of 2 MiB */
};
void block_cache_get_stats(struct block_cache *cache, struct block_cache_stats *ret_stats);

#endif
