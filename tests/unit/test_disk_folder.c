/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "disk_folder.h"
#include "scratch.h"

#define HEX "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static char tmp[256];

static int set_up(void **state)
{

    (void)state;
    snprintf(tmp, sizeof(tmp), "%s/disk-folder-XXXXXX", scratch_base());
    return mkdtemp(tmp) ? 0 : -1;
}

static int tear_down(void **state)
{
    char command[300];

    (void)state;
    snprintf(command, sizeof(command), "rm -rf '%s'", tmp);
    return system(command);
}

static char *in_tmp(const char *name)
{
    static char path[4][512];
    static unsigned next;
    char *p = path[next++ % 4];

    snprintf(p, sizeof(path[0]), "%s/%s", tmp, name);
    return p;
}

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static bool holds(const char *path, const char *text)
{
    char buf[64] = "";
    FILE *f = fopen(path, "r");
    bool same = f && fgets(buf, sizeof(buf), f) && strcmp(buf, text) == 0;

    if (f)
        fclose(f);
    return same;
}

static struct disk_state some_state(void)
{
    struct disk_state s = {.virtual_size = 1 << 20};
    struct cairn_error err;

    strcpy(s.made_from, "vm/base:v1");
    strcpy(s.ref, "vm/one:monday");
    strcpy(s.repo, "vm/one");
    assert_int_equal(digest_parse("sha256:" HEX, 71, &s.manifest, &err), 0);
    s.chain_id = s.manifest;
    return s;
}

/* A folder with disk.json, an active layer that holds "active", and sealed layers. */
static void make_disk(const char *path, uint32_t nr_sealed)
{
    struct disk_state s = some_state();
    struct disk_folder *folder;
    struct cairn_error err;
    char name[DISK_SEALED_NAME_MAX], file[600];

    assert_int_equal(disk_folder_open(path, true, &folder, &err), 0);
    for (uint32_t i = 0; i < nr_sealed; i++) {
        s.sealed[s.nr_sealed++] = i + 1;
        snprintf(file, sizeof(file), "%s/%s", path, disk_sealed_name(i + 1, name));
        write_file(file, name);
    }
    assert_int_equal(disk_folder_prepare(folder, &s, &err), 0);
    assert_int_equal(disk_folder_commit(folder, &err), 0);
    snprintf(file, sizeof(file), "%s/active.qcow2", path);
    write_file(file, "active");
    disk_folder_close(folder);
}

static int reopen(const char *path, struct cairn_error *err)
{
    struct disk_folder *folder = NULL;
    int ret = disk_folder_open(path, false, &folder, err);

    disk_folder_close(folder);
    return ret;
}

/* -- disk.json ------------------------------------------------------------------------------ */

static void test_state_survives(void **state)
{
    struct disk_state s = some_state(), back;
    struct cairn_error err;
    char *json;

    (void)state;
    s.nr_sealed = 2;
    s.sealed[0] = 3;
    s.sealed[1] = 4;
    s.last_repair = (struct disk_repair){.time = 1790000000, .leaks = 12};
    assert_int_equal(disk_state_encode(&s, &json, &err), 0);
    assert_int_equal(disk_state_parse(json, strlen(json), "disk.json", &back, &err), 0);
    assert_memory_equal(&s, &back, sizeof(s));
    free(json);
}

#define FIELDS(version, repo, manifest, size, layers, active)                                      \
    "{\"version\":" version ",\"madeFrom\":\"vm/base:v1\",\"ref\":\"vm/base:v1\","                 \
    "\"repository\":" repo ",\"manifest\":" manifest ",\"chainId\":\"sha256:" HEX "\","            \
    "\"virtualSize\":" size ",\"layers\":" layers ",\"active\":" active "}"
#define GOOD_DIGEST "\"sha256:" HEX "\""

