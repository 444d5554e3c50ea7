/* SPDX-License-Identifier: Apache-2.0 */
/* What a service manager hears, and that nobody needs to listen. */
#include "test.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "cleanup.h"
#include "service_notify.h"

/* A manager's socket under name ("@" for 0), named to the program. */
static int listen_as(const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    assert_true(fd >= 0);
    assert_true(strlen(name) < sizeof(address.sun_path));
    memcpy(address.sun_path, name, strlen(name));
    if (name[0] == '@')
        address.sun_path[0] = 0;
    assert_int_equal(bind(fd, (const struct sockaddr *)&address,
                          (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name))),
                     0);
    setenv("NOTIFY_SOCKET", name, 1);
    return fd;
}

static void assert_heard(int fd, const char *expected)
{
    char text[64] = {0};

    assert_int_equal(recv(fd, text, sizeof(text) - 1, 0), strlen(expected));
    assert_string_equal(text, expected);
}

static void test_path(void **state)
{
    char dir[] = "/tmp/cairn-notify-XXXXXX";
    char path[sizeof(dir) + 8];

    (void)state;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/sock", dir);
    {
        CLEANUP_CLOSE int fd = listen_as(path);

        service_notify("READY=1");
        assert_heard(fd, "READY=1");
        service_notify("STOPPING=1");
        assert_heard(fd, "STOPPING=1");
    }
    unlink(path);
    rmdir(dir);
}

static void test_abstract_name(void **state)
{
    char name[64];

    (void)state;
    snprintf(name, sizeof(name), "@cairn-notify-%d", (int)getpid());

    CLEANUP_CLOSE int fd = listen_as(name);

    service_notify("READY=1");
    assert_heard(fd, "READY=1");
}

/* None of these may do anything: not send, not fail, not crash. */
static void test_nobody_listens(void **state)
{
    static const char *const names[] = {"", "@", "relative", "/nonexistent/socket"};
    char longer[512];

    (void)state;
    unsetenv("NOTIFY_SOCKET");
    service_notify("READY=1");
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        setenv("NOTIFY_SOCKET", names[i], 1);
        service_notify("READY=1");
    }
    memset(longer, '/', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = 0;
    setenv("NOTIFY_SOCKET", longer, 1);
    service_notify("READY=1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_path),
        cmocka_unit_test(test_abstract_name),
        cmocka_unit_test(test_nobody_listens),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
