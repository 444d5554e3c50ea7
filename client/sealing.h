/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sealing files (engine/seal.h) with the options that libcairn's users give.
 */
#ifndef CLIENT_SEALING_H
#define CLIENT_SEALING_H

#include "cairn.h"
#include "seal.h"

/* What a user gave, which may be NULL, with all fields that we know; CAIRN_E_USAGE for what can
 * never work. */
int sealing_check(const struct cairn_seal_options *options, struct cairn_seal_options *ret_given,
                  struct cairn_error *err);

/* For the engine; given has been checked. */
struct seal_options sealing_options(const struct cairn_seal_options *given);

/* "none", "zlib" or "zstd", and back; false: name (may be NULL) is none. */
const char *sealing_name(enum cairn_compress compress);
bool sealing_by_name(const char *name, enum cairn_compress *ret_compress);

/* Seal src into a new file at path, which has the mode given; on failure nothing is left of it. */
int sealing_write(struct source *src, const char *path, unsigned mode,
                  const struct seal_options *options, struct seal_result *ret_result,
                  struct cairn_error *err);

#endif
