/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pulling a chain into a folder: every layer as a file that QEMU can open, each on top of the
 * other.
 *
 *   0000-9f2c3a61b07d.qcow2 …   the layers, base first: number and start of the digest
 *   top.qcow2                   a link to the top layer (top.raw, if that is a raw image)
 *   chain.json                  what this is: manifest, chain ID, and the digest of each layer
 *
 * A layer's bytes are compared with its digest as they arrive.  Then the backing name in its header
 * is made the name of the layer below it in this folder, since the one that it came with means
 * nothing here, and must not lead QEMU to some other file; that is the only change, and the reason
 * why the digest of the file is another one afterwards.  Only then does the file get its name.
 *
 * `.pulling` holds the manifest's digest while the pull goes on, and `NAME.part` the part of a
 * layer that has arrived: a pull that was interrupted goes on there.
 */
#include "pull.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "checked.h"
#include "crew.h"
#include "layer_head.h"
#include "qcow2_backing.h"
#include "quote.h"
#include "whole_file.h"

#define LAYER_NAME_MAX  64
#define MARKER          ".pulling"
#define PULL_HEAD_BYTES ((size_t)64 << 10) /* more than any header with all its extensions */

struct chain_pull {
    struct cairn_client *client;
    const struct ref *ref;
    const char *folder;
    int folder_fd; /* locked */
    const struct manifest *manifest;
    char manifest_digest[DIGEST_STR_MAX];

    pthread_mutex_t lock; /* of all below */
    uint32_t next_layer;
    uint64_t done_bytes, total_bytes;
};

static char *layer_name(const struct manifest *m, uint32_t ordinal, char name[LAYER_NAME_MAX])
{
    char hex[DIGEST_HEX_LEN + 1];

    snprintf(name, LAYER_NAME_MAX, "%0*u-%.12s.%s", m->depth > 10000 ? 5 : 4, ordinal,
             digest_format_hex(&m->layers[ordinal].digest, hex),
             m->layers[ordinal].format == LAYER_RAW ? "raw" : "qcow2");
    return name;
}

/* -- One layer ------------------------------------------------------------------------------ */

struct part {
    struct chain_pull *pull;
    const struct manifest_layer *layer;
    char name[LAYER_NAME_MAX], part_name[LAYER_NAME_MAX + 8];
    int fd;
    uint64_t off; /* what has arrived, and gone through the hasher */
    bool resumed; /* some of it with an earlier pull */
    struct hasher *hasher;
    uint8_t *buf;
};

static int tell(struct chain_pull *p, uint64_t bytes, struct cairn_error *err)
{
    uint64_t done;

    pthread_mutex_lock(&p->lock);
    p->done_bytes += bytes;
    done = p->done_bytes;
    pthread_mutex_unlock(&p->lock);
    return client_progress(p->client, "pull", done, p->total_bytes, err);
}

static int io_error(const struct part *part, const char *verb, struct cairn_error *err)
{
    return error_set_errno(err, errno, "cannot %s %s/%s", verb, part->pull->folder,
                           part->part_name);
}

/* What an earlier pull left goes through the hasher, as if it had just arrived. */
static int reread(struct part *part, struct cairn_error *err)
{
    struct stat st;

    if (fstat(part->fd, &st) != 0)
        return io_error(part, "stat", err);
    if ((uint64_t)st.st_size > part->layer->size)
        return ftruncate(part->fd, 0) == 0 ? CAIRN_OK : io_error(part, "truncate", err);
    while (part->off < (uint64_t)st.st_size) {
        ssize_t n = pread(part->fd, part->buf, PULL_PIECE_BYTES, (off_t)part->off);
        int ret;

        if (n <= 0)
            return io_error(part, "read", err);
        hasher_update(part->hasher, part->buf, (size_t)n);
        part->off += (uint64_t)n;
        part->resumed = true;
        ret = tell(part->pull, (uint64_t)n, err);
        if (ret != CAIRN_OK)
            return ret;
    }
    return CAIRN_OK;
}

static bool all_zero(const uint8_t *buf, size_t len)
{
    return len > 0 && buf[0] == 0 && memcmp(buf, buf + 1, len - 1) == 0;
}

/* Append to the file; zeros become a hole. */
static int store_piece(const struct part *part, size_t len, struct cairn_error *err)
{
    if (all_zero(part->buf, len))
        return ftruncate(part->fd, (off_t)(part->off + len)) == 0 ? CAIRN_OK
                                                                  : io_error(part, "extend", err);
    for (size_t done = 0; done < len;) {
        ssize_t n = pwrite(part->fd, part->buf + done, len - done, (off_t)(part->off + done));

        if (n < 0 && errno != EINTR)
            return io_error(part, "write", err);
        done += n > 0 ? (size_t)n : 0;
    }
    return CAIRN_OK;
}

