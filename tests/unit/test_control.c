/* SPDX-License-Identifier: Apache-2.0 */
/* The control socket, with a disk that is nothing but its folder: what reaches a service is tested
 * by the system tests. */
#include "test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "control.h"
#include "disk.h"
#include "scratch.h"

static char tmp[80];
static struct cairn_client *client;
static struct cairn_disk disk;
static struct control *control;
static const struct cairn_seal_options sealing = CAIRN_SEAL_OPTIONS_INIT;

static void start_in(const char *folder)
{
    struct cairn_error err;

    memset(&disk, 0, sizeof(disk));
    pthread_mutex_init(&disk.snapshot_lock, NULL);
    disk.client = client;
    assert_int_equal(disk_folder_open(folder, true, &disk.folder, &err), 0);
    assert_int_equal(control_start(&disk, &control, &err), 0);
}

static int set_up(void **state)
{

    (void)state;
    snprintf(tmp, sizeof(tmp), "%s/control-XXXXXX", scratch_base());
    if (!mkdtemp(tmp) || cairn_client_new(NULL, &client, NULL) != 0)
        return -1;
    start_in(tmp);
    return 0;
}

static int tear_down(void **state)
{
    char command[300];

    (void)state;
    control_stop(control);
    disk_folder_close(disk.folder);
    cairn_client_free(client);
    snprintf(command, sizeof(command), "rm -rf '%s'", tmp);
    return system(command);
}

