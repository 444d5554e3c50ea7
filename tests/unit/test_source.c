/* SPDX-License-Identifier: Apache-2.0 */
#include "qemu.h"

#include <errno.h>
#include <fcntl.h>

#include "source.h"

static struct source *open_abc(void)
{
    CLEANUP_CLOSE int fd = open("abc", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    struct source *src;

    assert_int_equal(write(fd, "abcdefgh", 8), 8);
    assert_int_equal(source_open_file("abc", "layer x", &src, NULL), CAIRN_OK);
    return src;
}

static void test_file_reads_what_it_holds(void **state)
{
    CLEANUP(source_free_p) struct source *src = open_abc();
    char buf[4] = "";

    (void)state;
    assert_int_equal(src->size, 8);
    assert_string_equal(src->name, "layer x");
    assert_int_equal(source_pread(src, buf, 3, 2, NULL), CAIRN_OK);
    assert_string_equal(buf, "cde");
}

static void test_file_without_a_name_is_called_by_its_path(void **state)
{
    CLEANUP(source_free_p) struct source *src = NULL;

    (void)state;
    source_free(open_abc());
    assert_int_equal(source_open_file("abc", NULL, &src, NULL), CAIRN_OK);
    assert_string_equal(src->name, "abc");
}

static void test_range_past_the_end_is_corrupt(void **state)
{
    CLEANUP(source_free_p) struct source *src = open_abc();
    struct cairn_error err;
    char buf[8];

    (void)state;
    assert_int_equal(source_pread(src, buf, 8, 1, &err), CAIRN_E_CORRUPT);
    assert_string_equal(err.message,
                        "layer x: 8 bytes at 0x1 reach past the end of the file (8 bytes)");
    assert_int_equal(source_pread(src, buf, 1, UINT64_MAX, &err), CAIRN_E_CORRUPT);
    assert_int_equal(source_pread(src, buf, 0, 8, &err), CAIRN_OK);
}

static void test_padded_read_gives_zeros_past_the_end(void **state)
{
    CLEANUP(source_free_p) struct source *src = open_abc();
    char buf[4] = "xxxx";

    (void)state;
    assert_int_equal(source_pread_padded(src, buf, 4, 6, NULL), CAIRN_OK);
    assert_memory_equal(buf, "gh\0\0", 4);
    assert_int_equal(source_pread_padded(src, buf, 4, UINT64_MAX - 1, NULL), CAIRN_OK);
    assert_memory_equal(buf, "\0\0\0\0", 4);
}

static void test_file_that_shrinks_is_an_io_error(void **state)
{
    CLEANUP(source_free_p) struct source *src = open_abc();
    struct cairn_error err;
    char buf[8];

    (void)state;
    assert_int_equal(truncate("abc", 5), 0);
    assert_int_equal(source_pread(src, buf, 8, 0, &err), CAIRN_E_IO);
    assert_non_null(strstr(err.message, "the file ends at 0x5"));
}

static void test_missing_file_is_not_found(void **state)
{
    struct cairn_error err;
    struct source *src;

    (void)state;
    assert_int_equal(source_open_file("missing", NULL, &src, &err), CAIRN_E_NOT_FOUND);
    assert_int_equal(err.sys_errno, ENOENT);
}

static void test_what_has_no_constant_size_is_refused(void **state)
{
    struct cairn_error err;
    struct source *src;

    (void)state;
    sh("mkfifo pipe && mkdir -p folder");
    assert_int_equal(source_open_file("pipe", NULL, &src, &err), CAIRN_E_USAGE);
    assert_int_equal(source_open_file("folder", NULL, &src, &err), CAIRN_E_USAGE);
    assert_int_equal(source_open_file("/dev/zero", NULL, &src, &err), CAIRN_E_USAGE);
}

static void test_fd_is_closed_on_failure_too(void **state)
{
    int fd = open(".", O_RDONLY);
    struct source *src;

    (void)state;
    assert_int_equal(source_from_fd(fd, "folder", &src, NULL), CAIRN_E_USAGE);
    assert_int_equal(fcntl(fd, F_GETFD), -1);
}

static void test_memory(void **state)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    char buf[4] = "";

    (void)state;
    assert_int_equal(source_from_memory("abcd", 4, "memory", &src, NULL), CAIRN_OK);
    assert_int_equal(source_pread(src, buf, 2, 2, NULL), CAIRN_OK);
    assert_string_equal(buf, "cd");
    assert_int_equal(source_pread(src, buf, 3, 2, NULL), CAIRN_E_CORRUPT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_file_reads_what_it_holds),
        cmocka_unit_test(test_file_without_a_name_is_called_by_its_path),
        cmocka_unit_test(test_range_past_the_end_is_corrupt),
        cmocka_unit_test(test_padded_read_gives_zeros_past_the_end),
        cmocka_unit_test(test_file_that_shrinks_is_an_io_error),
        cmocka_unit_test(test_missing_file_is_not_found),
        cmocka_unit_test(test_what_has_no_constant_size_is_refused),
        cmocka_unit_test(test_fd_is_closed_on_failure_too),
        cmocka_unit_test(test_memory),
    };

    return cmocka_run_group_tests(tests, qemu_setup, qemu_teardown);
}
