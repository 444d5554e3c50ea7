/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What libcairn remembers between runs: believed only while it must be true.
 */
#include "test.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scratch.h"
#include "user_state.h"

static char folder[64];

static int make_folder(void **state)
{

    (void)state;
    snprintf(folder, sizeof(folder), "%.40s/cairn-XXXXXX", scratch_base());
    if (!mkdtemp(folder))
        return -1;
    return setenv("XDG_STATE_HOME", folder, 1) || setenv("XDG_CACHE_HOME", folder, 1);
}

static int remove_folder(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    return system(command);
}

/* A file that last changed so many seconds ago. */
static struct stat file_of_age(time_t seconds)
{
    char path[128];
    struct stat st;
    int fd;

    snprintf(path, sizeof(path), "%s/file", folder);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    close(fd);
    st.st_mtim.tv_sec -= seconds;
    st.st_ctim.tv_sec -= seconds;
    return st;
}

static struct digest digest_of_text(const char *text)
{
    struct digest d;

    digest_of(text, strlen(text), &d);
    return d;
}

/* -- Digests -------------------------------------------------------------------------------- */

static void test_digest_of_a_settled_file_is_kept(void **state)
{
    const struct digest d = digest_of_text("a");
    struct stat st = file_of_age(60);
    struct digest found;

    (void)state;
    assert_false(digest_cache_get(&st, &found));
    digest_cache_put(&st, &d);
    assert_true(digest_cache_get(&st, &found));
    assert_true(digest_equal(&d, &found));
    digest_cache_drop(&st);
    assert_false(digest_cache_get(&st, &found));
}

static void test_digest_of_a_fresh_file_is_not_kept(void **state)
{
    const struct digest d = digest_of_text("a");
    struct stat st = file_of_age(0);
    struct digest found;

    (void)state;
    digest_cache_put(&st, &d);
    assert_false(digest_cache_get(&st, &found));
}

static void test_digest_goes_with_size_and_times(void **state)
{
    const struct digest d = digest_of_text("a");
    const struct stat st = file_of_age(60);
    struct stat changed[3] = {st, st, st};
    struct digest found;

    (void)state;
    digest_cache_put(&st, &d);
    changed[0].st_size++;
    changed[1].st_mtim.tv_nsec ^= 1;
    changed[2].st_ctim.tv_sec++;
    for (int i = 0; i < 3; i++)
        assert_false(digest_cache_get(&changed[i], &found));
    assert_true(digest_cache_get(&st, &found));
}

/* -- Uploads -------------------------------------------------------------------------------- */

static void test_upload_is_remembered_until_it_is_over(void **state)
{
    const struct digest d = digest_of_text("a");
    struct upload_state upload;
    char *location;

    (void)state;
    upload_state_open(&upload, "http://s", "repo", &d);
    assert_null(upload_state_load(&upload));
    upload_state_save(&upload, "/v2/repo/blobs/uploads/1");
    upload_state_close(&upload);
    upload_state_open(&upload, "http://s", "repo", &d);
    location = upload_state_load(&upload);
    assert_string_equal(location, "/v2/repo/blobs/uploads/1");
    free(location);
    upload_state_remove(&upload);
    upload_state_open(&upload, "http://s", "repo", &d);
    assert_null(upload_state_load(&upload));
    upload_state_close(&upload);
}

static void test_upload_of_another_place_is_another(void **state)
{
    const struct digest d = digest_of_text("a"), other = digest_of_text("b");
    struct upload_state upload;

    (void)state;
    upload_state_open(&upload, "http://s", "repo", &d);
    upload_state_save(&upload, "/1");
    upload_state_close(&upload);
    upload_state_open(&upload, "http://other", "repo", &d);
    assert_null(upload_state_load(&upload));
    upload_state_close(&upload);
    upload_state_open(&upload, "http://s", "repo", &other);
    assert_null(upload_state_load(&upload));
    upload_state_close(&upload);
}

static void test_upload_is_one_process_s(void **state)
{
    const struct digest d = digest_of_text("a");
    struct upload_state mine, theirs;

    (void)state;
    upload_state_open(&mine, "http://s", "repo", &d);
    upload_state_save(&mine, "/1");
    upload_state_open(&theirs, "http://s", "repo", &d);
    assert_null(upload_state_load(&theirs));
    upload_state_save(&theirs, "/2");
    upload_state_close(&theirs);
    upload_state_close(&mine);
}

static void test_no_folder_is_fine(void **state)
{
    const struct digest d = digest_of_text("a");
    struct stat st = file_of_age(60);
    struct upload_state upload;
    struct digest found;

    (void)state;
    assert_int_equal(setenv("XDG_STATE_HOME", "/proc/nowhere", 1), 0);
    assert_int_equal(setenv("XDG_CACHE_HOME", "/proc/nowhere", 1), 0);
    upload_state_open(&upload, "http://s", "repo", &d);
    upload_state_save(&upload, "/1");
    assert_null(upload_state_load(&upload));
    upload_state_remove(&upload);
    digest_cache_put(&st, &d);
    assert_false(digest_cache_get(&st, &found));
}

#define test(fn) cmocka_unit_test_setup_teardown(fn, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(test_digest_of_a_settled_file_is_kept),
        test(test_digest_of_a_fresh_file_is_not_kept),
        test(test_digest_goes_with_size_and_times),
        test(test_upload_is_remembered_until_it_is_over),
        test(test_upload_of_another_place_is_another),
        test(test_upload_is_one_process_s),
        test(test_no_folder_is_fine),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
