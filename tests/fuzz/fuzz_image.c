/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The image as a memory file, mapped: unpacking an input writes to the mapping, the engine reads
 * from it or makes system calls, and the blocks that either has written are zeroed for the next.
 * The file gets the image's size when somebody is about to look at it as a file; until then, and
 * between images, it is as long as the mapping.
 */
#include "fuzz_image.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "checked.h"

#define OPERATIONS_MAX     100000
#define WRITE_PAST_END_MAX ((uint64_t)4 << 20) /* two clusters of the largest */

static struct image image;
static int memfd = -1;
static bool is_file; /* the file has the image's size */
static char path[64];

static struct {
    uint64_t size_max;
    unsigned nr_operations, nr_writes;
} writing;

static void become_file(void)
{
    if (!is_file)
        fuzz_image_resize(image.size);
}

void fuzz_image_resize(uint64_t size)
{
    FUZZ_CHECK(ftruncate(memfd, (off_t)size) == 0);
    is_file = true;
}

static void set_up(void)
{
    memfd = memfd_create("image", MFD_CLOEXEC);
    FUZZ_CHECK(memfd >= 0);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", memfd);
    fuzz_image_resize(IMAGE_MAX);
    is_file = false;
    image.bytes = mmap(NULL, IMAGE_MAX, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    FUZZ_CHECK(image.bytes != MAP_FAILED);
}

struct image *fuzz_image_open(const uint8_t *data, size_t size)
{
    if (memfd < 0)
        set_up();
    input_unpack(data, size, &image);
    return &image;
}

void fuzz_image_close(void)
{
    if (is_file) {
        fuzz_image_resize(IMAGE_MAX);
        image.size = IMAGE_MAX;
        is_file = false;
    }
    image_clear(&image);
}

uint64_t fuzz_image_size(void)
{
    struct stat st;

    if (!is_file)
        return image.size;
    FUZZ_CHECK(fstat(memfd, &st) == 0);
    return (uint64_t)st.st_size;
}

int fuzz_image_fd(void)
{
    int fd;

    become_file();
    fd = open(path, O_RDWR | O_CLOEXEC); /* not dup: locks belong to what open made */
    FUZZ_CHECK(fd >= 0);
    return fd;
}

const char *fuzz_image_path(void)
{
    become_file();
    return path;
}

/* -- Reading ----------------------------------------------------------------------------------- */

static int read_image(struct source *src, void *buf, size_t len, uint64_t off,
                      struct cairn_error *err)
{
    FUZZ_CHECK(range_in(off, len, src->size));
    if (src->size <= IMAGE_MAX) {
        memcpy(buf, image.bytes + off, len);
        return CAIRN_OK;
    }
    FUZZ_CHECK(pread(memfd, buf, len, (off_t)off) == (ssize_t)len);
    (void)err;
    return CAIRN_OK;
}

static void free_source(struct source *src)
{
    free(src);
}

struct source *fuzz_image_source(void)
{
    static const struct source_ops ops = {.pread = read_image, .free = free_source};
    struct source *src = malloc(sizeof(*src));

    FUZZ_CHECK(src);
    *src = (struct source){.ops = &ops, .size = fuzz_image_size(), .name = "image"};
    return src;
}

/* -- Writing ----------------------------------------------------------------------------------- */

static int watch(void *ctx, const struct hostfile_event *event)
{
    uint64_t end_max = writing.size_max;

    (void)ctx;
    FUZZ_CHECK(++writing.nr_operations < OPERATIONS_MAX);
    if (event->op == HOSTFILE_WRITE || event->op == HOSTFILE_TRUNCATE)
        writing.nr_writes++;
    if (event->op == HOSTFILE_WRITE) {
        image_touch(&image, event->host_off, event->len);
        end_max = min_u64(end_max, fuzz_image_size() + WRITE_PAST_END_MAX);
    }
    FUZZ_CHECK(range_in(event->host_off, event->len, end_max));
    return 0;
}

const struct hostfile_hook *fuzz_image_hook(uint64_t max_growth)
{
    static const struct hostfile_hook hook = {.before = watch};

    writing.size_max = fuzz_image_size() + max_growth;
    writing.nr_operations = writing.nr_writes = 0;
    return &hook;
}

unsigned fuzz_image_nr_writes(void)
{
    return writing.nr_writes;
}
