/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What stands in the store and none of us has put there, or a wrong clock, or a failing disk: it is
 * in nobody's way, neither the collector's nor a client's.  And leases where time has run out.
 */
#include "registry_fixture.h"

#include <sys/stat.h>
#include <utime.h>

#include "claims.h"
#include "clock.h"
#include "collect.h"
#include "condemned.h"
#include "leases.h"
#include "registry_internal.h"
#include "step.h"
#include "store_backend.h"

#define TYPE_HEADER "Content-Type: " MANIFEST_MEDIA_TYPE
#define ID          "0123456789abcdef0123456789abcde"
#define LIVE        "repos/a/_tags/live"

static const char manifest[] =
    "{\"schemaVersion\":2,\"mediaType\":\"" MANIFEST_MEDIA_TYPE
    "\",\"artifactType\":\"application/x-test\",\"config\":{\"mediaType\":"
    "\"application/vnd.oci.empty.v1+json\",\"digest\":\"" MANIFEST_EMPTY_DIGEST
    "\",\"size\":2},\"layers\":[]}";

static const struct collect_options everything = {
    .claim_age_s = 3600, .upload_age_s = 3600, .max_memory = 1 << 20};

static long request(const struct fixture *f, const char *method, const char *path,
                    const char *header, const char *body)
{
    struct answer a = send_request(f, method, path, header, body, body ? strlen(body) : 0);
    long status = a.status;

    release(&a);
    return status;
}

static long send_config(const struct fixture *f)
{
    return request(f, "POST", "/v2/a/blobs/uploads/?digest=" MANIFEST_EMPTY_DIGEST, NULL, "{}");
}

static void publish(const struct fixture *f)
{
    assert_int_equal(send_config(f), 201);
    assert_int_equal(request(f, "PUT", "/v2/a/manifests/live", TYPE_HEADER, manifest), 201);
}

static struct ref manifest_ref(void)
{
    struct ref ref = {.repo = "a"};

    digest_of(manifest, strlen(manifest), &ref.digest);
    return ref;
}

static char *manifest_key(char key[REGISTRY_KEY_MAX])
{
    const struct ref ref = manifest_ref();

    return registry_repo_key("a", "_manifests", &ref.digest, key);
}

static bool store_has(const struct fixture *f, const char *key)
{
    uint64_t size;

    return store_head(f->store, key, &size, &err) == CAIRN_OK;
}

static void plant(const struct fixture *f, const char *key, const void *bytes, size_t len)
{
    assert_int_equal(store_put(f->store, key, bytes, len, STORE_PUT_REPLACE, &err), CAIRN_OK);
}

static void plant_much(const struct fixture *f, const char *key, size_t len)
{
    char *bytes = malloc(len);

    assert_non_null(bytes);
    memset(bytes, 'x', len);
    plant(f, key, bytes, len);
    free(bytes);
}

static char *marker_of(const char *key, char marker[100])
{
    char hex[DIGEST_HEX_LEN + 1];
    struct digest d;

    digest_of(key, strlen(key), &d);
    snprintf(marker, 100, "condemned/%.2s/%s", digest_format_hex(&d, hex), hex);
    return marker;
}

static struct collect_result collect(const struct fixture *f)
{
    struct collect_result result;
    int r = collect_run(f->store, &everything, NULL, &result, &err);

    if (r)
        print_error("%s\n", err.message);
    assert_int_equal(r, CAIRN_OK);
    return result;
}

static void check_live(const struct fixture *f)
{
    assert_int_equal(request(f, "GET", "/v2/a/manifests/live", NULL, NULL), 200);
    assert_int_equal(request(f, "HEAD", "/v2/a/blobs/" MANIFEST_EMPTY_DIGEST, NULL, NULL), 200);
}

/* -- Markers --- */

