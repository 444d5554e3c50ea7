/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Containers of frames: the store's index object and the answer to `GET …/index`.  The layout is
 * in chain_index_format.h.  A reader keeps the L1 and the directory, and fetches a slice's frame
 * when it is asked for; the directory is checked once, so that no entry can point outside the
 * source, and each frame is checked like any other.
 */
#include <inttypes.h>
#include <string.h>

#include "bytes.h"
#include "chain_index_format.h"
#include "checked.h"

struct entry {
    uint64_t off; /* behind the directory */
    uint32_t slice_nr, ordinal, len;
};

/* -- Writing ----------------------------------------------------------------------------------- */

struct index_writer {
    struct entry *entries;
    uint32_t nr_entries, room_entries;
    uint8_t *frames;
    size_t frames_len, frames_room;
};

int index_writer_new(struct index_writer **ret_writer, struct cairn_error *err)
{
    struct index_writer *w = calloc(1, sizeof(*w));

    if (!w)
        return error_no_memory(err, "a chain index");
    *ret_writer = w;
    return CAIRN_OK;
}

void index_writer_free(struct index_writer *w)
{
    if (!w)
        return;
    free(w->entries);
    free(w->frames);
    free(w);
}

/* Room for one more entry and a frame of len bytes. */
static int writer_reserve(struct index_writer *w, size_t len, struct cairn_error *err)
{
    if (w->nr_entries == w->room_entries) {
        uint32_t room = 2 * w->room_entries + 64;
        struct entry *entries = realloc(w->entries, room * sizeof(*entries));

        if (!entries)
            return error_no_memory(err, "a chain index");
        w->entries = entries;
        w->room_entries = room;
    }
    if (len > w->frames_room - w->frames_len) {
        size_t room = 2 * w->frames_room + len;
        uint8_t *frames = realloc(w->frames, room);

        if (!frames)
            return error_no_memory(err, "a chain index");
        w->frames = frames;
        w->frames_room = room;
    }
    return CAIRN_OK;
}

int index_writer_add(struct index_writer *w, uint32_t slice_nr, uint32_t ordinal,
                     const struct digest *prefix_chain_id, const struct index_slice *slice,
                     struct cairn_error *err)
{
    CLEANUP_FREE void *frame = NULL;
    size_t len = 0;
    int rc;

    if (w->nr_entries > 0 && slice_nr <= w->entries[w->nr_entries - 1].slice_nr)
        return error_set(err, CAIRN_E_USAGE, "slice %" PRIu32 " after slice %" PRIu32, slice_nr,
                         w->entries[w->nr_entries - 1].slice_nr);
    rc = index_slice_encode(slice, prefix_chain_id, slice_nr, &frame, &len, err);
    if (rc == CAIRN_OK)
        rc = writer_reserve(w, len, err);
    if (rc < 0)
        return rc;
    w->entries[w->nr_entries++] = (struct entry){
        .off = w->frames_len, .slice_nr = slice_nr, .ordinal = ordinal, .len = (uint32_t)len};
    memcpy(w->frames + w->frames_len, frame, len);
    w->frames_len += len;
    return CAIRN_OK;
}

static void put_directory(const struct index_writer *w, uint8_t *p)
{
    for (uint32_t i = 0; i < w->nr_entries; i++, p += CONTAINER_ENTRY_SIZE) {
        bytes_put_le32(p, w->entries[i].slice_nr);
        bytes_put_le32(p + 4, w->entries[i].ordinal);
        bytes_put_le64(p + 8, w->entries[i].off);
        bytes_put_le32(p + 16, w->entries[i].len);
    }
}

static void put_container_header(const struct index_writer *w, const struct index_l1 *l1,
                                 uint32_t l1_len, const uint8_t *directory, uint8_t *header)
{
    char key[INDEX_KEY_MAX];

    memset(header, 0, CONTAINER_HEADER_SIZE);
    bytes_put_le32(header, CONTAINER_MAGIC);
    header[4] = FORMAT_VERSION;
    bytes_put_le32(header + 8, l1_len);
    bytes_put_le32(header + 12, w->nr_entries);
    index_key_l1(&l1->chain_id, key);
    index_checksum(key, header, directory, (size_t)w->nr_entries * CONTAINER_ENTRY_SIZE,
                   header + CHECKSUM_OFF);
}

