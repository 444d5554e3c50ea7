/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where tests put their files: in memory, if $TMPDIR does not say otherwise and there is room.  A
 * process that ends loses nothing there, so whether syncs do their work does not show;
 * test_active_power is about that, with cuts that it makes itself.  On a disk that others use, too,
 * waiting for syncs takes most of the time.
 */
#ifndef TESTS_UNIT_SCRATCH_H
#define TESTS_UNIT_SCRATCH_H

#include <stdint.h>
#include <stdlib.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define SCRATCH_MEMORY   "/dev/shm"
#define SCRATCH_ROOM_MIN ((uint64_t)2 << 30) /* containers often have 64 MiB */

static inline const char *scratch_base(void)
{
    const char *given = getenv("TMPDIR");
    struct statvfs st;

    if (given)
        return given;
    if (access(SCRATCH_MEMORY, W_OK) == 0 && statvfs(SCRATCH_MEMORY, &st) == 0 &&
        (uint64_t)st.f_bavail * st.f_frsize >= SCRATCH_ROOM_MIN)
        return SCRATCH_MEMORY;
    return "/tmp";
}

#endif
