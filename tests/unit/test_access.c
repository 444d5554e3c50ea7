/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts of access control that need no server: the token file, credentials, and the table of
 * routes, which must take paths apart as the handlers do.  What a server makes of them is
 * tests/system/test_access.py's subject.
 */
#include "test.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access.h"
#include "credentials.h"
#include "http_internal.h"
#include "manifest.h"
#include "registry_internal.h"
#include "scratch.h"
#include "tokens.h"

static struct cairn_error err;

/* -- The token file ----------------------------------------------------------------------- */

/* A line for a token whose text is secret. */
static const char *line_for(const char *name, const char *secret, const char *grants)
{
    static char line[1000];
    char text[DIGEST_STR_MAX];
    struct digest d;

    digest_of(secret, strlen(secret), &d);
    snprintf(line, sizeof(line), "%s %s %s\n", name, digest_format(&d, text), grants);
    return line;
}

static int parse(const char *text, struct tokens **ret_tokens)
{
    return tokens_parse(text, strlen(text), "tokens", ret_tokens, &err);
}

static void test_tokens_are_found_by_their_text(void **state)
{
    struct tokens *tokens;
    char text[3000] = "# who\n\n  \t\r\n";

    (void)state;
    strcat(text, line_for("ci", "one", "pull,push:team/*"));
    strcat(text, line_for("ci", "two", "pull"));
    strcat(text, line_for("ops", "three", "admin\tdelete:old/*\r"));
    assert_int_equal(parse(text, &tokens), CAIRN_OK);
    assert_int_equal(tokens_count(tokens), 3);
    assert_ptr_equal(tokens_find(tokens, "one", 3), tokens_at(tokens, 0));
    assert_ptr_equal(tokens_find(tokens, "two", 3), tokens_at(tokens, 1));
    assert_ptr_equal(tokens_find(tokens, "three", 5), tokens_at(tokens, 2));
    assert_null(tokens_find(tokens, "one ", 4));
    assert_null(tokens_find(tokens, "on", 2));
    assert_null(tokens_find(tokens, "", 0));
    assert_string_equal(tokens_at(tokens, 2)->name, "ops");
    assert_int_equal(tokens_at(tokens, 2)->nr_grants, 2);
    tokens_unref(tokens);
}

/* The hash is no token: who reads the file cannot use what stands there. */
static void test_a_hash_is_not_accepted_as_a_token(void **state)
{
    const char *line = line_for("ci", "one", "pull");
    struct tokens *tokens;

    (void)state;
    assert_int_equal(parse(line, &tokens), CAIRN_OK);
    assert_null(tokens_find(tokens, line + 3, DIGEST_STR_MAX - 1));
    assert_null(tokens_find(tokens, line + 3 + 7, DIGEST_HEX_LEN));
    tokens_unref(tokens);
}

static void test_no_tokens_is_a_list(void **state)
{
    struct tokens *tokens;

    (void)state;
    assert_int_equal(parse("", &tokens), CAIRN_OK);
    assert_int_equal(tokens_count(tokens), 0);
    assert_null(tokens_find(tokens, "", 0));
    tokens_unref(tokens);
}

static void test_grants_add_up(void **state)
{
    struct tokens *tokens;
    const struct token *token;

    (void)state;
    assert_int_equal(parse(line_for("ci", "x", "pull push:team/* delete:team/tmp"), &tokens),
                     CAIRN_OK);
    token = tokens_at(tokens, 0);
    assert_true(token_allows(token, GRANT_PULL, "other/vm"));
    assert_true(token_allows(token, GRANT_PUSH, "team/vm"));
    assert_false(token_allows(token, GRANT_PUSH, "other/vm"));
    assert_true(token_allows(token, GRANT_DELETE, "team/tmp"));
    assert_false(token_allows(token, GRANT_DELETE, "team/vm"));
    assert_false(token_allows(token, GRANT_ADMIN, NULL));
    tokens_unref(tokens);
}