static void test_what_is_no_marker_condemns_nothing(void **state)
{
    static const char cut[] = "condemned gc-1", nul[] = "condemned gc-1 k\0k";
    struct fixture *f = *state;
    char key[REGISTRY_KEY_MAX], marker[100];

    publish(f);
    marker_of(manifest_key(key), marker);
    for (int i = 0; i < 4; i++) {
        if (i == 0)
            plant(f, marker, cut, strlen(cut));
        else if (i == 1)
            plant(f, marker, nul, sizeof(nul) - 1);
        else if (i == 2)
            plant(f, marker, "", 0);
        else
            plant_much(f, marker, 100000);
        publish(f);
        collect(f);
        assert_false(store_has(f, marker));
        check_live(f);
    }
}

/* One that speaks of another object than that after which it is named deletes nothing. */
static void test_a_marker_in_anothers_place_condemns_nothing(void **state)
{
    static const char text[] = "deleting gc-1 " LIVE;
    struct fixture *f = *state;
    char key[REGISTRY_KEY_MAX], marker[100];

    publish(f);
    plant(f, marker_of(manifest_key(key), marker), text, strlen(text));
    collect(f);
    assert_false(store_has(f, marker));
    check_live(f);
}

static void test_other_names_among_markers_stop_no_run(void **state)
{
    struct fixture *f = *state;

    publish(f);
    plant(f, "condemned/x/y", "x", 1);
    plant(f, "condemned/abc/def/ghi", "x", 1);
    plant(f, "condemned/z", "x", 1);
    collect(f);
    check_live(f);
}

/* -- Leases --- */

static void test_what_is_no_lease_goes(void **state)
{
    static const char nul[] = "{}\0{}";
    struct fixture *f = *state;
    char long_holder[1000];
    int len = snprintf(long_holder, sizeof(long_holder),
                       "{\"repository\":\"a\",\"manifest\":\"" MANIFEST_EMPTY_DIGEST
                       "\",\"ttl\":80000,\"renewed\":9000000000000000,\"holder\":\"%0*d\"}",
                       LEASE_HOLDER_MAX + 1, 0);

    publish(f);
    plant_much(f, "leases/" ID "0", 100000);
    plant(f, "leases/" ID "1", nul, sizeof(nul) - 1);
    plant(f, "leases/" ID "2", "", 0);
    plant(f, "leases/" ID "3", long_holder, (size_t)len);
    assert_int_equal(collect(f).expired_leases, 4);
    check_live(f);
    assert_int_equal(request(f, "DELETE", "/v2/a/manifests/live", NULL, NULL), 202);
}

static int keep_lease(void *arg, const struct lease *lease, struct cairn_error *e)
{
    (void)e;
    *(struct lease *)arg = *lease;
    return CAIRN_OK;
}

/* It begins anew, so that it ends, but not under the hands of whoever holds it. */
static void test_a_lease_of_the_future_ends(void **state)
{
    struct fixture *f = *state;
    char digest[DIGEST_STR_MAX], text[400];
    const struct ref ref = manifest_ref();
    struct lease lease = {.ttl_s = 0};
    uint64_t now_us;
    int len = snprintf(text, sizeof(text),
                       "{\"repository\":\"a\",\"manifest\":\"%s\",\"ttl\":1000,"
                       "\"renewed\":9000000000000000,\"holder\":\"test\"}",
                       digest_format(&ref.digest, digest));

    publish(f);
    plant(f, "leases/" ID "0", text, (size_t)len);
    assert_int_equal(request(f, "DELETE", "/v2/a/manifests/live", NULL, NULL), 202);
    assert_int_equal(collect(f).expired_leases, 0);
    assert_true(store_has(f, "leases/" ID "0"));
    assert_int_equal(leases_each(f->store, keep_lease, &lease, NULL, &err), CAIRN_OK);
    assert_int_equal(lease.ttl_s, 1000);
    assert_int_equal(store_now(f->store, &now_us, &err), CAIRN_OK);
    assert_true(lease.renewed_us <= now_us);
}

static struct lease take(const struct fixture *f, uint64_t ttl_s)
{
    const struct ref ref = manifest_ref();
    struct lease lease;

    assert_int_equal(lease_take(f->store, &ref, "test", ttl_s, &lease, &err), CAIRN_OK);
    return lease;
}