static void test_hostile_documents_are_refused(void **state)
{
    static const struct {
        const char *json, *in_message;
        int code;
    } cases[] = {
        {"", "not a JSON object", CAIRN_E_CORRUPT},
        {"[]", "not a JSON object", CAIRN_E_CORRUPT},
        {"{}", "\"version\"", CAIRN_E_CORRUPT},
        {FIELDS("2", "\"vm\"", GOOD_DIGEST, "512", "[]", "\"active.qcow2\""), "version 2",
         CAIRN_E_UNSUPPORTED},
        {FIELDS("1", "\"../vm\"", GOOD_DIGEST, "512", "[]", "\"active.qcow2\""), "\"repository\"",
         CAIRN_E_CORRUPT},
        {FIELDS("1", "7", GOOD_DIGEST, "512", "[]", "\"active.qcow2\""), "\"repository\"",
         CAIRN_E_CORRUPT},
        {FIELDS("1", "\"vm\"", "\"sha256:12\"", "512", "[]", "\"active.qcow2\""), "\"manifest\"",
         CAIRN_E_CORRUPT},
        {FIELDS("1", "\"vm\"", GOOD_DIGEST, "-512", "[]", "\"active.qcow2\""), "\"virtualSize\"",
         CAIRN_E_CORRUPT},
        {FIELDS("1", "\"vm\"", GOOD_DIGEST, "513", "[]", "\"active.qcow2\""), "\"virtualSize\"",
         CAIRN_E_CORRUPT},
        {FIELDS("1", "\"vm\"", GOOD_DIGEST, "9223372036854775296", "[]", "\"active.qcow2\""),
         "\"virtualSize\"", CAIRN_E_CORRUPT},
        {FIELDS("1", "\"vm\"", GOOD_DIGEST, "1e3", "[]", "\"active.qcow2\""), "\"virtualSize\"",
         CAIRN_E_CORRUPT},
        {FIELDS("1", "\"vm\"", GOOD_DIGEST, "512", "{}", "\"active.qcow2\""), "\"layers\"",
         CAIRN_E_CORRUPT},
        {FIELDS("1", "\"vm\"", GOOD_DIGEST, "512", "[{\"file\":\"../../etc/passwd\"}]",
                "\"active.qcow2\""),
         "layers[0].file", CAIRN_E_CORRUPT},
        {FIELDS("1", "\"vm\"", GOOD_DIGEST, "512", "[{\"file\":\"sealed-1/x.qcow2\"}]",
                "\"active.qcow2\""),
         "layers[0].file", CAIRN_E_CORRUPT},
        {FIELDS("1", "\"vm\"", GOOD_DIGEST, "512", "[{\"file\":\"sealed-01.qcow2\"}]",
                "\"active.qcow2\""),
         "layers[0].file", CAIRN_E_CORRUPT},
        {FIELDS("1", "\"vm\"", GOOD_DIGEST, "512",
                "[{\"file\":\"sealed-2.qcow2\"},{\"file\":\"sealed-2.qcow2\"}]",
                "\"active.qcow2\""),
         "layers[1].file", CAIRN_E_CORRUPT},
        {FIELDS("1", "\"vm\"", GOOD_DIGEST, "512", "[null]", "\"active.qcow2\""), "layers[0].file",
         CAIRN_E_CORRUPT},
        {FIELDS("1", "\"vm\"", GOOD_DIGEST, "512", "[]", "\"/dev/sda\""), "\"active\"",
         CAIRN_E_CORRUPT},
        {FIELDS("1,\"lastRepair\":7", "\"vm\"", GOOD_DIGEST, "512", "[]", "\"active.qcow2\""),
         "\"lastRepair\"", CAIRN_E_CORRUPT},
        {FIELDS("1,\"lastRepair\":{\"time\":-1,\"leaksFreed\":0}", "\"vm\"", GOOD_DIGEST, "512",
                "[]", "\"active.qcow2\""),
         "\"lastRepair\"", CAIRN_E_CORRUPT},
        {FIELDS("1,\"lastRepair\":{\"time\":1,\"leaksFreed\":0,\"by\":1}", "\"vm\"", GOOD_DIGEST,
                "512", "[]", "\"active.qcow2\""),
         "\"lastRepair\"", CAIRN_E_CORRUPT},
        {FIELDS("1,\"extra\":1", "\"vm\"", GOOD_DIGEST, "512", "[]", "\"active.qcow2\""),
         "\"extra\"", CAIRN_E_UNSUPPORTED},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct disk_state s;
        struct cairn_error err;
        int ret = disk_state_parse(cases[i].json, strlen(cases[i].json), "disk.json", &s, &err);

        if (ret != cases[i].code || !strstr(err.message, cases[i].in_message))
            fail_msg("%s: got %d (%s)", cases[i].json, ret, ret ? err.message : "");
    }
}

