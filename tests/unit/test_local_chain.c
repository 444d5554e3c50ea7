/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Local backing chains: what is followed, what is refused, and what is written into headers. Images
 * come from qemu-img; their backing names are poked by qcow2_set_backing.
 */
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cairn.h"
#include "local_chain.h"
#include "qcow2_backing.h"
#include "qcow2_image.h"
#include "scratch.h"

static char folder[64];

__attribute__((format(printf, 1, 2))) static void shell(const char *fmt, ...)
{
    char command[1024], script[1200];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(command, sizeof(command), fmt, ap);
    va_end(ap);
    snprintf(script, sizeof(script), "cd %s && { %s; } >/dev/null", folder, command);
    assert_int_equal(system(script), 0);
}

static const char *in_folder(const char *name)
{
    static char path[256];

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

static int make_folder(void **state)
{

    (void)state;
    snprintf(folder, sizeof(folder), "%.40s/cairn-XXXXXX", scratch_base());
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    return system(command);
}

static int open_chain(const char *name, struct local_chain **chain, struct cairn_error *err)
{
    return local_chain_open(in_folder(name), NULL, chain, err);
}

static void expect_refused(const char *name, int code, const char *words)
{
    struct local_chain *chain;
    struct cairn_error err;

    assert_int_equal(open_chain(name, &chain, &err), code);
    if (!strstr(err.message, words))
        fail_msg("\"%s\" does not say \"%s\"", err.message, words);
}

static void set_backing(const char *name, const char *backing, enum layer_format format)
{
    int fd = open(in_folder(name), O_RDWR | O_CLOEXEC);
    struct cairn_error err;

    assert_true(fd >= 0);
    if (qcow2_set_backing(fd, name, backing, format, NULL, &err) != CAIRN_OK)
        fail_msg("%s", err.message);
    close(fd);
}

/* -- Chains --------------------------------------------------------------------------------- */

static void test_chain_is_found_base_first(void **state)
{
    struct local_chain *chain;
    struct cairn_error err;

    (void)state;
    shell("truncate -s 1M base.raw; mkdir sub; "
          "qemu-img create -q -f qcow2 -b ../base.raw -F raw sub/mid.qcow2; "
          "qemu-img create -q -f qcow2 -b sub/mid.qcow2 -F qcow2 top.qcow2");
    assert_int_equal(open_chain("top.qcow2", &chain, &err), CAIRN_OK);
    assert_int_equal(chain->depth, 3);
    assert_int_equal(chain->layers[0].format, LAYER_RAW);
    assert_int_equal(chain->layers[0].size, 1 << 20);
    assert_non_null(strstr(chain->layers[0].path, "/sub/../base.raw"));
    assert_non_null(strstr(chain->layers[2].path, "/top.qcow2"));
    local_chain_free(chain);
}

static void test_changed_file_is_noticed(void **state)
{
    struct local_chain *chain;
    struct cairn_error err;
    struct source *src;

    (void)state;
    shell("truncate -s 1M base.raw");
    assert_int_equal(open_chain("base.raw", &chain, &err), CAIRN_OK);
    assert_int_equal(local_layer_check(&chain->layers[0], &err), CAIRN_OK);
    shell("truncate -s 2M base.raw");
    assert_int_equal(local_layer_check(&chain->layers[0], &err), CAIRN_E_CONFLICT);
    assert_int_equal(local_layer_open(&chain->layers[0], &src, &err), CAIRN_E_CONFLICT);
    local_chain_free(chain);
}

static void test_loops_are_found(void **state)
{
    (void)state;
    shell("for i in a b c d e; do qemu-img create -q -f qcow2 $i.qcow2 1M; done");
    set_backing("a.qcow2", "a.qcow2", LAYER_QCOW2);
    expect_refused("a.qcow2", CAIRN_E_CORRUPT, "loop of 1 files");
    set_backing("a.qcow2", "b.qcow2", LAYER_QCOW2);
    set_backing("b.qcow2", "c.qcow2", LAYER_QCOW2);
    set_backing("c.qcow2", "./d.qcow2", LAYER_QCOW2);
    set_backing("d.qcow2", "e.qcow2", LAYER_QCOW2);
    set_backing("e.qcow2", "c.qcow2", LAYER_QCOW2);
    expect_refused("a.qcow2", CAIRN_E_CORRUPT, "loop of 3 files");
}

static void test_protocols_are_refused(void **state)
{
    static const char *const names[] = {
        "json:{\"driver\":\"raw\"}", "nbd:127.0.0.1:10809",
        "http://127.0.0.1/x",        "file:base.raw",
        "ssh://root@host/x",         "nbd+unix:///?socket=/x",
    };

    (void)state;
    shell("qemu-img create -q -f qcow2 a.qcow2 1M");
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        set_backing("a.qcow2", names[i], LAYER_RAW);
        expect_refused("a.qcow2", CAIRN_E_UNSUPPORTED, "not a plain file name");
    }
}

