/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compressed clusters.  The length that an L2 entry states is in sectors: data ends somewhere in
 * the last one, and what follows belongs to somebody else.  A cluster is good if decompression
 * yields exactly one cluster of bytes; QEMU judges in the same way.
 */
#include <limits.h>

#define ZLIB_CONST
#include <zlib.h>
#include <zstd.h>

#include "layer.h"

/* QEMU writes raw deflate with a window of 4 KiB; negative means that there is no zlib header. */
#define DEFLATE_WINDOW_BITS (-12)

/* RFC 8878 asks decoders for at least 8 MiB.  More than a cluster is never of use, so that a frame
 * that asks for the format's maximum would only cost memory. */
#define ZSTD_WINDOW_LOG_MAX 23

static int decompress_deflate(const void *in, size_t in_len, void *out, size_t out_len,
                              struct cairn_error *err)
{
    z_stream z = {
        .next_in = in, .avail_in = (uInt)in_len, .next_out = out, .avail_out = (uInt)out_len};
    int r;

    if (inflateInit2(&z, DEFLATE_WINDOW_BITS) != Z_OK)
        return error_no_memory(err, "decompression");
    r = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    if (r == Z_MEM_ERROR)
        return error_no_memory(err, "decompression");
    /* Z_BUF_ERROR: the cluster is full and the stream goes on, whose end is not marked. */
    if ((r != Z_STREAM_END && r != Z_BUF_ERROR) || z.avail_out > 0)
        return error_set(err, CAIRN_E_CORRUPT,
                         "deflate data of %zu bytes gives %zu bytes (%s), %zu expected", in_len,
                         out_len - z.avail_out, z.msg ? z.msg : zError(r), out_len);
    return CAIRN_OK;
}

/* Until the output is full; 0, or what zstd says was wrong. */
static const char *run_zstd(ZSTD_DCtx *zstd, ZSTD_inBuffer *in, ZSTD_outBuffer *out)
{
    size_t left = 1;

    while (out->pos < out->size) {
        size_t in_pos = in->pos, out_pos = out->pos;

        left = ZSTD_decompressStream(zstd, out, in);
        if (ZSTD_isError(left))
            return ZSTD_getErrorName(left);
        if (in->pos == in_pos && out->pos == out_pos)
            return "the data ends too early";
    }
    return left > 0 ? "the frame goes on" : NULL;
}

static int decompress_zstd(const void *in, size_t in_len, void *out, size_t out_len,
                           struct cairn_error *err)
{
    ZSTD_inBuffer from = {.src = in, .size = in_len};
    ZSTD_outBuffer to = {.dst = out, .size = out_len};
    ZSTD_DCtx *zstd = ZSTD_createDCtx();
    const char *problem;

    if (!zstd)
        return error_no_memory(err, "decompression");
    ZSTD_DCtx_setParameter(zstd, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG_MAX);
    problem = run_zstd(zstd, &from, &to);
    ZSTD_freeDCtx(zstd);
    if (problem)
        return error_set(err, CAIRN_E_CORRUPT,
                         "zstd data of %zu bytes gives %zu bytes (%s), %zu expected", in_len,
                         to.pos, problem, out_len);
    return CAIRN_OK;
}

int layer_decompress(enum layer_compression compression, const void *in, size_t in_len, void *out,
                     size_t out_len, struct cairn_error *err)
{
    if (in_len > INT_MAX || out_len > INT_MAX)
        return error_set(err, CAIRN_E_USAGE, "a compressed cluster of %zu and %zu bytes", in_len,
                         out_len);
    switch (compression) {
    case LAYER_DEFLATE:
        return decompress_deflate(in, in_len, out, out_len, err);
    case LAYER_ZSTD:
        return decompress_zstd(in, in_len, out, out_len, err);
    }
    return error_set(err, CAIRN_E_UNSUPPORTED, "compression type %d is unknown", (int)compression);
}
