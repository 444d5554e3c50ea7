/* SPDX-License-Identifier: Apache-2.0 */
/* Header, extensions, snapshot table and bitmap directory of hostile images. */
#include <stdint.h>
#include <stdlib.h>

#include "qcow2_image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void list_everything(struct qcow2_image *image, struct cairn_error *err)
{
    const struct qcow2_snapshot *snapshots;
    const struct qcow2_bitmap *bitmaps;
    uint32_t nr;

    if (qcow2_image_snapshots(image, &snapshots, &nr, err) == CAIRN_OK)
        for (uint32_t i = 0; i < nr; i++)
            if (!snapshots[i].id || !snapshots[i].name)
                abort();
    if (qcow2_image_bitmaps(image, &bitmaps, &nr, err) == CAIRN_OK)
        for (uint32_t i = 0; i < nr; i++)
            if (!bitmaps[i].name)
                abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const unsigned flags[] = {0, QCOW2_OPEN_INFO};
    CLEANUP(source_free_p) struct source *src = NULL;
    struct cairn_error err;

    if (size > 1 << 20 || source_from_memory(data, size, "layer", &src, &err) != CAIRN_OK)
        return 0;
    for (size_t i = 0; i < 2; i++) {
        CLEANUP(qcow2_image_free_p) struct qcow2_image *image = NULL;

        if (qcow2_image_open(src, flags[i], &image, &err) == CAIRN_OK)
            list_everything(image, &err);
    }
    return 0;
}
