/* SPDX-License-Identifier: Apache-2.0 */
#include "power_folder.h"

#include "test.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "fs_calls.h"

#define SECTOR     512
#define FILE_MAX   (64u << 10)
#define STATES_MAX 64 /* of one name, since its folder was synced */

struct power_record {
    uint64_t root;
    struct fs_event *events; /* with names and data of their own */
    size_t nr, max;
};

/* -- Recording ---------------------------------------------------------------------------- */

static void record_event(void *ctx, const struct fs_event *event)
{
    struct power_record *record = ctx;
    struct fs_event *copy;

    if (record->nr == record->max) {
        record->max = record->max ? 2 * record->max : 1024;
        record->events = reallocarray(record->events, record->max, sizeof(*record->events));
        assert_non_null(record->events);
    }
    copy = &record->events[record->nr++];
    *copy = *event;
    copy->name = event->name ? strdup(event->name) : NULL;
    if (event->data) {
        void *data = malloc(event->len);

        assert_non_null(data);
        copy->data = memcpy(data, event->data, event->len);
    }
}

struct power_record *power_record_start(const char *folder)
{
    struct power_record *record = calloc(1, sizeof(*record));
    struct stat st;

    assert_non_null(record);
    assert_int_equal(stat(folder, &st), 0);
    record->root = st.st_ino;
    fs_hook(&(struct fs_hooks){.made = record_event, .ctx = record});
    return record;
}

void power_record_stop(struct power_record *record)
{
    (void)record;
    fs_hook(NULL);
}

size_t power_record_len(struct power_record *record)
{
    return record->nr;
}

static void free_const(const void *p)
{
    void *q;

    memcpy(&q, &p, sizeof(q));
    free(q);
}

void power_record_free(struct power_record *record)
{
    for (size_t i = 0; i < record->nr; i++) {
        free_const(record->events[i].name);
        free_const(record->events[i].data);
    }
    free(record->events);
    free(record);
}

/* -- Replaying ---------------------------------------------------------------------------- */

/* A file or a folder.  An inode number may be used again: the youngest is the one meant. */
struct node {
    uint64_t inode;
    bool is_folder;
    uint8_t *sure; /* as of the last sync */
    size_t sure_len;
    size_t *later; /* events that changed the file since */
    size_t nr_later;
};

struct name {
    size_t folder; /* a node's number */
    const char *name;
    ssize_t states[STATES_MAX]; /* nodes' numbers, -1: none; the first one is sure */
    unsigned nr_states;
};

struct replay {
    const struct power_record *record;
    enum power_cut how;
    uint64_t rng;
    struct node *nodes;
    size_t nr_nodes;
    struct name *names;
    size_t nr_names;
};

static uint64_t random_below(struct replay *replay, uint64_t n)
{
    replay->rng ^= replay->rng >> 12;
    replay->rng ^= replay->rng << 25;
    replay->rng ^= replay->rng >> 27;
    return (replay->rng * UINT64_C(0x2545f4914f6cdd1d) >> 11) % n;
}

/* Is something that is not sure there? */
static bool is_there(struct replay *replay)
{
    return replay->how == POWER_CUT_RANDOM ? random_below(replay, 2) == 1
                                           : replay->how == POWER_CUT_EVERYTHING;
}

static size_t node_of(const struct replay *replay, uint64_t inode)
{
    size_t i = replay->nr_nodes;

    while (i > 0 && replay->nodes[i - 1].inode != inode)
        i--;
    assert_int_not_equal(i, 0);
    return i - 1;
}

static size_t new_node(struct replay *replay, uint64_t inode, bool is_folder)
{
    replay->nodes[replay->nr_nodes] = (struct node){.inode = inode, .is_folder = is_folder};
    return replay->nr_nodes++;
}

static struct name *name_of(struct replay *replay, size_t folder, const char *text)
{
    struct name *name = replay->names;

    for (; name < replay->names + replay->nr_names; name++)
        if (name->folder == folder && strcmp(name->name, text) == 0)
            return name;
    replay->nr_names++;
    *name = (struct name){.folder = folder, .name = text, .states = {-1}, .nr_states = 1};
    return name;
}

static void set_name(struct replay *replay, const struct fs_event *event, ssize_t node)
{
    struct name *name = name_of(replay, node_of(replay, event->folder), event->name);

    assert_true(name->nr_states < STATES_MAX);
    name->states[name->nr_states++] = node;
}

