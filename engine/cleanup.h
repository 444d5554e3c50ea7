/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a scope owns is declared with one of these and released when the scope ends; steal_ptr
 * and steal_fd hand it on.
 */
#ifndef ENGINE_CLEANUP_H
#define ENGINE_CLEANUP_H

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#define CLEANUP(fn) __attribute__((cleanup(fn)))

/* Defines fn_p(T *p), for CLEANUP(fn_p), from a destructor fn(T) that takes NULL. */
#define CLEANUP_DEFINE(type, fn)                                                                   \
    static inline __attribute__((unused)) void fn##_p(type *p)                                     \
    {                                                                                              \
        if (*p)                                                                                    \
            fn(*p);                                                                                \
    }

static inline void cleanup_free(void *p)
{
    free(*(void **)p);
}

static inline void cleanup_close(const int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

static inline void cleanup_unlock(pthread_mutex_t **mutex)
{
    if (*mutex)
        pthread_mutex_unlock(*mutex);
}

#define CLEANUP_FREE  CLEANUP(cleanup_free)
#define CLEANUP_CLOSE CLEANUP(cleanup_close)

/* Hold a mutex until the end of the scope. */
#define SCOPED_LOCK(mutex)                                                                         \
    CLEANUP(cleanup_unlock)                                                                        \
    __attribute__((unused)) pthread_mutex_t *scoped_lock_ = (pthread_mutex_lock(mutex), (mutex))

#define steal_ptr(p)                                                                               \
    __extension__({                                                                                \
        __typeof__(p) stolen_ = (p);                                                               \
        (p) = NULL;                                                                                \
        stolen_;                                                                                   \
    })

static inline int steal_fd(int *fd)
{
    int stolen = *fd;

    *fd = -1;
    return stolen;
}

#endif