static void test_too_many_layers_are_refused(void **state)
{
    static char layers[DISK_SEALED_MAX * 40 + 100];
    static char json[sizeof(layers) + 1000];
    struct disk_state s;
    struct cairn_error err;
    size_t len = 0;

    (void)state;
    for (int i = 1; i <= DISK_SEALED_MAX + 1; i++)
        len +=
            (size_t)sprintf(layers + len, "%s{\"file\":\"sealed-%d.qcow2\"}", i > 1 ? "," : "", i);
    snprintf(json, sizeof(json),
             FIELDS("1", "\"vm\"", GOOD_DIGEST, "512", "[%s]", "\"active.qcow2\""), layers);
    assert_int_equal(disk_state_parse(json, strlen(json), "disk.json", &s, &err), CAIRN_E_LIMIT);
}

static void test_state_that_is_no_file_is_refused(void **state)
{
    struct cairn_error err;

    (void)state;
    make_disk(in_tmp("d"), 0);
    assert_int_equal(rename(in_tmp("d/disk.json"), in_tmp("elsewhere.json")), 0);
    assert_int_equal(symlink(in_tmp("elsewhere.json"), in_tmp("d/disk.json")), 0);
    assert_int_not_equal(reopen(in_tmp("d"), &err), 0);
    assert_int_equal(unlink(in_tmp("d/disk.json")), 0);
    assert_int_equal(mkfifo(in_tmp("d/disk.json"), 0600), 0);
    assert_int_equal(reopen(in_tmp("d"), &err), CAIRN_E_CORRUPT);
}

static void test_state_is_replaced_as_a_whole(void **state)
{
    struct disk_state s = some_state();
    struct disk_folder *folder;
    struct cairn_error err;
    bool marked;

    (void)state;
    make_disk(in_tmp("d"), 0);
    assert_int_equal(disk_folder_open(in_tmp("d"), false, &folder, &err), 0);
    strcpy(s.ref, "vm/one:tuesday");
    assert_int_equal(disk_folder_prepare(folder, &s, &err), 0);
    assert_string_equal(disk_folder_state(folder)->ref, "vm/one:monday");
    assert_true(exists(in_tmp("d/disk.json.new")));
    assert_int_equal(disk_folder_commit(folder, &err), 0);
    assert_string_equal(disk_folder_state(folder)->ref, "vm/one:tuesday");
    assert_false(exists(in_tmp("d/disk.json.new")));
    disk_folder_close(folder);
    assert_int_equal(disk_folder_read_state(in_tmp("d"), &s, &marked, &err), 0);
    assert_string_equal(s.ref, "vm/one:tuesday");
}

