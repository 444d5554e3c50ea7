/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Images made by the real qemu-img and qemu-io, in a temporary folder that is the working folder
 * while a group of tests runs.  Use qemu_setup and qemu_teardown as the group's.
 */
#ifndef TESTS_UNIT_QEMU_H
#define TESTS_UNIT_QEMU_H

#include "test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "scratch.h"

static char qemu_folder[256];

static inline int qemu_setup(void **state)
{

    (void)state;
    snprintf(qemu_folder, sizeof(qemu_folder), "%s/cairn-test-XXXXXX", scratch_base());
    return mkdtemp(qemu_folder) && chdir(qemu_folder) == 0 ? 0 : -1;
}

static inline int qemu_teardown(void **state)
{
    char command[sizeof(qemu_folder) + 16];

    (void)state;
    snprintf(command, sizeof(command), "rm -rf '%s'", qemu_folder);
    return chdir("/") == 0 && system(command) == 0 ? 0 : -1;
}

/* Run a shell command that must succeed; what it prints is only of interest if it fails. */
static inline __attribute__((format(printf, 1, 2))) void sh(const char *fmt, ...)
{
    char text[8192], command[sizeof(text) + 64];
    va_list ap;

    va_start(ap, fmt);
    assert_true(vsnprintf(text, sizeof(text), fmt, ap) < (int)sizeof(text));
    va_end(ap);
    snprintf(command, sizeof(command), "{ %s; } >sh.log 2>&1 </dev/null", text);
    if (system(command) != 0) {
        print_error("failed: %s\n", text);
        (void)!system("cat sh.log >&2");
        fail();
    }
}

/* A file's bytes, malloc'ed to exactly its size, so that sanitizers see every step beyond. */
static inline uint8_t *load_file(const char *path, size_t *ret_len)
{
    FILE *f = fopen(path, "rb");
    uint8_t *bytes;
    long len;

    assert_non_null(f);
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    len = ftell(f);
    assert_true(len >= 0);
    rewind(f);
    bytes = malloc(len > 0 ? (size_t)len : 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, (size_t)len, f), (size_t)len);
    fclose(f);
    *ret_len = (size_t)len;
    return bytes;
}

#endif