#define HASH "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"

static void test_hostile_lines_are_refused_with_their_number(void **state)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"a", "tokens:1: token a: expected sha256: and 64 lower-case hex digits behind the name"},
        {"# x\n\na " HASH, "tokens:3: token a: no grant, expected one such as pull"},
        {"a sha256:12 pull",
         "tokens:1: token a: expected sha256: and 64 lower-case hex digits behind the name"},
        {"a " HASH "0 pull",
         "tokens:1: token a: expected sha256: and 64 lower-case hex digits behind the name"},
        {"a md5:1 pull",
         "tokens:1: token a: expected sha256: and 64 lower-case hex digits behind the name"},
        {"a " HASH " all",
         "tokens:1: token a: unknown action \"all\", expected pull, push, delete or admin"},
        {"a " HASH " pull pul",
         "tokens:1: token a: unknown action \"pul\", expected pull, push, delete or admin"},
        {"a " HASH " pull # a comment",
         "tokens:1: token a: unknown action \"#\", expected pull, push, delete or admin"},
        {"a/b " HASH " pull",
         "tokens:1: \"a/b\" is not a token's name: expected at most 64 letters, digits, . _ -"},
        {"\x1b[2J " HASH " pull", "tokens:1: \"\\x1b[2J\" is not a token's name: expected at most "
                                  "64 letters, digits, . _ -"},
        {"a " HASH " pull\nb " HASH " push", "tokens:2: token b is the same as token a"},
    };
    struct tokens *tokens;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(parse(cases[i].text, &tokens), CAIRN_E_USAGE);
        assert_string_equal(err.message, cases[i].message);
    }
}

/* Somebody may put the token itself where its hash belongs. */
static void test_a_token_in_the_wrong_place_is_not_repeated(void **state)
{
    struct tokens *tokens;

    (void)state;
    assert_int_equal(parse("a cairn_TOPSECRET pull", &tokens), CAIRN_E_USAGE);
    assert_null(strstr(err.message, "TOPSECRET"));
}

static void test_bounds_of_the_file(void **state)
{
    struct tokens *tokens;
    char name[200], text[4000];

    (void)state;
    memset(name, 'n', sizeof(name));
    name[64] = 0;
    snprintf(text, sizeof(text), "%s " HASH " pull", name);
    assert_int_equal(parse(text, &tokens), CAIRN_OK);
    tokens_unref(tokens);
    name[64] = 'n';
    name[65] = 0;
    snprintf(text, sizeof(text), "%s " HASH " pull", name);
    assert_int_equal(parse(text, &tokens), CAIRN_E_USAGE);
    snprintf(text, sizeof(text), "a " HASH);
    for (int i = 0; i < 65; i++)
        strcat(text, " pull");
    assert_int_equal(parse(text, &tokens), CAIRN_E_USAGE);
    assert_non_null(strstr(err.message, "more than 64 grants"));
    assert_int_equal(tokens_parse("a\0b", 3, "tokens", &tokens, &err), CAIRN_E_USAGE);
    assert_non_null(strstr(err.message, "zero byte"));
}

static void write_file(const char *path, const char *text, mode_t mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    assert_int_equal(fchmod(fd, mode), 0);
    close(fd);
}

