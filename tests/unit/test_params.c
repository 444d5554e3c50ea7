/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "params.h"
#include "scratch.h"

static struct cairn_error err;
static struct params params;
static enum params_action action;

/* The words of a command line, after the program's name; NULL ends them. */
static int load(char **env, const char *first, ...)
{
    char *argv[10] = {(char[]){"cairnd"}};
    int argc = 1, r;
    va_list ap;

    va_start(ap, first);
    for (const char *word = first; word; word = va_arg(ap, const char *))
        argv[argc++] = strdup(word);
    va_end(ap);
    r = params_load(argc, argv, env, &params, &action, &err);
    while (argc > 1)
        free(argv[--argc]);
    return r;
}

static char config_path[300];

static const char *write_config(const char *text)
{
    FILE *file;
    int fd;

    snprintf(config_path, sizeof(config_path), "%s/cairn-params-XXXXXX", scratch_base());
    fd = mkstemp(config_path);
    assert_true(fd >= 0);
    file = fdopen(fd, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    return config_path;
}

static void assert_message(const char *part)
{
    if (!strstr(err.message, part))
        print_error("'%s' not in '%s'\n", part, err.message);
    assert_non_null(strstr(err.message, part));
}

static void test_defaults(void **state)
{
    (void)state;
    assert_int_equal(load(NULL, NULL), CAIRN_OK);
    assert_int_equal(action, PARAMS_RUN);
    assert_string_equal(params.listen, "127.0.0.1:7117");
    assert_string_equal(params.store, "fs:/var/lib/cairn");
    assert_null(params.port_file);
    assert_int_equal(params.max_depth, 65535);
    params_release(&params);
}

static void test_both_forms_of_an_option(void **state)
{
    (void)state;
    assert_int_equal(load(NULL, "--workers", "3", "--store=fs:/x=y", NULL), CAIRN_OK);
    assert_int_equal(params.workers, 3);
    assert_string_equal(params.store, "fs:/x=y");
    params_release(&params);
}

static void test_bytes_take_suffixes(void **state)
{
    (void)state;
    assert_int_equal(load(NULL, "--meta-cache", "3G", "--cluster-cache=5m", "--max-upload",
                          "1048576", "--max-virtual-size", "1T", NULL),
                     CAIRN_OK);
    assert_int_equal(params.meta_cache, UINT64_C(3) << 30);
    assert_int_equal(params.cluster_cache, 5 << 20);
    assert_int_equal(params.max_upload, 1 << 20);
    assert_int_equal(params.max_virtual_size, UINT64_C(1) << 40);
    params_release(&params);
}

static void test_command_line_beats_environment_beats_file(void **state)
{
    char workers[] = "CAIRN_WORKERS=5", threads[] = "CAIRN_HTTP_THREADS=6", other[] = "CAIRN_X=1";
    char *env[] = {other, workers, threads, NULL};

    (void)state;
    write_config("workers = 7\nhttp-threads = 8\nmax-depth = 9\n");
    assert_int_equal(load(env, "--http-threads", "4", "--config", config_path, NULL), CAIRN_OK);
    assert_int_equal(params.http_threads, 4);
    assert_int_equal(params.workers, 5);
    assert_int_equal(params.max_depth, 9);
    params_release(&params);
    unlink(config_path);
}

static void test_comments_and_blanks_in_a_file(void **state)
{
    (void)state;
    write_config(
        "# a comment\n\n   \t\n  workers=2  \n\tlisten =  [::1]:0\r\n  # more\nmax-depth=1");
    assert_int_equal(load(NULL, "--config", config_path, NULL), CAIRN_OK);
    assert_int_equal(params.workers, 2);
    assert_string_equal(params.listen, "[::1]:0");
    assert_int_equal(params.max_depth, 1);
    params_release(&params);
    unlink(config_path);
}

static void test_errors_in_a_file_name_the_line(void **state)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"workers = 2\nwrokers = 3\n", ":2: unknown parameter \"wrokers\""},
        {"workers\n", ":1: \"workers\", expected `name = value`"},
        {"\n\nworkers = many\n", ":3: workers: \"many\", expected 1 to 1024 threads"},
        {"workers =\n", ":1: workers: \"\", expected"},
        {"store =\n", ":1: store: empty, expected URL"},
        {"config = x\n", ":1: unknown parameter \"config\""},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        write_config(cases[i].text);
        assert_int_equal(load(NULL, "--config", config_path, NULL), CAIRN_E_USAGE);
        assert_message(config_path);
        assert_message(cases[i].says);
        unlink(config_path);
    }
}

