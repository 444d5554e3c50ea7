/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A full disk, under the registry.  A push (uploads in chunks and at once, a mount, a manifest, a
 * tag that moves) is made again and again; each time the next one of the calls that need room fails
 * with ENOSPC, alone or with all that follow it.  Every request must be answered with what it is
 * answered on a disk with room, or with 507 and an error that says so; then, with room again, the
 * same push must succeed, what was in the store before must be as it was, and of what failed
 * nothing must be left once its uploads were cancelled.
 */
#include "registry_fixture.h"

#include <dirent.h>
#include <errno.h>

#include "fs_calls.h"

#define TYPE_HEADER "Content-Type: " MANIFEST_MEDIA_TYPE
#define LAYER_LEN   50000

/* Which calls fail: number first of those that need room, and with all the later ones. */
struct full {
    unsigned first, met;
    bool all;
};

static int fails(void *ctx, enum fs_call call)
{
    struct full *full = ctx;
    unsigned number = full->met++;

    (void)call;
    return full->first && (number + 1 == full->first || (full->all && number + 1 > full->first))
               ? ENOSPC
               : 0;
}

/* -- A push ------------------------------------------------------------------------------- */

struct push {
    const struct fixture *f;
    bool with_room; /* nothing may fail */
    unsigned nr_full;
    char *json; /* the manifest */
    char *layer;
};

/* Was it done?  Else the disk is full, and the answer says so. */
static bool done(struct push *push, struct answer *a, long status)
{
    bool ok = a->status == status;

    if (!ok) {
        expect(a, push->with_room ? status : 507);
        expect_code(a, "NO_SPACE");
        push->nr_full++;
    }
    return ok;
}

static void cancel(const struct push *push, const char *location)
{
    struct answer a = send_request(push->f, "DELETE", location, NULL, NULL, 0);

    assert_true(a.status == 204 || a.status == 404); /* not found: its end had begun */
    release(&a);
}

static void put_end(struct push *push, const char *location, const char *bytes, size_t len,
                    const char *digest)
{
    char path[500];
    struct answer a;

    snprintf(path, sizeof(path), "%s?digest=%s", location, digest);
    a = send_request(push->f, "PUT", path, NULL, bytes, len);
    if (!done(push, &a, 201))
        cancel(push, location);
    release(&a);
}

static void push_in_chunks(struct push *push, const char *repo, const char *bytes, size_t len)
{
    char path[300], location[300], digest[DIGEST_STR_MAX];
    struct answer a;
    bool begun, sent = false;

    snprintf(path, sizeof(path), "/v2/%s/blobs/uploads/", repo);
    a = send_request(push->f, "POST", path, NULL, "", 0);
    begun = done(push, &a, 202);
    if (begun)
        assert_int_equal(sscanf(strstr(a.headers.data, "Location: "), "Location: %299s", location),
                         1);
    release(&a);
    if (!begun)
        return;
    a = patch(push->f, location, NULL, bytes, len / 2);
    sent = done(push, &a, 202);
    release(&a);
    if (sent)
        put_end(push, location, bytes + len / 2, len - len / 2, digest_text(bytes, len, digest));
    else
        cancel(push, location);
}

static void push_at_once(struct push *push, const char *repo, const char *bytes, size_t len)
{
    char path[400], digest[DIGEST_STR_MAX];
    struct answer a;

    snprintf(path, sizeof(path), "/v2/%s/blobs/uploads/?digest=%s", repo,
             digest_text(bytes, len, digest));
    a = send_request(push->f, "POST", path, NULL, bytes, len);
    done(push, &a, 201);
    release(&a);
}

static void mount(struct push *push, const char *from, const char *repo, const char *bytes,
                  size_t len)
{
    char path[400], location[300], digest[DIGEST_STR_MAX];
    struct answer a;

    snprintf(path, sizeof(path), "/v2/%s/blobs/uploads/?mount=%s&from=%s", repo,
             digest_text(bytes, len, digest), from);
    a = send_request(push->f, "POST", path, NULL, "", 0);
    if (a.status == 202 && !push->with_room) { /* it cannot be had from there: an upload instead */
        assert_int_equal(sscanf(strstr(a.headers.data, "Location: "), "Location: %299s", location),
                         1);
        cancel(push, location);
        push->nr_full++;
    } else {
        done(push, &a, 201);
    }
    release(&a);
}