static int receive(struct part *part, struct cairn_error *err)
{
    struct chain_pull *p = part->pull;
    char path[CLIENT_PATH_MAX];

    client_blob_path(p->ref->repo, &part->layer->digest, path);
    while (part->off < part->layer->size) {
        size_t len = (size_t)min_u64(PULL_PIECE_BYTES, part->layer->size - part->off);
        int ret = remote_read_range(p->client->remote, path, NULL, part->buf, len, part->off, err);

        if (ret == CAIRN_OK)
            ret = store_piece(part, len, err);
        if (ret == CAIRN_OK)
            hasher_update(part->hasher, part->buf, len);
        part->off += len;
        if (ret == CAIRN_OK)
            ret = tell(p, len, err);
        if (ret != CAIRN_OK)
            return ret;
    }
    return CAIRN_OK;
}

/* All of the layer; *ret_digest is that of its bytes. */
static int fetch_bytes(struct part *part, struct digest *ret_digest, struct cairn_error *err)
{
    int ret = hasher_new(&part->hasher, err);

    if (ret == CAIRN_OK)
        ret = reread(part, err);
    if (ret == CAIRN_OK)
        ret = receive(part, err);
    if (ret == CAIRN_OK)
        hasher_finish(part->hasher, ret_digest);
    return ret;
}

/* What an earlier pull left may be damaged: it was not synced, or had its new header already. */
static int start_over(struct part *part, struct cairn_error *err)
{
    struct chain_pull *p = part->pull;

    hasher_free(steal_ptr(part->hasher));
    part->off = 0;
    part->resumed = false;
    pthread_mutex_lock(&p->lock);
    p->done_bytes -= part->layer->size;
    pthread_mutex_unlock(&p->lock);
    return ftruncate(part->fd, 0) == 0 ? CAIRN_OK : io_error(part, "truncate", err);
}

/* A layer that is not what its digest says is removed, for nothing of it can be used. */
static int wrong_digest(const struct part *part, const struct digest *digest,
                        struct cairn_error *err)
{
    char expected[DIGEST_STR_MAX], found[DIGEST_STR_MAX];

    unlinkat(part->pull->folder_fd, part->part_name, 0);
    return error_set(err, CAIRN_E_CORRUPT,
                     "layer %s: the bytes received have digest %s; pull again",
                     digest_format(&part->layer->digest, expected), digest_format(digest, found));
}

static int fetch_verified(struct part *part, struct cairn_error *err)
{
    struct digest digest;
    int ret = fetch_bytes(part, &digest, err);

    if (ret == CAIRN_OK && part->resumed && !digest_equal(&digest, &part->layer->digest)) {
        ret = start_over(part, err);
        if (ret == CAIRN_OK)
            ret = fetch_bytes(part, &digest, err);
    }
    if (ret == CAIRN_OK && !digest_equal(&digest, &part->layer->digest))
        ret = wrong_digest(part, &digest, err);
    return ret;
}

/* Point the layer to the one below it in this folder; what that replaces is kept. */
static int relink(struct part *part, uint32_t ordinal, struct cairn_error *err)
{
    struct chain_pull *p = part->pull;
    const struct manifest_layer *layers = p->manifest->layers;
    char below[LAYER_NAME_MAX];
    size_t changed;
    ssize_t len;
    int ret;

    if (part->layer->format == LAYER_RAW)
        return CAIRN_OK;
    len = pread(part->fd, part->buf, PULL_HEAD_BYTES, 0);
    if (len < 0)
        return io_error(part, "read", err);
    if (ordinal == 0)
        ret = qcow2_set_backing(part->fd, part->name, NULL, LAYER_RAW, &changed, err);
    else
        ret = qcow2_set_backing(part->fd, part->name, layer_name(p->manifest, ordinal - 1, below),
                                layers[ordinal - 1].format, &changed, err);
    if (ret == CAIRN_OK && changed > 0)
        ret = layer_head_save(p->folder_fd, part->name, &part->layer->digest, part->buf,
                              (size_t)min_u64(changed, (uint64_t)len), err);
    return ret;
}

static int give_name(struct part *part, struct cairn_error *err)
{
    int folder = part->pull->folder_fd;

    if (fsync(part->fd) != 0)
        return io_error(part, "sync", err);
    if (renameat(folder, part->part_name, folder, part->name) != 0)
        return io_error(part, "rename", err);
    return CAIRN_OK;
}

