/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An active layer to test, over a base whose bytes tell where they are; and the short forms of
 * what has to succeed.  The group's setup is qemu.h's.
 */
#ifndef TESTS_UNIT_ACTIVE_FIXTURE_H
#define TESTS_UNIT_ACTIVE_FIXTURE_H

#include "test.h"

#include <stdatomic.h>

#include "active_internal.h"
#include "qemu.h"

#define KIB     UINT64_C(1024)
#define MIB     (KIB * KIB)
#define CLUSTER (128 * KIB)
#define SUB     (4 * KIB)
#define SIZE    (8 * MIB)

#define IMAGE "active.qcow2"

static const struct digest parent_id = {{0xab, 0xcd}};

/* -- What lies beneath: every byte follows from its offset ------------------------------------- */

static inline uint8_t base_byte(uint64_t guest_off)
{
    return (uint8_t)(guest_off / 4096 * 7 + guest_off % 4096 * 13 + 1);
}

struct base {
    atomic_uint nr_reads;
    uint64_t bytes;
    int rc; /* what reads come back with */
    void (*on_read)(void *ctx);
    void *ctx;
};

static inline int read_base(void *ctx, void *buf, size_t len, uint64_t guest_off,
                            struct cairn_error *err)
{
    struct base *base = ctx;

    atomic_fetch_add(&base->nr_reads, 1);
    base->bytes += len;
    if (base->on_read)
        base->on_read(base->ctx);
    for (size_t i = 0; i < len; i++)
        ((uint8_t *)buf)[i] = base_byte(guest_off + i);
    return base->rc ? error_set(err, base->rc, "the base is gone") : CAIRN_OK;
}

static struct base base;

static inline struct active_options with_base(void)
{
    return (struct active_options){
        .virtual_size = SIZE, .parent = &parent_id, .backing = {.pread = read_base, .ctx = &base}};
}

static inline struct active_options without_base(void)
{
    return (struct active_options){.virtual_size = SIZE};
}

/* -- Short forms that must succeed ------------------------------------------------------------- */

static inline void must(int rc, const struct cairn_error *err)
{
    if (rc)
        print_error("%s\n", err->message);
    assert_int_equal(rc, CAIRN_OK);
}

static inline struct active *create(struct active_options options)
{
    struct active *a = NULL;
    struct cairn_error err;

    unlink(IMAGE);
    base = (struct base){0};
    must(active_create(IMAGE, &options, &a, &err), &err);
    return a;
}

static inline struct active *reopen(struct active_options options)
{
    struct active *a = NULL;
    struct cairn_error err;

    must(active_open(IMAGE, &options, &a, &err), &err);
    return a;
}

static inline void qemu_check(const char *image)
{
    sh("qemu-img check 'json:{\"driver\":\"qcow2\",\"backing\":null,"
       "\"file\":{\"driver\":\"file\",\"filename\":\"%s\"}}'",
       image);
}

static inline void close_and_check(struct active *a)
{
    struct cairn_error err;

    must(active_close(a, &err), &err);
    qemu_check(IMAGE);
}

static inline void put(struct active *a, uint8_t value, uint64_t len, uint64_t guest_off)
{
    uint8_t *buf = malloc(len);
    struct cairn_error err;

    assert_non_null(buf);
    memset(buf, value, len);
    must(active_pwrite(a, buf, len, guest_off, &err), &err);
    free(buf);
}

static inline void flush(struct active *a)
{
    struct cairn_error err;

    must(active_flush(a, &err), &err);
}

static inline void zero(struct active *a, uint64_t len, uint64_t guest_off, bool may_unmap)
{
    struct cairn_error err;

    must(active_zero(a, len, guest_off, may_unmap, &err), &err);
}

static inline void discard(struct active *a, uint64_t len, uint64_t guest_off)
{
    struct cairn_error err;

    must(active_discard(a, len, guest_off, &err), &err);
}

static inline uint8_t byte_at(struct active *a, uint64_t guest_off)
{
    struct cairn_error err;
    uint8_t byte = 0;

    must(active_pread(a, &byte, 1, guest_off, &err), &err);
    return byte;
}

/* The range holds value; as value -1 what lies beneath. */
static inline void expect(struct active *a, int value, uint64_t len, uint64_t guest_off)
{
    uint8_t *buf = malloc(len);
    struct cairn_error err;

    assert_non_null(buf);
    must(active_pread(a, buf, len, guest_off, &err), &err);
    for (uint64_t i = 0; i < len; i++) {
        uint8_t expected = value < 0 ? base_byte(guest_off + i) : (uint8_t)value;

        if (buf[i] != expected)
            fail_msg("byte 0x%llx is %02x, expected %02x", (unsigned long long)(guest_off + i),
                     buf[i], expected);
    }
    free(buf);
}

/* The first extent of a range. */
static inline struct extent map_one(struct active *a, uint64_t guest_off)
{
    struct extent e = {0};
    struct cairn_error err;
    size_t nr;

    must(active_map(a, guest_off, active_virtual_size(a) - guest_off, &e, 1, &nr, &err), &err);
    assert_int_equal(nr, 1);
    return e;
}

static inline struct active_stats stats_of(struct active *a)
{
    struct active_stats stats;

    active_get_stats(a, &stats);
    return stats;
}

#endif
