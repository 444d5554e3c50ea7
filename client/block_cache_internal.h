/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the block cache: what its files share.
 *
 *   block_cache.c   the folder; open layers
 *   block_layer.c   one layer's file: reading and writing blocks
 *   block_sum*.c    checksums of blocks
 *   block_claim.c   fetching once
 *   block_evict.c   how much there is, and letting go of it
 *
 * A layer's file, `<hex of its digest>.blocks`:
 *
 *   header   1 page: magic, version, block size, layer size, digest, checksum of these
 *   stamps   4 bytes a segment (512 blocks): when it was last used, in seconds
 *   slots    8 bytes of checksum and the block's 4,096, one slot for each block of the layer
 *
 * The file is sparse; a slot of zeros is empty.  A block and its checksum are read with one system
 * call, straight to where they are wanted, and written with one.  Checksum (over the bytes, seeded
 * with digest and number) instead of a bitmap with an order of writes: it also tells a block that
 * a power cut tore, whose data the file system lost, or that a reader meets half written or half
 * evicted.  All of these are misses.  So readers, writers and the evictor need no lock between
 * them, in one process or in many, and nothing is mapped that a truncated file or a full disk could
 * turn into a signal.
 *
 * Locks on bytes of the file (OFD locks, which end with the process): byte 0 is share-locked by all
 * who have the file open, so that only an unused file is removed; byte CLAIMS + n is locked by who
 * fetches block n.
 */
#ifndef CLIENT_BLOCK_CACHE_INTERNAL_H
#define CLIENT_BLOCK_CACHE_INTERNAL_H

#include <assert.h>
#include <pthread.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stddef.h>

#include "block_cache.h"
#include "block_sum.h"
#include "checked.h"

#define SLOT_HEADER    8u
#define SLOT_SIZE      (SLOT_HEADER + BLOCK_SIZE)
#define SEGMENT_BLOCKS 512u /* their slots are whole pages */
#define CLAIMS         (UINT64_C(1) << 60)
/* Above what a layer can have; keeps all sums in range. */
#define LAYER_SIZE_MAX (UINT64_C(1) << 56)

#define BLOCKS_SUFFIX   ".blocks"
#define BLOCKS_NAME_MAX (DIGEST_HEX_LEN + sizeof(BLOCKS_SUFFIX))

#define NR_BUCKETS 256u

struct block_layer {
    unsigned refs;            /* under the cache's lock */
    struct block_layer *next; /* in its bucket */
    struct digest digest;
    /* What reads need, together: of thousands of layers, none is in the processor's cache. */
    alignas(64) struct block_cache *cache;
    uint64_t seed; /* of checksums: from the digest */
    uint64_t size; /* of the layer */
    uint64_t slots_off;
    int fd;
    /* When each segment was last seen to be stamped, in seconds, by this process: few_stamps, or
     * memory of which what is not used is not taken, for a layer may be said to have any size. */
    _Atomic uint32_t *stamps;
    _Atomic uint32_t few_stamps[4];
};
static_assert(sizeof(struct block_layer) - offsetof(struct block_layer, cache) == 64,
              "what reads need of a layer is one cache line");

struct block_cache {
    atomic_uint refs;
    int folder_fd;
    char *folder; /* for messages */
    uint64_t max_bytes;
    unsigned max_open;
    block_sum_fn *sum; /* of blocks */

    pthread_mutex_t lock; /* layers; never held for I/O other than opening a file */
    struct block_layer *buckets[NR_BUCKETS];
    unsigned nr_open;

    pthread_mutex_t claims_lock;
    pthread_cond_t claim_ended;
    struct block_claim *claims; /* of this process */
    atomic_uint waited_in_vain; /* for somebody's claim, then; 0: never */

    pthread_mutex_t usage_lock; /* one of this process counts at a time */
    int usage_fd;
    /* Bytes written that the folder's count does not know of; below 0: counted in advance. */
    atomic_int_fast64_t unaccounted;
    atomic_uint full_since; /* no room could be made then; 0: there is room */

    atomic_uint_fast64_t hits, misses, writes, bad, evictions;
};

static inline uint64_t layer_blocks(uint64_t size)
{
    return div_round_up(size, BLOCK_SIZE);
}

static inline uint64_t slot_off(const struct block_layer *layer, uint64_t block)
{
    return layer->slots_off + block * SLOT_SIZE;
}

/* -- block_layer.c ---------------------------------------------------------------------------- */

/* Open the file of a layer, or make it; share-locked. */
int block_layer_open(struct block_cache *cache, const struct digest *digest, uint64_t size,
                     struct block_layer **ret_layer, struct cairn_error *err);
void block_layer_close(struct block_layer *layer);

#define BLOCKS_HEADER_SIZE 4096u
#define STAMP_SIZE         4u
struct blocks_header {
    struct digest digest;
    uint64_t layer_size;
};
/* False: not the header of such a file. */
bool blocks_header_decode(const uint8_t bytes[BLOCKS_HEADER_SIZE], struct blocks_header *ret_h);
uint64_t blocks_slots_off(uint64_t layer_size);

/* Coarse seconds, as in stamps. */
uint32_t block_now(void);

/* -- block_evict.c ---------------------------------------------------------------------------- */

/* So many bytes are about to be written; false: not now, the folder is full. */
bool block_usage_reserve(struct block_cache *cache, uint64_t bytes);

/* Lock or unlock bytes of a file for this descriptor; false: somebody else has them. */
bool block_lock(int fd, int type, uint64_t off, uint64_t len);

#endif
