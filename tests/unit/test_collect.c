/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The collector beside publishers.
 *
 * The first part has one test for each thing that the collector keeps or takes.  The second runs a
 * publisher and the collector in two threads, whose steps (step.h) are taken in an order that the
 * test chooses: one goes to a step of its own, then the other does, then the first goes on to its
 * end, then the other.  Whatever the order, what was promised must be there, byte for byte, and
 * when nobody refers to anything any more the store must be empty.  The third ends a process at
 * each step.
 *
 * Without CAIRN_TEST_SWEEP=full only every few steps have their turn, which ones is left to
 * CAIRN_TEST_SEED.  CAIRN_TEST_SECONDS has random orders tried for that long.
 */
#include "registry_fixture.h"

#include <dirent.h>
#include <ftw.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <utime.h>

#include "clock.h"
#include "collect.h"
#include "leases.h"
#include "step.h"
#include "store_backend.h"

#define TYPE_HEADER "Content-Type: " MANIFEST_MEDIA_TYPE
#define NR_LAYERS   2
#define TRIES       20
#define NEVER       UINT_MAX

extern char **environ;

static const char *self; /* this program */

/* -- A disk and its publishers --- */

struct disk {
    char layers[NR_LAYERS][32];
    char *json;
    size_t len;
    char digest[DIGEST_STR_MAX];
};

static void disk_init(struct disk *d, const char *name)
{
    struct manifest_layer layers[NR_LAYERS];
    struct manifest *m;

    for (int i = 0; i < NR_LAYERS; i++) {
        int len = snprintf(d->layers[i], sizeof(d->layers[i]), "layer %d of %s", i, name);

        layers[i].size = (uint64_t)len;
        layers[i].format = LAYER_QCOW2;
        digest_of(d->layers[i], (size_t)len, &layers[i].digest);
    }
    assert_int_equal(manifest_new(layers, NR_LAYERS, &m, &err), CAIRN_OK);
    assert_int_equal(manifest_encode(m, &d->json, &d->len, &err), CAIRN_OK);
    manifest_free(m);
    digest_text(d->json, d->len, d->digest);
}

/* A client of its own thread. */
struct client {
    const struct fixture *f;
    CURL *curl;
};

static long request(const struct client *c, const char *method, const char *path,
                    const char *header, const void *body, size_t len, char **ret_body)
{
    struct answer a = send_with(c->curl, c->f, method, path, header, body, len);
    long status = a.status;

    if (ret_body)
        *ret_body = steal_ptr(a.body.data);
    release(&a);
    return status;
}

static long send_blob(const struct client *c, const char *repo, const char *bytes)
{
    char path[500], text[DIGEST_STR_MAX];

    snprintf(path, sizeof(path), "/v2/%s/blobs/uploads/?digest=%s", repo,
             digest_text(bytes, strlen(bytes), text));
    return request(c, "POST", path, NULL, bytes, strlen(bytes), NULL);
}

static bool has_blob(const struct client *c, const char *repo, const char *bytes)
{
    char path[500], text[DIGEST_STR_MAX];

    blob_path(repo, digest_text(bytes, strlen(bytes), text), path);
    return request(c, "HEAD", path, NULL, NULL, 0, NULL) == 200;
}

static bool mount_blob(const struct client *c, const char *repo, const char *from,
                       const char *bytes)
{
    char path[600], text[DIGEST_STR_MAX];

    snprintf(path, sizeof(path), "/v2/%s/blobs/uploads/?mount=%s&from=%s", repo,
             digest_text(bytes, strlen(bytes), text), from);
    return request(c, "POST", path, NULL, "", 0, NULL) == 201;
}

enum blob_source { SEND, LOOK, MOUNT, TRUST };

static bool provide(const struct client *c, const char *repo, const char *bytes,
                    enum blob_source source)
{
    if (source == TRUST || (source == LOOK && has_blob(c, repo, bytes)) ||
        (source == MOUNT && mount_blob(c, repo, "garbage", bytes)))
        return true;
    return send_blob(c, repo, bytes) == 201;
}

/* As libcairn does: what is said to be missing is sent again. */
static bool publish(const struct client *c, const struct disk *d, const char *repo, const char *tag,
                    enum blob_source source)
{
    char path[500];

    snprintf(path, sizeof(path), "/v2/%s/manifests/%s", repo, tag);
    for (int i = 0; i < TRIES; i++) {
        bool ready = provide(c, repo, "{}", source);
        CLEANUP_FREE char *body = NULL;
        long status = 503;

        for (int k = 0; k < NR_LAYERS; k++)
            ready &= provide(c, repo, d->layers[k], source);
        if (ready)
            status = request(c, "PUT", path, TYPE_HEADER, d->json, d->len, &body);
        if (status == 201)
            return true;
        if (status != 404 && status != 503) {
            print_error("PUT: %ld %s\n", status, body);
            return false;
        }
        source = SEND;
    }
    return false;
}

/* -- What a publisher does, and what it may rely on afterwards --- */

struct scene {
    struct fixture *f;
    struct disk garbage; /* in `garbage`, untagged, with its blobs; and in `other` */
    struct disk live;    /* in `garbage`, tagged `live` */
    char lease[LEASE_ID_LEN + 1];
};

struct promise {
    /* What must name the garbage disk, complete; tag NULL: its layers must be there, repo NULL:
     * nothing. */
    const char *repo, *tag;
};

static struct promise publish_again(const struct client *c, struct scene *s)
{
    assert_true(publish(c, &s->garbage, "garbage", "t", SEND));
    return (struct promise){"garbage", "t"};
}

static struct promise publish_by_look(const struct client *c, struct scene *s)
{
    assert_true(publish(c, &s->garbage, "garbage", "t", LOOK));
    return (struct promise){"garbage", "t"};
}

static struct promise publish_by_mount(const struct client *c, struct scene *s)
{
    assert_true(publish(c, &s->garbage, "mounts", "t", MOUNT));
    return (struct promise){"mounts", "t"};
}

