/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Uploads and pushes in /metrics.  Counters are this server's; what is open is the store's, so all
 * servers on one store say the same.
 */
#include "registry_internal.h"

#include <stddef.h>

#include "metrics.h"

struct open_uploads {
    uint64_t nr, bytes, oldest_s;
};

static int count_open(void *arg, const struct store_upload *upload, struct cairn_error *err)
{
    struct open_uploads *open = arg;

    (void)err;
    open->nr++;
    open->bytes += upload->size;
    if (upload->age_s > open->oldest_s)
        open->oldest_s = upload->age_s;
    return CAIRN_OK;
}

/* A store that hangs gets one scrape to hang in it, not a worker for each. */
static void write_open(struct registry *registry, struct metrics *m)
{
    static const struct metrics_row rows[] = {
        {"cairn_uploads_open", "gauge", "Uploads that have not ended.",
         offsetof(struct open_uploads, nr)},
        {"cairn_uploads_open_bytes", "gauge", "Bytes received of uploads that have not ended.",
         offsetof(struct open_uploads, bytes)},
        {"cairn_uploads_oldest_age_seconds", "gauge",
         "Time since anything was added to the upload that waits longest.",
         offsetof(struct open_uploads, oldest_s)},
    };
    struct open_uploads open = {0};

    if (atomic_exchange(&registry->figures.listing, true))
        return;
    if (store_list_uploads(registry->store, count_open, &open, NULL) == CAIRN_OK)
        metrics_rows(m, rows, sizeof(rows) / sizeof(rows[0]), &open);
    atomic_store(&registry->figures.listing, false);
}

void registry_write_metrics(void *ctx, struct metrics *m)
{
#define FIGURE(field) offsetof(struct registry_figures, field)
    static const struct {
        const char *name, *help;
        size_t field;
    } counters[] = {
        {"cairn_uploads_begun_total", "Uploads that were opened.", FIGURE(begun)},
        {"cairn_uploads_finished_total", "Uploads that became blobs.", FIGURE(finished)},
        {"cairn_uploads_aborted_total",
         "Uploads that were cancelled, cut off where they cannot go on, or of another digest than "
         "announced.",
         FIGURE(aborted)},
        {"cairn_uploads_received_bytes_total", "Bytes that were added to uploads.",
         FIGURE(received_bytes)},
        {"cairn_blobs_mounted_total", "Blobs taken from another repository.", FIGURE(mounted)},
        {"cairn_manifests_published_total", "Manifests that were published.", FIGURE(published)},
        {"cairn_manifests_refused_total", "Manifests that were not.", FIGURE(refused)},
    };
#undef FIGURE
    struct registry *registry = ctx;
    const struct registry_figures *figures = &registry->figures;

    for (size_t i = 0; i < sizeof(counters) / sizeof(counters[0]); i++) {
        metrics_family(m, counters[i].name, "counter", counters[i].help);
        metrics_value(
            m, NULL,
            atomic_load((const atomic_uint_fast64_t *)(const void *)((const char *)figures +
                                                                     counters[i].field)));
    }
    metrics_family(m, "cairn_publish_seconds", "histogram",
                   "Time to validate, index and store a manifest that was published.");
    metrics_histogram(m, NULL, &figures->publish);
    write_open(registry, m);
}
