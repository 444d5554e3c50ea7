/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Merging a chain from cold tables: the layers' files are opened, their tables read, and every
 * prefix of the chain made, as a server does that has lost its indexes.  Nothing of it is in this
 * process beforehand; the files are in the page cache ("warm") or have been dropped from it
 * ("cold").
 *
 * The chain is the sparse one of tests/bench/depth: a full base of 2 GiB, and layers of 32 clusters
 * of 64 KiB at random places.  The files have all the metadata that QEMU would write; data clusters
 * are holes, for no merge reads them.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "ahead.h"
#include "bytes.h"
#include "index_bench.h"

#define CLUSTER_BITS 16
#define CLUSTER      ((uint64_t)1 << CLUSTER_BITS)
#define DISK_SIZE    ((uint64_t)2 << 30)
#define NR_CLUSTERS  (DISK_SIZE / CLUSTER)
#define L2_ENTRIES   (CLUSTER / 8)
#define NR_L2        (NR_CLUSTERS / L2_ENTRIES)
#define PER_LAYER    32
#define COPIED       ((uint64_t)1 << 63)

/* -- Making layers ----------------------------------------------------------------------------- */

/* Host clusters: header, refcount table, two refcount blocks, L1, L2 tables, data. */
enum { REFTABLE_AT = 1, REFBLOCKS_AT = 2, L1_AT = 4, L2_AT = 5 };

struct image {
    int fd;
    uint8_t *l2[NR_L2];
    uint64_t nr_clusters; /* allocated */
};

static void path_of(const char *folder, unsigned nr, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%s/layer-%04u.qcow2", folder, nr);
}

static void write_at(int fd, const void *buf, size_t len, uint64_t cluster)
{
    if (pwrite(fd, buf, len, (off_t)(cluster * CLUSTER)) != (ssize_t)len)
        err(1, "write of a layer");
}

static void map_cluster(struct image *image, uint64_t guest_cluster)
{
    uint8_t **table = &image->l2[guest_cluster / L2_ENTRIES];
    uint8_t *entry;

    if (!*table)
        *table = bench_calloc(CLUSTER, 1);
    entry = *table + guest_cluster % L2_ENTRIES * 8;
    if (bytes_get_be64(entry) == 0)
        bytes_put_be64(entry, COPIED | image->nr_clusters++ * CLUSTER);
}

static void write_header(const struct image *image, unsigned nr)
{
    uint8_t header[512] = {'Q', 'F', 'I', 0xfb};

    bytes_put_be32(header + 4, 3);
    bytes_put_be32(header + 20, CLUSTER_BITS);
    bytes_put_be64(header + 24, DISK_SIZE);
    bytes_put_be32(header + 36, NR_L2);
    bytes_put_be64(header + 40, L1_AT * CLUSTER);
    bytes_put_be64(header + 48, REFTABLE_AT * CLUSTER);
    bytes_put_be32(header + 56, 1);
    bytes_put_be32(header + 96, 4);
    bytes_put_be32(header + 100, 104);
    if (nr > 0) {
        bytes_put_be32(header + 104, 0xe2792aca); /* format of the backing file */
        bytes_put_be32(header + 108, 5);
        memcpy(header + 112, "qcow2", 5);
        bytes_put_be64(header + 8, 256);
        bytes_put_be32(header + 16,
                       (uint32_t)sprintf((char *)header + 256, "layer-%04u.qcow2", nr - 1));
    }
    write_at(image->fd, header, sizeof(header), 0);
}

static void write_refcounts(const struct image *image)
{
    uint8_t *blocks = bench_calloc(2 * CLUSTER, 1), table[16] = {0};

    for (uint64_t i = 0; i < image->nr_clusters; i++)
        bytes_put_be16(blocks + 2 * i, 1);
    for (unsigned i = 0; i < 2; i++)
        bytes_put_be64(table + 8 * (size_t)i, (REFBLOCKS_AT + i) * CLUSTER);
    write_at(image->fd, table, sizeof(table), REFTABLE_AT);
    write_at(image->fd, blocks, 2 * CLUSTER, REFBLOCKS_AT);
    free(blocks);
}

static void write_tables(struct image *image)
{
    uint8_t l1[8 * NR_L2] = {0};

    for (unsigned i = 0; i < NR_L2; i++) {
        if (!image->l2[i])
            continue;
        bytes_put_be64(l1 + 8 * (size_t)i, COPIED | (L2_AT + i) * CLUSTER);
        write_at(image->fd, image->l2[i], CLUSTER, L2_AT + i);
        free(image->l2[i]);
    }
    write_at(image->fd, l1, sizeof(l1), L1_AT);
}

static void make_layer(const char *folder, unsigned nr)
{
    struct image image = {.nr_clusters = L2_AT + NR_L2};
    char path[PATH_MAX];

    path_of(folder, nr, path);
    image.fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0666);
    if (image.fd < 0)
        err(1, "%s", path);
    if (nr == 0)
        for (uint64_t i = 0; i < NR_CLUSTERS; i++)
            map_cluster(&image, i);
    else
        for (unsigned i = 0; i < PER_LAYER; i++)
            map_cluster(&image, bench_below(NR_CLUSTERS));
    write_header(&image, nr);
    write_refcounts(&image);
    write_tables(&image);
    if (ftruncate(image.fd, (off_t)(image.nr_clusters * CLUSTER)) < 0 || close(image.fd) < 0)
        err(1, "%s", path);
}

