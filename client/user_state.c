/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One small file per thing remembered, in the folders that the XDG base directory specification
 * gives to programs, for the user alone.  Whatever cannot be read, parsed, locked or written is as
 * if it were not there.
 */
#include "user_state.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#define TEXT_MAX  4096
#define SETTLED_S 3 /* more than any file system's clock granularity */

/* Make folder and what is above it. */
static bool make_folders(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        if (mkdir(path, 0700) != 0 && errno != EEXIST) {
            *slash = '/';
            return false;
        }
        *slash = '/';
    }
    return true;
}

/* $variable/cairn/<kind>/<name>, or $HOME/fallback/…; the folders are made. */
static bool state_path(const char *variable, const char *fallback, const char *kind,
                       const char *name, char path[TEXT_MAX])
{
    const char *base = getenv(variable);
    const char *home = getenv("HOME");
    int len;

    if (base && base[0] == '/')
        len = snprintf(path, TEXT_MAX, "%s/cairn/%s/%s", base, kind, name);
    else if (home && home[0] == '/')
        len = snprintf(path, TEXT_MAX, "%s/%s/cairn/%s/%s", home, fallback, kind, name);
    else
        return false;
    return len < TEXT_MAX && make_folders(path);
}

/* -- Uploads -------------------------------------------------------------------------------- */

void upload_state_open(struct upload_state *state, const char *server, const char *repo,
                       const struct digest *d)
{
    char text[TEXT_MAX], hex[DIGEST_STR_MAX];
    struct digest name;
    int len = snprintf(text, sizeof(text), "%s\n%s\n%s", server, repo, digest_format(d, hex));

    state->fd = -1;
    if (len < 0 || (size_t)len >= sizeof(text))
        return;
    digest_of(text, (size_t)len, &name);
    if (!state_path("XDG_STATE_HOME", ".local/state", "uploads", digest_format_hex(&name, hex),
                    state->path))
        return;
    state->fd = open(state->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (state->fd >= 0 && flock(state->fd, LOCK_EX | LOCK_NB) != 0)
        upload_state_close(state);
}

char *upload_state_load(const struct upload_state *state)
{
    char text[TEXT_MAX];
    ssize_t len = state->fd < 0 ? -1 : pread(state->fd, text, sizeof(text) - 1, 0);

    if (len < 2 || text[len - 1] != '\n' || memchr(text, 0, (size_t)len))
        return NULL;
    return strndup(text, (size_t)len - 1);
}

void upload_state_save(const struct upload_state *state, const char *location)
{
    char text[TEXT_MAX];
    int len = snprintf(text, sizeof(text), "%s\n", location);

    if (state->fd < 0 || len < 0 || (size_t)len >= sizeof(text))
        return;
    if (ftruncate(state->fd, 0) == 0 && pwrite(state->fd, text, (size_t)len, 0) != len)
        (void)!ftruncate(state->fd, 0);
}

void upload_state_remove(struct upload_state *state)
{
    if (state->fd >= 0)
        unlink(state->path);
    upload_state_close(state);
}

void upload_state_close(struct upload_state *state)
{
    if (state->fd >= 0)
        close(state->fd);
    state->fd = -1;
}

/* -- Digests -------------------------------------------------------------------------------- */

/* What must be the same for the digest to be. */
static void describe(const struct stat *st, char text[TEXT_MAX])
{
    snprintf(text, TEXT_MAX, "1 %ju %jd.%09ld %jd.%09ld ", (uintmax_t)st->st_size,
             (intmax_t)st->st_mtim.tv_sec, st->st_mtim.tv_nsec, (intmax_t)st->st_ctim.tv_sec,
             st->st_ctim.tv_nsec);
}

static bool digest_path(const struct stat *st, char path[TEXT_MAX])
{
    char name[64];

    if (!S_ISREG(st->st_mode))
        return false;
    snprintf(name, sizeof(name), "%jx-%jx", (uintmax_t)st->st_dev, (uintmax_t)st->st_ino);
    return state_path("XDG_CACHE_HOME", ".cache", "digests", name, path);
}

bool digest_cache_get(const struct stat *st, struct digest *ret_digest)
{
    char path[TEXT_MAX], expected[TEXT_MAX], text[TEXT_MAX];
    ssize_t len;
    size_t head;
    int fd;

    if (!digest_path(st, path))
        return false;
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return false;
    len = read(fd, text, sizeof(text));
    close(fd);
    describe(st, expected);
    head = strlen(expected);
    return len > (ssize_t)head && memcmp(text, expected, head) == 0 &&
           digest_parse(text + head, (size_t)len - head, ret_digest, NULL) == CAIRN_OK;
}

static bool settled(const struct timespec *changed, time_t now)
{
    return changed->tv_sec < now - SETTLED_S;
}

void digest_cache_put(const struct stat *st, const struct digest *d)
{
    char path[TEXT_MAX], temporary[TEXT_MAX + 8], text[TEXT_MAX + DIGEST_STR_MAX];
    time_t now = time(NULL);
    size_t len;
    int fd;

    if (!settled(&st->st_mtim, now) || !settled(&st->st_ctim, now) || !digest_path(st, path))
        return;
    describe(st, text);
    digest_format(d, text + strlen(text));
    len = strlen(text);
    snprintf(temporary, sizeof(temporary), "%s.XXXXXX", path);
    fd = mkostemp(temporary, O_CLOEXEC);
    if (fd < 0)
        return;
    if (write(fd, text, len) != (ssize_t)len || rename(temporary, path) != 0)
        unlink(temporary);
    close(fd);
}

void digest_cache_drop(const struct stat *st)
{
    char path[TEXT_MAX];

    if (digest_path(st, path))
        unlink(path);
}