static bool is_there(const struct part *part)
{
    struct stat st;

    return fstatat(part->pull->folder_fd, part->name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
           S_ISREG(st.st_mode) && (uint64_t)st.st_size == part->layer->size;
}

static int fetch(struct part *part, uint32_t ordinal, struct cairn_error *err)
{
    int ret;

    part->fd = openat(part->pull->folder_fd, part->part_name,
                      O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (part->fd < 0)
        return io_error(part, "create", err);
    part->buf = malloc(PULL_PIECE_BYTES);
    ret = part->buf ? fetch_verified(part, err) : error_no_memory(err, "a buffer");
    if (ret == CAIRN_OK)
        ret = relink(part, ordinal, err);
    if (ret == CAIRN_OK)
        ret = give_name(part, err);
    return ret;
}

static bool next_layer(struct chain_pull *p, uint32_t *ret_ordinal)
{
    SCOPED_LOCK(&p->lock);

    if (p->next_layer == p->manifest->depth)
        return false;
    *ret_ordinal = p->next_layer++;
    return true;
}

static int pull_layer(void *ctx, struct cairn_error *err)
{
    struct chain_pull *p = ctx;
    struct part part = {.pull = p, .fd = -1};
    uint32_t ordinal;
    int ret;

    if (!next_layer(p, &ordinal))
        return CREW_NONE_LEFT;
    part.layer = &p->manifest->layers[ordinal];
    layer_name(p->manifest, ordinal, part.name);
    snprintf(part.part_name, sizeof(part.part_name), "%s.part", part.name);
    if (is_there(&part))
        return tell(p, part.layer->size, err);
    ret = fetch(&part, ordinal, err);
    hasher_free(part.hasher);
    free(part.buf);
    if (part.fd >= 0)
        close(part.fd);
    return ret;
}

/* -- The folder ----------------------------------------------------------------------------- */

static int folder_error(const struct chain_pull *p, const char *verb, const char *name,
                        struct cairn_error *err)
{
    return error_set_errno(err, errno, "cannot %s %s/%s", verb, p->folder, name);
}

static int write_file(const struct chain_pull *p, const char *name, const char *text,
                      struct cairn_error *err)
{
    char temporary[64];
    size_t len = strlen(text);
    CLEANUP_CLOSE int fd = -1;

    snprintf(temporary, sizeof(temporary), "%s.part", name);
    fd = openat(p->folder_fd, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW,
                0666);
    if (fd < 0)
        return folder_error(p, "create", temporary, err);
    for (size_t done = 0; done < len;) {
        ssize_t n = write(fd, text + done, len - done);

        if (n < 0 && errno != EINTR)
            return folder_error(p, "write", temporary, err);
        done += n > 0 ? (size_t)n : 0;
    }
    if (fsync(fd) != 0 || renameat(p->folder_fd, temporary, p->folder_fd, name) != 0)
        return folder_error(p, "write", name, err);
    return CAIRN_OK;
}

/* The manifest that the folder was made for, from the marker; false: there is none. */
static bool read_marker(const struct chain_pull *p, char found[DIGEST_STR_MAX])
{
    CLEANUP_CLOSE int fd = openat(p->folder_fd, MARKER, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    ssize_t len = fd < 0 ? -1 : read(fd, found, DIGEST_STR_MAX - 1);

    found[len > 0 ? len : 0] = 0;
    return len > 0;
}

/* The same from chain.json, of a pull that was completed. */
static bool read_chain_json(const struct chain_pull *p, char found[DIGEST_STR_MAX])
{
    CLEANUP_CLOSE int fd = openat(p->folder_fd, "chain.json", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    json_t *json = fd < 0 ? NULL : json_loadfd(fd, 0, NULL);
    const char *manifest = json_string_value(json_object_get(json, "manifest"));

    snprintf(found, DIGEST_STR_MAX, "%s", manifest ? manifest : "");
    json_decref(json);
    return manifest != NULL;
}

static bool is_empty(const struct chain_pull *p)
{
    int fd = openat(p->folder_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *entry;
    bool empty = dir != NULL;

    while (empty && (entry = readdir(dir)) != NULL)
        empty = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0;
    if (dir)
        closedir(dir);
    else if (fd >= 0)
        close(fd);
    return empty;
}

static int open_folder(struct chain_pull *p, struct cairn_error *err)
{
    char quoted[QUOTE_MAX];

    quote_str(p->folder, quoted);
    if (mkdir(p->folder, 0777) != 0 && errno != EEXIST)
        return error_set_errno(err, errno, "cannot create the folder %s", quoted);
    p->folder_fd = open(p->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (p->folder_fd < 0)
        return error_set_errno(err, errno, "cannot open the folder %s", quoted);
    if (flock(p->folder_fd, LOCK_EX | LOCK_NB) != 0)
        return error_set(err, CAIRN_E_CONFLICT, "another pull into %s is running", quoted);
    return CAIRN_OK;
}

/* A folder that is empty, or has begun to be, or is, what is asked for (*ret_complete). */
static int claim_folder(struct chain_pull *p, bool *ret_complete, struct cairn_error *err)
{
    char quoted[QUOTE_MAX];
    char found[DIGEST_STR_MAX];

    quote_str(p->folder, quoted);
    *ret_complete = read_chain_json(p, found);
    if (*ret_complete || read_marker(p, found)) {
        if (strcmp(found, p->manifest_digest) == 0)
            return CAIRN_OK;
        return error_set(
            err, CAIRN_E_CONFLICT,
            "folder %s holds the manifest %.80s, the ref names %s; choose another folder", quoted,
            found, p->manifest_digest);
    }
    if (!is_empty(p))
        return error_set(err, CAIRN_E_CONFLICT,
                         "folder %s is not empty; choose another, or a new one", quoted);
    return write_file(p, MARKER, p->manifest_digest, err);
}

/* -- The end -------------------------------------------------------------------------------- */

static json_t *layers_to_json(const struct manifest *m)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < m->depth; i++) {
        char name[LAYER_NAME_MAX], digest[DIGEST_STR_MAX];

        json_array_append_new(list,
                              json_pack("{s:s, s:s, s:I, s:s}", "file", layer_name(m, i, name),
                                        "digest", digest_format(&m->layers[i].digest, digest),
                                        "size", (json_int_t)m->layers[i].size, "mediaType",
                                        m->layers[i].format == LAYER_RAW ? MANIFEST_LAYER_RAW
                                                                         : MANIFEST_LAYER_QCOW2));
    }
    return list;
}

static int write_chain_json(const struct chain_pull *p, struct cairn_error *err)
{
    const struct manifest *m = p->manifest;
    char chain_id[DIGEST_STR_MAX];
    json_t *json = json_pack("{s:s, s:s, s:s, s:o}", "repository", p->ref->repo, "manifest",
                             p->manifest_digest, "chainId",
                             digest_format(&m->chain_ids[m->depth - 1], chain_id), "layers",
                             layers_to_json(m));
    CLEANUP_FREE char *text = json ? json_dumps(json, JSON_INDENT(1)) : NULL;

    json_decref(json);
    return text ? write_file(p, "chain.json", text, err) : error_no_memory(err, "JSON");
}

static int link_top(const struct chain_pull *p, struct cairn_error *err)
{
    const struct manifest *m = p->manifest;
    const char *top = m->layers[m->depth - 1].format == LAYER_RAW ? "top.raw" : "top.qcow2";
    char name[LAYER_NAME_MAX];

    if (symlinkat(layer_name(m, m->depth - 1, name), p->folder_fd, top) != 0 && errno != EEXIST)
        return folder_error(p, "create", top, err);
    return CAIRN_OK;
}

static int complete(struct chain_pull *p, struct cairn_error *err)
{
    int ret = link_top(p, err);

    if (ret == CAIRN_OK)
        ret = write_chain_json(p, err);
    if (ret != CAIRN_OK)
        return ret;
    unlinkat(p->folder_fd, MARKER, 0);
    return fsync(p->folder_fd) == 0 ? CAIRN_OK : folder_error(p, "sync", ".", err);
}

static int pull_into(struct chain_pull *p, struct cairn_error *err)
{
    bool is_complete;
    int ret = open_folder(p, err);

    if (ret == CAIRN_OK)
        ret = claim_folder(p, &is_complete, err);
    if (ret != CAIRN_OK || is_complete)
        return ret;
    for (uint32_t i = 0; i < p->manifest->depth; i++)
        p->total_bytes += p->manifest->layers[i].size;
    ret = crew_run(PULL_WORKERS, pull_layer, p, err);
    return ret == CAIRN_OK ? complete(p, err) : ret;
}

int pull_chain(struct cairn_client *client, const struct ref *ref, const char *folder,
               struct cairn_error *err)
{
    CLEANUP(manifest_free_p) struct manifest *m = NULL;
    struct chain_pull p = {
        .client = client,
        .ref = ref,
        .folder = folder,
        .folder_fd = -1,
        .lock = PTHREAD_MUTEX_INITIALIZER,
    };
    struct digest digest;
    int ret = client_get_manifest(client, ref, &m, &digest, err);

    if (ret != CAIRN_OK)
        return ret;
    p.manifest = m;
    digest_format(&digest, p.manifest_digest);
    ret = pull_into(&p, err);
    if (p.folder_fd >= 0)
        close(p.folder_fd);
    pthread_mutex_destroy(&p.lock);
    return ret;
}