/* What comes back for raw bytes, up to the end of the connection. */
static const char *exchange(const char *bytes, size_t len)
{
    static char answer[4096];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    size_t used = 0;
    ssize_t n;

    snprintf(address.sun_path, sizeof(address.sun_path), "%s/control.sock", tmp);
    assert_int_equal(connect(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(send(fd, bytes, len, MSG_NOSIGNAL), len);
    while (used < sizeof(answer) - 1 &&
           (n = recv(fd, answer + used, sizeof(answer) - 1 - used, 0)) > 0)
        used += (size_t)n;
    close(fd);
    answer[used] = 0;
    return answer;
}

static void expect_error(const char *request, const char *in_answer)
{
    const char *answer = exchange(request, strlen(request));

    if (!strstr(answer, "\"error\"") || !strstr(answer, in_answer))
        fail_msg("%s: got %s", request, answer);
}

static void test_hostile_requests_get_errors(void **state)
{
    (void)state;
    expect_error("nonsense\n", "JSON object");
    expect_error("[1]\n", "JSON object");
    expect_error("{}\n", "\\\"op\\\" is missing");
    expect_error("{\"op\":7}\n", "\\\"op\\\" is missing");
    expect_error("{\"op\":\"format\"}\n", "\\\"format\\\"");
    expect_error("{\"op\":\"snapshot\"}\n", "\\\"ref\\\" is missing");
    expect_error("{\"op\":\"snapshot\",\"ref\":\"../x\"}\n", "\"code\":-9");
}

static void test_endless_line_is_refused(void **state)
{
    static char junk[64 << 10];

    (void)state;
    memset(junk, 'x', sizeof(junk));
    assert_non_null(strstr(exchange(junk, sizeof(junk)), "\"code\":-6"));
}

static void test_errors_reach_who_asked(void **state)
{
    struct cairn_error err;
    bool running;
    char *ref, *notice;

    (void)state;
    assert_int_equal(control_ask_snapshot(client, tmp, "repo@sha256:12", &sealing, &running, &ref,
                                          &notice, &err),
                     CAIRN_E_USAGE);
    assert_true(running);
    disk.folder_failed = true;
    assert_int_equal(
        control_ask_snapshot(client, tmp, "repo:tag", &sealing, &running, &ref, &notice, &err),
        CAIRN_E_IO);
    assert_non_null(strstr(err.message, "open the disk again"));
}

static void test_options_reach_the_snapshot(void **state)
{
    const struct cairn_seal_options wrong = {
        .struct_size = sizeof(wrong), .compress = CAIRN_COMPRESS_ZSTD, .level = 20};
    const char unknown[] = "{\"op\":\"snapshot\",\"ref\":\"repo:tag\",\"compress\":\"lzma\"}\n";
    struct cairn_error err;
    bool running;
    char *ref, *notice;

    (void)state;
    assert_int_equal(
        control_ask_snapshot(client, tmp, "repo:tag", &wrong, &running, &ref, &notice, &err),
        CAIRN_E_USAGE);
    assert_string_equal(err.message, "compression level 20, expected 1 to 19");
    assert_non_null(
        strstr(exchange(unknown, strlen(unknown)), "is \\\"lzma\\\", expected none, zlib or zstd"));
}

static void test_one_snapshot_at_a_time(void **state)
{
    struct cairn_error err;
    bool running;
    char *ref, *notice;

    (void)state;
    pthread_mutex_lock(&disk.snapshot_lock);
    assert_int_equal(
        control_ask_snapshot(client, tmp, "repo:tag", &sealing, &running, &ref, &notice, &err),
        CAIRN_E_CONFLICT);
    pthread_mutex_unlock(&disk.snapshot_lock);
}

static int connect_idle(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s/control.sock", tmp);
    assert_int_equal(connect(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

static void test_one_connection_too_many_is_told_why(void **state)
{
    struct cairn_error err;
    bool running;
    char *json;
    int idle[16];

    (void)state;
    for (size_t i = 0; i < 16; i++)
        idle[i] = connect_idle();
    assert_int_equal(control_ask_info(client, tmp, &running, &json, &err), CAIRN_E_LIMIT);
    assert_string_equal(err.message, "control socket: 16 connections are open already");
    assert_true(running);
    for (size_t i = 0; i < 16; i++)
        close(idle[i]);
}

static void test_socket_is_its_owners(void **state)
{
    struct stat st;
    char path[300];

    (void)state;
    snprintf(path, sizeof(path), "%s/control.sock", tmp);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
}

static void test_stopped_disk_is_not_running(void **state)
{
    struct cairn_error err;
    bool running = true;
    char *json;
    char path[300];

    (void)state;
    snprintf(path, sizeof(path), "%s/control.sock", tmp);
    control_stop(control);
    control = NULL;
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(control_ask_info(client, tmp, &running, &json, &err), 0);
    assert_false(running);
}

static void test_stop_does_not_wait_for_idle_peers(void **state)
{
    int fd = connect_idle();
    char byte;

    (void)state;
    assert_int_equal(send(fd, "{", 1, 0), 1);
    control_stop(control);
    control = NULL;
    /* Hung up on, with or without a word. */
    while (recv(fd, &byte, 1, 0) > 0)
        ;
    close(fd);
}

static void test_long_folder(void **state)
{
    struct cairn_error err;
    bool running;
    char *ref, *notice;
    char folder[600];
    struct control *other = control;
    struct disk_folder *other_folder = disk.folder;

    (void)state;
    snprintf(folder, sizeof(folder), "%s/%0120d", tmp, 0);
    start_in(folder);
    assert_int_equal(control_ask_snapshot(client, folder, "repo@sha256:12", &sealing, &running,
                                          &ref, &notice, &err),
                     CAIRN_E_USAGE);
    assert_true(running);
    control_stop(control);
    disk_folder_close(disk.folder);
    control = other;
    disk.folder = other_folder;
}

#define ROW(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        ROW(test_hostile_requests_get_errors),
        ROW(test_endless_line_is_refused),
        ROW(test_errors_reach_who_asked),
        ROW(test_options_reach_the_snapshot),
        ROW(test_one_snapshot_at_a_time),
        ROW(test_one_connection_too_many_is_told_why),
        ROW(test_socket_is_its_owners),
        ROW(test_stopped_disk_is_not_running),
        ROW(test_stop_does_not_wait_for_idle_peers),
        ROW(test_long_folder),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
