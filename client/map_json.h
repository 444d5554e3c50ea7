/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a chain maps, as `qemu-img map --output=json` says it: entry by entry, or as text.
 */
#ifndef CLIENT_MAP_JSON_H
#define CLIENT_MAP_JSON_H

#include "cairn.h"
#include "local_index.h"

/* Every entry in order, without gaps.  CAIRN_E_CANCELLED if fn returns not 0. */
int map_each(const struct local_index *index, cairn_map_fn fn, void *ctx, struct cairn_error *err);

/* layers: digests by ordinal, told as "layer"; or NULL. */
int map_to_json(const struct local_index *index, const struct digest *layers, char **ret_json,
                struct cairn_error *err);

#endif
