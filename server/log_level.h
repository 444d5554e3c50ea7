/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log's level while the server runs:
 *
 *     GET /v1/log-level                  {"level": "info"}
 *     PUT /v1/log-level                  the same as a body, or the bare word
 *
 * It lasts until the server is started again.
 */
#ifndef SERVER_LOG_LEVEL_H
#define SERVER_LOG_LEVEL_H

#include "http.h"

#define LOG_LEVEL_BODY_MAX 256

void log_level_handle(void *unused, const struct http_request *req, struct http_reply *reply);

/* One step towards debug (1) or error (-1), if there is one; by is for the log. */
void log_level_step(int step, const char *by);

#endif
