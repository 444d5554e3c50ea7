/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an image says of itself, as JSON: the part that is also said of a published layer.
 */
#ifndef CLIENT_IMAGE_INFO_H
#define CLIENT_IMAGE_INFO_H

#include <jansson.h>

#include "qcow2_image.h"

/* Set "snapshots" in root to their list; where it cannot be read, "snapshotsUnreadable" to why. */
int image_info_add_snapshots(json_t *root, struct qcow2_image *image, struct cairn_error *err);

#endif
