/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Power cuts under the fs: backend.  A random workload on a store is recorded, beginning with the
 * store's making; then, for every point of the record, folders are made that a cut there could have
 * left (power_folder.h), and the store is opened on each.  It must open; each key must have the
 * value that the last call that succeeded gave it, or the one that the call under way was giving
 * it; nothing else may be visible; uploads go on or can be removed without a rest; and the store
 * must take new objects.
 *
 * CAIRN_TEST_SEED gives the seed; with CAIRN_TEST_SCALE=long there are ten times as many cuts.
 */
#include "test.h"

#include <dirent.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "power_folder.h"
#include "scale.h"
#include "scratch.h"
#include "store.h"

#define NR_CALLS    120 /* of a workload */
#define NR_OPEN     3  /* uploads */
#define CONTENT_MAX 3000
#define OWNER       "vm/disk"

enum kind {
    OBJECT,  /* put if absent, deleted */
    DERIVED, /* put and replaced, deleted */
    TAG,     /* compare-and-set */
    BLOB,    /* the end of an upload; moved away */
    PUT_AWAY /* what was moved */
};

/* Some lie alone in their folder, so that folders come and go. */
static const struct key {
    const char *key;
    enum kind kind;
} keys[] = {
    {"repos/vm/disk/_manifests/m1", OBJECT},
    {"repos/vm/disk/_manifests/m2", OBJECT},
    {"repos/other/_manifests/m1", OBJECT},
    {"repos/vm/disk/_blobs/b1", OBJECT},
    {"index/aa/x1", DERIVED},
    {"index/ab/x1", DERIVED},
    {"repos/vm/disk/_tags/v1", TAG},
    {"repos/vm/disk/_tags/v2", TAG},
    {"repos/x/y/z/_tags/v1", TAG},
    {"blobs/sha256/aa/a1", BLOB},
    {"blobs/sha256/aa/a2", BLOB},
    {"blobs/sha256/bb/b1", BLOB},
    {"blobs/sha256/cc/c1", BLOB},
    {"quarantine/aa/a1", PUT_AWAY},
    {"quarantine/aa/a2", PUT_AWAY},
    {"quarantine/bb/b1", PUT_AWAY},
    {"quarantine/cc/c1", PUT_AWAY},
};
#define NR_KEYS  (sizeof(keys) / sizeof(keys[0]))
#define MOVED_TO 4 /* the key that a blob is moved to is so many further */
#define NO_VALUE 0

/* A key got a value by the call that made the events from begin to end. */
struct given {
    size_t key, begin, end;
    uint32_t value;
};

struct upload {
    char id[STORE_UPLOAD_ID_MAX];
    size_t key;
    size_t len; /* bytes appended */
    bool open;
};

struct run {
    uint64_t rng;
    char base[256], url[300];
    struct store *store;
    struct power_record *record;
    struct given given[4 * NR_CALLS];
    size_t nr_given;
    uint32_t values[NR_KEYS]; /* now */
    uint32_t next_value;
    struct upload uploads[NR_CALLS];
    unsigned nr_uploads;
    unsigned nr_cuts, nr_failures;
    size_t cut;
    enum power_cut how;
};

static struct cairn_error err;

static uint64_t random_below(struct run *run, uint64_t n)
{
    run->rng ^= run->rng >> 12;
    run->rng ^= run->rng << 25;
    run->rng ^= run->rng >> 27;
    return (run->rng * UINT64_C(0x2545f4914f6cdd1d) >> 11) % n;
}

/* -- Values ------------------------------------------------------------------------------- */

/* Printable, so that tags may have them; never zeros, which lost sectors read as. */
static size_t content_of(uint32_t value, char buf[CONTENT_MAX + 1])
{
    uint64_t x = value * UINT64_C(0x9e3779b97f4a7c15) | 1;
    size_t len = 1 + (size_t)(x >> 40) % CONTENT_MAX;

    for (size_t i = 0; i < len; i++) {
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        buf[i] = (char)('a' + x % 26);
    }
    buf[len] = 0;
    return len;
}