static struct promise tag_again(const struct client *c, struct scene *s)
{
    assert_true(publish(c, &s->garbage, "garbage", "t", TRUST));
    return (struct promise){"garbage", "t"};
}

static struct promise publish_to_a_new_repository(const struct client *c, struct scene *s)
{
    assert_true(publish(c, &s->garbage, "new/one", "t", SEND));
    return (struct promise){"new/one", "t"};
}

static struct promise take_lease(const struct client *c, struct scene *s)
{
    struct ref ref = {.repo = "garbage"};
    struct lease lease;
    struct cairn_error e;
    int r;

    (void)c;
    assert_int_equal(digest_parse(s->garbage.digest, strlen(s->garbage.digest), &ref.digest, &e),
                     CAIRN_OK);
    r = lease_take(s->f->store, &ref, "test", 1000, &lease, &e);
    if (r == CAIRN_E_NOT_FOUND || r == CAIRN_E_UNAVAILABLE)
        return (struct promise){NULL, NULL};
    assert_int_equal(r, CAIRN_OK);
    memcpy(s->lease, lease.id, sizeof(s->lease));
    return (struct promise){"garbage", s->garbage.digest};
}

/* As if the store had been served for so long. */
static void serve_for(struct store *store, uint64_t seconds)
{
    atomic_store(&store->since_us, clock_now_us() - seconds * 1000000);
}

/* One that has expired, which the collector may have disregarded, or be about to. */
static struct promise renew_lease(const struct client *c, struct scene *s)
{
    static const char id[] = "00000000000000000000000000000001";
    struct ref ref = {.repo = "garbage"};
    struct lease lease;
    struct cairn_error e;
    char text[500];
    int len = snprintf(text, sizeof(text),
                       "{\"repository\":\"garbage\",\"manifest\":\"%s\",\"ttl\":1000,"
                       "\"renewed\":1,\"holder\":\"test\"}",
                       s->garbage.digest);
    int r;

    (void)c;
    assert_int_equal(digest_parse(s->garbage.digest, strlen(s->garbage.digest), &ref.digest, &e),
                     CAIRN_OK);
    serve_for(s->f->store, 2000);
    assert_int_equal(store_put(s->f->store, "leases/00000000000000000000000000000001", text,
                               (size_t)len, STORE_PUT_REPLACE, &e),
                     CAIRN_OK);
    r = lease_renew(s->f->store, &ref, id, 0, &lease, &e);
    if (r != CAIRN_E_NOT_FOUND)
        memcpy(s->lease, id, sizeof(s->lease));
    if (r == CAIRN_E_NOT_FOUND || r == CAIRN_E_UNAVAILABLE)
        return (struct promise){NULL, NULL};
    assert_int_equal(r, CAIRN_OK);
    return (struct promise){"garbage", s->garbage.digest};
}

/* Publish, and delete the manifest with all its tags: nothing is promised but order. */
static struct promise publish_and_delete(const struct client *c, struct scene *s)
{
    char path[500];
    long status;

    assert_true(publish(c, &s->garbage, "garbage", "t", SEND));
    snprintf(path, sizeof(path), "/v2/garbage/manifests/%s", s->garbage.digest);
    status = request(c, "DELETE", path, NULL, NULL, 0, NULL);
    assert_int_equal(status, 202);
    return (struct promise){NULL, NULL};
}

/* Blobs by themselves: within grace they are there because they were sent, mounted or asked for. */
static struct promise provide_layers(const struct client *c, struct scene *s, const char *repo,
                                     enum blob_source source)
{
    for (int i = 0; i < NR_LAYERS; i++)
        while (!provide(c, repo, s->garbage.layers[i], source))
            ;
    return (struct promise){repo, NULL};
}

static struct promise send_layers(const struct client *c, struct scene *s)
{
    return provide_layers(c, s, "garbage", SEND);
}

static struct promise look_for_layers(const struct client *c, struct scene *s)
{
    return provide_layers(c, s, "garbage", LOOK);
}

static struct promise mount_layers(const struct client *c, struct scene *s)
{
    return provide_layers(c, s, "mounts", MOUNT);
}

typedef struct promise (*publisher_fn)(const struct client *c, struct scene *s);

static const struct {
    const char *name;
    publisher_fn run;
    uint64_t grace_s; /* of the run beside it; then all that was there before is old */
} publishers[] = {
    {"publish_again", publish_again, 0},
    {"publish_by_look", publish_by_look, 0},
    {"publish_by_mount", publish_by_mount, 0},
    {"tag_again", tag_again, 0},
    {"publish_to_a_new_repository", publish_to_a_new_repository, 0},
    {"take_lease", take_lease, 0},
    {"renew_lease", renew_lease, 0},
    {"publish_and_delete", publish_and_delete, 0},
    {"send_layers", send_layers, 3600},
    {"look_for_layers", look_for_layers, 3600},
    {"mount_layers", mount_layers, 3600},
};
#define NR_PUBLISHERS (sizeof(publishers) / sizeof(publishers[0]))

/* -- The store as it should be --- */

static const struct collect_options everything = {
    .claim_age_s = 3600, .upload_age_s = 3600, .max_memory = 1 << 20};

static void collect(const struct fixture *f, const struct collect_options *options,
                    struct collect_result *ret_result)
{
    assert_int_equal(collect_run(f->store, options, NULL, ret_result, &err), CAIRN_OK);
}

static void collect_now(const struct fixture *f)
{
    struct collect_result result;

    collect(f, &everything, &result);
}

static unsigned nr_found;

static int find_file(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)ftw;
    if (type != FTW_F || strstr(path, "/locks/") || strstr(path, "/tmp/"))
        return 0;
    if (nr_found++ < 5)
        print_message("  left: %s\n", path);
    return 0;
}

static unsigned count_files(const struct fixture *f)
{
    nr_found = 0;
    assert_int_equal(nftw(f->dir, find_file, 16, FTW_PHYS), 0);
    return nr_found;
}

