/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "nowait.h"
#include "scratch.h"
#include "store.h"

struct fixture {
    char dir[256];
    char url[300];
    struct store *store;
};

static struct cairn_error err;

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    snprintf(f->dir, sizeof(f->dir), "%s/cairn-store-XXXXXX", scratch_base());
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->url, sizeof(f->url), "fs:%s", f->dir);
    assert_int_equal(store_open(f->url, &f->store, &err), CAIRN_OK);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    char command[300];

    store_close(f->store);
    snprintf(command, sizeof(command), "rm -rf '%s'", f->dir);
    assert_int_equal(system(command), 0);
    free(f);
    return 0;
}

static void put_text(struct store *store, const char *key, const char *text)
{
    assert_int_equal(store_put(store, key, text, strlen(text), STORE_PUT_IF_ABSENT, &err),
                     CAIRN_OK);
}

static void assert_text(struct store *store, const char *key, const char *text)
{
    void *buf;
    size_t len;

    assert_int_equal(store_get(store, key, 4096, &buf, &len, &err), CAIRN_OK);
    assert_string_equal(buf, text);
    assert_int_equal(len, strlen(text));
    free(buf);
}

static unsigned count_files(const struct fixture *f, const char *folder)
{
    char path[300];
    unsigned nr = 0;
    DIR *dir;

    snprintf(path, sizeof(path), "%s/%s", f->dir, folder);
    dir = opendir(path);
    assert_non_null(dir);
    for (const struct dirent *e; (e = readdir(dir));)
        nr += e->d_name[0] != '.';
    closedir(dir);
    return nr;
}

static void test_put_then_get(void **state)
{
    struct fixture *f = *state;
    uint64_t size;

    put_text(f->store, "repos/a/b/_blobs/x", "hello");
    assert_text(f->store, "repos/a/b/_blobs/x", "hello");
    assert_int_equal(store_head(f->store, "repos/a/b/_blobs/x", &size, &err), CAIRN_OK);
    assert_int_equal(size, 5);
    assert_int_equal(count_files(f, "tmp"), 0);
}

static void test_put_if_absent_keeps_the_first(void **state)
{
    struct fixture *f = *state;

    put_text(f->store, "repos/x", "one");
    assert_int_equal(store_put(f->store, "repos/x", "two", 3, STORE_PUT_IF_ABSENT, &err),
                     CAIRN_E_CONFLICT);
    assert_text(f->store, "repos/x", "one");
    assert_int_equal(count_files(f, "tmp"), 0);
}

static void test_put_replace_replaces(void **state)
{
    struct fixture *f = *state;

    put_text(f->store, "index/00/x", "one");
    assert_int_equal(store_put(f->store, "index/00/x", "two", 3, STORE_PUT_REPLACE, &err),
                     CAIRN_OK);
    assert_text(f->store, "index/00/x", "two");
}

static void test_hostile_keys_are_refused(void **state)
{
    static const char *const keys[] = {
        "",           "/",        "/etc/passwd", "..",    "a/..",     "a/../b", ".",
        "a//b",       "a/",       "a b",         "a\nb",  "a%2fb",    "a\\b",   "tmp/x",
        "uploads/id", "locks/00", "uploads",     "a/./b", "\xc3\xa4", "a:b",
    };
    struct fixture *f = *state;
    char long_name[300] = {0};
    uint64_t size;

    memset(long_name, 'a', sizeof(long_name) - 1);
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        assert_int_equal(store_head(f->store, keys[i], &size, &err), CAIRN_E_USAGE);
        assert_int_equal(store_put(f->store, keys[i], "", 0, STORE_PUT_REPLACE, &err),
                         CAIRN_E_USAGE);
    }
    assert_int_equal(store_head(f->store, long_name, &size, &err), CAIRN_E_USAGE);
}

