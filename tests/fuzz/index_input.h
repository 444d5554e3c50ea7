/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an input of fuzz_index is: a head, then the bytes to decode.  make_index_corpus writes
 * such inputs, from real objects.
 */
#ifndef TESTS_FUZZ_INDEX_INPUT_H
#define TESTS_FUZZ_INDEX_INPUT_H

#include "chain_index_internal.h"

enum index_input_mode {
    INPUT_L1,
    INPUT_SLICE,
    INPUT_CONTAINER,
    INPUT_MODES,
    INPUT_SEAL = 0x80, /* make lengths and checksums good first, to get at what is behind them */
};

#define INPUT_MODE_OFF     0
#define INPUT_ORDINAL_OFF  1
#define INPUT_SLICE_OFF    2
#define INPUT_CHAIN_ID_OFF 3
#define INPUT_HEAD_SIZE    35

/* The chain whose slices are decoded: its layers' attributes, base first. */
#define INPUT_DEPTH 3
static const struct layer_attr input_layers[INPUT_DEPTH] = {
    {.virtual_size = (uint64_t)80 << 20, .format = LAYER_RAW},
    {.virtual_size = (uint64_t)40 << 20, .cluster_bits = 16, .format = LAYER_QCOW2},
    {.virtual_size = (uint64_t)100 << 20,
     .cluster_bits = 21,
     .format = LAYER_QCOW2,
     .compression = LAYER_ZSTD},
};

#endif
