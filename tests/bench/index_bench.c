/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The C half of tests/bench/index: what to measure is the command line's to say.
 */
#include "index_bench.h"

#include <stdbool.h>
#include <string.h>
#include <time.h>

static double seconds_of(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double bench_now(void)
{
    return seconds_of(CLOCK_MONOTONIC);
}

double bench_cpu_now(void)
{
    return seconds_of(CLOCK_THREAD_CPUTIME_ID);
}

double bench_process_now(void)
{
    return seconds_of(CLOCK_PROCESS_CPUTIME_ID);
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double bench_median(double *values, unsigned nr)
{
    qsort(values, nr, sizeof(*values), compare_doubles);
    return (values[(nr - 1) / 2] + values[nr / 2]) / 2;
}

uint64_t bench_random(void)
{
    static uint64_t state = 88172645463325252u;

    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1du;
}

uint64_t bench_below(uint64_t n)
{
    return (bench_random() >> 11) % n;
}

void *bench_calloc(size_t nr, size_t size)
{
    void *p = calloc(nr + 1, size);

    if (!p)
        err(1, "memory for %zu things of %zu bytes", nr, size);
    return p;
}

void bench_check(int code, const struct cairn_error *error)
{
    if (code < 0)
        errx(1, "%s", error->message);
}

/* -- Data sets --------------------------------------------------------------------------------- */

/* Extents of 4 to 124 KiB, 64 on average, each of a random layer, up to the end of a slice. */
static uint32_t fill_slice(struct flat_extent *flat, uint64_t slice_start, uint64_t room)
{
    uint64_t off = 0;
    uint32_t nr = 0;

    while (off < INDEX_SLICE_SIZE && nr < room) {
        uint64_t len = min_u64((1 + bench_below(31)) << 12, INDEX_SLICE_SIZE - off);

        flat[nr++] = (struct flat_extent){
            .guest_off = slice_start + off,
            .host_off = bench_below((uint64_t)1 << 27) << 12,
            .len = (uint32_t)len,
            .layer = (uint16_t)bench_below(BENCH_DEPTH),
            .kind = EXTENT_DATA,
        };
        off += len;
    }
    return nr;
}

static struct index_slice *pack_slice(const struct flat_extent *flat, uint32_t nr)
{
    struct index_extent *packed = bench_calloc(nr, sizeof(*packed));
    struct index_slice *slice = NULL;
    struct cairn_error error;

    for (uint32_t i = 0; i < nr; i++)
        packed[i] = index_extent_pack(&(struct extent){
            .guest_off = flat[i].guest_off,
            .len = flat[i].len,
            .host_off = flat[i].host_off,
            .layer = flat[i].layer,
            .kind = flat[i].kind,
        });
    bench_check(index_slice_new(packed, nr, &slice, &error), &error);
    free(packed);
    return slice;
}

static void describe_layers(struct index_l1 *l1)
{
    for (uint32_t i = 0; i < l1->depth; i++)
        l1->layers[i] = (struct layer_attr){
            .virtual_size = l1->virtual_size, .cluster_bits = 16, .format = LAYER_QCOW2};
    for (uint32_t i = 0; i < l1->nr_slices; i++)
        l1->slices[i] = (uint16_t)(l1->depth - 1);
}

struct data_set *data_set_new(uint64_t nr)
{
    struct data_set *set = bench_calloc(1, sizeof(*set));
    struct cairn_error error;
    uint64_t size, nr_slices = 0;

    set->nr = nr;
    set->flat = bench_calloc(nr, sizeof(*set->flat));
    set->slices = bench_calloc(nr, sizeof(struct index_slice *)); /* more than enough */
    for (uint64_t done = 0; done < nr; nr_slices++) {
        uint32_t n = fill_slice(set->flat + done, nr_slices << INDEX_SLICE_BITS, nr - done);

        set->slices[nr_slices] = pack_slice(set->flat + done, n);
        done += n;
    }
    size = set->flat[nr - 1].guest_off + set->flat[nr - 1].len;
    bench_check(index_l1_new(BENCH_DEPTH, size, &set->l1, &error), &error);
    describe_layers(set->l1);
    return set;
}

void data_set_free(struct data_set *set)
{
    for (uint32_t i = 0; i < set->l1->nr_slices; i++)
        index_slice_unref(set->slices[i]);
    index_l1_unref(set->l1);
    free(set->slices);
    free(set->flat);
    free(set);
}

static int get_slice(void *ctx, uint32_t ordinal, uint32_t slice_nr, struct index_slice **ret_slice,
                     struct cairn_error *error)
{
    const struct data_set *set = ctx;

    (void)ordinal;
    (void)error;
    *ret_slice = index_slice_ref(set->slices[slice_nr]);
    return CAIRN_OK;
}

struct index_slices data_set_slices(struct data_set *set)
{
    return (struct index_slices){.get = get_slice, .ctx = set};
}

/* -- The command line -------------------------------------------------------------------------- */

int main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";
    unsigned long first = argc > 2 ? strtoul(argv[argc - 2], NULL, 10) : 0;
    unsigned second = argc > 3 ? (unsigned)strtoul(argv[argc - 1], NULL, 10) : 0;
    bool folder = argc == 5;

    if (strcmp(verb, "lookups") == 0 && argc == 4 && first > 0 && second > 0)
        bench_lookups(first, second);
    else if (strcmp(verb, "sizes") == 0 && argc == 4 && first > 0 && second > 0)
        bench_sizes(first, second);
    else if (strcmp(verb, "make") == 0 && argc == 4 && second > 0)
        bench_make_chain(argv[2], second);
    else if (strcmp(verb, "merge") == 0 && folder && first > 0 && second > 0)
        bench_merge(argv[2], (unsigned)first, second);
    else
        errx(2, "usage: bench_index lookups|sizes EXTENTS ROUNDS | make FOLDER DEPTH | "
                "merge FOLDER DEPTH ROUNDS");
    return 0;
}