static void test_symbolic_link_is_not_followed(void **state)
{
    struct fixture *f = *state;
    char path[300];
    uint64_t size;
    int fd;

    snprintf(path, sizeof(path), "%s/repos/link", f->dir);
    assert_int_equal(symlink("/etc/passwd", path), 0);
    assert_int_equal(store_head(f->store, "repos/link", &size, &err), CAIRN_E_NOT_FOUND);
    assert_int_not_equal(store_open_fd(f->store, "repos/link", &fd, &size, &err), CAIRN_OK);
}

static void test_absent_keys_are_not_found(void **state)
{
    struct fixture *f = *state;
    struct source *src;
    uint64_t size;
    size_t len;
    void *buf;
    int fd;

    assert_int_equal(store_head(f->store, "repos/x", &size, &err), CAIRN_E_NOT_FOUND);
    assert_int_equal(store_head(f->store, "repos", &size, &err), CAIRN_E_NOT_FOUND);
    assert_int_equal(store_get(f->store, "repos/x/y", 10, &buf, &len, &err), CAIRN_E_NOT_FOUND);
    assert_int_equal(store_get(f->store, "repos", 10, &buf, &len, &err), CAIRN_E_NOT_FOUND);
    assert_int_equal(store_open_fd(f->store, "repos/x", &fd, &size, &err), CAIRN_E_NOT_FOUND);
    assert_int_equal(store_open_source(f->store, "repos/x", &src, &err), CAIRN_E_NOT_FOUND);
    assert_int_equal(store_delete(f->store, "repos/x", &err), CAIRN_E_NOT_FOUND);
}

static void test_get_respects_its_limit(void **state)
{
    struct fixture *f = *state;
    size_t len;
    void *buf;

    put_text(f->store, "repos/x", "12345");
    assert_int_equal(store_get(f->store, "repos/x", 4, &buf, &len, &err), CAIRN_E_LIMIT);
}

static void test_delete_takes_empty_repository_along(void **state)
{
    struct fixture *f = *state;

    put_text(f->store, "repos/a/b/_tags/x", "1");
    put_text(f->store, "repos/a/_tags/y", "1");
    assert_int_equal(store_delete(f->store, "repos/a/b/_tags/x", &err), CAIRN_OK);
    assert_int_equal(count_files(f, "repos/a"), 1);
    put_text(f->store, "repos/a/b/_tags/x", "2");
    assert_text(f->store, "repos/a/b/_tags/x", "2");
}

static int join_names(void *arg, const char *name, bool is_prefix, struct cairn_error *e)
{
    (void)e;
    strcat(arg, name);
    strcat(arg, is_prefix ? "/ " : " ");
    return 0;
}

static void test_list_is_one_sorted_level(void **state)
{
    struct fixture *f = *state;
    char text[100] = "";

    put_text(f->store, "repos/b/x", "");
    put_text(f->store, "repos/a", "");
    put_text(f->store, "repos/c", "");
    assert_int_equal(store_list(f->store, "repos/", NULL, join_names, text, &err), CAIRN_OK);
    assert_string_equal(text, "a b/ c ");
    text[0] = 0;
    assert_int_equal(store_list(f->store, "repos/", "a", join_names, text, &err), CAIRN_OK);
    assert_string_equal(text, "b/ c ");
    text[0] = 0;
    assert_int_equal(store_list(f->store, "", NULL, join_names, text, &err), CAIRN_OK);
    assert_string_equal(text, "blobs/ index/ repos/ ");
    text[0] = 0;
    assert_int_equal(store_list(f->store, "repos/none/", NULL, join_names, text, &err), CAIRN_OK);
    assert_string_equal(text, "");
    assert_int_equal(store_list(f->store, "repos", NULL, join_names, text, &err), CAIRN_E_USAGE);
    assert_int_equal(store_list(f->store, "../", NULL, join_names, text, &err), CAIRN_E_USAGE);
}

static int stop_at_first(void *arg, const char *name, bool is_prefix, struct cairn_error *e)
{
    (void)name;
    (void)is_prefix;
    (void)e;
    ++*(int *)arg;
    return 42;
}

