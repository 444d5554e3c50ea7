/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Steps of publishers and of the collector, by name, so that tests can let others act between any
 * two of them, hold a thread or end the process there.  Without CAIRN_FAULTS (Release) they are
 * nothing.
 *
 * With it the environment variable CAIRN_STEP_PAUSE=<us> makes each step of a server take a random
 * time of up to so many microseconds: what is rare becomes common.
 */
#ifndef SERVER_STEP_H
#define SERVER_STEP_H

/* clang-format off */
#define STEPS(STEP)                                                                                \
    /* Upload and mount: registry_uploads.c, registry_blobs.c */                                   \
    STEP(LINK_STORED)      /* the repository's link, which claims the blob */                      \
    STEP(LINK_REVIVED)                                                                             \
    STEP(BLOB_REVIVED)                                                                             \
    STEP(BLOB_STORED)                                                                              \
    STEP(BLOB_RENEWED)     /* HEAD: who asks means to use it */                                    \
    /* PUT of a manifest: registry_manifests.c */                                                  \
    STEP(PUT_CLAIMED)                                                                              \
    STEP(PUT_REVIVED)                                                                              \
    STEP(PUT_CHECKED)                                                                              \
    STEP(PUT_INDEXED)                                                                              \
    STEP(PUT_STILL_CLAIMED)                                                                        \
    STEP(PUT_MANIFEST)                                                                             \
    STEP(PUT_REFERRER)                                                                             \
    STEP(PUT_TAGGED)                                                                               \
    STEP(PUT_DROPPED)                                                                              \
    /* DELETE of a manifest: registry_manifests.c */                                               \
    STEP(DELETE_CONDEMNED)                                                                         \
    STEP(DELETE_UNCLAIMED)                                                                         \
    STEP(DELETE_UNTAGGED)                                                                          \
    /* Leases: leases.c */                                                                         \
    STEP(LEASE_STORED)                                                                             \
    STEP(LEASE_REVIVED)                                                                            \
    /* The collector: collect*.c, condemned.c */                                                   \
    STEP(RUN_BEGUN)                                                                                \
    STEP(RUN_RECOVERED)                                                                            \
    STEP(MARKED)           /* what is live was found, for the first time */                        \
    STEP(CONDEMNED)        /* one object */                                                        \
    STEP(CLAIMS_READ)                                                                              \
    STEP(MARKED_AGAIN)                                                                             \
    STEP(PARDONED)         /* one object, which was found live after all */                        \
    STEP(DELETE_LOCKED)                                                                            \
    STEP(DELETING)         /* one object's marker says so */                                       \
    STEP(DELETED)          /* the object, not its marker */                                        \
    STEP(MARKER_DROPPED)                                                                           \
    STEP(RUN_ENDED)
/* clang-format on */

enum step {
#define STEP_CONSTANT(name) STEP_##name,
    STEPS(STEP_CONSTANT)
#undef STEP_CONSTANT
        NR_STEPS,
};

#ifdef CAIRN_FAULTS

/* Called at each step, by whatever thread comes there; NULL: none. */
typedef void (*step_hook_fn)(enum step step);
void step_set_hook(step_hook_fn hook);

void step_reached(enum step step);

#else

#define step_reached(step) ((void)(step))

#endif

#endif
