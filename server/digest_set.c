/* SPDX-License-Identifier: Apache-2.0 */
#include "digest_set.h"

#include <stdlib.h>

#define SLOTS_FIRST 64

static const struct digest none;

int digest_budget_take(struct digest_budget *budget, size_t bytes, struct cairn_error *err)
{
    if (bytes > budget->max_bytes || budget->bytes > budget->max_bytes - bytes)
        return error_set(err, CAIRN_E_LIMIT,
                         "telling what is live takes more than %zu bytes of memory (gc-memory)",
                         budget->max_bytes);
    budget->bytes += bytes;
    return CAIRN_OK;
}

void digest_set_init(struct digest_set *set, struct digest_budget *budget)
{
    *set = (struct digest_set){.budget = budget};
}

void digest_set_release(struct digest_set *set)
{
    if (set->slots)
        set->budget->bytes -= set->nr_slots * sizeof(*set->slots);
    free(set->slots);
    *set = (struct digest_set){.budget = set->budget};
}

/* The slot of d, or the free one where it belongs.  Digests are as good as random numbers. */
static struct digest *find(const struct digest_set *set, const struct digest *d)
{
    size_t at;

    memcpy(&at, d->sha256, sizeof(at));
    for (at &= set->nr_slots - 1;; at = (at + 1) & (set->nr_slots - 1))
        if (digest_equal(&set->slots[at], d) || digest_equal(&set->slots[at], &none))
            return &set->slots[at];
}

static int grow(struct digest_set *set, struct cairn_error *err)
{
    struct digest_set bigger = {.budget = set->budget,
                                .nr = set->nr,
                                .nr_slots = set->nr_slots ? 2 * set->nr_slots : SLOTS_FIRST};
    const size_t bytes = bigger.nr_slots * sizeof(*bigger.slots);

    int r = digest_budget_take(set->budget, bytes, err);

    if (r)
        return r;
    bigger.slots = calloc(bigger.nr_slots, sizeof(*bigger.slots));
    if (!bigger.slots) {
        set->budget->bytes -= bytes;
        return error_no_memory(err, "a set of digests");
    }
    for (size_t i = 0; i < set->nr_slots; i++)
        if (!digest_equal(&set->slots[i], &none))
            *find(&bigger, &set->slots[i]) = set->slots[i];
    digest_set_release(set);
    *set = bigger;
    return CAIRN_OK;
}

int digest_set_add(struct digest_set *set, const struct digest *d, struct cairn_error *err)
{
    struct digest *slot;

    if (4 * (set->nr + 1) > 3 * set->nr_slots) {
        int r = grow(set, err);

        if (r)
            return r;
    }
    slot = find(set, d);
    set->nr += digest_equal(slot, &none);
    *slot = *d;
    return CAIRN_OK;
}

bool digest_set_has(const struct digest_set *set, const struct digest *d)
{
    return set->nr_slots > 0 && digest_equal(find(set, d), d);
}