static void test_list_stops_when_told(void **state)
{
    struct fixture *f = *state;
    int calls = 0;

    put_text(f->store, "repos/a", "");
    put_text(f->store, "repos/b", "");
    assert_int_equal(store_list(f->store, "repos/", NULL, stop_at_first, &calls, &err), 42);
    assert_int_equal(calls, 1);
}

static void test_cas_sets_changes_and_deletes(void **state)
{
    static const char key[] = "repos/a/_tags/latest";
    struct fixture *f = *state;
    uint64_t size;

    assert_int_equal(store_cas(f->store, key, NULL, "one", &err), CAIRN_OK);
    assert_int_equal(store_cas(f->store, key, NULL, "two", &err), CAIRN_E_CONFLICT);
    assert_int_equal(store_cas(f->store, key, "nine", "two", &err), CAIRN_E_CONFLICT);
    assert_int_equal(store_cas(f->store, key, "one", "two", &err), CAIRN_OK);
    assert_text(f->store, key, "two");
    assert_int_equal(store_cas(f->store, key, "one", NULL, &err), CAIRN_E_CONFLICT);
    assert_int_equal(store_cas(f->store, key, "two", NULL, &err), CAIRN_OK);
    assert_int_equal(store_head(f->store, key, &size, &err), CAIRN_E_NOT_FOUND);
    assert_int_equal(store_cas(f->store, key, "two", "three", &err), CAIRN_E_CONFLICT);
}

static void test_cas_bounds_values(void **state)
{
    struct fixture *f = *state;
    char value[5000];

    memset(value, 'x', sizeof(value) - 1);
    value[sizeof(value) - 1] = 0;
    assert_int_equal(store_cas(f->store, "repos/t", NULL, value, &err), CAIRN_E_LIMIT);
}

/* Add one to a decimal counter, 50 times, through a store of its own. */
static void count_up(const char *url)
{
    struct store *store;

    assert_int_equal(store_open(url, &store, &err), CAIRN_OK);
    for (int done = 0; done < 50;) {
        char next[32];
        size_t len;
        void *now;

        assert_int_equal(store_get(store, "repos/counter", 100, &now, &len, &err), CAIRN_OK);
        snprintf(next, sizeof(next), "%d", atoi(now) + 1);
        done += store_cas(store, "repos/counter", now, next, &err) == CAIRN_OK;
        free(now);
    }
    store_close(store);
}

static void test_cas_loses_nothing_among_processes(void **state)
{
    struct fixture *f = *state;
    pid_t pids[3];
    int status;

    put_text(f->store, "repos/counter", "0");
    for (int i = 0; i < 3; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            count_up(f->url);
            _exit(0);
        }
    }
    for (int i = 0; i < 3; i++) {
        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        assert_int_equal(status, 0);
    }
    assert_text(f->store, "repos/counter", "150");
}

static void test_upload_becomes_an_object(void **state)
{
    static const char key[] = "blobs/sha256/00/abc";
    struct fixture *f = *state;
    char id[STORE_UPLOAD_ID_MAX], back[6] = "";
    uint64_t size;

    assert_int_equal(store_upload_new(f->store, "a/b", id, &err), CAIRN_OK);
    assert_int_equal(store_upload_append(f->store, id, 0, "abc", 3, &err), CAIRN_OK);
    assert_int_equal(store_upload_append(f->store, id, 3, "def", 3, &err), CAIRN_OK);
    assert_int_equal(store_upload_size(f->store, id, "a/b", &size, &err), CAIRN_OK);
    assert_int_equal(size, 6);
    assert_int_equal(store_upload_read(f->store, id, back, 5, 1, &err), CAIRN_OK);
    assert_string_equal(back, "bcdef");
    assert_int_equal(store_upload_commit(f->store, id, 5, key, &err), CAIRN_E_CONFLICT);
    assert_int_equal(store_upload_commit(f->store, id, 6, key, &err), CAIRN_OK);
    assert_text(f->store, key, "abcdef");
    assert_int_equal(store_upload_append(f->store, id, 6, "x", 1, &err), CAIRN_E_NOT_FOUND);
    assert_int_equal(count_files(f, "uploads"), 0);
}