static void test_the_mark_stays_until_it_is_removed(void **state)
{
    struct disk_folder *folder;
    struct disk_state s;
    struct cairn_error err;
    bool marked;

    (void)state;
    make_disk(in_tmp("d"), 0);
    assert_int_equal(disk_folder_open(in_tmp("d"), false, &folder, &err), 0);
    assert_false(disk_folder_is_marked(folder));
    assert_int_equal(disk_folder_mark(folder, &err), 0);
    assert_int_equal(disk_folder_mark(folder, &err), 0);
    disk_folder_close(folder);
    assert_int_equal(disk_folder_read_state(in_tmp("d"), &s, &marked, &err), 0);
    assert_true(marked);
    assert_int_equal(disk_folder_open(in_tmp("d"), false, &folder, &err), 0);
    assert_true(disk_folder_is_marked(folder));
    disk_folder_unmark(folder);
    assert_false(disk_folder_is_marked(folder));
    disk_folder_close(folder);
}

/* -- Whose folder it is --------------------------------------------------------------------- */

static void test_second_opener_is_refused(void **state)
{
    struct disk_folder *folder;
    struct cairn_error err;

    (void)state;
    make_disk(in_tmp("d"), 0);
    assert_int_equal(disk_folder_open(in_tmp("d"), false, &folder, &err), 0);
    assert_int_equal(reopen(in_tmp("d"), &err), CAIRN_E_CONFLICT);
    disk_folder_close(folder);
    assert_int_equal(reopen(in_tmp("d"), &err), 0);
}

static void test_foreign_folder_is_left_alone(void **state)
{
    struct disk_folder *folder;
    struct cairn_error err;

    (void)state;
    assert_int_equal(mkdir(in_tmp("d"), 0700), 0);
    write_file(in_tmp("d/letters.txt"), "dear");
    assert_int_equal(disk_folder_open(in_tmp("d"), true, &folder, &err), CAIRN_E_CONFLICT);
    assert_non_null(strstr(err.message, "letters.txt"));
    assert_int_equal(reopen(in_tmp("d"), &err), CAIRN_E_NOT_FOUND);
    assert_false(exists(in_tmp("d/lock")));
}

static void test_missing_folder_is_not_made_unless_asked(void **state)
{
    struct cairn_error err;

    (void)state;
    assert_int_equal(reopen(in_tmp("d"), &err), CAIRN_E_NOT_FOUND);
    assert_false(exists(in_tmp("d")));
}

static void test_folder_without_disk_is_unmade(void **state)
{
    struct disk_folder *folder;
    struct cairn_error err;

    (void)state;
    assert_int_equal(disk_folder_open(in_tmp("d"), true, &folder, &err), 0);
    assert_null(disk_folder_state(folder));
    write_file(in_tmp("d/next.qcow2"), "half");
    disk_folder_close(folder);
    assert_false(exists(in_tmp("d")));
}

static void test_half_made_layer_does_not_make_a_folder_foreign(void **state)
{
    struct disk_folder *folder;
    struct cairn_error err;

    (void)state;
    assert_int_equal(mkdir(in_tmp("d"), 0700), 0);
    write_file(in_tmp("d/next.qcow2.new-123-0"), "half");
    assert_int_equal(disk_folder_open(in_tmp("d"), true, &folder, &err), 0);
    assert_false(exists(in_tmp("d/next.qcow2.new-123-0")));
    disk_folder_close(folder);
}

/* -- What a crash left ------------------------------------------------------------------------ */

static void test_switch_that_was_not_committed_is_undone(void **state)
{
    struct cairn_error err;

    (void)state;
    make_disk(in_tmp("d"), 0);
    write_file(in_tmp("d/next.qcow2"), "next");
    assert_int_equal(link(in_tmp("d/active.qcow2"), in_tmp("d/sealed-1.qcow2")), 0);
    write_file(in_tmp("d/disk.json.new"), "{");
    write_file(in_tmp("d/next.qcow2.new-123-0"), "half");
    assert_int_equal(reopen(in_tmp("d"), &err), 0);
    assert_true(holds(in_tmp("d/active.qcow2"), "active"));
    assert_false(exists(in_tmp("d/next.qcow2")));
    assert_false(exists(in_tmp("d/sealed-1.qcow2")));
    assert_false(exists(in_tmp("d/disk.json.new")));
    assert_false(exists(in_tmp("d/next.qcow2.new-123-0")));
}

