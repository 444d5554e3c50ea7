/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a chain maps, as `qemu-img map --output=json` says it.
 */
#ifndef CLIENT_MAP_JSON_H
#define CLIENT_MAP_JSON_H

#include "local_index.h"

/* layers: digests by ordinal, told as "layer"; or NULL. */
int map_to_json(const struct local_index *index, const struct digest *layers, char **ret_json,
                struct cairn_error *err);

#endif