static void test_who_may_touch_the_file_matters(void **state)
{
    char dir[200], path[220];
    struct tokens *tokens;
    bool exposed;

    (void)state;
    snprintf(dir, sizeof(dir), "%s/cairn-access-XXXXXX", scratch_base());
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/tokens", dir);
    write_file(path, line_for("a", "b", "pull"), 0640);
    assert_int_equal(tokens_load(path, &tokens, &exposed, &err), CAIRN_OK);
    assert_false(exposed);
    tokens_unref(tokens);
    write_file(path, line_for("a", "b", "pull"), 0644);
    assert_int_equal(tokens_load(path, &tokens, &exposed, &err), CAIRN_OK);
    assert_true(exposed);
    tokens_unref(tokens);
    write_file(path, line_for("a", "b", "pull"), 0660);
    assert_int_equal(tokens_load(path, &tokens, &exposed, &err), CAIRN_E_USAGE);
    assert_non_null(strstr(err.message, "others than its owner may write to it (mode 0660)"));
    assert_int_equal(tokens_load(dir, &tokens, &exposed, &err), CAIRN_E_USAGE);
    assert_non_null(strstr(err.message, "not a regular file"));
    unlink(path);
    assert_int_equal(tokens_load(path, &tokens, &exposed, &err), CAIRN_E_NOT_FOUND);
    rmdir(dir);
}

/* -- Credentials -------------------------------------------------------------------------- */

static void test_credentials(void **state)
{
    static const struct {
        const char *header;
        enum credentials kind;
        const char *token;
    } cases[] = {
        {NULL, CREDENTIALS_NONE, NULL},
        {"Bearer abc", CREDENTIALS_TOKEN, "abc"},
        {"bearer abc", CREDENTIALS_TOKEN, "abc"},
        {"BEARER  abc", CREDENTIALS_TOKEN, "abc"},
        {"Basic dXNlcjp0b2tlbg==", CREDENTIALS_TOKEN, "token"},
        {"basic Ong=", CREDENTIALS_TOKEN, "x"},
        {"Basic dTphOmI=", CREDENTIALS_TOKEN, "a:b"},
        {"Basic Og==", CREDENTIALS_NONE, NULL},
        {"Basic dXNlcjo=", CREDENTIALS_NONE, NULL},
        {"Basic dXNlcg==", CREDENTIALS_MALFORMED, NULL}, /* no colon */
        {"Basic dXNlcjp0b2tlbg", CREDENTIALS_MALFORMED, NULL},
        {"Basic dXNlcjp0b2tlbg=", CREDENTIALS_MALFORMED, NULL},
        {"Basic dX=lcjp0b2tlbg==", CREDENTIALS_MALFORMED, NULL},
        {"Basic ====", CREDENTIALS_MALFORMED, NULL},
        {"Basic d$Nl", CREDENTIALS_MALFORMED, NULL},
        {"Basic ", CREDENTIALS_MALFORMED, NULL},
        {"Basic", CREDENTIALS_MALFORMED, NULL},
        {"Bearer", CREDENTIALS_MALFORMED, NULL},
        {"Bearer ", CREDENTIALS_MALFORMED, NULL},
        {"Bearer a b", CREDENTIALS_MALFORMED, NULL},
        {"Digest username=x", CREDENTIALS_MALFORMED, NULL},
        {"abc", CREDENTIALS_MALFORMED, NULL},
        {"", CREDENTIALS_MALFORMED, NULL},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char buf[CREDENTIALS_MAX];
        const char *token;
        size_t len;

        if (credentials_parse(cases[i].header, buf, &token, &len) != cases[i].kind)
            fail_msg("%s", cases[i].header);
        if (cases[i].kind == CREDENTIALS_TOKEN) {
            assert_int_equal(len, strlen(cases[i].token));
            assert_memory_equal(token, cases[i].token, len);
        }
    }
}

static void test_credentials_have_an_end(void **state)
{
    char header[4000] = "Bearer ", buf[CREDENTIALS_MAX];
    const char *token;
    size_t len;

    (void)state;
    memset(header + 7, 'a', CREDENTIALS_MAX - 1);
    assert_int_equal(credentials_parse(header, buf, &token, &len), CREDENTIALS_TOKEN);
    memset(header + 7, 'a', CREDENTIALS_MAX);
    assert_int_equal(credentials_parse(header, buf, &token, &len), CREDENTIALS_MALFORMED);
    memcpy(header, "Basic  ", 7);
    memset(header + 7, 'a', 3992);
    assert_int_equal(credentials_parse(header, buf, &token, &len), CREDENTIALS_MALFORMED);
}

