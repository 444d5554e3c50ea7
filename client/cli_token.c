/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `cairn token`: a random token, and the line that makes a server know it.  The line has the
 * token's hash only; the token itself is printed, or written to a file, once and nowhere else.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "cleanup.h"
#include "cli.h"
#include "digest.h"
#include "error.h"
#include "grant.h"

#define RANDOM_BYTES 32       /* nobody guesses that many: so a plain hash of it may be known */
#define PREFIX       "cairn_" /* so that it is told from other secrets, in logs and by scanners */
#define TOKEN_MAX    (sizeof(PREFIX) + 2 * RANDOM_BYTES)
#define NAME_MAX_LEN 64 /* what the server takes */

static int check_name(const char *name, struct cairn_error *err)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t len = strlen(name);

    if (len > 0 && len <= NAME_MAX_LEN && strspn(name, allowed) == len)
        return CAIRN_OK;
    return error_set(err, CAIRN_E_USAGE,
                     "token name \"%.100s\": expected at most %d letters, digits, . _ -", name,
                     NAME_MAX_LEN);
}

static int check_grants(char **grants, int nr, struct cairn_error *err)
{
    struct grant grant;
    int ret = CAIRN_OK;

    for (int i = 0; i < nr && ret == CAIRN_OK; i++)
        ret = grant_parse(grants[i], &grant, err);
    return ret;
}

static int make_token(char token[TOKEN_MAX], struct cairn_error *err)
{
    struct digest random; /* for its way of writing bytes */

    static_assert(sizeof(random.sha256) == RANDOM_BYTES, "as many as a digest has");
    if (getrandom(random.sha256, RANDOM_BYTES, 0) != RANDOM_BYTES)
        return error_set_errno(err, errno, "cannot get random bytes");
    memcpy(token, PREFIX, sizeof(PREFIX));
    digest_format_hex(&random, token + sizeof(PREFIX) - 1);
    return CAIRN_OK;
}

/* For its owner's eyes, and never over something that is there. */
static int write_token(const char *path, const char *token, struct cairn_error *err)
{
    CLEANUP_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    if (fd < 0)
        return error_set_errno(err, errno, "cannot make %s", path);
    if (dprintf(fd, "%s\n", token) < 0 || fsync(fd) != 0) {
        int failure = errno;

        unlink(path);
        return error_set_errno(err, failure, "cannot write %s", path);
    }
    return CAIRN_OK;
}

static void print_line(const char *name, const char *token, char **grants, int nr)
{
    char text[DIGEST_STR_MAX];
    struct digest hash;

    digest_of(token, strlen(token), &hash);
    printf("%s %s", name, digest_format(&hash, text));
    for (int i = 0; i < nr; i++)
        printf(" %s", grants[i]);
    putchar('\n');
}

static int run(const struct cli_common *common, const char *out, struct cairn_error *err)
{
    const char *name = common->operands[0];
    char **grants = common->operands + 1;
    int nr = common->nr_operands - 1;
    char token[TOKEN_MAX];
    int ret = check_name(name, err);

    if (ret == CAIRN_OK)
        ret = check_grants(grants, nr, err);
    if (ret == CAIRN_OK)
        ret = make_token(token, err);
    if (ret == CAIRN_OK && out)
        ret = write_token(out, token, err);
    if (ret != CAIRN_OK)
        return ret;
    if (!out)
        printf("%s\n", token);
    print_line(name, token, grants, nr);
    explicit_bzero(token, sizeof(token));
    return fflush(stdout) == 0 ? CAIRN_OK : error_set_errno(err, errno, "cannot print the token");
}

int cli_token(int argc, char **argv)
{
    const char *out = NULL;
    const struct cli_option options[] = {
        {"out", "FILE", &out, NULL, "write the token there, and print its line only"},
        {0},
    };
    const struct cli_spec spec = {
        .name = "token",
        .min_operands = 2,
        .max_operands = 65,
        .options = options,
        .local = true,
        .help =
            "Prints a new token, which is kept nowhere, and the line to add to the file that\n"
            "`cairnd --token-file` names (it is read again on SIGHUP).  A GRANT is actions with\n"
            "commas (pull, push, delete, admin), and a pattern of repositories behind a colon:\n"
            "`pull,push:team/*`.  `cairn push` needs pull and push.",
    };
    struct cli_common common;
    struct cairn_error err;
    int ret;

    if (!cli_parse(&spec, argc, argv, &common, &ret))
        return ret;
    return run(&common, out, &err) == CAIRN_OK ? 0 : cli_fail(&err);
}
