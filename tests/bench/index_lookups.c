/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Look-ups per second: from a guest offset to layer and host offset.  Beside the index's own calls,
 * with each instruction set, three plain ways to do the same, over a sorted array of structs of 24
 * bytes: libc's bsearch, a binary search written for the purpose, and a tree by libc's tsearch.
 *
 * All contenders answer the same questions in each round, one after the other; that their answers
 * are the same is looked at beforehand.  Time is the thread's, so that what else runs on the core
 * does not count; what it does to the caches does.
 */
#include <math.h>
#include <search.h>
#include <string.h>

#include "index_bench.h"

#define NR_QUERIES (1u << 20)
#define BATCH      256
#define ZIPF_SKEW  0.99
#define ROUNDS_MAX 99

struct task {
    const struct data_set *set;
    const uint64_t *queries;
    struct chain_index *index;
    void *tree;
};

struct contender {
    const char *name;
    const char *isa; /* NULL: none of ours */
    void (*run)(const struct task *task);
    double times[ROUNDS_MAX];
};

/* The answer is wanted: in registers, or in memory. */
#define want(host_off, layer) __asm__ volatile("" : : "r"(host_off), "r"(layer))
#define want_all()            __asm__ volatile("" : : : "memory")

/* -- Contenders: each answers all queries ----------------------------------------------------- */

static void run_single(const struct task *task)
{
    struct cairn_error error;

    for (size_t i = 0; i < NR_QUERIES; i++) {
        struct extent e;

        bench_check(chain_index_lookup(task->index, task->queries[i], &e, &error), &error);
        want(e.host_off, e.layer);
    }
}

static void run_batch(const struct task *task)
{
    static struct extent found[BATCH];
    struct cairn_error error;

    for (size_t i = 0; i < NR_QUERIES; i += BATCH) {
        bench_check(chain_index_lookup_many(task->index, task->queries + i, BATCH, found, &error),
                    &error);
        want_all();
    }
}

/* Each look-up waits for the one before: how long one takes by itself. */
static void run_chained(const struct task *task)
{
    struct cairn_error error;
    uint64_t before = 0;

    for (size_t i = 0; i < NR_QUERIES; i++) {
        struct extent e;

        /* Host offsets are below 2^56. */
        bench_check(chain_index_lookup(task->index, task->queries[i] + (before >> 56), &e, &error),
                    &error);
        before = e.host_off;
    }
}

static int compare_to_extent(const void *key, const void *element)
{
    uint64_t off = *(const uint64_t *)key;
    const struct flat_extent *e = element;

    if (off < e->guest_off)
        return -1;
    return off >= e->guest_off + e->len;
}

static const struct flat_extent *find_by_bsearch(const struct task *task, uint64_t guest_off)
{
    return bsearch(&guest_off, task->set->flat, task->set->nr, sizeof(struct flat_extent),
                   compare_to_extent);
}

static const struct flat_extent *find_by_halves(const struct task *task, uint64_t guest_off)
{
    const struct flat_extent *e = task->set->flat;

    for (uint64_t nr = task->set->nr; nr > 1; nr -= nr / 2)
        e += e[nr / 2].guest_off <= guest_off ? nr / 2 : 0;
    return e;
}

static int compare_in_tree(const void *a, const void *b)
{
    const struct flat_extent *x = a, *y = b;

    if (x->guest_off + x->len <= y->guest_off)
        return -1;
    return x->guest_off >= y->guest_off + y->len;
}

static const struct flat_extent *find_in_tree(const struct task *task, uint64_t guest_off)
{
    struct flat_extent key = {.guest_off = guest_off, .len = 1};

    return *(struct flat_extent *const *)tfind(&key, &task->tree, compare_in_tree);
}

#define RUN_PLAIN(name, find)                                                                      \
    static void name(const struct task *task)                                                      \
    {                                                                                              \
        for (size_t i = 0; i < NR_QUERIES; i++) {                                                  \
            const struct flat_extent *e = find(task, task->queries[i]);                            \
                                                                                                   \
            want(e->host_off + task->queries[i] - e->guest_off, e->layer);                         \
        }                                                                                          \
    }

RUN_PLAIN(run_bsearch, find_by_bsearch)
RUN_PLAIN(run_binary, find_by_halves)
RUN_PLAIN(run_tree, find_in_tree)

/* That all give one answer, before it is asked how fast. */
static void check_answer(const struct task *task, uint64_t guest_off)
{
    const struct flat_extent *flat = find_by_halves(task, guest_off);
    struct extent alone, many;
    struct cairn_error error;

    bench_check(chain_index_lookup(task->index, guest_off, &alone, &error), &error);
    bench_check(chain_index_lookup_many(task->index, &guest_off, 1, &many, &error), &error);
    if (find_by_bsearch(task, guest_off) != flat || find_in_tree(task, guest_off) != flat ||
        alone.host_off != flat->host_off + guest_off - flat->guest_off ||
        alone.layer != flat->layer || many.host_off != alone.host_off || many.layer != alone.layer)
        errx(1, "guest offset %lu: the answers differ", guest_off);
}

/* -- Queries ---------------------------------------------------------------------------------- */

