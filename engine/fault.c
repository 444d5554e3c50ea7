/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What there is of fault points at run time; only built with CAIRN_FAULTS.
 */
#include "fault.h"

#include <stddef.h>

_Thread_local enum fault_point fault_next;
const struct hostfile_hook *fault_hook;

enum fault_point fault_take(void)
{
    enum fault_point point = fault_next;

    fault_next = FAULT_NONE;
    return point;
}

const char *fault_name(enum fault_point point)
{
    static const char *const names[FAULT_POINTS_END] = {[FAULT_NONE] = "(no name)",
#define FAULT_POINT_NAME(constant, name) [FAULT_##constant] = name,
                                                        FAULT_POINTS(FAULT_POINT_NAME)
#undef FAULT_POINT_NAME
    };

    return names[point];
}
