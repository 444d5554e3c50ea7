/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Integers in byte buffers.  On-disk and on-wire bytes are decoded once, field by field, with
 * these; a buffer is never cast to a struct.
 */
#ifndef ENGINE_BYTES_H
#define ENGINE_BYTES_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define BYTES_DEFINE(bits, order)                                                                  \
    static inline uint##bits##_t bytes_get_##order##bits(const void *p)                            \
    {                                                                                              \
        uint##bits##_t v;                                                                          \
        memcpy(&v, p, sizeof(v));                                                                  \
        return order##bits##toh(v);                                                                \
    }                                                                                              \
    static inline void bytes_put_##order##bits(void *p, uint##bits##_t v)                          \
    {                                                                                              \
        v = hto##order##bits(v);                                                                   \
        memcpy(p, &v, sizeof(v));                                                                  \
    }

BYTES_DEFINE(16, be)
BYTES_DEFINE(32, be)
BYTES_DEFINE(64, be)
BYTES_DEFINE(16, le)
BYTES_DEFINE(32, le)
BYTES_DEFINE(64, le)

#undef BYTES_DEFINE

#endif