/* As if the store had been served for so long. */
static void serve_for(struct store *store, uint64_t seconds)
{
    atomic_store(&store->since_us, clock_now_us() - seconds * 1000000);
}

/* Nobody could renew it. */
static void test_a_lease_that_ended_while_there_was_no_service_holds(void **state)
{
    struct fixture *f = *state;
    char digest[DIGEST_STR_MAX], text[400], key[REGISTRY_KEY_MAX];
    const struct ref ref = manifest_ref();
    int len = snprintf(text, sizeof(text),
                       "{\"repository\":\"a\",\"manifest\":\"%s\",\"ttl\":1000,"
                       "\"renewed\":1,\"holder\":\"test\"}",
                       digest_format(&ref.digest, digest));

    publish(f);
    assert_int_equal(request(f, "DELETE", "/v2/a/manifests/live", NULL, NULL), 202);
    plant(f, "leases/" ID "0", text, (size_t)len);
    serve_for(f->store, 900);
    assert_int_equal(collect(f).expired_leases, 0);
    serve_for(f->store, 2000);
    atomic_fetch_sub(&f->store->ahead_us, 3600 * UINT64_C(1000000)); /* the clock jumps */
    assert_int_equal(collect(f).expired_leases, 0);
    assert_true(store_has(f, manifest_key(key)));
    serve_for(f->store, 2000);
    assert_int_equal(collect(f).expired_leases, 1);
    assert_false(store_has(f, key));
}

#ifdef CAIRN_FAULTS
static struct store *renewing_in;
static int renewed;

/* Between DELETE's look at the leases and its end. */
static void renew_at_step(enum step step)
{
    const struct ref ref = manifest_ref();
    struct lease lease;

    if (step == STEP_DELETE_UNCLAIMED)
        renewed = lease_renew(renewing_in, &ref, ID "0", 1000, &lease, NULL);
}

static void test_a_lease_that_a_delete_has_disregarded_is_not_renewed(void **state)
{
    struct fixture *f = *state;
    char path[200], text[DIGEST_STR_MAX], expired[400];
    const struct ref ref = manifest_ref();
    int len = snprintf(expired, sizeof(expired),
                       "{\"repository\":\"a\",\"manifest\":\"%s\",\"ttl\":1,\"renewed\":1,"
                       "\"holder\":\"test\"}",
                       digest_format(&ref.digest, text));

    publish(f);
    plant(f, "leases/" ID "0", expired, (size_t)len);
    serve_for(f->store, 10);
    renewing_in = f->store;
    snprintf(path, sizeof(path), "/v2/a/manifests/%s", text);
    step_set_hook(renew_at_step);
    assert_int_equal(request(f, "DELETE", path, NULL, NULL), 202);
    step_set_hook(NULL);
    assert_int_equal(renewed, CAIRN_E_NOT_FOUND);
    assert_int_equal(request(f, "HEAD", path, NULL, NULL), 404);
}
#endif

/* As if a run's list of leases had missed it. */
/* -- A store whose lists miss what is replaced meanwhile --- */

static const struct store_ops *inner;
static unsigned nr_to_miss;

static int list_with_gaps(struct store *store, const char *prefix, const char *after,
                          store_list_fn fn, void *arg, struct cairn_error *e)
{
    if (strcmp(prefix, "leases/") == 0 && nr_to_miss > 0) {
        nr_to_miss--;
        return CAIRN_OK;
    }
    return inner->list(store, prefix, after, fn, arg, e);
}

/* As it stands when it is condemned, and while the leases are listed once more. */
static void test_a_lease_that_one_list_misses_is_seen(void **state)
{
    struct fixture *f = *state;
    struct store_ops ops = *f->store->ops;

    publish(f);
    take(f, 1000);
    assert_int_equal(request(f, "DELETE", "/v2/a/manifests/live", NULL, NULL), 202);
    inner = f->store->ops;
    ops.list = list_with_gaps;
    f->store->ops = &ops;
    nr_to_miss = 3; /* the two lists of those that condemn, and one of who deletes */
    assert_int_equal(collect(f).kinds[COLLECT_MANIFESTS].revived, 1);
    assert_int_equal(nr_to_miss, 0);
    f->store->ops = inner;
}