static void test_long_line_is_refused(void **state)
{
    char *text = malloc(6001);

    (void)state;
    assert_non_null(text);
    memset(text, 'x', 6000);
    text[6000] = 0;
    write_config(text);
    free(text);
    assert_int_equal(load(NULL, "--config", config_path, NULL), CAIRN_E_USAGE);
    assert_message("line longer than");
    unlink(config_path);
}

static void test_missing_file_is_said(void **state)
{
    (void)state;
    assert_int_equal(load(NULL, "--config", "/nonexistent/cairnd.conf", NULL), CAIRN_E_NOT_FOUND);
    assert_message("/nonexistent/cairnd.conf");
}

static void test_values_out_of_limits(void **state)
{
    static const char *const bad[] = {"0",  "1025", "-1", "1K",  "",
                                      " 1", "0x10", "1 ", "1e2", "99999999999999999999999"};

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(load(NULL, "--workers", bad[i], NULL), CAIRN_E_USAGE);
        assert_message("--workers: \"");
        assert_message("expected 1 to 1024 threads");
    }
    assert_int_equal(load(NULL, "--meta-cache", "99999999999T", NULL), CAIRN_E_USAGE);
    assert_int_equal(load(NULL, "--meta-cache", "1KK", NULL), CAIRN_E_USAGE);
    assert_int_equal(load(NULL, "--meta-cache", "K", NULL), CAIRN_E_USAGE);
    assert_message("(K, M, G, T)");
    assert_int_equal(load(NULL, "--log-level", "loud", NULL), CAIRN_E_USAGE);
    assert_message("error, warn, info or debug");
}

static void test_quota_rules_are_checked(void **state)
{
    (void)state;
    assert_int_equal(load(NULL, "--quota", "team/*=1T,*=5G", NULL), CAIRN_OK);
    assert_string_equal(params.quota, "team/*=1T,*=5G");
    params_release(&params);
    assert_int_equal(load(NULL, "--quota", "team/*=1T,*=lots", NULL), CAIRN_E_USAGE);
    assert_message("--quota: \"*=lots\", expected <size> or <pattern>=<size>");
}

static void test_environment_is_named_in_errors(void **state)
{
    char workers[] = "CAIRN_WORKERS=none", *env[] = {workers, NULL};

    (void)state;
    assert_int_equal(load(env, NULL), CAIRN_E_USAGE);
    assert_message("environment variable CAIRN_WORKERS: \"none\"");
}

static void test_bad_command_lines(void **state)
{
    (void)state;
    assert_int_equal(load(NULL, "--nonsense", "1", NULL), CAIRN_E_USAGE);
    assert_message("--\"nonsense\"");
    assert_int_equal(load(NULL, "--workers", NULL), CAIRN_E_USAGE);
    assert_message("--workers needs a value");
    assert_int_equal(load(NULL, "workers", NULL), CAIRN_E_USAGE);
    assert_message("unexpected argument \"workers\"");
    assert_int_equal(load(NULL, "--", NULL), CAIRN_E_USAGE);
    assert_int_equal(load(NULL, "-x", NULL), CAIRN_E_USAGE);
}

static void test_help_and_version(void **state)
{
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);

    (void)state;
    assert_int_equal(load(NULL, "--help", NULL), CAIRN_OK);
    assert_int_equal(action, PARAMS_HELP);
    params_release(&params);
    assert_int_equal(load(NULL, "--version", NULL), CAIRN_OK);
    assert_int_equal(action, PARAMS_VERSION);
    params_release(&params);
    params_help(out);
    fclose(out);
    assert_non_null(strstr(text, "--max-virtual-size <bytes>"));
    assert_non_null(strstr(text, "default 127.0.0.1:7117"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_both_forms_of_an_option),
        cmocka_unit_test(test_bytes_take_suffixes),
        cmocka_unit_test(test_command_line_beats_environment_beats_file),
        cmocka_unit_test(test_comments_and_blanks_in_a_file),
        cmocka_unit_test(test_errors_in_a_file_name_the_line),
        cmocka_unit_test(test_long_line_is_refused),
        cmocka_unit_test(test_missing_file_is_said),
        cmocka_unit_test(test_values_out_of_limits),
        cmocka_unit_test(test_quota_rules_are_checked),
        cmocka_unit_test(test_environment_is_named_in_errors),
        cmocka_unit_test(test_bad_command_lines),
        cmocka_unit_test(test_help_and_version),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