static void test_upload_of_what_exists_succeeds(void **state)
{
    static const char key[] = "blobs/sha256/00/abc";
    struct fixture *f = *state;
    char id[STORE_UPLOAD_ID_MAX];

    put_text(f->store, key, "same");
    assert_int_equal(store_upload_new(f->store, "a", id, &err), CAIRN_OK);
    assert_int_equal(store_upload_append(f->store, id, 0, "same", 4, &err), CAIRN_OK);
    assert_int_equal(store_upload_commit(f->store, id, 4, key, &err), CAIRN_OK);
    assert_text(f->store, key, "same");
    assert_int_equal(count_files(f, "uploads"), 0);
}

static void test_upload_refuses_gaps_and_overlaps(void **state)
{
    struct fixture *f = *state;
    char id[STORE_UPLOAD_ID_MAX];

    assert_int_equal(store_upload_new(f->store, "a", id, &err), CAIRN_OK);
    assert_int_equal(store_upload_append(f->store, id, 0, "abc", 3, &err), CAIRN_OK);
    assert_int_equal(store_upload_append(f->store, id, 2, "x", 1, &err), CAIRN_E_CONFLICT);
    assert_int_equal(store_upload_append(f->store, id, 4, "x", 1, &err), CAIRN_E_CONFLICT);
    assert_int_equal(store_upload_abort(f->store, id, &err), CAIRN_OK);
    assert_int_equal(count_files(f, "uploads"), 0);
}

static void test_upload_belongs_to_its_owner(void **state)
{
    struct fixture *f = *state;
    char id[STORE_UPLOAD_ID_MAX];
    uint64_t size;

    assert_int_equal(store_upload_new(f->store, "a/b", id, &err), CAIRN_OK);
    assert_int_equal(store_upload_size(f->store, id, "a/c", &size, &err), CAIRN_E_NOT_FOUND);
    assert_int_equal(store_upload_size(f->store, id, "a", &size, &err), CAIRN_E_NOT_FOUND);
    assert_int_equal(store_upload_size(f->store, id, "a/b", &size, &err), CAIRN_OK);
}

static void test_upload_ids_are_checked(void **state)
{
    static const char *const ids[] = {"",
                                      "..",
                                      "../tmp",
                                      "0123",
                                      "0123456789ABCDEF0123456789ABCDEF",
                                      "0123456789abcdef0123456789abcdef"};
    struct fixture *f = *state;
    uint64_t size;

    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
        assert_int_equal(store_upload_size(f->store, ids[i], "a", &size, &err), CAIRN_E_NOT_FOUND);
        assert_int_equal(store_upload_abort(f->store, ids[i], &err), CAIRN_E_NOT_FOUND);
    }
}

/* A limit on file sizes stands in for a full disk; errors of both kinds are NO_SPACE. */
static void limit_file_size(rlim_t max)
{
    struct rlimit limit = {.rlim_cur = max, .rlim_max = RLIM_INFINITY};

    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

static void test_full_disk_leaves_nothing_half_stored(void **state)
{
    struct fixture *f = *state;
    char id[STORE_UPLOAD_ID_MAX];
    char buf[20000] = "x";
    uint64_t size;
    int put_result, append_result;

    assert_int_equal(store_upload_new(f->store, "a", id, &err), CAIRN_OK);
    assert_int_equal(store_upload_append(f->store, id, 0, buf, 10, &err), CAIRN_OK);
    limit_file_size(8192);
    put_result = store_put(f->store, "repos/x", buf, sizeof(buf), STORE_PUT_IF_ABSENT, &err);
    append_result = store_upload_append(f->store, id, 10, buf, sizeof(buf), &err);
    limit_file_size(RLIM_INFINITY);

    assert_int_equal(put_result, CAIRN_E_NO_SPACE);
    assert_int_equal(append_result, CAIRN_E_NO_SPACE);
    assert_int_equal(count_files(f, "tmp"), 0);
    assert_int_equal(store_head(f->store, "repos/x", &size, &err), CAIRN_E_NOT_FOUND);
    assert_int_equal(store_upload_size(f->store, id, "a", &size, &err), CAIRN_OK);
    assert_int_equal(size, 10);
}

static void test_open_removes_only_dead_temporaries(void **state)
{
    struct fixture *f = *state;
    const struct timespec old[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
    char path[300];
    struct store *second;

    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof(path), "%s/tmp/%d", f->dir, i);
        close(open(path, O_CREAT | O_WRONLY, 0600));
    }
    assert_int_equal(utimensat(AT_FDCWD, path, old, 0), 0);
    assert_int_equal(store_open(f->url, &second, &err), CAIRN_OK);
    store_close(second);
    assert_int_equal(count_files(f, "tmp"), 1);
}