static bool store_has(const struct fixture *f, const char *key)
{
    uint64_t size;

    return store_head(f->store, key, &size, &err) == CAIRN_OK;
}

/* HEAD asks the store; GET may be answered from what the server remembers. */
static bool has_bytes(const struct client *c, const char *repo, const char *bytes)
{
    char path[500], text[DIGEST_STR_MAX], *body = NULL;
    bool same;

    blob_path(repo, digest_text(bytes, strlen(bytes), text), path);
    same = request(c, "HEAD", path, NULL, NULL, 0, NULL) == 200 &&
           request(c, "GET", path, NULL, NULL, 0, &body) == 200 && strcmp(body, bytes) == 0;
    free(body);
    return same;
}

static bool is_complete(const struct client *c, const struct disk *d, const char *repo,
                        const char *ref)
{
    char path[500], *body = NULL;
    bool complete;

    snprintf(path, sizeof(path), "/v2/%s/manifests/%s", repo, ref);
    complete = request(c, "GET", path, NULL, NULL, 0, &body) == 200 && strcmp(body, d->json) == 0 &&
               has_bytes(c, repo, "{}");
    free(body);
    for (int i = 0; i < NR_LAYERS; i++)
        complete &= has_bytes(c, repo, d->layers[i]);
    return complete;
}

/* A tag names a manifest that is there, with all that it lists, or there is no tag. */
static bool tag_is_whole(const struct client *c, const struct disk *d, const char *repo,
                         const char *tag)
{
    char key[600];

    snprintf(key, sizeof(key), "repos/%s/_tags/%s", repo, tag);
    return !store_has(c->f, key) || is_complete(c, d, repo, tag);
}

static void scene_init(struct scene *s, struct fixture *f)
{
    const struct client c = {f, f->curl};
    char path[500];

    *s = (struct scene){.f = f};
    disk_init(&s->garbage, "garbage");
    disk_init(&s->live, "live");
    assert_true(publish(&c, &s->live, "garbage", "live", SEND));
    assert_true(publish(&c, &s->garbage, "garbage", "old", SEND));
    assert_true(publish(&c, &s->garbage, "other", "old", SEND));
    snprintf(path, sizeof(path), "/v2/garbage/manifests/old");
    assert_int_equal(request(&c, "DELETE", path, NULL, NULL, 0, NULL), 202);
    snprintf(path, sizeof(path), "/v2/other/manifests/old");
    assert_int_equal(request(&c, "DELETE", path, NULL, NULL, 0, NULL), 202);
}

static void scene_release(struct scene *s)
{
    free(s->garbage.json);
    free(s->live.json);
}

/* Take away all references; then nothing may be left. */
static void clear_store(struct scene *s)
{
    static const char *const tags[] = {"garbage/manifests/live", "garbage/manifests/t",
                                       "mounts/manifests/t", "new/one/manifests/t"};
    const struct client c = {s->f, s->f->curl};
    struct collect_options options = everything;
    struct collect_result result;
    struct ref ref = {.repo = "garbage"};
    char path[500];

    for (size_t i = 0; i < sizeof(tags) / sizeof(tags[0]); i++) {
        snprintf(path, sizeof(path), "/v2/%s", tags[i]);
        request(&c, "DELETE", path, NULL, NULL, 0, NULL);
    }
    if (s->lease[0]) {
        assert_int_equal(
            digest_parse(s->garbage.digest, strlen(s->garbage.digest), &ref.digest, &err),
            CAIRN_OK);
        assert_int_equal(lease_release(s->f->store, &ref, s->lease, &err), CAIRN_OK);
    }
    options.claim_age_s = 0; /* of processes that were ended */
    options.upload_age_s = 0;
    collect(s->f, &options, &result);
    assert_int_equal(count_files(s->f), 0);
}

static void check_scene(struct scene *s, const struct promise *p)
{
    const struct client c = {s->f, s->f->curl};

    assert_true(is_complete(&c, &s->live, "garbage", "live"));
    assert_true(tag_is_whole(&c, &s->garbage, "garbage", "t"));
    assert_true(tag_is_whole(&c, &s->garbage, "mounts", "t"));
    assert_true(tag_is_whole(&c, &s->garbage, "new/one", "t"));
    if (p->repo && p->tag)
        assert_true(is_complete(&c, &s->garbage, p->repo, p->tag));
    for (int i = 0; p->repo && !p->tag && i < NR_LAYERS; i++)
        assert_true(has_bytes(&c, p->repo, s->garbage.layers[i]));
}

/* -- Part one: what is kept, what goes --- */

static void test_what_nothing_names_goes(void **state)
{
    struct fixture *f = *state;
    struct collect_result result;
    struct scene s;

    scene_init(&s, f);
    collect(f, &everything, &result);
    check_scene(&s, &(struct promise){NULL, NULL});
    assert_int_equal(result.kinds[COLLECT_MANIFESTS].deleted, 2);
    assert_int_equal(result.kinds[COLLECT_LINKS].deleted, 2 * NR_LAYERS + 1);
    assert_int_equal(result.kinds[COLLECT_BLOBS].deleted, NR_LAYERS);
    assert_true(result.bytes > 0);
    clear_store(&s);
    scene_release(&s);
}

static void test_what_is_young_lives(void **state)
{
    struct fixture *f = *state;
    struct collect_options options = everything;
    struct collect_result result;
    struct scene s;

    scene_init(&s, f);
    options.grace_s = 3600;
    collect(f, &options, &result);
    assert_int_equal(result.bytes, 0);
    assert_true(is_complete(&(struct client){f, f->curl}, &s.garbage, "garbage", s.garbage.digest));
    clear_store(&s);
    scene_release(&s);
}

static int make_old(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    const struct utimbuf day_ago = {.actime = time(NULL) - 86400, .modtime = time(NULL) - 86400};

    (void)st;
    (void)ftw;
    return type == FTW_F && !strstr(path, "/locks/") ? utime(path, &day_ago) : 0;
}

