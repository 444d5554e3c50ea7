/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A layer, opened from its blob, with the blob that it reads.
 */
#ifndef SERVER_OPENED_LAYER_H
#define SERVER_OPENED_LAYER_H

#include "blobs.h"
#include "layer.h"

struct opened_layer {
    struct blob *blob;
    struct layer *layer;
};

/* blob is taken over, also on failure. */
int opened_layer_new(struct blob *blob, enum layer_format format, struct opened_layer **ret_opened,
                     struct cairn_error *err);
void opened_layer_free(struct opened_layer *o);
void opened_layer_free_item(void *item); /* the same, for struct ahead_work */
CLEANUP_DEFINE(struct opened_layer *, opened_layer_free)

#endif
