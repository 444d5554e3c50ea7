/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is dead: steps 2 and 4 of collect.h, for objects of one kind (and repository).
 */
#include "collect_internal.h"

#include "step.h"

void dead_init(struct dead *dead, struct run *run, enum collect_kind kind, const char *repo)
{
    *dead = (struct dead){.run = run, .kind = kind, .repo = repo};
    digest_set_init(&dead->gone, &run->budget);
}

void dead_release(struct dead *dead)
{
    digest_set_release(&dead->gone);
    dead->run->budget.bytes -= dead->max * sizeof(*dead->objects);
    free(dead->objects);
    dead->objects = NULL;
    dead->nr = dead->max = 0;
}

char *dead_key(const struct dead *dead, const struct digest *d, char key[REGISTRY_KEY_MAX])
{
    if (dead->kind == COLLECT_BLOBS)
        return registry_blob_key(d, key);
    return registry_repo_key(dead->repo, dead->kind == COLLECT_LINKS ? "_blobs" : "_manifests", d,
                             key);
}

/* What goes with it: the record among its subject's referrers. */
static const char *with_key(const struct dead *dead, const struct dead_object *o,
                            char key[REGISTRY_KEY_MAX])
{
    if (!o->has_subject)
        return NULL;
    return registry_referrer_key(dead->repo, &o->subject, &o->digest, key);
}

static struct collect_count *count_of(const struct dead *dead)
{
    return &dead->run->result->kinds[dead->kind];
}

static int make_room(struct dead *dead, struct cairn_error *err)
{
    size_t max = dead->max ? 2 * dead->max : 64;
    struct dead_object *objects;
    int r;

    if (dead->nr < dead->max)
        return CAIRN_OK;
    r = digest_budget_take(&dead->run->budget, (max - dead->max) * sizeof(*objects), err);
    if (r)
        return r;
    objects = reallocarray(dead->objects, max, sizeof(*objects));
    if (!objects) {
        dead->run->budget.bytes -= (max - dead->max) * sizeof(*objects);
        return error_no_memory(err, "a list of what is dead");
    }
    dead->objects = objects;
    dead->max = max;
    return CAIRN_OK;
}

int dead_add(struct dead *dead, const struct digest *d, const struct digest *subject,
             struct cairn_error *err)
{
    struct dead_object o = {.digest = *d, .has_subject = subject != NULL};
    char key[REGISTRY_KEY_MAX], with[REGISTRY_KEY_MAX];
    struct run *run = dead->run;
    bool young, marked = true;
    int r = run_is_young(run, dead_key(dead, d, key), &young, &o.size, err);

    if (r || young)
        return r;
    if (subject)
        o.subject = *subject;
    r = make_room(dead, err);
    if (!r && !run->options.dry_run)
        r = condemned_mark(run->store, run->id, key, with_key(dead, &o, with), &marked, err);
    if (r || !marked) /* a client is deleting it */
        return r;
    count_of(dead)->condemned++;
    dead->objects[dead->nr++] = o;
    return CAIRN_OK;
}

/* -- Pardoning -------------------------------------------------------------------------------- */

static int keep(struct dead *dead, struct dead_object *o, struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX], with[REGISTRY_KEY_MAX];

    o->state = DEAD_KEPT;
    count_of(dead)->revived++;
    if (dead->run->options.dry_run)
        return CAIRN_OK;
    return condemned_pardon(dead->run->store, dead->run->id, dead_key(dead, &o->digest, key),
                            with_key(dead, o, with), NULL, err);
}

int dead_pardon(struct dead *dead, const struct digest_set *live, struct cairn_error *err)
{
    for (size_t i = 0; i < dead->nr; i++) {
        struct dead_object *o = &dead->objects[i];
        bool lives = digest_set_has(live, &o->digest);
        char key[REGISTRY_KEY_MAX];
        int r = CAIRN_OK;

        if (o->state != DEAD_CONDEMNED)
            continue;
        if (!lives)
            r = run_is_young(dead->run, dead_key(dead, &o->digest, key), &lives, NULL, err);
        if (!r && lives)
            r = keep(dead, o, err);
        if (r)
            return r;
    }
    return CAIRN_OK;
}

int dead_keep_all(struct dead *dead, struct cairn_error *err)
{
    int r = CAIRN_OK;

    for (size_t i = 0; i < dead->nr && !r; i++)
        if (dead->objects[i].state == DEAD_CONDEMNED)
            r = keep(dead, &dead->objects[i], err);
    return r;
}

/* -- Deleting --------------------------------------------------------------------------------- */

static int remove_object(struct dead *dead, struct dead_object *o, struct cairn_error *err)
{
    char key[REGISTRY_KEY_MAX], with[REGISTRY_KEY_MAX];
    bool gone = true;
    int r = run_progress(dead->run, "delete", (uint64_t)(o - dead->objects), dead->nr,
                         collect_kind_names[dead->kind], err);

    if (!r && !dead->run->options.dry_run)
        r = condemned_delete(dead->run->store, dead->run->id, dead_key(dead, &o->digest, key),
                             with_key(dead, o, with), &gone, err);
    if (r)
        return r;
    o->state = gone ? DEAD_GONE : DEAD_KEPT;
    if (!gone) {
        count_of(dead)->revived++;
        return CAIRN_OK;
    }
    count_of(dead)->deleted++;
    count_of(dead)->bytes += o->size;
    return digest_set_add(&dead->gone, &o->digest, err);
}

static const struct dead_object *find(const struct dead *dead, const struct digest *d)
{
    for (size_t i = 0; i < dead->nr; i++)
        if (digest_equal(&dead->objects[i].digest, d))
            return &dead->objects[i];
    return NULL;
}

/* Those whose subject is decided, one way or the other; *ret_progress: there was one at least. */
static int decide_some(struct dead *dead, bool *ret_progress, struct cairn_error *err)
{
    *ret_progress = false;
    for (size_t i = 0; i < dead->nr; i++) {
        struct dead_object *o = &dead->objects[i];
        const struct dead_object *subject =
            o->state == DEAD_CONDEMNED && o->has_subject ? find(dead, &o->subject) : NULL;
        int r;

        if (o->state != DEAD_CONDEMNED || (subject && subject->state == DEAD_CONDEMNED))
            continue;
        *ret_progress = true;
        r = subject && subject->state == DEAD_KEPT ? keep(dead, o, err)
                                                   : remove_object(dead, o, err);
        if (r)
            return r;
    }
    return CAIRN_OK;
}

/*
 * Subjects before what refers to them, for a publisher that revives a manifest revives only that.
 * Manifests cannot refer to each other in a circle; records that say so are left alone.
 */
int dead_delete(struct dead *dead, struct cairn_error *err)
{
    bool progress = dead->nr > 0;
    int r = CAIRN_OK;

    while (progress && !r)
        r = decide_some(dead, &progress, err);
    return r;
}
