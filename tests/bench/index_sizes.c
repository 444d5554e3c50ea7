/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes per extent: in memory with all that a look-up needs, in Redis (a value per slice), and on
 * the wire (a container); and what it costs to make and to read those bytes.
 */
#include <malloc.h>
#include <string.h>

#include "index_bench.h"

struct frame {
    void *buf;
    size_t len;
};

static double encode_all(struct index_slice *const *slices, uint32_t nr, struct frame *frames,
                         const struct digest *id)
{
    struct cairn_error error;
    double start = bench_cpu_now();

    for (uint32_t i = 0; i < nr; i++) {
        free(frames[i].buf);
        frames[i].buf = NULL;
        if (slices[i])
            bench_check(
                index_slice_encode(slices[i], id, i, &frames[i].buf, &frames[i].len, &error),
                &error);
    }
    return bench_cpu_now() - start;
}

static double decode_all(const struct index_l1 *l1, struct frame *frames, const struct digest *id)
{
    struct cairn_error error;
    double start = bench_cpu_now();

    for (uint32_t i = 0; i < l1->nr_slices; i++) {
        struct index_slice *slice = NULL;

        if (!frames[i].buf)
            continue;
        bench_check(index_slice_decode(frames[i].buf, frames[i].len, id, l1, l1->slices[i], i,
                                       &slice, &error),
                    &error);
        index_slice_unref(slice);
    }
    return bench_cpu_now() - start;
}

static size_t wire_bytes(const struct index_l1 *l1, struct index_slice *const *slices,
                         const struct digest *id)
{
    struct index_writer *w = NULL;
    struct cairn_error error;
    void *buf = NULL;
    size_t len = 0;

    bench_check(index_writer_new(&w, &error), &error);
    for (uint32_t i = 0; i < l1->nr_slices; i++)
        if (slices[i])
            bench_check(index_writer_add(w, i, l1->slices[i], id, slices[i], &error), &error);
    bench_check(index_writer_finish(w, l1, &buf, &len, &error), &error);
    index_writer_free(w);
    free(buf);
    return len;
}

void bench_codec(const char *what, const struct index_l1 *l1, struct index_slice *const *slices,
                 unsigned rounds)
{
    struct frame *frames = bench_calloc(l1->nr_slices, sizeof(*frames));
    double *encode = bench_calloc(rounds, sizeof(*encode));
    double *decode = bench_calloc(rounds, sizeof(*decode));
    uint64_t nr = 0, redis = 0, memory = 0;
    struct digest id = {{0}};

    for (unsigned i = 0; i < rounds; i++) {
        encode[i] = encode_all(slices, l1->nr_slices, frames, &id);
        decode[i] = decode_all(l1, frames, &id);
    }
    for (uint32_t i = 0; i < l1->nr_slices; i++) {
        nr += slices[i] ? slices[i]->nr_extents : 0;
        memory += slices[i] ? malloc_usable_size(slices[i]) + sizeof(size_t) : 0;
        redis += frames[i].buf ? frames[i].len : 0;
        free(frames[i].buf);
    }
    printf(
        "{\"what\": \"%s\", \"extents\": %lu, \"slices\": %u, \"memory\": %.2f, \"redis\": %.2f, "
        "\"wire\": %.2f, \"encodeNs\": %.1f, \"decodeNs\": %.1f}\n",
        what, nr, l1->nr_slices, (double)(memory + 8 * (uint64_t)l1->nr_slices) / (double)nr,
        (double)redis / (double)nr, (double)wire_bytes(l1, slices, &id) / (double)nr,
        1e9 * bench_median(encode, rounds) / (double)nr,
        1e9 * bench_median(decode, rounds) / (double)nr);
    fflush(stdout);
    free(frames);
    free(encode);
    free(decode);
}

void bench_sizes(uint64_t nr_extents, unsigned rounds)
{
    struct data_set *set = data_set_new(nr_extents);

    bench_codec("random", set->l1, set->slices, rounds);
    data_set_free(set);
}
