/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cairn_image_check: the JSON, the lock, what is refused.  What a check finds: test_qcow2_check.
 */
#include "qemu.h"

#include <fcntl.h>
#include <jansson.h>

#include "cairn.h"
#include "hostfile.h"

static void make_image(void)
{
    sh("rm -f i && qemu-img create -f qcow2 i 4M && qemu-io -c 'write -P 7 64k 1M' i");
}

/* Refcount of the sixth cluster, guest data, from 1 to 5. */
static void make_leak(void)
{
    const uint8_t five[] = {0, 5};
    int fd;

    make_image();
    fd = open("i", O_WRONLY | O_CLOEXEC);
    assert_int_equal(pwrite(fd, five, sizeof(five), (2 << 16) + 2 * 5), sizeof(five));
    close(fd);
}

static json_t *check(enum cairn_repair repair)
{
    struct cairn_error err;
    char *text;
    json_t *json;

    if (cairn_image_check("i", "qcow2", repair, NULL, NULL, &text, &err) != CAIRN_OK)
        fail_msg("%s", err.message);
    json = json_loads(text, 0, NULL);
    free(text);
    assert_non_null(json);
    return json;
}

static void assert_state(json_t *json, const char *state, json_int_t leaks, json_int_t leaks_fixed)
{
    assert_string_equal(json_string_value(json_object_get(json, "state")), state);
    assert_int_equal(json_integer_value(json_object_get(json, "leaks")), leaks);
    assert_int_equal(json_integer_value(json_object_get(json, "leaks-fixed")), leaks_fixed);
    json_decref(json);
}

static void test_clean_image(void **state)
{
    json_t *json;

    (void)state;
    make_image();
    json = check(CAIRN_REPAIR_NONE);
    assert_int_equal(json_integer_value(json_object_get(json, "allocated-clusters")), 16);
    assert_int_equal(json_integer_value(json_object_get(json, "total-clusters")), 64);
    assert_int_equal(json_array_size(json_object_get(json, "findings")), 0);
    assert_state(json, "clean", 0, 0);
}

static void test_finding_names_the_place(void **state)
{
    json_t *json, *finding;

    (void)state;
    make_leak();
    json = check(CAIRN_REPAIR_NONE);
    finding = json_array_get(json_object_get(json, "findings"), 0);
    assert_string_equal(json_string_value(json_object_get(finding, "kind")), "leak");
    assert_int_equal(json_integer_value(json_object_get(finding, "host-offset")), 5 << 16);
    assert_state(json, "corruptions", 1, 0); /* the copied bit is wrong then, too */
}

static void test_repair_of_leaks_leaves_nothing(void **state)
{
    (void)state;
    make_leak();
    assert_state(check(CAIRN_REPAIR_LEAKS), "clean", 0, 1);
    sh("qemu-img check i");
    sh("qemu-io -r -c 'read -P 7 64k 1M' i | grep -v 'Pattern verification failed'");
}

static void test_looking_does_not_write(void **state)
{
    uint8_t *before, *after;
    size_t before_len, after_len;

    (void)state;
    make_leak();
    before = load_file("i", &before_len);
    json_decref(check(CAIRN_REPAIR_NONE));
    after = load_file("i", &after_len);
    assert_int_equal(before_len, after_len);
    assert_memory_equal(before, after, before_len);
    free(before);
    free(after);
}

static void assert_refused(const char *format, enum cairn_repair repair, int code)
{
    struct cairn_error err;
    char *text;

    assert_int_equal(cairn_image_check("i", format, repair, NULL, NULL, &text, &err), code);
}

static void test_refuses_a_file_that_is_written_to(void **state)
{
    struct hostfile writer;

    (void)state;
    make_image();
    assert_int_equal(hostfile_init(&writer, open("i", O_RDWR | O_CLOEXEC), "i", NULL), CAIRN_OK);
    assert_int_equal(hostfile_lock(&writer, NULL), CAIRN_OK);
    assert_refused("qcow2", CAIRN_REPAIR_NONE, CAIRN_E_CONFLICT);
    assert_refused("qcow2", CAIRN_REPAIR_ALL, CAIRN_E_CONFLICT);
    hostfile_release(&writer);
    json_decref(check(CAIRN_REPAIR_NONE));
}

static void test_repair_refuses_a_file_that_is_read(void **state)
{
    struct hostfile reader;

    (void)state;
    make_image();
    assert_int_equal(hostfile_init(&reader, open("i", O_RDONLY | O_CLOEXEC), "i", NULL), CAIRN_OK);
    assert_int_equal(hostfile_lock_reading(&reader, NULL), CAIRN_OK);
    assert_refused("qcow2", CAIRN_REPAIR_LEAKS, CAIRN_E_CONFLICT);
    json_decref(check(CAIRN_REPAIR_NONE)); /* two may look */
    hostfile_release(&reader);
}

static void test_refuses_raw(void **state)
{
    (void)state;
    make_image();
    assert_refused("raw", CAIRN_REPAIR_NONE, CAIRN_E_UNSUPPORTED);
}

static int cancel(void *ctx, const char *what, uint64_t done, uint64_t total)
{
    (void)ctx, (void)what, (void)done, (void)total;
    return 1;
}

static void test_can_be_cancelled(void **state)
{
    char *text;

    (void)state;
    make_image();
    assert_int_equal(cairn_image_check("i", "qcow2", CAIRN_REPAIR_NONE, cancel, NULL, &text, NULL),
                     CAIRN_E_CANCELLED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_clean_image),
        cmocka_unit_test(test_finding_names_the_place),
        cmocka_unit_test(test_repair_of_leaks_leaves_nothing),
        cmocka_unit_test(test_looking_does_not_write),
        cmocka_unit_test(test_refuses_a_file_that_is_written_to),
        cmocka_unit_test(test_repair_refuses_a_file_that_is_read),
        cmocka_unit_test(test_refuses_raw),
        cmocka_unit_test(test_can_be_cancelled),
    };

    return cmocka_run_group_tests(tests, qemu_setup, qemu_teardown);
}
