/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Verifying a disk of the service (verify.c), for that of a folder (verify_folder.c).
 */
#ifndef CLIENT_VERIFY_H
#define CLIENT_VERIFY_H

#include <jansson.h>

#include "client.h"

/* As cairn_verify, but for "state". */
int verify_ref(struct cairn_client *client, const struct ref *ref, bool where_stored,
               json_t **ret_result, struct cairn_error *err);
/* Add the state that follows from the problems, as text. */
int verify_finish(json_t *result, char **ret_json, struct cairn_error *err);

#endif