int index_writer_finish(struct index_writer *w, const struct index_l1 *l1, void **ret_buf,
                        size_t *ret_len, struct cairn_error *err)
{
    CLEANUP_FREE void *l1_frame = NULL;
    size_t directory_len = (size_t)w->nr_entries * CONTAINER_ENTRY_SIZE;
    size_t l1_len = 0, directory_off;
    uint8_t *buf;
    int rc = index_l1_encode(l1, &l1_frame, &l1_len, err);

    if (rc < 0)
        return rc;
    directory_off = CONTAINER_HEADER_SIZE + l1_len;
    buf = malloc(directory_off + directory_len + w->frames_len);
    if (!buf)
        return error_no_memory(err, "a chain index");
    memcpy(buf + CONTAINER_HEADER_SIZE, l1_frame, l1_len);
    put_directory(w, buf + directory_off);
    if (w->frames_len > 0)
        memcpy(buf + directory_off + directory_len, w->frames, w->frames_len);
    put_container_header(w, l1, (uint32_t)l1_len, buf + directory_off, buf);
    *ret_buf = buf;
    *ret_len = directory_off + directory_len + w->frames_len;
    return CAIRN_OK;
}

/* -- Reading ----------------------------------------------------------------------------------- */

struct index_reader {
    struct source *src;
    struct index_l1 *l1;
    uint64_t frames_off; /* in the source */
    uint32_t nr_entries;
    struct entry *entries;
};

struct container_header {
    uint8_t bytes[CONTAINER_HEADER_SIZE];
    uint32_t l1_len, nr_entries;
};

static int read_header(struct source *src, struct container_header *ret_header,
                       struct cairn_error *err)
{
    uint8_t *bytes = ret_header->bytes;
    uint64_t need;
    int rc = source_pread(src, bytes, CONTAINER_HEADER_SIZE, 0, err);

    if (rc < 0)
        return rc;
    if (bytes_get_le32(bytes) != CONTAINER_MAGIC)
        return error_set(err, CAIRN_E_CORRUPT, "magic 0x%" PRIx32 ", expected 0x%x",
                         bytes_get_le32(bytes), CONTAINER_MAGIC);
    if (bytes_get_le32(bytes + 4) != FORMAT_VERSION)
        return error_set(err, CAIRN_E_UNSUPPORTED, "version 0x%" PRIx32 ", expected %u",
                         bytes_get_le32(bytes + 4), FORMAT_VERSION);
    ret_header->l1_len = bytes_get_le32(bytes + 8);
    ret_header->nr_entries = bytes_get_le32(bytes + 12);
    need = ret_header->l1_len + (uint64_t)ret_header->nr_entries * CONTAINER_ENTRY_SIZE;
    if (ret_header->l1_len > FRAME_HEADER_SIZE + L1_RAW_MAX ||
        ret_header->nr_entries > L1_SLICES_MAX || !range_in(CONTAINER_HEADER_SIZE, need, src->size))
        return error_set(err, CAIRN_E_CORRUPT,
                         "L1 of %" PRIu32 " bytes and %" PRIu32 " slices in %" PRIu64 " bytes",
                         ret_header->l1_len, ret_header->nr_entries, src->size);
    return CAIRN_OK;
}

static int check_directory(const struct container_header *header, const struct digest *chain_id,
                           const uint8_t *directory, struct cairn_error *err)
{
    uint8_t checksum[CHECKSUM_SIZE];
    char key[INDEX_KEY_MAX];

    index_key_l1(chain_id, key);
    index_checksum(key, header->bytes, directory, (size_t)header->nr_entries * CONTAINER_ENTRY_SIZE,
                   checksum);
    if (memcmp(checksum, header->bytes + CHECKSUM_OFF, CHECKSUM_SIZE) == 0)
        return CAIRN_OK;
    return error_set(err, CAIRN_E_CORRUPT, "checksum of the directory does not fit");
}

static int get_entry(const struct index_reader *r, uint32_t i, const uint8_t *p,
                     struct cairn_error *err)
{
    struct entry e = {
        .slice_nr = bytes_get_le32(p),
        .ordinal = bytes_get_le32(p + 4),
        .off = bytes_get_le64(p + 8),
        .len = bytes_get_le32(p + 16),
    };

