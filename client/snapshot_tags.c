/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names are bytes, and two snapshots may have one name; a tag is a short word, and means one.  The
 * tag of a snapshot depends on its own name and ID and on whether another name comes out the same,
 * not on their order, so that removing one does not rename the rest.
 */
#include "snapshot_tags.h"

#include <stdio.h>
#include <string.h>

#include "quote.h"

#define TAG_MAX 128 /* as the OCI distribution specification limits it */

struct named {
    char *tag;
    uint32_t snapshot;
};

static bool tag_byte(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '.' || c == '-';
}

/* TAG-NAME, with the ID behind it or not; malloc'ed, maybe too long. */
static char *make_tag(const char *tag, const struct qcow2_snapshot *s, bool with_id)
{
    char *made;

    if (asprintf(&made, "%s-%s%s%s", tag, *s->name ? s->name : s->id, with_id ? "-" : "",
                 with_id ? s->id : "") < 0)
        return NULL;
    for (char *c = made; *c; c++)
        if (!tag_byte(*c))
            *c = '-';
    return made;
}

static int compare_tags(const void *a, const void *b)
{
    return strcmp(((const struct named *)a)->tag, ((const struct named *)b)->tag);
}

/* Those of a sorted list that share a tag get their IDs behind it. */
static int tell_apart(struct named *list, uint32_t nr, const char *tag,
                      const struct qcow2_snapshot *snapshots, struct cairn_error *err)
{
    for (uint32_t first = 0, end; first < nr; first = end) {
        for (end = first + 1; end < nr && compare_tags(&list[first], &list[end]) == 0;)
            end++;
        for (uint32_t i = first; end - first > 1 && i < end; i++) {
            free(list[i].tag);
            list[i].tag = make_tag(tag, &snapshots[list[i].snapshot], true);
            if (!list[i].tag)
                return error_no_memory(err, "a tag");
        }
    }
    return CAIRN_OK;
}

static int check(const struct named *list, uint32_t nr, const struct qcow2_snapshot *snapshots,
                 struct cairn_error *err)
{
    char quoted[QUOTE_MAX], other[QUOTE_MAX];

    for (uint32_t i = 0; i < nr; i++) {
        quote_str(snapshots[list[i].snapshot].name, quoted);
        if (strlen(list[i].tag) > TAG_MAX)
            return error_set(err, CAIRN_E_LIMIT,
                             "snapshot %s: its tag would be longer than %d characters; push it by "
                             "itself (--internal)",
                             quoted, TAG_MAX);
        if (i > 0 && compare_tags(&list[i - 1], &list[i]) == 0)
            return error_set(err, CAIRN_E_CONFLICT,
                             "snapshots %s and %s would both become tag %s; push them by "
                             "themselves (--internal)",
                             quote_str(snapshots[list[i - 1].snapshot].name, other), quoted,
                             list[i].tag);
    }
    return CAIRN_OK;
}

static int fill(struct named *list, uint32_t nr, const char *tag,
                const struct qcow2_snapshot *snapshots, struct cairn_error *err)
{
    int ret;

    for (uint32_t i = 0; i < nr; i++) {
        list[i].tag = make_tag(tag, &snapshots[i], false);
        if (!list[i].tag)
            return error_no_memory(err, "a tag");
    }
    qsort(list, nr, sizeof(list[0]), compare_tags);
    ret = tell_apart(list, nr, tag, snapshots, err);
    if (ret != CAIRN_OK)
        return ret;
    qsort(list, nr, sizeof(list[0]), compare_tags);
    return check(list, nr, snapshots, err);
}

int snapshot_tags(const char *tag, const struct qcow2_snapshot *snapshots, uint32_t nr,
                  char ***ret_tags, struct cairn_error *err)
{
    CLEANUP_FREE struct named *list = calloc((size_t)nr + 1, sizeof(list[0]));
    char **tags = calloc((size_t)nr + 1, sizeof(tags[0]));
    int ret = CAIRN_OK;

    if (!list || !tags)
        ret = error_no_memory(err, "the tags");
    for (uint32_t i = 0; ret == CAIRN_OK && i < nr; i++)
        list[i].snapshot = i;
    if (ret == CAIRN_OK)
        ret = fill(list, nr, tag, snapshots, err);
    for (uint32_t i = 0; list && tags && i < nr; i++)
        tags[list[i].snapshot] = list[i].tag;
    if (ret == CAIRN_OK)
        *ret_tags = tags;
    else
        snapshot_tags_free(tags, nr);
    return ret;
}

void snapshot_tags_free(char **tags, uint32_t nr)
{
    for (uint32_t i = 0; tags && i < nr; i++)
        free(tags[i]);
    free(tags);
}