static void test_sealed_layer_is_refused_with_advice(void **state)
{
    (void)state;
    shell("qemu-img create -q -f qcow2 a.qcow2 1M");
    set_backing("a.qcow2", "cairn:sha256:00", LAYER_QCOW2);
    expect_refused("a.qcow2", CAIRN_E_UNSUPPORTED, "cairn snapshot");
}

static void test_name_with_zero_byte_is_refused(void **state)
{
    (void)state;
    shell("qemu-img create -q -f qcow2 a.qcow2 1M");
    set_backing("a.qcow2", "baseXraw", LAYER_RAW);
    shell("LC_ALL=C sed -i 's/baseXraw/base\\x00raw/' a.qcow2");
    expect_refused("a.qcow2", CAIRN_E_CORRUPT, "zero byte");
}

static void test_special_files_are_refused(void **state)
{
    (void)state;
    shell("qemu-img create -q -f qcow2 a.qcow2 1M; mkfifo pipe.raw");
    set_backing("a.qcow2", "pipe.raw", LAYER_RAW);
    expect_refused("a.qcow2", CAIRN_E_UNSUPPORTED, "neither a regular file nor a block device");
    set_backing("a.qcow2", "/dev/zero", LAYER_RAW);
    expect_refused("a.qcow2", CAIRN_E_UNSUPPORTED, "/dev/zero");
    set_backing("a.qcow2", "missing.raw", LAYER_RAW);
    expect_refused("a.qcow2", CAIRN_E_NOT_FOUND, "missing.raw");
}

static void test_format_that_is_not_recorded_is_not_guessed(void **state)
{
    (void)state;
    shell("truncate -s 1M base.raw; qemu-img create -q -f qcow2 -b base.raw -F raw a.qcow2");
    shell("python3 -c \"d = open('a.qcow2', 'rb').read(); "
          "open('a.qcow2', 'wb').write(d.replace(b'\\xe2\\x79\\x2a\\xca', "
          "b'\\xe2\\x79\\x2a\\xcb'))\"");
    expect_refused("a.qcow2", CAIRN_E_UNSUPPORTED, "qemu-img rebase -u");
}

static void test_other_formats_are_refused(void **state)
{
    (void)state;
    shell("qemu-img create -q -f vmdk base.vmdk 1M; "
          "qemu-img create -q -f qcow2 -b base.vmdk -F vmdk a.qcow2");
    expect_refused("a.qcow2", CAIRN_E_UNSUPPORTED, "\"vmdk\"");
}

static void test_unusable_layer_deep_down_is_refused(void **state)
{
    (void)state;
    shell("qemu-img create -q -f qcow2 -o data_file=d.raw base.qcow2 1M; "
          "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 a.qcow2");
    expect_refused("a.qcow2", CAIRN_E_UNSUPPORTED, "base.qcow2");
}

/* -- Writing backing names ------------------------------------------------------------------ */

static void check_relinked(const char *create_options)
{
    shell("rm -f a.qcow2 b.qcow2 base.raw; truncate -s 1M base.raw; "
          "qemu-img create -q -f qcow2 -o %s a.qcow2 1M; "
          "qemu-io -c 'write -P 7 64k 64k' a.qcow2; "
          "qemu-img bitmap --add a.qcow2 bits 2>&1 || true",
          create_options);
    set_backing("a.qcow2", "base.raw", LAYER_RAW);
    shell("qemu-img info a.qcow2 | grep -q 'backing file: base.raw'; "
          "qemu-img info a.qcow2 | grep -q 'backing file format: raw'; qemu-img check a.qcow2");
    set_backing("a.qcow2", NULL, LAYER_RAW);
    shell("! qemu-img info a.qcow2 | grep -q backing; ! grep -q base.raw a.qcow2; "
          "qemu-img check a.qcow2; qemu-io -r -c 'read -P 7 64k 64k' a.qcow2");
}

static void test_backing_is_rewritten_as_qemu_reads_it(void **state)
{
    static const char *const options[] = {
        "compat=0.10",           "compat=1.1",
        "cluster_size=512",      "cluster_size=2M",
        "compression_type=zstd", "extended_l2=on,cluster_size=128k",
    };

    (void)state;
    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
        check_relinked(options[i]);
}

