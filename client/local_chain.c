/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Walking a local backing chain, top to base.
 *
 * A chain is a linked list in which somebody may have tied a loop; Brent's algorithm finds it with
 * one remembered file: a step that comes back to the file kept from an earlier power of two is in a
 * loop. Files are opened one at a time, so that a chain of thousands needs no more descriptors than
 * one of two.
 */
#include "local_chain.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "chain_index.h"
#include "qcow2_image.h"
#include "quote.h"

#define BACKING_NAME_MAX 1023 /* as QEMU limits it */

/* -- Files ---------------------------------------------------------------------------------- */

int local_open(const char *path, struct source **ret_src, struct stat *ret_st,
               struct cairn_error *err)
{
    char quoted[QUOTE_MAX];
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

    quote_str(path, quoted);
    if (fd < 0)
        return error_set_errno(err, errno, "cannot open %s", quoted);
    if (fstat(fd, ret_st) != 0)
        return error_set_errno(err, errno, "cannot stat %s", quoted);
    if (!S_ISREG(ret_st->st_mode) && !S_ISBLK(ret_st->st_mode))
        return error_set(err, CAIRN_E_UNSUPPORTED,
                         "%s is neither a regular file nor a block device", quoted);
    return source_from_fd(steal_fd(&fd), path, ret_src, err);
}

static bool same_time(const struct timespec *a, const struct timespec *b)
{
    return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

/* A block device has no times worth looking at: the service's check of the digest must do. */
static int check_same(const struct local_layer *layer, const struct stat *st,
                      struct cairn_error *err)
{
    const struct stat *was = &layer->st;
    char quoted[QUOTE_MAX];

    if (S_ISBLK(was->st_mode) && S_ISBLK(st->st_mode) && was->st_rdev == st->st_rdev)
        return CAIRN_OK;
    if (was->st_dev == st->st_dev && was->st_ino == st->st_ino && was->st_size == st->st_size &&
        same_time(&was->st_mtim, &st->st_mtim))
        return CAIRN_OK;
    return error_set(err, CAIRN_E_CONFLICT,
                     "%s changed while it was used; push an image that nobody writes to",
                     quote_str(layer->path, quoted));
}

int local_layer_open(const struct local_layer *layer, struct source **ret_src,
                     struct cairn_error *err)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    struct stat st;
    int ret = local_open(layer->path, &src, &st, err);

    if (ret == CAIRN_OK)
        ret = check_same(layer, &st, err);
    if (ret == CAIRN_OK)
        *ret_src = steal_ptr(src);
    return ret;
}

int local_layer_check(const struct local_layer *layer, struct cairn_error *err)
{
    char quoted[QUOTE_MAX];
    struct stat st;

    if (stat(layer->path, &st) != 0)
        return error_set_errno(err, errno, "cannot stat %s", quote_str(layer->path, quoted));
    return check_same(layer, &st, err);
}

/* -- Formats -------------------------------------------------------------------------------- */

static bool format_by_name(const char *name, size_t len, enum layer_format *ret_format)
{
    if (len == 5 && memcmp(name, "qcow2", 5) == 0)
        *ret_format = LAYER_QCOW2;
    else if (len == 3 && memcmp(name, "raw", 3) == 0)
        *ret_format = LAYER_RAW;
    else
        return false;
    return true;
}

static bool ends_with(const char *text, const char *end)
{
    size_t len = strlen(text), end_len = strlen(end);

    return len >= end_len && strcasecmp(text + len - end_len, end) == 0;
}

int local_format(const char *file, const char *format, enum layer_format *ret_format,
                 struct cairn_error *err)
{
    char quoted[QUOTE_MAX];

    if (!format)
        *ret_format = ends_with(file, ".raw") || ends_with(file, ".img") ? LAYER_RAW : LAYER_QCOW2;
    else if (!format_by_name(format, strlen(format), ret_format))
        return error_set(err, CAIRN_E_USAGE, "format %s is not known; it is qcow2 or raw",
                         quote_str(format, quoted));
    return CAIRN_OK;
}

/* -- The backing file that an image names --------------------------------------------------- */

/* As QEMU sees it: a colon before any slash makes it a protocol, "json:" and "cairn:" among them.
 */