/* The manifest needs its blobs: without them it is refused for their sake. */
static void put_manifest(struct push *push, const char *repo, const char *ref)
{
    char path[400];
    struct answer a;

    snprintf(path, sizeof(path), "/v2/%s/manifests/%s", repo, ref);
    a = send_request(push->f, "PUT", path, TYPE_HEADER, push->json, strlen(push->json));
    if (push->nr_full == 0 || a.status != 404)
        done(push, &a, 201);
    release(&a);
}

static void push_all(struct push *push)
{
    push_in_chunks(push, "full/a", push->layer, LAYER_LEN);
    push_at_once(push, "full/a", "{}", 2);
    put_manifest(push, "full/a", "v1");
    mount(push, "full/a", "full/b", push->layer, LAYER_LEN);
    mount(push, "full/a", "full/b", "{}", 2);
    put_manifest(push, "full/b", "moving");
}

static void make_manifest(struct push *push)
{
    struct manifest_layer layer = {.size = LAYER_LEN, .format = LAYER_QCOW2};
    struct manifest *m;
    size_t len;

    push->layer = make_bytes(LAYER_LEN);
    digest_of(push->layer, LAYER_LEN, &layer.digest);
    assert_int_equal(manifest_new(&layer, 1, &m, &err), CAIRN_OK);
    assert_int_equal(manifest_encode(m, &push->json, &len, &err), CAIRN_OK);
    manifest_free(m);
}

/* -- What is there ------------------------------------------------------------------------- */

static void assert_empty(const struct fixture *f, const char *name)
{
    char path[300];
    const struct dirent *entry;
    DIR *dir;

    snprintf(path, sizeof(path), "%s/%s", f->dir, name);
    dir = opendir(path);
    assert_non_null(dir);
    while ((entry = readdir(dir))) {
        if (entry->d_name[0] != '.')
            fail_msg("%s/%s is left", name, entry->d_name);
    }
    closedir(dir);
}

static void expect_pushed(const struct push *push)
{
    static const char *const paths[] = {"/v2/full/a/manifests/v1", "/v2/full/b/manifests/moving"};

    expect_blob(push->f, "full/a", push->layer, LAYER_LEN);
    expect_blob(push->f, "full/b", push->layer, LAYER_LEN);
    for (size_t i = 0; i < 2; i++) {
        struct answer a = send_request(push->f, "GET", paths[i], NULL, NULL, 0);

        expect(&a, 200);
        assert_string_equal(a.body.data, push->json);
        release(&a);
    }
}

/* Another repository, and nothing that shows of what failed. */
static void expect_untouched(const struct push *push)
{
    expect_blob(push->f, "kept", "kept", 4);
}

/* -- The sweep ----------------------------------------------------------------------------- */

static void forget_pushed(const struct fixture *f)
{
    char command[700];

    snprintf(command, sizeof(command), "rm -rf '%s'/repos/full '%s'/blobs/sha256/*", f->dir,
             f->dir);
    assert_int_equal(system(command), 0);
}

/* True when the disk was full at some time. */
static bool push_on_full_disk(struct fixture *f, struct push *push, unsigned first, bool all)
{
    struct full full = {.first = first, .all = all};

    stop(f); /* what the registry remembers of blobs goes, too */
    forget_pushed(f);
    start(f);
    push_blob(f, "kept", "kept", 4);
    push->with_room = false;
    push->nr_full = 0;
    fs_hook(&(struct fs_hooks){.fails = fails, .ctx = &full});
    push_all(push);
    fs_hook(NULL);
    expect_untouched(push);
    assert_empty(f, "uploads");
    assert_empty(f, "tmp");
    push->with_room = true;
    push_all(push);
    expect_pushed(push);
    expect_untouched(push);
    return full.met >= first;
}

static void sweep(struct fixture *f, bool all)
{
    struct push push = {.f = f};
    unsigned first = 1, nr_full = 0;

    make_manifest(&push);
    while (push_on_full_disk(f, &push, first, all)) {
        nr_full += push.nr_full > 0;
        first++;
    }
    print_message("%u calls that need room; the disk was full in %u pushes\n", first - 1, nr_full);
    assert_true(first > 20);
    assert_true(nr_full > 10);
    free(push.json);
    free(push.layer);
}

static void test_full_at_one_call(void **state)
{
    sweep(*state, false);
}

static void test_full_from_one_call_on(void **state)
{
    sweep(*state, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_full_at_one_call, setup, teardown),
        cmocka_unit_test_setup_teardown(test_full_from_one_call_on, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
