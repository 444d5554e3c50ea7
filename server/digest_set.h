/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A set of digests, as what is live is marked with: 43 to 85 bytes for each, with the room that
 * hashing needs.  All sets of one mark share a budget of bytes.
 */
#ifndef SERVER_DIGEST_SET_H
#define SERVER_DIGEST_SET_H

#include "digest.h"

struct digest_budget {
    size_t bytes, max_bytes;
};

struct digest_set {
    struct digest_budget *budget;
    struct digest *slots; /* all zeros: free */
    size_t nr, nr_slots;  /* nr_slots: 0 or a power of two */
};

/* CAIRN_E_LIMIT if it is spent; who gives back subtracts. */
int digest_budget_take(struct digest_budget *budget, size_t bytes, struct cairn_error *err);

void digest_set_init(struct digest_set *set, struct digest_budget *budget);
void digest_set_release(struct digest_set *set);
/* CAIRN_E_LIMIT if the budget is spent. */
int digest_set_add(struct digest_set *set, const struct digest *d, struct cairn_error *err);
bool digest_set_has(const struct digest_set *set, const struct digest *d);

#endif
