/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <errno.h>
#include <string.h>

#include "error.h"

static void test_errno_becomes_code(void **state)
{
    struct cairn_error err;

    (void)state;
    assert_int_equal(error_set_errno(&err, ENOSPC, "cannot write %s", "x"), CAIRN_E_NO_SPACE);
    assert_int_equal(err.sys_errno, ENOSPC);
    assert_string_equal(err.message, "cannot write x: No space left on device");
}

static void test_prefix_keeps_message_and_code(void **state)
{
    struct cairn_error err;

    (void)state;
    error_set(&err, CAIRN_E_CORRUPT, "L1 table at 0x%x", 0x30000);
    assert_int_equal(error_prefix(&err, CAIRN_E_CORRUPT, "layer %d", 3), CAIRN_E_CORRUPT);
    assert_string_equal(err.message, "layer 3: L1 table at 0x30000");
}

static void test_long_messages_are_cut(void **state)
{
    char text[2 * CAIRN_ERROR_MESSAGE_MAX];
    struct cairn_error err;

    (void)state;
    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = 0;
    error_set_errno(&err, EIO, "%s", text);
    error_prefix(&err, err.code, "%s", text);
    assert_true(strlen(err.message) < CAIRN_ERROR_MESSAGE_MAX);
}

static void test_no_error_object_is_fine(void **state)
{
    (void)state;
    assert_int_equal(error_set(NULL, CAIRN_E_LIMIT, "x"), CAIRN_E_LIMIT);
    assert_int_equal(error_set_errno(NULL, ENOENT, "x"), CAIRN_E_NOT_FOUND);
    assert_int_equal(error_prefix(NULL, CAIRN_E_IO, "x"), CAIRN_E_IO);
}

static void test_exit_codes(void **state)
{
    (void)state;
    assert_int_equal(error_exit_code(CAIRN_OK), 0);
    assert_int_equal(error_exit_code(CAIRN_E_USAGE), 2);
    assert_int_equal(error_exit_code(CAIRN_E_NOT_FOUND), 1);
    assert_string_equal(error_code_name(CAIRN_E_NOT_FOUND), "not-found");
    assert_string_equal(error_code_name(-1000), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_errno_becomes_code),
        cmocka_unit_test(test_prefix_keeps_message_and_code),
        cmocka_unit_test(test_long_messages_are_cut),
        cmocka_unit_test(test_no_error_object_is_fine),
        cmocka_unit_test(test_exit_codes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