static void test_expiry_removes_only_abandoned_uploads(void **state)
{
    struct fixture *f = *state;
    const struct timespec old[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
    char path[512], ids[3][STORE_UPLOAD_ID_MAX];
    struct store_expired expired;
    uint64_t size;

    for (int i = 0; i < 3; i++) {
        assert_int_equal(store_upload_new(f->store, "a", ids[i], &err), CAIRN_OK);
        assert_int_equal(store_upload_append(f->store, ids[i], 0, "abc", 3, &err), CAIRN_OK);
        if (i == 0)
            continue; /* young */
        snprintf(path, sizeof(path), "%s/uploads/%s/data", f->dir, ids[i]);
        if (i == 2)
            assert_int_equal(utimensat(AT_FDCWD, path, old, 0), 0);
        *strrchr(path, '/') = 0;
        assert_int_equal(utimensat(AT_FDCWD, path, old, 0), 0);
    }
    assert_int_equal(store_expire_uploads(f->store, 86400, &expired, &err), CAIRN_OK);
    assert_int_equal(expired.nr, 1);
    assert_int_equal(expired.bytes, 3);
    assert_int_equal(store_upload_size(f->store, ids[0], "a", &size, &err), CAIRN_OK);
    assert_int_equal(store_upload_size(f->store, ids[1], "a", &size, &err), CAIRN_OK);
    assert_int_equal(store_upload_size(f->store, ids[2], "a", &size, &err), CAIRN_E_NOT_FOUND);
    assert_int_equal(count_files(f, "uploads"), 2);
}

struct seen_uploads {
    unsigned nr;
    uint64_t size;
    char owner[32];
};

static int see_upload(void *arg, const struct store_upload *upload, struct cairn_error *error)
{
    struct seen_uploads *seen = arg;

    (void)error;
    assert_int_equal(strlen(upload->id), 32);
    assert_true(upload->age_s < 3600);
    seen->nr++;
    seen->size += upload->size;
    snprintf(seen->owner, sizeof(seen->owner), "%s", upload->owner);
    return CAIRN_OK;
}

static void test_unfinished_uploads_are_listed(void **state)
{
    struct fixture *f = *state;
    struct seen_uploads seen = {0};
    char id[STORE_UPLOAD_ID_MAX];

    assert_int_equal(store_list_uploads(f->store, see_upload, &seen, &err), CAIRN_OK);
    assert_int_equal(seen.nr, 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(store_upload_new(f->store, "team/x", id, &err), CAIRN_OK);
        assert_int_equal(store_upload_append(f->store, id, 0, "abcde", 5, &err), CAIRN_OK);
    }
    assert_int_equal(store_upload_commit(f->store, id, 5, "repos/x", &err), CAIRN_OK);
    assert_int_equal(store_list_uploads(f->store, see_upload, &seen, &err), CAIRN_OK);
    assert_int_equal(seen.nr, 2);
    assert_int_equal(seen.size, 10);
    assert_string_equal(seen.owner, "team/x");
}

static void test_bad_urls_are_usage_errors(void **state)
{
    struct store *store;

    (void)state;
    assert_int_equal(store_open("fs:", &store, &err), CAIRN_E_USAGE);
    assert_int_equal(store_open("/var/lib", &store, &err), CAIRN_E_USAGE);
    assert_int_equal(store_open("fs:/dev/null/x", &store, &err), CAIRN_E_IO);
}

static void test_nested_store_folder_is_made(void **state)
{
    struct fixture *f = *state;
    char url[400];
    struct store *store;

    snprintf(url, sizeof(url), "%s/repos/deep/er", f->url);
    assert_int_equal(store_open(url, &store, &err), CAIRN_OK);
    put_text(store, "repos/x", "y");
    store_close(store);
}

struct putter {
    struct store *store;
    unsigned stored;
};

static void *put_and_delete(void *arg)
{
    struct putter *p = arg;
    struct cairn_error e;

    for (int i = 0; i < 200; i++) {
        int r = store_put(p->store, "repos/race/x", "v", 1, STORE_PUT_IF_ABSENT, &e);

        assert_true(r == CAIRN_OK || r == CAIRN_E_CONFLICT);
        p->stored += r == CAIRN_OK;
        r = store_delete(p->store, "repos/race/x", &e);
        assert_true(r == CAIRN_OK || r == CAIRN_E_NOT_FOUND);
    }
    return NULL;
}

static void test_put_races_with_removal_of_folder(void **state)
{
    struct fixture *f = *state;
    struct putter putters[3] = {{f->store, 0}, {f->store, 0}, {f->store, 0}};
    pthread_t threads[3];

    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, put_and_delete, &putters[i]), 0);
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        assert_true(putters[i].stored > 0);
    }
}