/* Sent again, mounted, put again: as young as if it were new. */
static void test_what_is_stored_again_is_young_again(void **state)
{
    struct fixture *f = *state;
    const struct client c = {f, f->curl};
    struct collect_options options = everything;
    struct collect_result result;
    struct scene s;
    char path[500];

    scene_init(&s, f);
    options.grace_s = 3600;
    assert_int_equal(nftw(f->dir, make_old, 16, FTW_PHYS), 0);
    for (int i = 0; i < NR_LAYERS; i++) {
        assert_int_equal(send_blob(&c, "garbage", s.garbage.layers[i]), 201);
        assert_true(mount_blob(&c, "mounts", "other", s.garbage.layers[i]));
    }
    snprintf(path, sizeof(path), "/v2/garbage/manifests/%s", s.garbage.digest);
    assert_int_equal(request(&c, "PUT", path, TYPE_HEADER, s.garbage.json, s.garbage.len, NULL),
                     201);
    collect(f, &options, &result);
    assert_int_equal(result.kinds[COLLECT_MANIFESTS].deleted, 1); /* of `other` */
    assert_int_equal(result.kinds[COLLECT_BLOBS].deleted, 0);
    assert_true(is_complete(&c, &s.garbage, "garbage", s.garbage.digest));
    for (int i = 0; i < NR_LAYERS; i++) {
        assert_true(has_bytes(&c, "mounts", s.garbage.layers[i]));
        assert_false(has_blob(&c, "other", s.garbage.layers[i]));
    }
    clear_store(&s);
    scene_release(&s);
}

/* Whoever asks for a blob gets time to use it. */
static void test_head_renews_what_is_old(void **state)
{
    struct fixture *f = *state;
    const struct client c = {f, f->curl};
    struct collect_options options = everything;
    struct collect_result result;
    struct scene s;

    scene_init(&s, f);
    options.grace_s = 3600;
    assert_int_equal(nftw(f->dir, make_old, 16, FTW_PHYS), 0);
    assert_true(has_blob(&c, "garbage", s.garbage.layers[0]));
    collect(f, &options, &result);
    assert_true(has_blob(&c, "garbage", s.garbage.layers[0]));
    assert_false(has_blob(&c, "garbage", s.garbage.layers[1]));
    clear_store(&s);
    scene_release(&s);
}

static void test_a_lease_keeps_until_it_ends(void **state)
{
    struct fixture *f = *state;
    const struct client c = {f, f->curl};
    struct scene s;
    struct promise p;

    scene_init(&s, f);
    p = take_lease(&c, &s);
    assert_non_null(p.repo);
    collect_now(f);
    check_scene(&s, &p);
    clear_store(&s); /* releases it */
    scene_release(&s);
}

static void test_a_lease_that_expired_keeps_nothing(void **state)
{
    struct fixture *f = *state;
    struct collect_result result;
    struct ref ref = {.repo = "garbage", .tag = "live"};
    struct lease lease, again;
    struct scene s;

    scene_init(&s, f);
    assert_int_equal(lease_take(f->store, &ref, "test", 1, &lease, &err), CAIRN_OK);
    do
        collect(f, &everything, &result);
    while (result.expired_leases == 0);
    assert_int_equal(lease_renew(f->store, &ref, lease.id, 0, &again, &err), CAIRN_E_NOT_FOUND);
    clear_store(&s);
    scene_release(&s);
}

static void test_a_lease_is_renewed_and_released_by_its_repository_alone(void **state)
{
    struct fixture *f = *state;
    struct ref ref = {.repo = "garbage", .tag = "live"}, other = {.repo = "other", .tag = "live"};
    struct lease lease, again;
    struct scene s;

    scene_init(&s, f);
    assert_int_equal(lease_take(f->store, &other, "test", 5, &lease, &err), CAIRN_E_NOT_FOUND);
    assert_int_equal(lease_take(f->store, &ref, "", 5, &lease, &err), CAIRN_E_USAGE);
    assert_int_equal(lease_take(f->store, &ref, "a\nb", 5, &lease, &err), CAIRN_E_USAGE);
    assert_int_equal(lease_take(f->store, &ref, "x", LEASE_TTL_MAX + 1, &lease, &err),
                     CAIRN_E_USAGE);
    assert_int_equal(lease_take(f->store, &ref, "x", 500, &lease, &err), CAIRN_OK);
    assert_int_equal(lease_renew(f->store, &other, lease.id, 7, &again, &err), CAIRN_E_NOT_FOUND);
    assert_int_equal(lease_renew(f->store, &ref, "nonsense", 7, &again, &err), CAIRN_E_NOT_FOUND);
    assert_int_equal(lease_renew(f->store, &ref, lease.id, 700, &again, &err), CAIRN_OK);
    assert_int_equal(again.ttl_s, 700);
    assert_string_equal(again.holder, "x");
    assert_int_equal(lease_release(f->store, &other, lease.id, &err), CAIRN_E_NOT_FOUND);
    assert_int_equal(lease_release(f->store, &ref, lease.id, &err), CAIRN_OK);
    assert_int_equal(lease_release(f->store, &ref, lease.id, &err), CAIRN_E_NOT_FOUND);
    clear_store(&s);
    scene_release(&s);
}

static void test_a_leased_manifest_is_not_deleted(void **state)
{
    struct fixture *f = *state;
    const struct client c = {f, f->curl};
    struct scene s;
    struct promise p;
    char path[500], *body = NULL;

    scene_init(&s, f);
    p = take_lease(&c, &s);
    snprintf(path, sizeof(path), "/v2/garbage/manifests/%s", s.garbage.digest);
    assert_int_equal(request(&c, "DELETE", path, NULL, NULL, 0, &body), 409);
    assert_non_null(strstr(body, "test"));
    assert_non_null(strstr(body, s.lease));
    free(body);
    check_scene(&s, &p);
    clear_store(&s);
    scene_release(&s);
}