static void test_switch_that_was_committed_is_finished(void **state)
{
    struct cairn_error err;

    (void)state;
    make_disk(in_tmp("d"), 1); /* disk.json names sealed-1 … */
    assert_int_equal(unlink(in_tmp("d/active.qcow2")), 0);
    assert_int_equal(link(in_tmp("d/sealed-1.qcow2"), in_tmp("d/active.qcow2")), 0);
    write_file(in_tmp("d/next.qcow2"), "next"); /* … and next is not yet in its place */
    assert_int_equal(reopen(in_tmp("d"), &err), 0);
    assert_true(holds(in_tmp("d/active.qcow2"), "next"));
    assert_true(holds(in_tmp("d/sealed-1.qcow2"), "sealed-1.qcow2"));
    assert_false(exists(in_tmp("d/next.qcow2")));
}

static void test_new_disk_whose_rename_was_lost_is_finished(void **state)
{
    struct cairn_error err;

    (void)state;
    make_disk(in_tmp("d"), 0);
    assert_int_equal(rename(in_tmp("d/active.qcow2"), in_tmp("d/next.qcow2")), 0);
    assert_int_equal(reopen(in_tmp("d"), &err), 0);
    assert_true(holds(in_tmp("d/active.qcow2"), "active"));
}

static void test_published_layers_are_removed(void **state)
{
    struct cairn_error err;

    (void)state;
    make_disk(in_tmp("d"), 1);
    write_file(in_tmp("d/sealed-2.qcow2"), "left over");
    write_file(in_tmp("d/sealed-mine.qcow2"), "not ours");
    assert_int_equal(reopen(in_tmp("d"), &err), 0);
    assert_false(exists(in_tmp("d/sealed-2.qcow2")));
    assert_true(exists(in_tmp("d/sealed-1.qcow2")));
    assert_true(exists(in_tmp("d/sealed-mine.qcow2")));
}

static void test_missing_layer_is_an_error(void **state)
{
    struct cairn_error err;

    (void)state;
    make_disk(in_tmp("d"), 1);
    assert_int_equal(unlink(in_tmp("d/sealed-1.qcow2")), 0);
    assert_int_equal(reopen(in_tmp("d"), &err), CAIRN_E_CORRUPT);
    assert_non_null(strstr(err.message, "sealed-1.qcow2"));
}

static void test_layer_that_is_a_link_is_refused(void **state)
{
    struct cairn_error err;

    (void)state;
    make_disk(in_tmp("d"), 0);
    assert_int_equal(unlink(in_tmp("d/active.qcow2")), 0);
    assert_int_equal(symlink("/etc/passwd", in_tmp("d/active.qcow2")), 0);
    assert_int_equal(reopen(in_tmp("d"), &err), CAIRN_E_CORRUPT);
}

#define ROW(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_state_survives),
        cmocka_unit_test(test_hostile_documents_are_refused),
        cmocka_unit_test(test_too_many_layers_are_refused),
        ROW(test_state_that_is_no_file_is_refused),
        ROW(test_state_is_replaced_as_a_whole),
        ROW(test_the_mark_stays_until_it_is_removed),
        ROW(test_second_opener_is_refused),
        ROW(test_foreign_folder_is_left_alone),
        ROW(test_missing_folder_is_not_made_unless_asked),
        ROW(test_folder_without_disk_is_unmade),
        ROW(test_half_made_layer_does_not_make_a_folder_foreign),
        ROW(test_switch_that_was_not_committed_is_undone),
        ROW(test_switch_that_was_committed_is_finished),
        ROW(test_new_disk_whose_rename_was_lost_is_finished),
        ROW(test_published_layers_are_removed),
        ROW(test_missing_layer_is_an_error),
        ROW(test_layer_that_is_a_link_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