void bench_make_chain(const char *folder, unsigned depth)
{
    for (unsigned nr = 0; nr < depth; nr++)
        make_layer(folder, nr);
}

/* -- Merging ----------------------------------------------------------------------------------- */

#define NR_SLICES (DISK_SIZE / INDEX_SLICE_SIZE)

struct merge {
    const char *folder;
    struct index_l1 *l1;
    struct index_slice *slices[NR_SLICES]; /* in force */
};

static int get_slice(void *ctx, uint32_t ordinal, uint32_t slice_nr, struct index_slice **ret_slice,
                     struct cairn_error *error)
{
    const struct merge *m = ctx;

    (void)ordinal;
    (void)error;
    *ret_slice = index_slice_ref(m->slices[slice_nr]);
    return CAIRN_OK;
}

/* The builder never comes back to a slice of the parent's that it has made anew. */
static int take_slice(void *arg, uint32_t slice_nr, struct index_slice *slice,
                      struct cairn_error *error)
{
    struct merge *m = arg;

    (void)error;
    index_slice_unref(m->slices[slice_nr]);
    m->slices[slice_nr] = index_slice_ref(slice);
    return CAIRN_OK;
}

struct opened {
    struct source *src;
    struct layer *layer;
};

static int open_layer(void *ctx, uint32_t nr, void **ret_item, struct cairn_error *error)
{
    const struct merge *m = ctx;
    struct opened *o = bench_calloc(1, sizeof(*o));
    char path[PATH_MAX];

    path_of(m->folder, nr, path);
    bench_check(source_open_file(path, NULL, &o->src, error), error);
    bench_check(layer_open(o->src, LAYER_QCOW2, &o->layer, error), error);
    layer_preload(o->layer);
    *ret_item = o;
    return CAIRN_OK;
}

static void close_layer(void *item)
{
    struct opened *o = item;

    layer_free(o->layer);
    source_free(o->src);
    free(o);
}

static void add_layer(struct merge *m, uint32_t nr, struct layer *layer)
{
    const struct index_slices slices = {.get = get_slice, .ctx = m};
    struct index_l1 *l1 = NULL;
    struct cairn_error error;
    struct digest digest;

    digest_of(&nr, sizeof(nr), &digest);
    bench_check(chain_index_build(m->l1, &slices, layer, &digest, take_slice, m, &l1, &error),
                &error);
    index_l1_unref(m->l1);
    m->l1 = l1;
}

static void drop_files(const char *folder, unsigned depth)
{
    char path[PATH_MAX];

    sync();
    for (unsigned nr = 0; nr < depth; nr++) {
        int fd;

        path_of(folder, nr, path);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0)
            err(1, "%s", path);
        close(fd);
    }
}

static double merge_once(const char *folder, unsigned depth, struct merge *m)
{
    const struct ahead_work work = {.make = open_layer, .free = close_layer, .ctx = m};
    double start = bench_now();
    struct cairn_error error;
    struct ahead *ahead;

    m->folder = folder;
    bench_check(ahead_new(&work, 0, depth, &ahead, &error), &error);
    for (unsigned nr = 0; nr < depth; nr++) {
        void *item = NULL;

        bench_check(ahead_take(ahead, &item, &error), &error);
        add_layer(m, nr, ((struct opened *)item)->layer);
        close_layer(item);
    }
    ahead_free(ahead);
    return bench_now() - start;
}

static void merge_release(struct merge *m)
{
    for (uint32_t i = 0; i < NR_SLICES; i++)
        index_slice_unref(m->slices[i]);
    index_l1_unref(m->l1);
}

void bench_merge(const char *folder, unsigned depth, unsigned rounds)
{
    double *warm = bench_calloc(rounds, sizeof(*warm)), *cold = bench_calloc(rounds, sizeof(*cold));
    double *cpu = bench_calloc(rounds, sizeof(*cpu));

    for (unsigned i = 0; i < rounds; i++) {
        struct merge m = {0}, again = {0};

        drop_files(folder, depth);
        cold[i] = merge_once(folder, depth, &m);
        cpu[i] = -bench_process_now();
        warm[i] = merge_once(folder, depth, &again);
        cpu[i] += bench_process_now();
        if (i == 0)
            bench_codec("merged", m.l1, m.slices, 5);
        merge_release(&m);
        merge_release(&again);
    }
    printf("{\"depth\": %u, \"coldSeconds\": %.4f, \"warmSeconds\": %.4f, \"cpuSeconds\": %.4f}\n",
           depth, bench_median(cold, rounds), bench_median(warm, rounds),
           bench_median(cpu, rounds));
    free(cold);
    free(warm);
    free(cpu);
}