/* A manifest that refers to one of the disks. */
static char *make_referrer(const struct disk *subject, const char *name,
                           char digest[DIGEST_STR_MAX])
{
    char *json;

    assert_true(
        asprintf(&json,
                 "{\"schemaVersion\":2,\"mediaType\":\"" MANIFEST_MEDIA_TYPE "\","
                 "\"artifactType\":\"application/x-%s\",\"config\":{\"mediaType\":"
                 "\"application/vnd.oci.empty.v1+json\",\"digest\":\"" MANIFEST_EMPTY_DIGEST
                 "\",\"size\":2},\"layers\":[],\"subject\":{\"mediaType\":\"" MANIFEST_MEDIA_TYPE
                 "\",\"digest\":\"%s\",\"size\":%zu}}",
                 name, subject->digest, subject->len) > 0);
    digest_text(json, strlen(json), digest);
    return json;
}

static void put_referrer(const struct client *c, const struct disk *subject, const char *name,
                         char digest[DIGEST_STR_MAX])
{
    char *json = make_referrer(subject, name, digest), path[500];

    snprintf(path, sizeof(path), "/v2/garbage/manifests/%s", digest);
    assert_int_equal(request(c, "PUT", path, TYPE_HEADER, json, strlen(json), NULL), 201);
    free(json);
}

static bool has_manifest(const struct client *c, const char *digest)
{
    char path[500];

    snprintf(path, sizeof(path), "/v2/garbage/manifests/%s", digest);
    return request(c, "HEAD", path, NULL, NULL, 0, NULL) == 200;
}

static void test_a_referrer_lives_and_dies_with_its_subject(void **state)
{
    struct fixture *f = *state;
    const struct client c = {f, f->curl};
    char of_live[DIGEST_STR_MAX], of_garbage[DIGEST_STR_MAX], *body = NULL, path[500];
    struct scene s;

    scene_init(&s, f);
    put_referrer(&c, &s.live, "signature", of_live);
    put_referrer(&c, &s.garbage, "signature", of_garbage);
    collect_now(f);
    assert_true(has_manifest(&c, of_live));
    assert_false(has_manifest(&c, of_garbage));
    snprintf(path, sizeof(path), "/v2/garbage/referrers/%s", s.garbage.digest);
    assert_int_equal(request(&c, "GET", path, NULL, NULL, 0, &body), 200);
    assert_null(strstr(body, of_garbage));
    free(body);
    clear_store(&s);
    scene_release(&s);
}

static void test_a_dry_run_tells_and_takes_nothing(void **state)
{
    struct fixture *f = *state;
    struct collect_options options = everything;
    struct collect_result told, done;
    struct scene s;
    unsigned before;

    scene_init(&s, f);
    before = count_files(f);
    options.dry_run = true;
    collect(f, &options, &told);
    assert_int_equal(count_files(f), before);
    collect(f, &everything, &done);
    for (int i = 0; i < NR_COLLECT_KINDS; i++) {
        assert_int_equal(told.kinds[i].deleted, done.kinds[i].deleted);
        assert_int_equal(told.kinds[i].bytes, done.kinds[i].bytes);
    }
    assert_int_equal(told.bytes, done.bytes);
    assert_true(done.bytes > 0);
    clear_store(&s);
    scene_release(&s);
}