static void test_renewing_a_lease_revives_its_manifest(void **state)
{
    struct fixture *f = *state;
    char key[REGISTRY_KEY_MAX];
    const struct ref ref = manifest_ref();
    struct lease lease;
    bool marked, gone;

    publish(f);
    lease = take(f, 1000);
    manifest_key(key);
    assert_int_equal(condemned_mark(f->store, "gc-1", key, NULL, &marked, &err), CAIRN_OK);
    assert_int_equal(lease_renew(f->store, &ref, lease.id, 0, &lease, &err), CAIRN_OK);
    assert_int_equal(condemned_delete(f->store, "gc-1", key, NULL, &gone, &err), CAIRN_OK);
    assert_false(gone);
    check_live(f);
}

static void test_a_lease_on_nothing_is_not_renewed(void **state)
{
    struct fixture *f = *state;
    char key[REGISTRY_KEY_MAX];
    const struct ref ref = manifest_ref();
    struct lease lease;

    publish(f);
    lease = take(f, 1000);
    assert_int_equal(store_delete(f->store, manifest_key(key), &err), CAIRN_OK);
    assert_int_equal(lease_renew(f->store, &ref, lease.id, 0, &lease, &err), CAIRN_E_NOT_FOUND);
    snprintf(key, sizeof(key), "leases/%s", lease.id);
    assert_false(store_has(f, key));
}

/* -- Claims, tags, manifests, links, uploads --- */

static void set_time(const struct fixture *f, const char *key, time_t t)
{
    const struct utimbuf times = {.actime = t, .modtime = t};
    char path[400];

    snprintf(path, sizeof(path), "%s/%s", f->dir, key);
    assert_int_equal(utime(path, &times), 0);
}

static void test_a_claim_of_the_future_is_broken(void **state)
{
    struct fixture *f = *state;
    struct claim claim;
    bool broken;

    publish(f);
    assert_int_equal(claim_take(f->store, "a", "nonsense", 8, &claim, &err), CAIRN_OK);
    set_time(f, claim.key, time(NULL) + 86400);
    assert_int_equal(collect(f).broken_claims, 1);
    assert_int_equal(claim_drop(f->store, &claim, &broken, &err), CAIRN_OK);
    assert_true(broken);
}

/* PUT claims before it looks. */
static void test_a_claim_on_nonsense_stops_no_run(void **state)
{
    struct fixture *f = *state;
    struct claim claim;

    publish(f);
    assert_int_equal(request(f, "POST",
                             "/v2/a/blobs/uploads/?digest=sha256:"
                             "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
                             NULL, "abc"),
                     201);
    assert_int_equal(claim_take(f->store, "a", "{}", 2, &claim, &err), CAIRN_OK);
    assert_int_equal(collect(f).kinds[COLLECT_BLOBS].deleted, 1);
    check_live(f);
}

static void test_what_is_dated_far_ahead_is_not_young(void **state)
{
    struct collect_options options = everything;
    struct fixture *f = *state;
    struct collect_result result;
    char key[REGISTRY_KEY_MAX];

    publish(f);
    assert_int_equal(request(f, "DELETE", "/v2/a/manifests/live", NULL, NULL), 202);
    set_time(f, manifest_key(key), time(NULL) + 86400);
    options.grace_s = 3600;
    assert_int_equal(collect_run(f->store, &options, NULL, &result, &err), CAIRN_OK);
    assert_int_equal(result.kinds[COLLECT_MANIFESTS].deleted, 1);
}

