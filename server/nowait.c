/* SPDX-License-Identifier: Apache-2.0 */
#include "nowait.h"

#include <sys/uio.h>

static _Thread_local enum { MAY_WAIT, MUST_NOT_WAIT, HAS_REFUSED } state;

void nowait_begin(void)
{
    state = MUST_NOT_WAIT;
}

bool nowait_end(void)
{
    bool done = state == MUST_NOT_WAIT;

    state = MAY_WAIT;
    return done;
}

int nowait_check(struct cairn_error *err)
{
    if (state == MAY_WAIT)
        return CAIRN_OK;
    state = HAS_REFUSED;
    return error_set(err, CAIRN_E_UNAVAILABLE, "this thread must not wait");
}

static bool in_page_cache(int fd, uint64_t off)
{
    char byte;
    const struct iovec part = {.iov_base = &byte, .iov_len = 1};

    return preadv2(fd, &part, 1, (off_t)off, RWF_NOWAIT) == 1;
}

int nowait_check_file(int fd, uint64_t off, uint64_t len, struct cairn_error *err)
{
    if (state == MAY_WAIT || in_page_cache(fd, off + len - 1))
        return CAIRN_OK;
    return nowait_check(err);
}
