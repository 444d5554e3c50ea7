/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every allocation of the metadata cache fails once: while it builds an index from the layers' own
 * tables, and while it takes it from the store.
 */
#include "alloc_fail.h"
#include "qemu.h"

#include "metacache.h"
#include "registry.h"

#define NR_LAYERS 3 /* each in another slice, and the second slice has all */

struct fixture {
    struct store *store;
    struct manifest *manifest;
    struct meta_chain chain;
    struct index_totals totals; /* that every build must come to */
};

/* A layer of its own for each ordinal, at its blob's place. */
static void put_blob(struct manifest_layer *layer, uint32_t ordinal)
{
    char key[REGISTRY_KEY_MAX];
    size_t len;

    sh("qemu-img create -q -f qcow2 layer 70M;"
       "qemu-io -c 'write -q %uM 1M' -c 'write -q -z 40M %uM' layer",
       ordinal * 34, ordinal + 1);
    free(load_file("layer", &len));
    layer->size = len;
    layer->format = LAYER_QCOW2;
    digest_of(&ordinal, sizeof(ordinal), &layer->digest);
    registry_blob_key(&layer->digest, key);
    sh("mkdir -p $(dirname store/%s) && mv layer store/%s", key, key);
}

static int make_store(void **state)
{
    static struct fixture f;
    struct manifest_layer layers[NR_LAYERS];
    char url[sizeof(qemu_folder) + 16];

    if (qemu_setup(state) != 0)
        return -1;
    snprintf(url, sizeof(url), "fs:%s/store", qemu_folder);
    assert_int_equal(store_open(url, &f.store, NULL), CAIRN_OK);
    for (uint32_t i = 0; i < NR_LAYERS; i++)
        put_blob(&layers[i], i);
    assert_int_equal(manifest_new(layers, NR_LAYERS, &f.manifest, NULL), CAIRN_OK);
    f.chain = (struct meta_chain){NR_LAYERS, f.manifest->chain_ids, f.manifest->layers};
    *state = &f;
    return 0;
}

static int drop_store(void **state)
{
    struct fixture *f = *state;

    manifest_free(f->manifest);
    store_close(f->store);
    return qemu_teardown(state);
}

static int get_slices(struct fixture *f, struct metacache *cache, struct index_l1 *l1,
                      struct cairn_error *err)
{
    int ret = CAIRN_OK;

    for (uint32_t s = 0; ret == CAIRN_OK && s < l1->nr_slices; s++) {
        CLEANUP(index_slice_unref_p) struct index_slice *slice = NULL;

        ret = metacache_slice(cache, &f->chain, l1, l1->slices[s], s, &slice, err);
        if (ret == CAIRN_OK)
            assert_true(slice->nr_extents > 0);
    }
    return ret;
}

static int use_cache(void *arg, struct cairn_error *err)
{
    struct fixture *f = arg;
    CLEANUP(metacache_free_p) struct metacache *cache = NULL;
    CLEANUP(index_l1_unref_p) struct index_l1 *l1 = NULL;
    int ret = metacache_new(1 << 20, f->store, NULL, &cache, err);

    if (ret == CAIRN_OK)
        ret = metacache_l1(cache, &f->chain, NR_LAYERS - 1, &l1, err);
    if (ret != CAIRN_OK)
        return ret;
    if (f->totals.nr_extents == 0)
        f->totals = l1->totals;
    assert_memory_equal(&f->totals, &l1->totals, sizeof(l1->totals));
    return get_slices(f, cache, l1, err);
}

static void remove_index(void *arg)
{
    (void)arg;
    sh("rm -rf store/index/*");
}

static void test_built_from_the_layers(void **state)
{
    alloc_sweep_run(&(struct alloc_sweep){.name = "an index from its layers",
                                          .prepare = remove_index,
                                          .run = use_cache},
                    *state);
}

static void test_taken_from_the_store(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(use_cache(f, NULL), CAIRN_OK);
    alloc_sweep_run(&(struct alloc_sweep){.name = "an index from the store", .run = use_cache}, f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_built_from_the_layers),
        cmocka_unit_test(test_taken_from_the_store),
    };

    return cmocka_run_group_tests(tests, make_store, drop_store);
}