static void overwrite(const struct fixture *f, const char *key, const char *text)
{
    char path[600];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", f->dir, key);
    file = fopen(path, "r+");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

/* Who knows what it refers to?  Then its repository keeps what it has. */
static void test_what_cannot_be_read_is_not_judged(void **state)
{
    struct fixture *f = *state;
    struct collect_result result;
    struct scene s;
    char key[500];

    scene_init(&s, f);
    snprintf(key, sizeof(key), "repos/garbage/_manifests/%s", strchr(s.live.digest, ':') + 1);
    overwrite(f, key, "nonsense");
    log_set_level(LOG_LEVEL_ERROR);
    collect(f, &everything, &result);
    assert_int_equal(result.kept_repositories, 1);
    assert_int_equal(result.kinds[COLLECT_LINKS].deleted, NR_LAYERS + 1); /* of `other` */
    assert_int_equal(result.kinds[COLLECT_BLOBS].deleted, 0);
    overwrite(f, key, s.live.json);
    check_scene(&s, &(struct promise){NULL, NULL});
    overwrite(f, "repos/garbage/_tags/live", "nonsense");
    collect(f, &everything, &result);
    assert_int_equal(result.kept_repositories, 1);
    overwrite(f, "repos/garbage/_tags/live", s.live.digest);
    check_scene(&s, &(struct promise){NULL, NULL});
    clear_store(&s);
    scene_release(&s);
}

static void test_too_little_memory_deletes_nothing(void **state)
{
    struct fixture *f = *state;
    struct collect_options options = everything;
    struct collect_result result;
    struct scene s;

    scene_init(&s, f);
    options.max_memory = 3000;
    assert_int_equal(collect_run(f->store, &options, NULL, &result, &err), CAIRN_E_LIMIT);
    assert_non_null(strstr(err.message, "gc-memory"));
    assert_false(store_has(f, "gc/run"));
    check_scene(&s, &(struct promise){NULL, NULL});
    clear_store(&s);
    scene_release(&s);
}

static int stop_at(void *ctx, const char *phase, uint64_t done, uint64_t total, const char *unit,
                   struct cairn_error *e)
{
    (void)done;
    (void)total;
    (void)unit;
    if (strcmp(phase, ctx) != 0)
        return CAIRN_OK;
    return error_set(e, CAIRN_E_CANCELLED, "stopped");
}

static void test_a_run_that_is_stopped_leaves_no_traces(void **state)
{
    static const char *const phases[] = {"repositories", "delete", "links", "blobs", "index"};
    struct fixture *f = *state;

    for (size_t i = 0; i < sizeof(phases) / sizeof(phases[0]); i++) {
        char phase[20];
        const struct collect_watch watch = {.progress = stop_at, .ctx = phase};
        struct collect_result result;
        struct scene s;

        snprintf(phase, sizeof(phase), "%s", phases[i]);
        scene_init(&s, f);
        assert_int_equal(collect_run(f->store, &everything, &watch, &result, &err),
                         CAIRN_E_CANCELLED);
        assert_false(store_has(f, "gc/run"));
        check_scene(&s, &(struct promise){NULL, NULL});
        clear_store(&s);
        scene_release(&s);
    }
}

static void test_index_objects_go_with_their_chains(void **state)
{
    static const char orphan[] =
        "index/ba/ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    struct fixture *f = *state;
    struct collect_result result;
    struct manifest *m;
    char hex[DIGEST_HEX_LEN + 1], key[200];
    struct scene s;

    scene_init(&s, f);
    assert_int_equal(manifest_parse(s.live.json, s.live.len, &m, &err), CAIRN_OK);
    digest_format_hex(&m->chain_ids[0], hex);
    manifest_free(m);
    snprintf(key, sizeof(key), "index/%.2s/%s", hex, hex);
    assert_int_equal(store_put(f->store, key, "x", 1, STORE_PUT_REPLACE, &err), CAIRN_OK);
    assert_int_equal(store_put(f->store, orphan, "x", 1, STORE_PUT_REPLACE, &err), CAIRN_OK);
    collect(f, &everything, &result);
    assert_true(store_has(f, key));
    assert_false(store_has(f, orphan));
    assert_int_equal(result.kinds[COLLECT_INDEX].deleted, 1);
    clear_store(&s);
    scene_release(&s);
}

static void test_abandoned_uploads_go(void **state)
{
    struct fixture *f = *state;
    struct collect_options options = everything;
    struct collect_result result;
    char location[300];

    open_upload(f, "a", location);
    collect(f, &options, &result);
    assert_int_equal(result.kinds[COLLECT_UPLOADS].deleted, 0);
    assert_int_equal(count_uploads(f), 1);
    options.upload_age_s = 0;
    collect(f, &options, &result);
    assert_int_equal(result.kinds[COLLECT_UPLOADS].deleted, 1);
    assert_int_equal(count_uploads(f), 0);
}

/* -- Part two: orders of steps --- */

/* Two actors, of which each stops at one step of its own until it is told to go on. */
enum actor { PUBLISHER, COLLECTOR };

struct stage {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct {
        unsigned steps, stop_at;
        bool stopped, go, done;
    } actors[2];
};

static struct stage stage = {.lock = PTHREAD_MUTEX_INITIALIZER,
                             .changed = PTHREAD_COND_INITIALIZER};
static _Thread_local bool is_collector;

/* The server's threads are the publisher's. */
static void stop_at_step(enum step step)
{
    enum actor me = is_collector ? COLLECTOR : PUBLISHER;

    (void)step;
    pthread_mutex_lock(&stage.lock);
    if (stage.actors[me].steps++ == stage.actors[me].stop_at) {
        stage.actors[me].stopped = true;
        pthread_cond_broadcast(&stage.changed);
        while (!stage.actors[me].go)
            pthread_cond_wait(&stage.changed, &stage.lock);
        stage.actors[me].stopped = false;
    }
    pthread_mutex_unlock(&stage.lock);
}

static void actor_done(enum actor me)
{
    pthread_mutex_lock(&stage.lock);
    stage.actors[me].done = true;
    pthread_cond_broadcast(&stage.changed);
    pthread_mutex_unlock(&stage.lock);
}

/* Until it has come to its step or end, or seems to wait for the other: then it is that one's turn.
 * How long that takes decides on the order alone, and every order is right. */
static void wait_for_actor(enum actor actor)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 60000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&stage.lock);
    while (!stage.actors[actor].done && !(stage.actors[actor].stopped && !stage.actors[actor].go) &&
           pthread_cond_timedwait(&stage.changed, &stage.lock, &until) == 0)
        ;
    pthread_mutex_unlock(&stage.lock);
}

static void let_go(enum actor actor)
{
    pthread_mutex_lock(&stage.lock);
    stage.actors[actor].go = true;
    pthread_cond_broadcast(&stage.changed);
    pthread_mutex_unlock(&stage.lock);
}

struct play {
    struct scene *scene;
    publisher_fn publisher;
    struct collect_options options;
    struct promise promise;
    struct collect_result result;
    int collected;
    long deleted; /* by who plays the collector's part: a client that deletes */
};

static void *play_publisher(void *arg)
{
    struct play *play = arg;
    const struct client c = {play->scene->f, curl_easy_init()};

    play->promise = play->publisher(&c, play->scene);
    curl_easy_cleanup(c.curl);
    actor_done(PUBLISHER);
    return NULL;
}

static void *play_collector(void *arg)
{
    struct play *play = arg;
    struct cairn_error e;

    is_collector = true;
    play->collected = collect_run(play->scene->f->store, &play->options, NULL, &play->result, &e);
    actor_done(COLLECTOR);
    return NULL;
}

static void *play_deleter(void *arg)
{
    struct play *play = arg;
    const struct client c = {play->scene->f, curl_easy_init()};
    char path[500];

    snprintf(path, sizeof(path), "/v2/garbage/manifests/%s", play->scene->garbage.digest);
    play->deleted = request(&c, "DELETE", path, NULL, NULL, 0, NULL);
    curl_easy_cleanup(c.curl);
    actor_done(COLLECTOR);
    return NULL;
}

/* The first goes to its step, the second to its own, the first to its end, the second as well. */
static void perform(struct play *play, void *(*const roles[2])(void *), enum actor first,
                    const unsigned stop_at[2])
{
    const enum actor second = first == PUBLISHER ? COLLECTOR : PUBLISHER;
    pthread_t threads[2];

    pthread_mutex_lock(&stage.lock);
    memset(stage.actors, 0, sizeof(stage.actors));
    for (int i = 0; i < 2; i++)
        stage.actors[i].stop_at = stop_at[i];
    pthread_mutex_unlock(&stage.lock);
    step_set_hook(stop_at_step);
    assert_int_equal(pthread_create(&threads[first], NULL, roles[first], play), 0);
    wait_for_actor(first);
    assert_int_equal(pthread_create(&threads[second], NULL, roles[second], play), 0);
    wait_for_actor(second);
    let_go(first);
    wait_for_actor(first);
    let_go(second);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    step_set_hook(NULL);
}