static bool has_protocol(const char *name)
{
    return name[strcspn(name, ":/")] == ':';
}

static int check_backing_name(const struct qcow2_blob *name, const char *image,
                              struct cairn_error *err)
{
    char quoted[QUOTE_MAX];
    char text[BACKING_NAME_MAX + 1];

    quote_bytes(name->data, name->len, quoted);
    if (name->len > BACKING_NAME_MAX || memchr(name->data, 0, name->len))
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s: backing file name %s holds a zero byte or is "
                         "longer than %d bytes",
                         image, quoted, BACKING_NAME_MAX);
    memcpy(text, name->data, name->len);
    text[name->len] = 0;
    if (strncmp(text, "cairn:", 6) == 0)
        return error_set(err, CAIRN_E_UNSUPPORTED,
                         "%s stands on a chain of the service (%s), not on a local file; publish "
                         "its disk folder with `cairn snapshot`",
                         image, quoted);
    if (has_protocol(text))
        return error_set(err, CAIRN_E_UNSUPPORTED,
                         "%s: backing file name %s is not a plain file name; a local chain "
                         "consists of files (`qemu-img rebase -u -b FILE -F FORMAT`)",
                         image, quoted);
    return CAIRN_OK;
}

/* Relative names are relative to the folder of the image. */
static char *resolve(const char *image_path, const struct qcow2_blob *name)
{
    const char *slash = strrchr(image_path, '/');
    int folder_len = slash && name->data[0] != '/' ? (int)(slash + 1 - image_path) : 0;
    char *path;

    if (asprintf(&path, "%.*s%.*s", folder_len, image_path, (int)name->len,
                 (const char *)name->data) < 0)
        return NULL;
    return path;
}

static int backing_format(const struct qcow2_header *header, const char *image,
                          enum layer_format *ret_format, struct cairn_error *err)
{
    const struct qcow2_blob *format = &header->backing_format;
    char quoted[QUOTE_MAX];

    if (format->len == 0)
        return error_set(err, CAIRN_E_UNSUPPORTED,
                         "%s does not record the format of its backing file %s, and it is not "
                         "guessed; record it with `qemu-img rebase -u -b NAME -F FORMAT`",
                         image,
                         quote_bytes(header->backing_file.data, header->backing_file.len, quoted));
    if (!format_by_name((const char *)format->data, format->len, ret_format))
        return error_set(err, CAIRN_E_UNSUPPORTED,
                         "%s: backing format %s is not supported; expected qcow2 or raw", image,
                         quote_bytes(format->data, format->len, quoted));
    return CAIRN_OK;
}

/* -- The walk ------------------------------------------------------------------------------- */

struct walk {
    struct local_chain *chain; /* top first, until the end */
    uint32_t room;
    char *next_path; /* NULL: the last layer was the base */
    enum layer_format next_format;
    struct stat kept; /* for loops */
    uint32_t kept_at, keep_again_at;
};

static bool same_file(const struct stat *a, const struct stat *b)
{
    if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode))
        return a->st_rdev == b->st_rdev;
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

static int check_loop(struct walk *w, const char *path, const struct stat *st,
                      struct cairn_error *err)
{
    uint32_t at = w->chain->depth;
    char quoted[QUOTE_MAX];

    if (at > 0 && same_file(&w->kept, st))
        return error_set(err, CAIRN_E_CORRUPT,
                         "%s is in the backing chain of itself: the chain is a loop of %u files",
                         quote_str(path, quoted), at - w->kept_at);
    if (at >= w->keep_again_at) {
        w->kept = *st;
        w->kept_at = at;
        w->keep_again_at = at ? 2 * at : 1;
    }
    return CAIRN_OK;
}

static int append(struct walk *w, char *path, enum layer_format format, uint64_t size,
                  const struct stat *st, struct cairn_error *err)
{
    struct local_chain *chain = w->chain;

    if (chain->depth == CHAIN_DEPTH_MAX)
        return error_set(err, CAIRN_E_LIMIT, "the backing chain is deeper than %d files",
                         CHAIN_DEPTH_MAX);
    if (chain->depth == w->room) {
        uint32_t room = w->room ? 2 * w->room : 16;
        void *layers = realloc(chain->layers, room * sizeof(chain->layers[0]));

        if (!layers)
            return error_no_memory(err, "the backing chain");
        chain->layers = layers;
        w->room = room;
    }
    chain->layers[chain->depth++] =
        (struct local_layer){.path = path, .format = format, .size = size, .st = *st};
    return CAIRN_OK;
}

