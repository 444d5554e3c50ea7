/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the collector share: the run, repositories, what is dead.
 */
#ifndef SERVER_COLLECT_INTERNAL_H
#define SERVER_COLLECT_INTERNAL_H

#include "collect.h"
#include "condemned.h"
#include "digest_set.h"
#include "registry_internal.h"

struct run {
    struct store *store;
    struct collect_options options;
    const struct collect_watch *watch;
    struct collect_result *result;
    char id[CONDEMNED_BY_MAX];
    uint64_t now_us; /* the store's time, when a repository or a kind was begun */
    struct digest_budget budget;
    struct digest_set blobs;  /* that a manifest lists, of any repository */
    struct digest_set read;   /* manifests that this is known of */
    struct digest_set chains; /* chain IDs of all prefixes of all disks */
};

int run_progress(struct run *run, const char *phase, uint64_t done, uint64_t total,
                 const char *unit, struct cairn_error *err);

int run_clock(struct run *run, struct cairn_error *err);

/* Is an object as young as grace?  false: it is older, or gone.  *ret_size may be NULL. */
int run_is_young(struct run *run, const char *key, bool *ret_young, uint64_t *ret_size,
                 struct cairn_error *err);

/* Is it the object that is unreadable, so that others can be judged all the same? */
bool run_cannot_read(int code);

/* -- Names ------------------------------------------------------------------------------------ */

/* The digest that a name of 64 hex digits stands for; false: it is none. */
bool collect_parse_hex(const char *name, struct digest *ret_digest);

/* Every digest that is a name below prefix. */
typedef int (*collect_digest_fn)(void *arg, const struct digest *d, struct cairn_error *err);
int collect_each_digest(struct store *store, const char *prefix, collect_digest_fn fn, void *arg,
                        struct cairn_error *err);
/* Every digest below prefix<2 hex>/; progress is told after each such folder. */
int collect_each_spread(struct run *run, const char *phase, const char *prefix,
                        collect_digest_fn fn, void *arg, struct cairn_error *err);

/* Every repository that there is now; repo stays valid until the call returns. */
typedef int (*collect_repo_fn)(struct run *run, const char *repo, struct cairn_error *err);
int collect_each_repo(struct run *run, const char *phase, collect_repo_fn fn,
                      struct cairn_error *err);

/* -- Manifests -------------------------------------------------------------------------------- */

/* Where to put what a manifest lists; each may be NULL. */
struct collect_lists {
    struct digest_set *of_repo, *of_all; /* digests of blobs */
    struct digest_set *chains;           /* IDs of the prefixes of its chain, if it is a disk */
};
int collect_listed(const void *manifest, size_t len, const struct collect_lists *lists,
                   struct cairn_error *err);
/* The same of what is claimed, which need not be a manifest: it is claimed before it is looked at,
 * and refused then. */
int collect_claimed(const void *manifest, size_t len, const struct collect_lists *lists,
                    struct cairn_error *err);

/* -- What is dead: objects of one kind, condemned one by one, then judged again --------------- */

struct dead_object {
    struct digest digest;
    uint64_t size;
    struct digest subject; /* of a manifest that has_subject */
    bool has_subject;
    enum { DEAD_CONDEMNED, DEAD_GONE, DEAD_KEPT } state;
};

struct dead {
    struct run *run;
    enum collect_kind kind;
    const char *repo; /* NULL: blobs */
    struct dead_object *objects;
    size_t nr, max;
    struct digest_set gone;
};

void dead_init(struct dead *dead, struct run *run, enum collect_kind kind, const char *repo);
void dead_release(struct dead *dead);
char *dead_key(const struct dead *dead, const struct digest *d, char key[REGISTRY_KEY_MAX]);
/* Condemn an object unless it is young; in a dry run it is only noted. */
int dead_add(struct dead *dead, const struct digest *d, const struct digest *subject,
             struct cairn_error *err);
/* Pardon those that are in live, or have become young. */
int dead_pardon(struct dead *dead, const struct digest_set *live, struct cairn_error *err);
int dead_keep_all(struct dead *dead, struct cairn_error *err);
/* Delete the others; a manifest whose subject is kept is kept. */
int dead_delete(struct dead *dead, struct cairn_error *err);

/* -- The phases (collect_repo.c, collect_blobs.c) --------------------------------------------- */

int collect_repo(struct run *run, const char *repo, struct cairn_error *err);
int collect_blobs(struct run *run, struct cairn_error *err);
int collect_index(struct run *run, struct cairn_error *err);

#endif