/* -- Routes ------------------------------------------------------------------------------- */

static const struct access_route *find(enum http_method method, const char *path, char *repo)
{
    unsigned methods;

    return access_find_route(method, path, &methods, repo);
}

static void test_routes_name_action_and_repository(void **state)
{
    static const struct {
        enum http_method method;
        const char *path;
        enum access_need need;
        const char *repo;
    } cases[] = {
        {HTTP_GET, "/healthz", ACCESS_OPEN, ""},
        {HTTP_GET, "/metrics", ACCESS_METRICS, ""},
        {HTTP_GET, "/v2/", ACCESS_TOKEN, ""},
        {HTTP_GET, "/v2/_catalog", ACCESS_LISTS, ""},
        {HTTP_HEAD, "/v2/a/blobs/sha256:1", ACCESS_PULL, "a"},
        {HTTP_DELETE, "/v2/a/b/blobs/sha256:1", ACCESS_DELETE, "a/b"},
        {HTTP_POST, "/v2/a/b/blobs/uploads/", ACCESS_PUSH, "a/b"},
        {HTTP_PATCH, "/v2/a/b/blobs/uploads/1", ACCESS_PUSH, "a/b"},
        {HTTP_DELETE, "/v2/a/b/blobs/uploads/1", ACCESS_PUSH, "a/b"},
        {HTTP_PUT, "/v2/a/manifests/t", ACCESS_PUSH, "a"},
        {HTTP_DELETE, "/v2/a/manifests/t", ACCESS_DELETE, "a"},
        {HTTP_GET, "/v2/a/tags/list", ACCESS_PULL, "a"},
        {HTTP_GET, "/v2/blobs/blobs/blobs", ACCESS_PULL, "blobs"},
        {HTTP_GET, "/v1/disks/a/b:t", ACCESS_PULL, "a/b"},
        {HTTP_GET, "/v1/disks/a/b@" HASH "/data", ACCESS_PULL, "a/b"},
        {HTTP_GET, "/v1/disks/data/data:data/data", ACCESS_PULL, "data/data"},
        {HTTP_POST, "/v1/disks/a:t/leases", ACCESS_PULL, "a"},
        {HTTP_PUT, "/v1/disks/a:t/leases/1", ACCESS_PULL, "a"},
        {HTTP_GET, "/v1/repositories/a/b", ACCESS_PULL, "a/b"},
        {HTTP_POST, "/v1/gc", ACCESS_ADMIN, ""},
        {HTTP_GET, "/v1/jobs/1", ACCESS_ADMIN, ""},
    };
    char repo[ACCESS_REPO_MAX];

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct access_route *row = find(cases[i].method, cases[i].path, repo);

        if (!row || row->need != cases[i].need || strcmp(repo, cases[i].repo) != 0)
            fail_msg("%s: %d, repository %s", cases[i].path, row ? (int)row->need : -1, repo);
    }
}

static void test_what_has_no_row_has_none(void **state)
{
    static const char *const paths[] = {
        "",
        "/",
        "/v1",
        "/v3/",
        "/healthz/",
        "/healthzz",
        "/v2/a",
        "/v2/a/blobs",
        "/v2/a/blobs/",
        "/v2//blobs/x",
        "/v2/blobs/x",
        "/v2/A/blobs/x",
        "/v2/_catalog/",
        "/v2/a/manifests/",
        "/v2/a/tags/lists",
        "/v1/disks/",
        "/v1/disks/a",
        "/v1/disks/a/data",
        "/v1/disks/a:",
        "/v1/disks/a:t/nothing",
        "/v1/disks/a:t/data/",
        "/v1/disks/a:t/x/b:t/data",
        "/v1/jobs/",
        "/v1/jobs/1/2",
    };
    char repo[ACCESS_REPO_MAX];
    unsigned methods;

    (void)state;
    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++)
        if (access_find_route(HTTP_GET, paths[i], &methods, repo) || methods)
            fail_msg("%s has a row", paths[i]);
    assert_null(access_find_route(HTTP_PUT, "/v2/a/blobs/x", &methods, repo));
    assert_int_equal(methods, HTTP_GET | HTTP_HEAD | HTTP_DELETE);
}