/* What a qcow2 layer stands on, for the next step. */
static int find_backing(struct walk *w, struct source *src, const char *path,
                        struct cairn_error *err)
{
    CLEANUP(qcow2_image_free_p) struct qcow2_image *image = NULL;
    const struct qcow2_header *header;
    int ret = qcow2_image_open(src, 0, &image, err);

    if (ret != CAIRN_OK)
        return ret;
    header = qcow2_image_header(image);
    if (header->backing_file.len == 0)
        return CAIRN_OK;
    ret = check_backing_name(&header->backing_file, path, err);
    if (ret == CAIRN_OK)
        ret = backing_format(header, path, &w->next_format, err);
    if (ret != CAIRN_OK)
        return ret;
    w->next_path = resolve(path, &header->backing_file);
    return w->next_path ? CAIRN_OK : error_no_memory(err, "a file name");
}

/* Would the service take it as a layer? */
static int validate(struct source *src, enum layer_format format, struct cairn_error *err)
{
    struct layer *layer;
    int ret = layer_open(src, format, &layer, err);

    if (ret == CAIRN_OK)
        layer_free(layer);
    return ret;
}

static int step(struct walk *w, struct cairn_error *err)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP_FREE char *path = steal_ptr(w->next_path);
    enum layer_format format = w->next_format;
    struct stat st;
    int ret = local_open(path, &src, &st, err);

    if (ret == CAIRN_OK)
        ret = check_loop(w, path, &st, err);
    if (ret == CAIRN_OK)
        ret = validate(src, format, err);
    if (ret == CAIRN_OK && format == LAYER_QCOW2)
        ret = find_backing(w, src, path, err);
    if (ret == CAIRN_OK)
        ret = append(w, path, format, src->size, &st, err);
    if (ret == CAIRN_OK)
        path = NULL; /* the chain has it */
    return ret;
}

static void turn_over(struct local_chain *chain)
{
    for (uint32_t i = 0, j = chain->depth; i + 1 < j; i++) {
        struct local_layer layer = chain->layers[i];

        j--;
        chain->layers[i] = chain->layers[j];
        chain->layers[j] = layer;
    }
}

int local_chain_open(const char *file, const char *format, struct local_chain **ret_chain,
                     struct cairn_error *err)
{
    CLEANUP(local_chain_free_p) struct local_chain *chain = calloc(1, sizeof(*chain));
    struct walk w = {.chain = chain};
    int ret;

    if (!chain)
        return error_no_memory(err, "the backing chain");
    ret = local_format(file, format, &w.next_format, err);
    if (ret != CAIRN_OK)
        return ret;
    w.next_path = strdup(file);
    if (!w.next_path)
        return error_no_memory(err, "a file name");
    while (ret == CAIRN_OK && w.next_path)
        ret = step(&w, err);
    free(w.next_path);
    if (ret != CAIRN_OK)
        return ret;
    turn_over(chain);
    *ret_chain = steal_ptr(chain);
    return CAIRN_OK;
}

void local_chain_free(struct local_chain *chain)
{
    if (!chain)
        return;
    for (uint32_t i = 0; i < chain->depth; i++)
        free(chain->layers[i].path);
    free(chain->layers);
    free(chain);
}

int local_qcow2_size(const char *path, uint64_t *ret_size, struct cairn_error *err)
{
    CLEANUP(source_free_p) struct source *src = NULL;
    CLEANUP(qcow2_image_free_p) struct qcow2_image *image = NULL;
    struct stat st;
    int ret = local_open(path, &src, &st, err);

    if (ret == CAIRN_OK)
        ret = qcow2_image_open(src, QCOW2_OPEN_INFO, &image, err);
    if (ret == CAIRN_OK)
        *ret_size = qcow2_image_header(image)->size;
    return ret;
}