/* A blob's bytes follow from its key, wherever it is. */
static uint32_t blob_value(size_t key)
{
    return 1000000 + (uint32_t)(keys[key].kind == PUT_AWAY ? key - MOVED_TO : key);
}

static bool holds(uint32_t value, const void *buf, size_t len)
{
    char content[CONTENT_MAX + 1];

    return content_of(value, content) == len && memcmp(content, buf, len) == 0;
}

/* -- The workload ------------------------------------------------------------------------- */

static void give(struct run *run, size_t key, uint32_t value, size_t begin)
{
    run->given[run->nr_given++] = (struct given){
        .key = key, .value = value, .begin = begin, .end = power_record_len(run->record)};
    run->values[key] = value;
}

static void put_or_delete(struct run *run, size_t key, size_t begin)
{
    bool derived = keys[key].kind == DERIVED;
    bool put = run->values[key] == NO_VALUE || (derived && random_below(run, 3) > 0);
    char content[CONTENT_MAX + 1];
    size_t len;

    if (!put) {
        assert_int_equal(store_delete(run->store, keys[key].key, &err), CAIRN_OK);
        give(run, key, NO_VALUE, begin);
        return;
    }
    len = content_of(++run->next_value, content);
    assert_int_equal(store_put(run->store, keys[key].key, content, len,
                               derived ? STORE_PUT_REPLACE : STORE_PUT_IF_ABSENT, &err),
                     CAIRN_OK);
    give(run, key, run->next_value, begin);
}

static void set_tag(struct run *run, size_t key, size_t begin)
{
    bool delete = run->values[key] && random_below(run, 4) == 0;
    char before[CONTENT_MAX + 1], after[CONTENT_MAX + 1];

    content_of(run->values[key], before);
    content_of(++run->next_value, after);
    assert_int_equal(store_cas(run->store, keys[key].key, run->values[key] ? before : NULL,
                               delete ? NULL : after, &err),
                     CAIRN_OK);
    give(run, key, delete ? NO_VALUE : run->next_value, begin);
}

static void append(struct run *run, struct upload *upload, size_t len)
{
    char content[CONTENT_MAX + 1];
    size_t left = content_of(blob_value(upload->key), content) - upload->len;

    len = len < left ? len : left;
    assert_int_equal(
        store_upload_append(run->store, upload->id, upload->len, content + upload->len, len, &err),
        CAIRN_OK);
    upload->len += len;
}

static void end_upload(struct run *run, struct upload *upload, size_t begin)
{
    upload->open = false;
    if (random_below(run, 4) == 0) {
        assert_int_equal(store_upload_abort(run->store, upload->id, &err), CAIRN_OK);
        return;
    }
    append(run, upload, CONTENT_MAX);
    assert_int_equal(
        store_upload_commit(run->store, upload->id, upload->len, keys[upload->key].key, &err),
        CAIRN_OK);
    give(run, upload->key, blob_value(upload->key), begin);
}

static void go_on_with_upload(struct run *run, size_t key, size_t begin)
{
    struct upload *upload = NULL;

    for (unsigned i = 0; i < run->nr_uploads; i++)
        if (run->uploads[i].open && run->uploads[i].key == key)
            upload = &run->uploads[i];
    if (!upload) {
        upload = &run->uploads[run->nr_uploads++];
        upload->key = key;
        upload->open = true;
        assert_int_equal(store_upload_new(run->store, OWNER, upload->id, &err), CAIRN_OK);
    } else if (random_below(run, 2) == 0) {
        append(run, upload, 1 + random_below(run, 1500));
    } else {
        end_upload(run, upload, begin);
    }
}

static void move_away(struct run *run, size_t key, size_t begin)
{
    size_t to = key + MOVED_TO;

    if (!run->values[key])
        return;
    assert_int_equal(store_move(run->store, keys[key].key, keys[to].key, STORE_PUT_REPLACE, &err),
                     CAIRN_OK);
    give(run, key, NO_VALUE, begin);
    give(run, to, blob_value(key), begin);
}

