/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compressed clusters as QEMU reads them: raw deflate with a window of 4 KiB, or one zstd frame.
 * Nothing depends on the time or on a thread: a context is reset for each cluster, and zstd does
 * not divide a cluster among threads of its own.
 */
#include "compress.h"

#define ZLIB_CONST
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

/* As in decompress.c; negative means that there is no zlib header. */
#define DEFLATE_WINDOW_BITS (-12)
#define DEFLATE_MEM_LEVEL   9

struct compressor {
    bool is_zstd;
    bool has_deflate;
    z_stream deflate;
    ZSTD_CCtx *zstd;
};

static const struct {
    int standard, max;
} levels[] = {
    [LAYER_DEFLATE] = {6, 9}, [LAYER_ZSTD] = {3, 19}, /* beyond it zstd takes memory that no cluster
                                                         is worth */
};

bool compress_level(enum layer_compression type, int level, int *ret_level, int *ret_max)
{
    *ret_max = levels[type].max;
    *ret_level = level ? level : levels[type].standard;
    return level >= 0 && level <= levels[type].max;
}

void compressor_free(struct compressor *compressor)
{
    if (!compressor)
        return;
    if (compressor->has_deflate)
        deflateEnd(&compressor->deflate);
    ZSTD_freeCCtx(compressor->zstd);
    free(compressor);
}

static bool init_zstd(struct compressor *c, int level)
{
    c->is_zstd = true;
    c->zstd = ZSTD_createCCtx();
    return c->zstd &&
           !ZSTD_isError(ZSTD_CCtx_setParameter(c->zstd, ZSTD_c_compressionLevel, level));
}

static bool init_deflate(struct compressor *c, int level)
{
    c->has_deflate = deflateInit2(&c->deflate, level, Z_DEFLATED, DEFLATE_WINDOW_BITS,
                                  DEFLATE_MEM_LEVEL, Z_DEFAULT_STRATEGY) == Z_OK;
    return c->has_deflate;
}

int compressor_new(enum layer_compression type, int level, struct compressor **ret_compressor,
                   struct cairn_error *err)
{
    CLEANUP(compressor_free_p) struct compressor *c = calloc(1, sizeof(*c));

    if (!c || !(type == LAYER_ZSTD ? init_zstd(c, level) : init_deflate(c, level)))
        return error_no_memory(err, "compression");
    *ret_compressor = steal_ptr(c);
    return CAIRN_OK;
}

static int run_deflate(struct compressor *c, const void *in, size_t in_len, void *out, size_t max,
                       size_t *ret_len, struct cairn_error *err)
{
    z_stream *z = &c->deflate;
    int r;

    deflateReset(z);
    z->next_in = in;
    z->avail_in = (uInt)in_len;
    z->next_out = out;
    z->avail_out = (uInt)max;
    r = deflate(z, Z_FINISH);
    *ret_len = r == Z_STREAM_END ? max - z->avail_out : 0;
    if (r != Z_STREAM_END && r != Z_OK && r != Z_BUF_ERROR)
        return error_set(err, CAIRN_E_IO, "deflate failed: %s", zError(r));
    return CAIRN_OK;
}

static int run_zstd(struct compressor *c, const void *in, size_t in_len, void *out, size_t max,
                    size_t *ret_len, struct cairn_error *err)
{
    size_t len = ZSTD_compress2(c->zstd, out, max, in, in_len);

    *ret_len = ZSTD_isError(len) ? 0 : len;
    if (!ZSTD_isError(len) || ZSTD_getErrorCode(len) == ZSTD_error_dstSize_tooSmall)
        return CAIRN_OK;
    if (ZSTD_getErrorCode(len) == ZSTD_error_memory_allocation)
        return error_no_memory(err, "compression");
    return error_set(err, CAIRN_E_IO, "zstd failed: %s", ZSTD_getErrorName(len));
}

int compressor_run(struct compressor *compressor, const void *in, size_t in_len, void *out,
                   size_t max, size_t *ret_len, struct cairn_error *err)
{
    return compressor->is_zstd ? run_zstd(compressor, in, in_len, out, max, ret_len, err)
                               : run_deflate(compressor, in, in_len, out, max, ret_len, err);
}
