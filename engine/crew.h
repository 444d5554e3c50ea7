/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A few threads that take pieces of one job until none is left, or one of them fails.
 */
#ifndef ENGINE_CREW_H
#define ENGINE_CREW_H

#include "error.h"

/* Take one piece and do it.  Return CREW_NONE_LEFT when there is none, or a negative code. */
#define CREW_NONE_LEFT 1
typedef int (*crew_work_fn)(void *ctx, struct cairn_error *err);

/* Run work on nr threads (the caller's is one of them); the first error is the result. */
int crew_run(unsigned nr, crew_work_fn work, void *ctx, struct cairn_error *err);

#endif