static void call_once(struct run *run)
{
    size_t key = random_below(run, NR_KEYS), begin = power_record_len(run->record);

    switch (keys[key].kind) {
    case OBJECT:
    case DERIVED:
        put_or_delete(run, key, begin);
        return;
    case TAG:
        set_tag(run, key, begin);
        return;
    case BLOB:
        go_on_with_upload(run, key, begin);
        return;
    case PUT_AWAY:
        move_away(run, key - MOVED_TO, begin);
        return;
    }
}

static void work(struct run *run)
{
    run->record = power_record_start(run->base);
    assert_int_equal(store_open(run->url, &run->store, &err), CAIRN_OK);
    for (unsigned i = 0; i < NR_CALLS; i++)
        call_once(run);
    store_close(run->store);
    power_record_stop(run->record);
}

/* -- What must be there after a cut -------------------------------------------------------- */

static void complain(struct run *run, const char *key, const char *what)
{
    static const char *const hows[] = {"nothing unsynced", "everything", "random"};

    run->nr_failures++;
    print_error("cut behind event %zu (%s): %s: %s\n", run->cut, hows[run->how], key, what);
}

/* May the key have the value?  The last call that ended before the cut says so, or one under way.
 */
static bool may_have(const struct run *run, size_t key, const void *buf, size_t len)
{
    uint32_t settled = NO_VALUE;

    for (size_t i = 0; i < run->nr_given; i++) {
        const struct given *given = &run->given[i];

        if (given->key != key || given->begin > run->cut)
            continue;
        if (given->end <= run->cut)
            settled = given->value;
        else if (buf ? given->value && holds(given->value, buf, len) : !given->value)
            return true;
    }
    return buf ? settled && holds(settled, buf, len) : !settled;
}

static void check_key(struct run *run, struct store *store, size_t key)
{
    CLEANUP_FREE void *buf = NULL;
    size_t len = 0;
    int r = store_get(store, keys[key].key, 2 * CONTENT_MAX, &buf, &len, &err);

    if (r && r != CAIRN_E_NOT_FOUND)
        complain(run, keys[key].key, err.message);
    else if (!may_have(run, key, buf, len))
        complain(run, keys[key].key, buf ? "holds what it must not" : "is lost");
}

struct lister {
    struct run *run;
    struct store *store;
    const char *prefix;
};

static int check_name(void *arg, const char *name, bool is_prefix, struct cairn_error *e)
{
    const struct lister *lister = arg;
    char key[600];

    if (!is_prefix) {
        snprintf(key, sizeof(key), "%s%s", lister->prefix, name);
        for (size_t i = 0; i < NR_KEYS; i++)
            if (strcmp(keys[i].key, key) == 0)
                return CAIRN_OK;
        complain(lister->run, key, "is visible");
        return CAIRN_OK;
    }
    snprintf(key, sizeof(key), "%s%s/", lister->prefix, name);
    return store_list(lister->store, key, NULL, check_name,
                      &(struct lister){lister->run, lister->store, key}, e);
}

/* -- Uploads after a cut ------------------------------------------------------------------- */

static bool read_upload(struct run *run, struct store *store, const struct upload *upload,
                        char *buf, uint64_t size)
{
    if (size <= CONTENT_MAX &&
        store_upload_read(store, upload->id, buf, (size_t)size, 0, &err) == CAIRN_OK)
        return true;
    complain(run, upload->id, "cannot be read");
    return false;
}

/* It goes on where it is, if its bytes are those that were sent; a client finds that out by the
 * digest.  Else it is ended. */
static void resume(struct run *run, struct store *store, const struct upload *upload, uint64_t size)
{
    char content[CONTENT_MAX + 1], found[CONTENT_MAX + 1];
    size_t len = content_of(blob_value(upload->key), content);

    if (!read_upload(run, store, upload, found, size))
        return;
    if (size > len || memcmp(found, content, (size_t)size) != 0) {
        if (store_upload_abort(store, upload->id, &err))
            complain(run, upload->id, err.message);
    } else if (store_upload_append(store, upload->id, size, content + size, len - (size_t)size,
                                   &err) ||
               store_upload_commit(store, upload->id, len, keys[upload->key].key, &err)) {
        complain(run, upload->id, err.message);
    } else {
        void *buf;

        if (store_get(store, keys[upload->key].key, CONTENT_MAX, &buf, &len, &err) ||
            !holds(blob_value(upload->key), buf, len))
            complain(run, upload->id, "went on, and its blob is wrong");
        else
            free(buf);
    }
}

