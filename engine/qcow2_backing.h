/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Changing what an image says about its backing file: its name and format, and nothing else, as
 * `qemu-img rebase -u` does.  For local copies; a layer that has been published is never changed.
 */
#ifndef ENGINE_QCOW2_BACKING_H
#define ENGINE_QCOW2_BACKING_H

#include "layer.h"

/*
 * Record backing (a file name; NULL: none) and its format in the image that fd is, opened for
 * reading and writing; file names it in messages.  One write inside the first cluster; not synced.
 * All other header extensions are kept, except that the feature name table, which is only for
 * messages, goes where there is no room for both.  *ret_changed (may be NULL): no byte of the file
 * behind its first so many was changed.
 */
int qcow2_set_backing(int fd, const char *file, const char *backing, enum layer_format format,
                      size_t *ret_changed, struct cairn_error *err);

#endif
