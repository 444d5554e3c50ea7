/* SPDX-License-Identifier: Apache-2.0 */
#include "opened_layer.h"

int opened_layer_new(struct blob *blob, enum layer_format format, struct opened_layer **ret_opened,
                     struct cairn_error *err)
{
    CLEANUP(opened_layer_free_p) struct opened_layer *o = calloc(1, sizeof(*o));
    int code;

    if (!o) {
        blob_unref(blob);
        return error_no_memory(err, "an opened layer");
    }
    o->blob = blob;
    code = layer_open(blob->src, format, &o->layer, err);
    if (code == CAIRN_OK)
        *ret_opened = steal_ptr(o);
    return code;
}

void opened_layer_free(struct opened_layer *o)
{
    if (!o)
        return;
    layer_free(o->layer);
    blob_unref(o->blob);
    free(o);
}

void opened_layer_free_item(void *item)
{
    opened_layer_free(item);
}