struct order {
    size_t publisher;
    enum actor first;
    unsigned stop_at[2];
    uint64_t claim_age_s;
};

/* How many steps both took. */
static void try_order(struct fixture *f, const struct order *o, unsigned ret_steps[2])
{
    static void *(*const roles[2])(void *) = {play_publisher, play_collector};
    struct play play = {.publisher = publishers[o->publisher].run, .options = everything};
    struct scene s;

    scene_init(&s, f);
    play.scene = &s;
    play.options.claim_age_s = o->claim_age_s;
    play.options.grace_s = publishers[o->publisher].grace_s;
    if (play.options.grace_s > 0)
        assert_int_equal(nftw(f->dir, make_old, 16, FTW_PHYS), 0);
    perform(&play, roles, o->first, o->stop_at);
    assert_int_equal(play.collected, CAIRN_OK);
    check_scene(&s, &play.promise);
    collect(f, &play.options, &play.result);
    check_scene(&s, &play.promise);
    clear_store(&s);
    scene_release(&s);
    for (int i = 0; i < 2; i++)
        ret_steps[i] = stage.actors[i].steps;
}

static const struct order *trying; /* told when a test fails */

static int tell_order(void **state)
{
    if (trying)
        print_error("publisher %s, %s first, stops at %u and %u, claims of %" PRIu64 " s\n",
                    publishers[trying->publisher].name, trying->first ? "collector" : "publisher",
                    trying->stop_at[0], trying->stop_at[1], trying->claim_age_s);
    trying = NULL;
    return teardown(state);
}

static void try_and_tell(struct fixture *f, const struct order *o, unsigned ret_steps[2])
{
    trying = o;
    try_order(f, o, ret_steps);
    trying = NULL;
}

static unsigned seconds_wanted(void)
{
    const char *text = getenv("CAIRN_TEST_SECONDS");

    return text ? (unsigned)strtoul(text, NULL, 10) : 4;
}

static unsigned seed(void)
{
    const char *text = getenv("CAIRN_TEST_SEED");

    return text ? (unsigned)strtoul(text, NULL, 10) : (unsigned)time(NULL);
}

/* Is it this step's turn to be tried? */
static bool chosen(unsigned one_in)
{
    static unsigned rng;
    const char *sweep = getenv("CAIRN_TEST_SWEEP");

    if (rng == 0)
        rng = seed() | 1;
    return (sweep && strcmp(sweep, "full") == 0) || (unsigned)rand_r(&rng) % one_in == 0;
}

/* The second acts at each step of the first, or at some. */
static void try_each_step(struct fixture *f, struct order *o)
{
    unsigned steps[2];

    do {
        if (o->stop_at[o->first] == 0 || chosen(6))
            try_and_tell(f, o, steps);
    } while (++o->stop_at[o->first] < steps[o->first]);
}

/* At each step of the publisher a whole run of the collector. */
static void test_a_run_at_each_step_of_each_publisher(void **state)
{
    for (size_t p = 0; p < NR_PUBLISHERS; p++) {
        struct order o = {p, PUBLISHER, {0, NEVER}, 3600};

        try_each_step(*state, &o);
    }
}

/* The same, with claims that count as old at once: the publisher has to notice. */
static void test_a_claim_broken_at_each_step_of_each_publisher(void **state)
{
    for (size_t p = 0; p < NR_PUBLISHERS; p++) {
        struct order o = {p, PUBLISHER, {0, NEVER}, 0};

        try_each_step(*state, &o);
    }
}

/* At each step of the collector a whole publisher. */
static void test_each_publisher_at_each_step_of_a_run(void **state)
{
    for (size_t p = 0; p < NR_PUBLISHERS; p++) {
        struct order o = {p, COLLECTOR, {NEVER, 0}, 3600};

        try_each_step(*state, &o);
    }
}

/* A tag that is set beside the deletion of its manifest names it, or nobody has set it. */
static void test_a_delete_at_each_step_of_a_put(void **state)
{
    static void *(*const roles[2])(void *) = {play_publisher, play_deleter};
    unsigned stop_at[2] = {0, NEVER};

    do {
        struct play play = {.publisher = tag_again};
        struct scene s;

        scene_init(&s, *state);
        play.scene = &s;
        perform(&play, roles, PUBLISHER, stop_at);
        assert_int_equal(play.deleted, 202);
        check_scene(&s, &(struct promise){NULL, NULL});
        clear_store(&s);
        scene_release(&s);
    } while (++stop_at[PUBLISHER] < 12);
}

/* Both stop somewhere. */
static void test_random_orders(void **state)
{
    const uint64_t until = clock_now_us() + seconds_wanted() * UINT64_C(1000000);
    unsigned rng = seed(), nr = 0;

    print_message("seed %u\n", rng);
    while (clock_now_us() < until) {
        struct order o = {.publisher = (unsigned)rand_r(&rng) % NR_PUBLISHERS};
        unsigned steps[2];

        o.first = rand_r(&rng) % 2 ? PUBLISHER : COLLECTOR;
        o.stop_at[PUBLISHER] = (unsigned)rand_r(&rng) % 40;
        o.stop_at[COLLECTOR] = (unsigned)rand_r(&rng) % 70;
        o.claim_age_s = rand_r(&rng) % 4 ? 3600 : 0;
        try_and_tell(*state, &o, steps);
        nr++;
    }
    print_message("%u orders\n", nr);
}

/* -- Part three: processes that end --- */

static unsigned end_at;