/* The registry takes paths apart by itself: never may it find another repository than the one that
 * was admitted.  Paths are made of the words that mean something in them. */
static void test_the_registry_sees_the_same_repository(void **state)
{
    static const char *const words[] = {"blobs", "uploads", "manifests", "tags", "list",
                                        "a",     "b-c",     "referrers", "",     "_catalog"};
    unsigned seed = (unsigned)(getenv("CAIRN_TEST_SEED") ? atoi(getenv("CAIRN_TEST_SEED")) : 1);
    unsigned nr_matched = 0;

    (void)state;
    for (unsigned i = 0; i < 200000; i++) {
        char path[200] = "/v2", repo[ACCESS_REPO_MAX];
        struct registry_target target = {0};
        struct http_reply reply;
        unsigned methods;

        for (unsigned nr = 1 + (unsigned)rand_r(&seed) % 7; nr > 0; nr--) {
            strcat(path, "/");
            strcat(path, words[(unsigned)rand_r(&seed) % (sizeof(words) / sizeof(words[0]))]);
        }
        http_reply_init(&reply, "id");
        access_find_route(0, path, &methods, repo);
        for (unsigned method = HTTP_GET; method <= HTTP_DELETE; method *= 2) {
            if (!access_find_route(method, path, &methods, repo) || !repo[0])
                continue;
            nr_matched++;
            if (!registry_parse_target(path, &target, &reply) || strcmp(target.repo, repo) != 0)
                fail_msg("%s: admitted to %s, served from %s", path, repo, target.repo);
        }
        http_reply_release(&reply);
    }
    assert_true(nr_matched > 1000);
}

static void test_routes_without_a_row_are_found(void **state)
{
    const struct http_route good[] = {
        {.path = "/healthz", .methods = HTTP_GET | HTTP_HEAD},
        {.path = "/v2/", .methods = HTTP_GET | HTTP_PUT},
        {.path = "/v1/jobs/", .methods = HTTP_DELETE},
        {.path = "/v1/disks/", .methods = HTTP_ANY},
    };
    const struct http_route bad[] = {
        {.path = "/new", .methods = HTTP_GET},
        {.path = "/healthz", .methods = HTTP_POST},
        {.path = "/v1/", .methods = HTTP_PATCH},
        {.path = "/v3/", .methods = HTTP_ANY},
    };

    (void)state;
    assert_int_equal(access_check_routes(good, 4, &err), CAIRN_OK);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(access_check_routes(&bad[i], 1, &err), CAIRN_E_UNSUPPORTED);
        assert_non_null(strstr(err.message, bad[i].path));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokens_are_found_by_their_text),
        cmocka_unit_test(test_a_hash_is_not_accepted_as_a_token),
        cmocka_unit_test(test_no_tokens_is_a_list),
        cmocka_unit_test(test_grants_add_up),
        cmocka_unit_test(test_hostile_lines_are_refused_with_their_number),
        cmocka_unit_test(test_a_token_in_the_wrong_place_is_not_repeated),
        cmocka_unit_test(test_bounds_of_the_file),
        cmocka_unit_test(test_who_may_touch_the_file_matters),
        cmocka_unit_test(test_credentials),
        cmocka_unit_test(test_credentials_have_an_end),
        cmocka_unit_test(test_routes_name_action_and_repository),
        cmocka_unit_test(test_what_has_no_row_has_none),
        cmocka_unit_test(test_the_registry_sees_the_same_repository),
        cmocka_unit_test(test_routes_without_a_row_are_found),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