static void test_bitmaps_survive_relinking(void **state)
{
    (void)state;
    shell("truncate -s 1M base.raw; qemu-img create -q -f qcow2 a.qcow2 1M; "
          "qemu-img bitmap --add a.qcow2 bits");
    set_backing("a.qcow2", "base.raw", LAYER_RAW);
    shell("qemu-img info a.qcow2 | grep -q 'name: bits'");
}

static void test_name_that_does_not_fit_is_refused(void **state)
{
    struct cairn_error err;
    char name[700];
    int fd;

    (void)state;
    memset(name, 'x', sizeof(name) - 1);
    name[sizeof(name) - 1] = 0;
    shell("qemu-img create -q -f qcow2 -o cluster_size=512 a.qcow2 1M; cp a.qcow2 b.qcow2");
    fd = open(in_folder("a.qcow2"), O_RDWR | O_CLOEXEC);
    assert_int_equal(qcow2_set_backing(fd, "a.qcow2", name, LAYER_RAW, NULL, &err), CAIRN_E_LIMIT);
    close(fd);
    shell("cmp a.qcow2 b.qcow2");
}

/* -- Maps ----------------------------------------------------------------------------------- */

struct entries {
    FILE *file;
    unsigned nr, stop_at;
};

static int write_entry(void *ctx, const struct cairn_map_entry *e)
{
    struct entries *entries = ctx;

    fprintf(entries->file,
            "%s{\"start\": %" PRIu64 ", \"length\": %" PRIu64 ", \"depth\": %" PRIu32
            ", \"present\": %s, \"zero\": %s, \"data\": %s",
            entries->nr++ ? ", " : "[", e->start, e->length, e->depth,
            e->present ? "true" : "false", e->zero ? "true" : "false", e->zero ? "false" : "true");
    if (e->has_offset)
        fprintf(entries->file, ", \"offset\": %" PRIu64, e->offset);
    fputs("}", entries->file);
    return 0;
}

static int stop_at_entry(void *ctx, const struct cairn_map_entry *e)
{
    struct entries *entries = ctx;

    (void)e;
    return ++entries->nr == entries->stop_at;
}

static void test_map_is_what_qemu_says(void **state)
{
    struct entries entries = {0};
    struct cairn_error err;

    (void)state;
    shell("qemu-img create -q -f qcow2 -o cluster_size=4k base.qcow2 40M; "
          "qemu-io -c 'write 0 1M' -c 'write 33M 2M' base.qcow2; "
          "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2 35M; "
          "qemu-io -c 'write -z 512k 64k' -c 'write 34M 64k' mid.qcow2; "
          "qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2 40M; "
          "qemu-io -c 'write 128k 64k' -c 'write 39M 1M' top.qcow2; "
          "qemu-img map --output=json top.qcow2 > expected.json");
    entries.file = fopen(in_folder("found.json"), "w");
    assert_non_null(entries.file);
    if (cairn_image_map(in_folder("top.qcow2"), NULL, write_entry, &entries, &err) != CAIRN_OK)
        fail_msg("%s", err.message);
    fputs("]", entries.file);
    fclose(entries.file);
    shell("python3 -c \"import json; assert json.load(open('expected.json')) == "
          "json.load(open('found.json'))\"");
}

static void test_a_map_can_be_stopped(void **state)
{
    struct entries entries = {.stop_at = 2};
    struct cairn_error err;

    (void)state;
    shell("qemu-img create -q -f qcow2 -o cluster_size=4k top.qcow2 40M; "
          "qemu-io -c 'write 0 1M' -c 'write 33M 2M' top.qcow2");
    assert_int_equal(cairn_image_map(in_folder("top.qcow2"), NULL, stop_at_entry, &entries, &err),
                     CAIRN_E_CANCELLED);
    assert_int_equal(entries.nr, 2);
}

#define test(fn) cmocka_unit_test_setup_teardown(fn, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(test_chain_is_found_base_first),
        test(test_changed_file_is_noticed),
        test(test_loops_are_found),
        test(test_protocols_are_refused),
        test(test_sealed_layer_is_refused_with_advice),
        test(test_name_with_zero_byte_is_refused),
        test(test_special_files_are_refused),
        test(test_format_that_is_not_recorded_is_not_guessed),
        test(test_other_formats_are_refused),
        test(test_unusable_layer_deep_down_is_refused),
        test(test_backing_is_rewritten_as_qemu_reads_it),
        test(test_bitmaps_survive_relinking),
        test(test_name_that_does_not_fit_is_refused),
        test(test_map_is_what_qemu_says),
        test(test_a_map_can_be_stopped),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