/* What the file holds in the end, in buf of FILE_MAX bytes, of zeros. */
static size_t file_content(struct replay *replay, const struct node *node, bool all, uint8_t *buf)
{
    size_t len = node->sure_len;

    if (len > 0)
        memcpy(buf, node->sure, len);
    for (size_t i = 0; i < node->nr_later; i++) {
        const struct fs_event *event = &replay->record->events[node->later[i]];

        if (event->call == FS_TRUNCATE) {
            if (!all && !is_there(replay))
                continue;
            if (event->len < len)
                memset(buf + event->len, 0, len - event->len);
            len = event->len;
            continue;
        }
        assert_true(event->off + event->len <= FILE_MAX);
        for (uint64_t at = 0; at < event->len; at += SECTOR) {
            uint64_t n = event->len - at < SECTOR ? event->len - at : SECTOR;

            if (!all && !is_there(replay))
                continue;
            memcpy(buf + event->off + at, (const uint8_t *)event->data + at, n);
            if (event->off + at + n > len)
                len = event->off + at + n;
        }
    }
    return len;
}

static void sync_file(struct replay *replay, struct node *node)
{
    uint8_t *content = calloc(1, FILE_MAX);

    assert_non_null(content);
    node->sure_len = file_content(replay, node, true, content);
    free(node->sure);
    node->sure = content;
    node->nr_later = 0;
}

static void sync_folder(struct replay *replay, size_t folder)
{
    for (size_t i = 0; i < replay->nr_names; i++) {
        struct name *name = &replay->names[i];

        if (name->folder == folder) {
            name->states[0] = name->states[name->nr_states - 1];
            name->nr_states = 1;
        }
    }
}

static void change_file(struct replay *replay, size_t event)
{
    struct node *node = &replay->nodes[node_of(replay, replay->record->events[event].file)];

    node->later = reallocarray(node->later, node->nr_later + 1, sizeof(*node->later));
    assert_non_null(node->later);
    node->later[node->nr_later++] = event;
}

static void replay_event(struct replay *replay, size_t number)
{
    const struct fs_event *event = &replay->record->events[number];
    size_t node;

    switch (event->call) {
    case FS_CREATE:
    case FS_MKDIR:
        set_name(replay, event, (ssize_t)new_node(replay, event->file, event->call == FS_MKDIR));
        return;
    case FS_LINK:
        set_name(replay, event, (ssize_t)node_of(replay, event->file));
        return;
    case FS_UNLINK:
        set_name(replay, event, -1);
        return;
    case FS_WRITE:
    case FS_TRUNCATE:
        change_file(replay, number);
        return;
    case FS_SYNC:
        node = node_of(replay, event->file);
        if (replay->nodes[node].is_folder)
            sync_folder(replay, node);
        else
            sync_file(replay, &replay->nodes[node]);
        return;
    }
}

/* -- Making the folder -------------------------------------------------------------------- */

static void make_file(struct replay *replay, const struct node *node, const char *path)
{
    CLEANUP_FREE uint8_t *content = calloc(1, FILE_MAX);
    CLEANUP_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
    size_t len;

    assert_non_null(content);
    assert_true(fd >= 0);
    len = file_content(replay, node, false, content);
    assert_int_equal(write(fd, content, len), len);
}

static ssize_t choose_state(struct replay *replay, const struct name *name)
{
    if (replay->how == POWER_CUT_RANDOM)
        return name->states[random_below(replay, name->nr_states)];
    return name->states[replay->how == POWER_CUT_EVERYTHING ? name->nr_states - 1 : 0];
}

static void make_folder(struct replay *replay, size_t folder, const char *path)
{
    assert_int_equal(mkdir(path, 0750), 0);
    for (size_t i = 0; i < replay->nr_names; i++) {
        const struct name *name = &replay->names[i];
        char below[1200];
        ssize_t node;

        if (name->folder != folder || (node = choose_state(replay, name)) < 0)
            continue;
        snprintf(below, sizeof(below), "%s/%s", path, name->name);
        if (replay->nodes[node].is_folder)
            make_folder(replay, (size_t)node, below);
        else
            make_file(replay, &replay->nodes[node], below);
    }
}

void power_record_cut(const struct power_record *record, size_t len, enum power_cut how,
                      uint64_t seed, const char *folder)
{
    struct replay replay = {
        .record = record,
        .how = how,
        .rng = seed * UINT64_C(0x9e3779b97f4a7c15) | 1,
        .nodes = calloc(len + 1, sizeof(struct node)),
        .names = calloc(len + 1, sizeof(struct name)),
    };

    assert_non_null(replay.nodes);
    assert_non_null(replay.names);
    new_node(&replay, record->root, true);
    for (size_t i = 0; i < len; i++)
        replay_event(&replay, i);
    make_folder(&replay, 0, folder);
    for (size_t i = 0; i < replay.nr_nodes; i++) {
        free(replay.nodes[i].sure);
        free(replay.nodes[i].later);
    }
    free(replay.nodes);
    free(replay.names);
}