static uint64_t *uniform_queries(const struct data_set *set)
{
    uint64_t *queries = bench_calloc(NR_QUERIES, sizeof(*queries));

    for (size_t i = 0; i < NR_QUERIES; i++)
        queries[i] = bench_below(set->l1->virtual_size);
    return queries;
}

static uint64_t *shuffled(uint64_t nr)
{
    uint64_t *order = bench_calloc(nr, sizeof(*order));

    for (uint64_t i = 0; i < nr; i++) {
        uint64_t k = bench_below(i + 1);

        order[i] = order[k];
        order[k] = i;
    }
    return order;
}

/* The extent that is the nth most asked for is asked for n^-skew times as often as the first. */
static uint64_t *zipf_queries(const struct data_set *set)
{
    uint64_t *queries = bench_calloc(NR_QUERIES, sizeof(*queries)), *order = shuffled(set->nr);
    double *upto = bench_calloc(set->nr, sizeof(*upto)), total = 0;

    for (uint64_t i = 0; i < set->nr; i++)
        upto[i] = total += pow((double)(i + 1), -ZIPF_SKEW);
    for (size_t i = 0; i < NR_QUERIES; i++) {
        double at = total * (double)(bench_random() >> 11) / (double)((uint64_t)1 << 53);
        const struct flat_extent *e;
        uint64_t rank = 0;

        for (uint64_t nr = set->nr; nr > 1; nr -= nr / 2)
            rank += upto[rank + nr / 2 - 1] <= at ? nr / 2 : 0;
        e = &set->flat[order[rank]];
        queries[i] = e->guest_off + bench_below(e->len);
    }
    free(order);
    free(upto);
    return queries;
}

/* -- Rounds ----------------------------------------------------------------------------------- */

/* Sorted keys would make a list of it. */
static void *make_tree(const struct data_set *set)
{
    uint64_t *order = shuffled(set->nr);
    void *tree = NULL;

    for (uint64_t i = 0; i < set->nr; i++)
        if (!tsearch(&set->flat[order[i]], &tree, compare_in_tree))
            errx(1, "no memory for a tree");
    free(order);
    return tree;
}

static void keep(void *extent)
{
    (void)extent;
}

static unsigned list_contenders(struct contender *list)
{
    const struct lookup_isa *isa;
    unsigned nr = 0;

    for (unsigned i = 0; (isa = lookup_isa_get(i)); i++) {
        list[nr++] = (struct contender){.name = "single", .isa = isa->name, .run = run_single};
        list[nr++] = (struct contender){.name = "batch", .isa = isa->name, .run = run_batch};
        list[nr++] = (struct contender){.name = "chained", .isa = isa->name, .run = run_chained};
    }
    list[nr++] = (struct contender){.name = "bsearch", .run = run_bsearch};
    list[nr++] = (struct contender){.name = "binary", .run = run_binary};
    list[nr++] = (struct contender){.name = "tree", .run = run_tree};
    return nr;
}

static void choose_isa(struct chain_index *index, const char *name)
{
    const struct lookup_isa *isa;

    for (unsigned i = 0; name && (isa = lookup_isa_get(i)); i++)
        if (strcmp(isa->name, name) == 0)
            chain_index_use(index, isa);
}

static void run_round(const struct task *task, struct contender *list, unsigned nr, unsigned round)
{
    for (unsigned i = 0; i < nr; i++) {
        double start;

        choose_isa(task->index, list[i].isa);
        start = bench_cpu_now();
        list[i].run(task);
        list[i].times[round] = bench_cpu_now() - start;
    }
}

static void compare(const struct task *task, const char *queries, unsigned rounds)
{
    struct contender list[16];
    unsigned nr = list_contenders(list);

    for (size_t i = 0; i < NR_QUERIES; i += 101)
        check_answer(task, task->queries[i]);
    for (unsigned round = 0; round < rounds; round++)
        run_round(task, list, nr, round);
    for (unsigned i = 0; i < nr; i++) {
        double median = bench_median(list[i].times, rounds); /* sorts */

        printf("{\"extents\": %lu, \"queries\": \"%s\", \"way\": \"%s\", \"isa\": \"%s\", "
               "\"perSecond\": %.0f, \"best\": %.0f}\n",
               task->set->nr, queries, list[i].name, list[i].isa ? list[i].isa : "",
               NR_QUERIES / median, NR_QUERIES / list[i].times[0]);
    }
    fflush(stdout);
}

void bench_lookups(uint64_t nr_extents, unsigned rounds)
{
    struct data_set *set = data_set_new(nr_extents);
    struct index_slices slices = data_set_slices(set);
    struct task task = {.set = set, .tree = make_tree(set)};
    uint64_t *uniform = uniform_queries(set), *zipf = zipf_queries(set);
    struct cairn_error error;

    rounds = rounds < ROUNDS_MAX ? rounds : ROUNDS_MAX;
    bench_check(chain_index_new(set->l1, &slices, SIZE_MAX, &task.index, &error), &error);
    task.queries = uniform;
    compare(&task, "uniform", rounds);
    task.queries = zipf;
    compare(&task, "zipf", rounds);
    chain_index_free(task.index);
    tdestroy(task.tree, keep);
    free(uniform);
    free(zipf);
    data_set_free(set);
}
