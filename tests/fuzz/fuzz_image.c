/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The image as a memory file, mapped: unpacking an input writes to the mapping, the engine reads
 * from it or makes system calls, and the blocks that either has written are zeroed for the next.
 */
#include "fuzz_image.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "checked.h"

#define OPERATIONS_MAX 100000

static struct image image;
static int memfd = -1;
static char path[64];

static struct {
    uint64_t size_max;
    unsigned nr_operations, nr_writes;
} writing;

static void set_up(void)
{
    memfd = memfd_create("image", MFD_CLOEXEC);
    FUZZ_CHECK(memfd >= 0);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", memfd);
    image.bytes = mmap(NULL, IMAGE_MAX, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    FUZZ_CHECK(image.bytes != MAP_FAILED);
}

static void set_size(uint64_t size)
{
    FUZZ_CHECK(ftruncate(memfd, (off_t)size) == 0);
}

struct image *fuzz_image_open(const uint8_t *data, size_t size)
{
    if (memfd < 0)
        set_up();
    set_size(input_image_size(data, size));
    input_unpack(data, size, &image);
    return &image;
}

void fuzz_image_close(void)
{
    uint64_t size = fuzz_image_size();

    if (size > IMAGE_MAX)
        set_size(IMAGE_MAX);
    image.size = (uint32_t)min_u64(size, IMAGE_MAX);
    image_clear(&image);
}

uint64_t fuzz_image_size(void)
{
    struct stat st;

    FUZZ_CHECK(fstat(memfd, &st) == 0);
    return (uint64_t)st.st_size;
}

int fuzz_image_fd(void)
{
    int fd = open(path, O_RDWR | O_CLOEXEC); /* not dup: locks belong to what open made */

    FUZZ_CHECK(fd >= 0);
    return fd;
}

const char *fuzz_image_path(void)
{
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
    (void)ctx;
    FUZZ_CHECK(++writing.nr_operations < OPERATIONS_MAX);
    if (event->op == HOSTFILE_WRITE || event->op == HOSTFILE_TRUNCATE)
        writing.nr_writes++;
    if (event->op == HOSTFILE_WRITE)
        image_touch(&image, event->host_off, event->len);
    FUZZ_CHECK(range_in(event->host_off, event->len, writing.size_max));
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