    if ((i > 0 && e.slice_nr <= r->entries[i - 1].slice_nr) || e.slice_nr >= r->l1->nr_slices ||
        e.ordinal >= r->l1->depth || e.len > FRAME_HEADER_SIZE + SLICE_RAW_MAX ||
        !range_in(e.off, e.len, r->src->size - r->frames_off))
        return error_set(err, CAIRN_E_CORRUPT,
                         "directory entry %" PRIu32 ": slice %" PRIu32 " of prefix %" PRIu32
                         ", %" PRIu32 " bytes at 0x%" PRIx64,
                         i, e.slice_nr, e.ordinal, e.len, e.off);
    r->entries[i] = e;
    return CAIRN_OK;
}

static int get_directory(struct index_reader *r, const uint8_t *directory, struct cairn_error *err)
{
    r->entries = calloc((size_t)r->nr_entries + 1, sizeof(*r->entries));
    if (!r->entries)
        return error_no_memory(err, "the directory of a chain index");
    for (uint32_t i = 0; i < r->nr_entries; i++) {
        int rc = get_entry(r, i, directory + (size_t)i * CONTAINER_ENTRY_SIZE, err);

        if (rc < 0)
            return rc;
    }
    return CAIRN_OK;
}

static int reader_load(struct index_reader *r, const struct digest *chain_id,
                       struct cairn_error *err)
{
    CLEANUP_FREE uint8_t *buf = NULL;
    struct container_header header;
    size_t len;
    int rc = read_header(r->src, &header, err);

    if (rc < 0)
        return rc;
    r->nr_entries = header.nr_entries;
    len = header.l1_len + (size_t)header.nr_entries * CONTAINER_ENTRY_SIZE;
    r->frames_off = CONTAINER_HEADER_SIZE + len;
    buf = malloc(len + 1);
    if (!buf)
        return error_no_memory(err, "the directory of a chain index");
    rc = source_pread(r->src, buf, len, CONTAINER_HEADER_SIZE, err);
    if (rc == CAIRN_OK)
        rc = check_directory(&header, chain_id, buf + header.l1_len, err);
    if (rc == CAIRN_OK)
        rc = index_l1_decode(buf, header.l1_len, chain_id, &r->l1, err);
    if (rc == CAIRN_OK)
        rc = get_directory(r, buf + header.l1_len, err);
    return rc;
}

int index_reader_open(struct source *src, const struct digest *chain_id,
                      struct index_reader **ret_reader, struct cairn_error *err)
{
    CLEANUP(index_reader_free_p) struct index_reader *r = calloc(1, sizeof(*r));
    int rc;

    if (!r)
        return error_no_memory(err, "a chain index");
    r->src = src;
    rc = reader_load(r, chain_id, err);
    if (rc < 0)
        return error_prefix(err, rc, "chain index %s", src->name);
    *ret_reader = steal_ptr(r);
    return CAIRN_OK;
}

struct index_l1 *index_reader_l1(struct index_reader *r)
{
    return r->l1;
}

static int compare_entries(const void *key, const void *entry)
{
    uint32_t a = *(const uint32_t *)key, b = ((const struct entry *)entry)->slice_nr;

    return (a > b) - (a < b);
}

int index_reader_slice(struct index_reader *r, uint32_t slice_nr, uint32_t ordinal,
                       const struct digest *prefix_chain_id, struct index_slice **ret_slice,
                       struct cairn_error *err)
{
    const struct entry *e =
        bsearch(&slice_nr, r->entries, r->nr_entries, sizeof(*r->entries), compare_entries);
    CLEANUP_FREE void *frame = NULL;
    int rc;

    if (!e || e->ordinal != ordinal)
        return error_set(err, CAIRN_E_NOT_FOUND,
                         "chain index %s: no slice %" PRIu32 " of prefix %" PRIu32, r->src->name,
                         slice_nr, ordinal);
    frame = malloc((size_t)e->len + 1);
    if (!frame)
        return error_no_memory(err, "a slice of a chain index");
    rc = source_pread(r->src, frame, e->len, r->frames_off + e->off, err);
    if (rc == CAIRN_OK)
        rc = index_slice_decode(frame, e->len, prefix_chain_id, r->l1, ordinal, slice_nr, ret_slice,
                                err);
    return rc < 0 ? error_prefix(err, rc, "chain index %s", r->src->name) : CAIRN_OK;
}

void index_reader_free(struct index_reader *r)
{
    if (!r)
        return;
    index_l1_unref(r->l1);
    free(r->entries);
    free(r);
}