static void test_who_must_not_wait_is_refused(void **state)
{
    const struct fixture *f = *state;
    uint64_t size;

    nowait_begin();
    assert_int_equal(store_head(f->store, "repos/a/_tags/b", &size, &err), CAIRN_E_UNAVAILABLE);
    assert_false(nowait_end());
    nowait_begin();
    assert_true(nowait_end());
    assert_int_equal(store_head(f->store, "repos/a/_tags/b", &size, &err), CAIRN_E_NOT_FOUND);
}

#define STORE_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

static void assert_held(struct store *store, bool expected)
{
    bool held = !expected;

    assert_int_equal(store_lock_held(store, "job-gc", &held, &err), CAIRN_OK);
    assert_int_equal(held, expected);
}

static void test_lock_is_exclusive_until_unlocked(void **state)
{
    struct fixture *f = *state;
    struct store_lock *lock, *other;

    assert_held(f->store, false);
    assert_int_equal(store_lock(f->store, "job-gc", &lock, &err), CAIRN_OK);
    assert_held(f->store, true);
    assert_int_equal(store_lock(f->store, "job-gc", &other, &err), CAIRN_E_CONFLICT);
    assert_non_null(strstr(err.message, "job-gc"));
    assert_int_equal(store_lock(f->store, "job-scrub", &other, &err), CAIRN_OK);
    store_unlock(other);
    assert_held(f->store, true);
    store_unlock(lock);
    assert_held(f->store, false);
    assert_int_equal(store_lock(f->store, "job-gc", &lock, &err), CAIRN_OK);
    store_unlock(lock);
    assert_int_equal(store_lock(f->store, "../x", &lock, &err), CAIRN_E_USAGE);
}

static void test_lock_ends_with_its_process(void **state)
{
    struct fixture *f = *state;
    struct store_lock *lock;
    int ready[2];
    char c;
    pid_t child;

    assert_int_equal(pipe(ready), 0);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (store_lock(f->store, "job-gc", &lock, NULL) != CAIRN_OK || write(ready[1], "x", 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &c, 1), 1);
    assert_held(f->store, true);
    assert_int_equal(store_lock(f->store, "job-gc", &lock, &err), CAIRN_E_CONFLICT);
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_held(f->store, false);
    assert_int_equal(store_lock(f->store, "job-gc", &lock, &err), CAIRN_OK);
    store_unlock(lock);
    close(ready[0]);
}

