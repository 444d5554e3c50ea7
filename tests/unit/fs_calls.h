/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The system calls by which the program changes files, seen from within: a test that links
 * fs_calls.c has these functions of the C library in place of the library's, hears of each change
 * that was made, and may have any of them fail.  Other calls (reads, locks) go their way.
 */
#ifndef TESTS_UNIT_FS_CALLS_H
#define TESTS_UNIT_FS_CALLS_H

#include <stddef.h>
#include <stdint.h>

enum fs_call {
    FS_CREATE,   /* file, in folder under name */
    FS_MKDIR,    /* the same, a folder */
    FS_LINK,     /* file also gets name in folder, which may have named another */
    FS_UNLINK,   /* name in folder is no more */
    FS_WRITE,    /* len bytes of file at off */
    FS_TRUNCATE, /* file has len bytes */
    FS_SYNC,     /* of file, or of a folder */
};

/* Files and folders go by their inode numbers.  A rename is FS_LINK, then FS_UNLINK. */
struct fs_event {
    enum fs_call call;
    uint64_t folder, file;
    const char *name;
    const void *data;
    uint64_t off, len;
};

/* Both may be NULL, and are called one at a time.  fails: an errno, or 0 to let the call be made;
 * asked once for each call of the program's that creates, links, writes or syncs. */
struct fs_hooks {
    int (*fails)(void *ctx, enum fs_call call);
    void (*made)(void *ctx, const struct fs_event *event);
    void *ctx;
};
void fs_hook(const struct fs_hooks *hooks); /* copied; NULL: none */

#endif
