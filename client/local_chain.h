/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A local image file with its backing chain, as push and `image map` see it.
 *
 * Here, and nowhere else in Cairn, names that an image holds lead to other files: these are the
 * user's own files, and only regular files and block devices, found relative to the image's folder
 * as QEMU does, in the formats that the images record.  Everything that a layer must not be is
 * refused while the chain is opened, before anything is done with it.
 */
#ifndef CLIENT_LOCAL_CHAIN_H
#define CLIENT_LOCAL_CHAIN_H

#include <sys/stat.h>

#include "layer.h"
#include "source.h"

struct local_layer {
    char *path;
    enum layer_format format;
    uint64_t size;  /* of the file, in bytes */
    struct stat st; /* as it was when the chain was opened */
};

struct local_chain {
    uint32_t depth;
    struct local_layer *layers; /* base first */
};

/* The format of a file that the user named: "qcow2", "raw", or NULL to go by the name. */
int local_format(const char *file, const char *format, enum layer_format *ret_format,
                 struct cairn_error *err);

/* No more files are open when it returns than before. */
int local_chain_open(const char *file, const char *format, struct local_chain **ret_chain,
                     struct cairn_error *err);
void local_chain_free(struct local_chain *chain);
CLEANUP_DEFINE(struct local_chain *, local_chain_free)

/* Open one layer again; CAIRN_E_CONFLICT if it is not the file that it was. */
int local_layer_open(const struct local_layer *layer, struct source **ret_src,
                     struct cairn_error *err);

/* Is the file of the layer still what it was when the chain was opened?  Else CAIRN_E_CONFLICT. */
int local_layer_check(const struct local_layer *layer, struct cairn_error *err);

/* Open any file that may be an image, without waiting on what is none. */
int local_open(const char *path, struct source **ret_src, struct stat *ret_st,
               struct cairn_error *err);

/* The virtual size that a qcow2 file's header says. */
int local_qcow2_size(const char *path, uint64_t *ret_size, struct cairn_error *err);

#endif
