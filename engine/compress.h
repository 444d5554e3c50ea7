/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compressing clusters, the counterpart of layer_decompress.  Internal to the engine.
 *
 * The same bytes, type and level give the same result, whatever was compressed before; another
 * version of zlib or zstd may give another one.
 */
#ifndef ENGINE_COMPRESS_H
#define ENGINE_COMPRESS_H

#include "layer.h"

/* The level for 0, and what is allowed; false: level is none. */
bool compress_level(enum layer_compression type, int level, int *ret_level, int *ret_max);

/* Its working memory is used again from cluster to cluster.  Not thread-safe. */
struct compressor;

/* level is one that compress_level gave. */
int compressor_new(enum layer_compression type, int level, struct compressor **ret_compressor,
                   struct cairn_error *err);
void compressor_free(struct compressor *compressor);
CLEANUP_DEFINE(struct compressor *, compressor_free)

/* Compress one cluster into at most max bytes.  *ret_len is 0 if that is too little. */
int compressor_run(struct compressor *compressor, const void *in, size_t in_len, void *out,
                   size_t max, size_t *ret_len, struct cairn_error *err);

#endif