static void end_at_step(enum step step)
{
    static atomic_uint steps;

    (void)step;
    if (atomic_fetch_add(&steps, 1) == end_at)
        _exit(99);
}

/* `--collect <dir> <step>`, `--publish <dir> <step> <publisher>`: this program in another process,
 * which ends at that step. */
static int act(int argc, char **argv)
{
    struct fixture f = {0};
    struct scene s = {.f = &f};
    struct collect_result result;

    log_set_level(LOG_LEVEL_ERROR);
    snprintf(f.dir, sizeof(f.dir), "%s", argv[2]);
    end_at = (unsigned)strtoul(argv[3], NULL, 10);
    start(&f);
    f.curl = curl_easy_init();
    step_set_hook(end_at_step);
    if (argc == 4) {
        collect(&f, &everything, &result);
    } else {
        disk_init(&s.garbage, "garbage");
        publishers[strtoul(argv[4], NULL, 10)].run(&(struct client){&f, f.curl}, &s);
        scene_release(&s);
    }
    step_set_hook(NULL);
    curl_easy_cleanup(f.curl);
    stop(&f);
    return 0;
}

/* True: it came to that step and ended there. */
static bool act_elsewhere(const struct fixture *f, const char *role, unsigned step,
                          size_t publisher)
{
    char step_text[20], publisher_text[20], dir[sizeof(f->dir)], program[1000], role_text[20];
    char *argv[] = {program, role_text, dir, step_text, publisher_text, NULL};
    int status;
    pid_t pid;

    snprintf(program, sizeof(program), "%s", self);
    snprintf(role_text, sizeof(role_text), "%s", role);
    snprintf(dir, sizeof(dir), "%s", f->dir);
    snprintf(step_text, sizeof(step_text), "%u", step);
    snprintf(publisher_text, sizeof(publisher_text), "%zu", publisher);
    if (strcmp(role, "--collect") == 0)
        argv[4] = NULL;
    assert_int_equal(posix_spawn(&pid, self, NULL, NULL, argv, environ), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) != 99)
        assert_int_equal(WEXITSTATUS(status), 0);
    return WEXITSTATUS(status) == 99;
}

/* Nobody waits for the dead: publishers succeed before the next run, which takes what is left. */
static void test_a_collector_that_ends_at_any_step(void **state)
{
    struct fixture *f = *state;
    bool ended = true;

    for (unsigned step = 0; ended; step++) {
        struct collect_options options = everything;
        struct collect_result result;
        struct promise p;
        struct scene s;

        if (!chosen(5))
            continue;
        scene_init(&s, f);
        ended = act_elsewhere(f, "--collect", step, 0);
        check_scene(&s, &(struct promise){NULL, NULL});
        p = publishers[step % NR_PUBLISHERS].run(&(struct client){f, f->curl}, &s);
        check_scene(&s, &p);
        options.grace_s = publishers[step % NR_PUBLISHERS].grace_s;
        collect(f, &options, &result);
        check_scene(&s, &p);
        clear_store(&s);
        scene_release(&s);
    }
}

static int release_lease(void *arg, const struct lease *lease, struct cairn_error *e)
{
    const struct fixture *f = arg;

    return lease_release(f->store, &lease->ref, lease->id, e);
}

/* Of a process that has ended they would last for their whole ttl. */
static void clear_leases(struct fixture *f)
{
    assert_int_equal(leases_each(f->store, release_lease, f, NULL, &err), CAIRN_OK);
}

static void test_a_publisher_that_ends_at_any_step(void **state)
{
    struct fixture *f = *state;

    for (size_t p = 0; p < NR_PUBLISHERS; p++) {
        bool ended = true;

        for (unsigned step = 0; ended; step++) {
            struct collect_options options = everything;
            struct collect_result result;
            struct scene s;

            if (!chosen(9))
                continue;
            scene_init(&s, f);
            ended = act_elsewhere(f, "--publish", step, p);
            check_scene(&s, &(struct promise){NULL, NULL});
            options.claim_age_s = 0;
            collect(f, &options, &result);
            check_scene(&s, &(struct promise){NULL, NULL});
            clear_leases(f);
            clear_store(&s);
            scene_release(&s);
        }
    }
}

#define ORDER_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, tell_order)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        REGISTRY_TEST(test_what_nothing_names_goes),
        REGISTRY_TEST(test_what_is_young_lives),
        REGISTRY_TEST(test_what_is_stored_again_is_young_again),
        REGISTRY_TEST(test_head_renews_what_is_old),
        REGISTRY_TEST(test_a_lease_keeps_until_it_ends),
        REGISTRY_TEST(test_a_lease_that_expired_keeps_nothing),
        REGISTRY_TEST(test_a_lease_is_renewed_and_released_by_its_repository_alone),
        REGISTRY_TEST(test_a_leased_manifest_is_not_deleted),
        REGISTRY_TEST(test_a_referrer_lives_and_dies_with_its_subject),
        REGISTRY_TEST(test_a_dry_run_tells_and_takes_nothing),
        REGISTRY_TEST(test_what_cannot_be_read_is_not_judged),
        REGISTRY_TEST(test_too_little_memory_deletes_nothing),
        REGISTRY_TEST(test_a_run_that_is_stopped_leaves_no_traces),
        REGISTRY_TEST(test_index_objects_go_with_their_chains),
        REGISTRY_TEST(test_abandoned_uploads_go),
        ORDER_TEST(test_a_run_at_each_step_of_each_publisher),
        ORDER_TEST(test_a_claim_broken_at_each_step_of_each_publisher),
        ORDER_TEST(test_each_publisher_at_each_step_of_a_run),
        REGISTRY_TEST(test_a_delete_at_each_step_of_a_put),
        ORDER_TEST(test_random_orders),
        REGISTRY_TEST(test_a_collector_that_ends_at_any_step),
        REGISTRY_TEST(test_a_publisher_that_ends_at_any_step),
    };

    self = argv[0];
    if (argc > 3)
        return act(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
