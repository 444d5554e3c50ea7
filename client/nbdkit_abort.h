/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A last deed before nbdkit aborts.
 */
#ifndef CLIENT_NBDKIT_ABORT_H
#define CLIENT_NBDKIT_ABORT_H

#include <stdbool.h>

/* From here on last runs, in a thread of its own, before SIGABRT ends the process; an errno. */
int abort_guard_start(void (*last)(void));
/* Is the process about to abort?  What is done after this said no, last comes after. */
bool abort_guard_tripped(void);
void abort_guard_end(void);

#endif
