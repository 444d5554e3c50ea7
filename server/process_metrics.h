/* SPDX-License-Identifier: Apache-2.0 */
/* This process in /metrics, under the names that Prometheus' own libraries use, and its version. */
#ifndef SERVER_PROCESS_METRICS_H
#define SERVER_PROCESS_METRICS_H

#include "metrics.h"

void process_write_metrics(void *unused, struct metrics *m); /* as a metrics_source */

#endif