static void test_ages_are_told_by_the_stores_clock(void **state)
{
    struct fixture *f = *state;
    struct store_stat old, touched;
    uint64_t now_us = 0;

    put_text(f->store, "repos/x", "hello");
    assert_int_equal(store_stat(f->store, "repos/x", &old, &err), CAIRN_OK);
    assert_int_equal(old.size, 5);
    assert_int_equal(store_now(f->store, &now_us, &err), CAIRN_OK);
    assert_true(now_us >= old.time_us && now_us - old.time_us < 3600 * UINT64_C(1000000));
    do {
        assert_int_equal(store_touch(f->store, "repos/x", &err), CAIRN_OK);
        assert_int_equal(store_stat(f->store, "repos/x", &touched, &err), CAIRN_OK);
        assert_true(touched.time_us >= old.time_us);
    } while (touched.time_us == old.time_us);
    assert_int_equal(store_touch(f->store, "repos/y", &err), CAIRN_E_NOT_FOUND);
    assert_int_equal(store_stat(f->store, "repos/y", &old, &err), CAIRN_E_NOT_FOUND);
}

static void test_notes_are_objects_too(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(store_put(f->store, "claims/a", "one", 3, STORE_PUT_NOTE, &err), CAIRN_OK);
    assert_text(f->store, "claims/a", "one");
    assert_int_equal(store_put(f->store, "claims/a", "two", 3, STORE_PUT_NOTE, &err),
                     CAIRN_E_CONFLICT);
    assert_text(f->store, "claims/a", "one");
    assert_int_equal(store_forget(f->store, "claims/a", &err), CAIRN_OK);
    assert_int_equal(store_forget(f->store, "claims/a", &err), CAIRN_E_NOT_FOUND);
    assert_int_equal(count_files(f, "tmp"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STORE_TEST(test_who_must_not_wait_is_refused),
        STORE_TEST(test_put_then_get),
        STORE_TEST(test_put_if_absent_keeps_the_first),
        STORE_TEST(test_put_replace_replaces),
        STORE_TEST(test_hostile_keys_are_refused),
        STORE_TEST(test_symbolic_link_is_not_followed),
        STORE_TEST(test_absent_keys_are_not_found),
        STORE_TEST(test_get_respects_its_limit),
        STORE_TEST(test_delete_takes_empty_repository_along),
        STORE_TEST(test_list_is_one_sorted_level),
        STORE_TEST(test_list_stops_when_told),
        STORE_TEST(test_cas_sets_changes_and_deletes),
        STORE_TEST(test_cas_bounds_values),
        STORE_TEST(test_cas_loses_nothing_among_processes),
        STORE_TEST(test_lock_is_exclusive_until_unlocked),
        STORE_TEST(test_lock_ends_with_its_process),
        STORE_TEST(test_ages_are_told_by_the_stores_clock),
        STORE_TEST(test_notes_are_objects_too),
        STORE_TEST(test_upload_becomes_an_object),
        STORE_TEST(test_upload_of_what_exists_succeeds),
        STORE_TEST(test_upload_refuses_gaps_and_overlaps),
        STORE_TEST(test_upload_belongs_to_its_owner),
        STORE_TEST(test_upload_ids_are_checked),
        STORE_TEST(test_full_disk_leaves_nothing_half_stored),
        STORE_TEST(test_open_removes_only_dead_temporaries),
        STORE_TEST(test_expiry_removes_only_abandoned_uploads),
        STORE_TEST(test_unfinished_uploads_are_listed),
        STORE_TEST(test_bad_urls_are_usage_errors),
        STORE_TEST(test_nested_store_folder_is_made),
        STORE_TEST(test_put_races_with_removal_of_folder),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