static void test_a_manifest_that_cannot_be_read_is_healed_or_deleted(void **state)
{
    struct fixture *f = *state;
    char key[REGISTRY_KEY_MAX], path[200], text[DIGEST_STR_MAX];
    const struct ref ref = manifest_ref();

    publish(f);
    plant_much(f, manifest_key(key), (size_t)MANIFEST_BYTES_MAX + 1);
    publish(f);
    check_live(f);
    plant_much(f, key, (size_t)MANIFEST_BYTES_MAX + 1);
    snprintf(path, sizeof(path), "/v2/a/manifests/%s", digest_format(&ref.digest, text));
    assert_int_equal(request(f, "DELETE", path, NULL, NULL), 202);
    assert_false(store_has(f, key));
    assert_false(store_has(f, LIVE));
}

static void test_what_is_too_large_is_not_judged(void **state)
{
    static const char digest[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    struct fixture *f = *state;
    struct collect_result result;
    char key[200];

    publish(f);
    plant_much(f, "repos/b/_tags/t", 100000);
    snprintf(key, sizeof(key), "repos/c/_manifests/%s", digest);
    plant_much(f, key, (size_t)MANIFEST_BYTES_MAX + 1);
    plant(f, "repos/c/_tags/t",
          "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f2"
          "0015ad",
          71);
    snprintf(key, sizeof(key), "repos/c/_blobs/%s", digest);
    plant(f, key, "1", 1);
    result = collect(f);
    assert_int_equal(result.kept_repositories, 2);
    assert_true(store_has(f, key));
    check_live(f);
}

/* What is in a link's place and is none keeps nobody waiting. */
static void test_a_folder_in_place_of_a_link_is_told(void **state)
{
    struct fixture *f = *state;
    char path[400];

    publish(f);
    snprintf(path, sizeof(path), "%s/repos/a/_blobs/%s", f->dir,
             strchr(MANIFEST_EMPTY_DIGEST, ':') + 1);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(send_config(f), 503);
}

static int count_upload(void *arg, const struct store_upload *upload, struct cairn_error *e)
{
    (void)upload;
    (void)e;
    ++*(unsigned *)arg;
    return CAIRN_OK;
}

static void test_an_upload_of_nobody_is_in_nobodys_way(void **state)
{
    struct fixture *f = *state;
    char id[STORE_UPLOAD_ID_MAX], path[400], owner[300];
    unsigned nr = 0;
    FILE *file;

    assert_int_equal(store_upload_new(f->store, "a", id, &err), CAIRN_OK);
    snprintf(path, sizeof(path), "%s/uploads/%s/owner", f->dir, id);
    memset(owner, 'x', sizeof(owner));
    file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(owner, sizeof(owner), 1, file), 1);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(store_list_uploads(f->store, count_upload, &nr, &err), CAIRN_OK);
    assert_int_equal(nr, 0);
    collect(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        REGISTRY_TEST(test_what_is_no_marker_condemns_nothing),
        REGISTRY_TEST(test_a_marker_in_anothers_place_condemns_nothing),
        REGISTRY_TEST(test_other_names_among_markers_stop_no_run),
        REGISTRY_TEST(test_what_is_no_lease_goes),
        REGISTRY_TEST(test_a_lease_that_ended_while_there_was_no_service_holds),
#ifdef CAIRN_FAULTS
        REGISTRY_TEST(test_a_lease_that_a_delete_has_disregarded_is_not_renewed),
#endif
        REGISTRY_TEST(test_a_lease_that_one_list_misses_is_seen),
        REGISTRY_TEST(test_renewing_a_lease_revives_its_manifest),
        REGISTRY_TEST(test_a_lease_on_nothing_is_not_renewed),
        REGISTRY_TEST(test_a_lease_of_the_future_ends),
        REGISTRY_TEST(test_a_claim_of_the_future_is_broken),
        REGISTRY_TEST(test_a_claim_on_nonsense_stops_no_run),
        REGISTRY_TEST(test_what_is_dated_far_ahead_is_not_young),
        REGISTRY_TEST(test_a_manifest_that_cannot_be_read_is_healed_or_deleted),
        REGISTRY_TEST(test_what_is_too_large_is_not_judged),
        REGISTRY_TEST(test_a_folder_in_place_of_a_link_is_told),
        REGISTRY_TEST(test_an_upload_of_nobody_is_in_nobodys_way),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
