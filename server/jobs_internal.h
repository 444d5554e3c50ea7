/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside jobs: what runs (jobs.c), what is known of it in the store (jobs_record.c), and both over
 * HTTP (jobs_http.c).
 */
#ifndef SERVER_JOBS_INTERNAL_H
#define SERVER_JOBS_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "jobs.h"

#define JOB_PHASE_MAX 32
#define JOB_UNIT_MAX  16

CLEANUP_DEFINE(json_t *, json_decref)

enum job_state {
    JOB_RUNNING,
    JOB_DONE,
    JOB_FAILED,
    JOB_CANCELLED,
    JOB_INTERRUPTED,
    NR_JOB_STATES,
};
const char *job_state_name(enum job_state state);

/* The thread of a kind: it may have ended, and is joined before the next one starts. */
struct job_slot {
    pthread_t thread;
    bool started;
    atomic_bool running;
    atomic_uint_fast64_t ended[NR_JOB_STATES];
};

struct jobs {
    struct store *store;
    char *server;
    const struct job_kind *kinds;
    size_t nr_kinds;
    pthread_mutex_t lock; /* protects the slots' threads and stopping */
    pthread_cond_t stop;
    bool stopping;
    pthread_t scheduler;
    struct job_slot slots[]; /* by kind */
};

struct job {
    struct jobs *jobs;
    const struct job_kind *kind;
    struct job_slot *slot;
    struct store_lock *lock; /* the kind's, in the store */
    char id[JOB_ID_MAX];
    json_t *options, *cursor, *result;
    char phase[JOB_PHASE_MAX], unit[JOB_UNIT_MAX];
    uint64_t done, total;
    time_t started;
    unsigned restarts;
    bool cancelled;   /* somebody has asked for it */
    bool save_failed; /* and that was logged */
    uint64_t saved_us;
};

/* -- Records: JSON objects under jobs/<id> ---------------------------------------------------- */

/* Keep what is known of a job; why is of a failed one, else NULL. */
int job_record_save(const struct job *job, enum job_state state, const char *why,
                    struct cairn_error *err);
/* As it stands in the store: who died says `running` there. */
int job_record_load(struct store *store, const char *id, json_t **ret_record,
                    struct cairn_error *err);
/* The same, with `interrupted` or `cancelled` for those. */
int job_record_observe(struct store *store, const char *id, json_t **ret_record,
                       struct cairn_error *err);
bool job_record_is(const json_t *record, enum job_state state);
/* A time of the record; 0: none. */
time_t job_record_time(const json_t *record, const char *name);
/* The kind's lock is held: end what says `running`, and remove the oldest. */
int job_records_tidy(struct store *store, const struct job_kind *kind, struct cairn_error *err);
/* Somebody has asked that the job stop; and ask for it. */
int job_cancel_asked(struct store *store, const char *id, bool *ret_asked, struct cairn_error *err);
int job_ask_cancel(struct store *store, const char *id, struct cairn_error *err);
/* The kind's lock is held: end an interrupted job as cancelled. */
int job_record_end(struct store *store, const char *id, enum job_state state,
                   struct cairn_error *err);

/* IDs of a kind (NULL: of all), oldest first within it.  fn: not 0 stops. */
struct job_ids {
    char (*ids)[JOB_ID_MAX];
    size_t nr, room;
};
int job_ids_list(struct store *store, const char *kind, struct job_ids *ids,
                 struct cairn_error *err);
void job_ids_release(struct job_ids *ids);

int job_new_id(const struct job_kind *kind, char id[JOB_ID_MAX], struct cairn_error *err);
char *job_lock_name(const struct job_kind *kind, char name[JOB_ID_MAX]);
bool job_valid_id(const char *id);
/* The kind that an ID or a name of len bytes is of; NULL: none. */
const struct job_kind *jobs_find_kind(const struct jobs *jobs, const char *name, size_t len);

#endif