static void check_nothing_left(struct run *run, const char *folder)
{
    char path[400];
    const struct dirent *entry;
    DIR *dir;

    snprintf(path, sizeof(path), "%s/uploads", folder);
    dir = opendir(path);
    assert_non_null(dir);
    while ((entry = readdir(dir)))
        if (entry->d_name[0] != '.')
            complain(run, entry->d_name, "an upload's rest is not removed");
    closedir(dir);
}

static int nothing(void *arg, const struct store_upload *upload, struct cairn_error *e)
{
    (void)arg;
    (void)upload;
    (void)e;
    return CAIRN_OK;
}

static void check_uploads(struct run *run, struct store *store, const char *folder)
{
    struct store_expired expired;
    uint64_t size;

    if (store_list_uploads(store, nothing, NULL, &err))
        complain(run, "the list of uploads", err.message);
    for (unsigned i = 0; i < run->nr_uploads; i++) {
        int r = store_upload_size(store, run->uploads[i].id, OWNER, &size, &err);

        if (r == CAIRN_OK)
            resume(run, store, &run->uploads[i], size);
        else if (r != CAIRN_E_NOT_FOUND)
            complain(run, run->uploads[i].id, err.message);
    }
    if (store_expire_uploads(store, 0, &expired, &err))
        complain(run, "expiring uploads", err.message);
    check_nothing_left(run, folder);
}

/* -- Cuts --------------------------------------------------------------------------------- */

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st;
    (void)type;
    (void)at;
    return remove(path);
}

static void remove_folder(const char *folder)
{
    assert_int_equal(nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
}

static void check_store(struct run *run, struct store *store, const char *folder)
{
    for (size_t i = 0; i < NR_KEYS; i++)
        check_key(run, store, i);
    if (store_list(store, "", NULL, check_name, &(struct lister){run, store, ""}, &err))
        complain(run, "the list of all keys", err.message);
    check_uploads(run, store, folder);
    if (store_put(store, "repos/new/_tags/v1", "x", 1, STORE_PUT_IF_ABSENT, &err))
        complain(run, "a new object", err.message);
}

static void cut(struct run *run, size_t at, enum power_cut how)
{
    char folder[300], url[310];
    struct store *store;

    snprintf(folder, sizeof(folder), "%s-cut-%u", run->base, run->nr_cuts);
    snprintf(url, sizeof(url), "fs:%s", folder);
    run->cut = at;
    run->how = how;
    run->nr_cuts++;
    power_record_cut(run->record, at, how, random_below(run, UINT64_MAX), folder);
    if (store_open(url, &store, &err)) {
        complain(run, "the store", err.message);
    } else {
        check_store(run, store, folder);
        store_close(store);
    }
    remove_folder(folder);
}

static void test_power_cuts(void **state)
{
    const unsigned randoms = scale_is_long() ? 40 : 3;
    struct run *run = calloc(1, sizeof(*run));

    (void)state;
    assert_non_null(run);
    run->rng = scale_seed() * UINT64_C(0x9e3779b97f4a7c15) | 1;
    snprintf(run->base, sizeof(run->base), "%s/cairn-power-XXXXXX", scratch_base());
    assert_non_null(mkdtemp(run->base));
    snprintf(run->url, sizeof(run->url), "fs:%s", run->base);
    work(run);
    for (size_t at = 0; at <= power_record_len(run->record); at++) {
        cut(run, at, POWER_CUT_NOTHING_UNSYNCED);
        cut(run, at, POWER_CUT_EVERYTHING);
        for (unsigned i = 0; i < randoms; i++)
            cut(run, at, POWER_CUT_RANDOM);
    }
    print_message("%zu points, %u power cuts, %u failures\n", power_record_len(run->record),
                  run->nr_cuts, run->nr_failures);
    assert_true(run->nr_cuts >= 1000);
    assert_int_equal(run->nr_failures, 0);
    remove_folder(run->base);
    power_record_free(run->record);
    free(run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_power_cuts)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
