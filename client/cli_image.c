/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cairn image create, info, map and bitmap: local files, no service.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli.h"

/* -- create --------------------------------------------------------------------------------- */

bool cli_parse_size(const char *text, uint64_t *ret_bytes)
{
    static const char suffixes[] = "KMGTPE";
    const char *suffix;
    double value;
    char *end;

    if (text[0] < '0' || text[0] > '9')
        return false;
    value = strtod(text, &end);
    suffix = *end ? strchr(suffixes, *end & ~0x20) : NULL;
    if (suffix) {
        value *= (double)(UINT64_C(1) << (10 * (suffix - suffixes + 1)));
        end++;
        if (*end == 'i')
            end++;
    }
    if (suffix && *end == 'B')
        end++;
    if (*end || value < 1 || value >= 9.2e18)
        return false;
    *ret_bytes = (uint64_t)value;
    return true;
}

int cli_image_create(int argc, char **argv)
{
    const char *backing = NULL, *format = NULL;
    const struct cli_option options[] = {
        {"backing", "FILE", &backing, NULL,
         "the image that it stands on, relative to FILE's folder"},
        {"backing-format", "qcow2|raw", &format, NULL, "of the backing file"},
        {0},
    };
    const struct cli_spec spec = {
        .name = "image create",
        .min_operands = 1,
        .max_operands = 2,
        .options = options,
        .local = true,
        .help = "SIZE takes K, M, G, T (multiples of 1024).  Without it the size is the backing\n"
                "file's.  The image is of the shape that attached disks have: 128 KiB clusters\n"
                "with subclusters of 4 KiB.",
    };
    struct cli_common common;
    struct cairn_error err;
    char escaped[CLI_ESCAPE_MAX];
    uint64_t size = 0;
    int ret;

    if (!cli_parse(&spec, argc, argv, &common, &ret))
        return ret;
    if (common.nr_operands < 2 && !backing)
        return cli_usage(spec.name, "SIZE is missing");
    if (common.nr_operands == 2 && !cli_parse_size(common.operands[1], &size))
        return cli_usage(spec.name, "%s is not a size such as 20G",
                         cli_escape(common.operands[1], escaped));
    if (cairn_image_create(common.operands[0], size, backing, format, &err) != CAIRN_OK)
        return cli_fail(&err);
    return 0;
}

/* -- info ----------------------------------------------------------------------------------- */

/* Print what the library gave, which is freed, as JSON or in words; the exit code. */
static int print_facts(char *text, bool as_json, void (*print)(const json_t *json))
{
    json_t *json = cli_load_json(text);
    int ret = 0;

    free(text);
    if (!json)
        return 1;
    if (as_json)
        ret = cli_print_json(json);
    else
        print(json);
    json_decref(json);
    return ret;
}

static void text_line(const json_t *json, const char *field, const char *label)
{
    char escaped[CLI_ESCAPE_MAX];

    if (*cli_string(json, field))
        cli_line(label, "%s", cli_escape(cli_string(json, field), escaped));
}

static void size_line(const json_t *json, const char *field, const char *label)
{
    uint64_t bytes = cli_number(json, field);
    char text[CLI_SIZE_MAX];

    if (json_object_get(json, field))
        cli_line(label, "%s (%" PRIu64 " bytes)", cli_size(bytes, text), bytes);
}

static void feature_lines(const json_t *json)
{
    const json_t *features = json_object_get(json, "features");
    const json_t *list, *feature;
    const char *class;
    size_t i;

    json_object_foreach((json_t *)(uintptr_t)features, class, list)
        json_array_foreach(list, i, feature)
    {
        char escaped[CLI_ESCAPE_MAX];

        cli_line(i ? "" : class, "%s (bit %" PRIu64 "%s)",
                 cli_escape(cli_string(feature, "name"), escaped), cli_number(feature, "bit"),
                 cli_bool(feature, "known") ? "" : ", unknown");
    }
}

/* UTC: the image does not say where it was made. */
static void format_date(uint64_t seconds, char *buf, size_t len)
{
    time_t when = (time_t)seconds;
    struct tm tm;

    if (!gmtime_r(&when, &tm) || strftime(buf, len, "%Y-%m-%d %H:%M:%S UTC", &tm) == 0)
        snprintf(buf, len, "?");
}

void cli_snapshot_lines(const json_t *json)
{
    const json_t *item;
    size_t i;

    json_array_foreach(json_object_get(json, "snapshots"), i, item)
    {
        char name[CLI_ESCAPE_MAX], id[CLI_ESCAPE_MAX], date[64];
        char size[CLI_SIZE_MAX], vm_size[CLI_SIZE_MAX];

        format_date(cli_number(item, "dateSeconds"), date, sizeof(date));
        cli_line("snapshot", "%s (ID %s, %s, disk %s, VM state %s)",
                 cli_escape(cli_string(item, "name"), name), cli_escape(cli_string(item, "id"), id),
                 date, cli_size(cli_number(item, "virtualSize"), size),
                 cli_size(cli_number(item, "vmStateSize"), vm_size));
    }
}

static void bitmap_lines(const json_t *json)
{
    const json_t *item;
    size_t i;

    json_array_foreach(json_object_get(json, "bitmaps"), i, item)
    {
        char name[CLI_ESCAPE_MAX], why[CLI_ESCAPE_MAX], size[CLI_SIZE_MAX];
        bool usable = !json_object_get(item, "unusable");

        cli_line("bitmap", "%s (granularity %s, flags:%s%s%s)",
                 cli_escape(cli_string(item, "name"), name),
                 cli_size(cli_number(item, "granularity"), size),
                 cli_bool(item, "inUse") ? " in-use" : "", cli_bool(item, "auto") ? " auto" : "",
                 cli_number(item, "flags") ? "" : " none");
        if (!usable)
            cli_line("", "not usable: %s", cli_escape(cli_string(item, "unusable"), why));
    }
}

static void print_info(const json_t *json)
{
    text_line(json, "file", "file");
    text_line(json, "format", "format");
    size_line(json, "virtualSize", "virtual size");
    size_line(json, "fileSize", "file size");
    size_line(json, "allocatedBytes", "allocated");
    if (json_object_get(json, "version"))
        cli_line("version", "%" PRIu64, cli_number(json, "version"));
    size_line(json, "clusterSize", "cluster size");
    if (json_object_get(json, "refcountBits"))
        cli_line("refcount bits", "%" PRIu64, cli_number(json, "refcountBits"));
    text_line(json, "compression", "compression");
    if (strcmp(cli_string(json, "encryption"), "none") != 0)
        text_line(json, "encryption", "encryption");
    feature_lines(json);
    text_line(json, "backingFile", "backing file");
    text_line(json, "backingFormat", "backing format");
    text_line(json, "dataFile", "data file");
    text_line(json, "parent", "cairn parent");
    cli_snapshot_lines(json);
    bitmap_lines(json);
    text_line(json, "snapshotsUnreadable", "snapshots");
    text_line(json, "bitmapsUnreadable", "bitmaps");
    text_line(json, "refused", "refused");
}

int cli_image_info(int argc, char **argv)
{
    bool as_json = false;
    const char *format = NULL;
    const struct cli_option options[] = {
        {"format", "qcow2|raw", &format, NULL, "of FILE (default: by its name, else qcow2)"},
        {"json", NULL, NULL, &as_json, "print JSON"},
        {0},
    };
    const struct cli_spec spec = {.name = "image info",
                                  .min_operands = 1,
                                  .max_operands = 1,
                                  .options = options,
                                  .local = true};
    struct cli_common common;
    struct cairn_error err;
    char *text;
    int ret;

    if (!cli_parse(&spec, argc, argv, &common, &ret))
        return ret;
    if (cairn_image_info(common.operands[0], format, &text, &err) != CAIRN_OK)
        return cli_fail(&err);
    return print_facts(text, as_json, print_info);
}

/* -- map ------------------------------------------------------------------------------------ */

/* An image may have millions of entries: they are printed as they come, and JSON not by printf. */
#define STDOUT_BUFFER ((size_t)256 << 10)

struct map_list {
    bool as_json;
    bool begun;
};

static char *put_text(char *at, const char *text)
{
    size_t len = strlen(text);

    memcpy(at, text, len);
    return at + len;
}

static char *put_number(char *at, uint64_t value)
{
    char digits[20];
    size_t nr = 0;

    do {
        digits[sizeof(digits) - ++nr] = (char)('0' + value % 10);
        value /= 10;
    } while (value > 0);
    memcpy(at, digits + sizeof(digits) - nr, nr);
    return at + nr;
}

static char *put_bool(char *at, bool value)
{
    return put_text(at, value ? "true" : "false");
}

static void begin_map(struct map_list *list)
{
    if (list->as_json)
        putchar('[');
    else
        printf("%-14s %-14s %-5s %-10s %s\n", "start", "length", "depth", "kind", "offset");
    list->begun = true;
}

/* Laid out as qemu-img does. */
static int print_entry_json(const struct cairn_map_entry *e, bool first)
{
    char line[256], *at = line;

    at = put_number(put_text(at, first ? "{ \"start\": " : ",\n{ \"start\": "), e->start);
    at = put_number(put_text(at, ", \"length\": "), e->length);
    at = put_number(put_text(at, ", \"depth\": "), e->depth);
    at = put_bool(put_text(at, ", \"present\": "), e->present);
    at = put_bool(put_text(at, ", \"zero\": "), e->zero);
    at = put_bool(put_text(at, ", \"data\": "), !e->zero);
    if (e->has_offset)
        at = put_number(put_text(at, ", \"offset\": "), e->offset);
    *at++ = '}';
    return fwrite(line, (size_t)(at - line), 1, stdout) != 1;
}

static int print_entry_text(const struct cairn_map_entry *e)
{
    const char *kind = !e->present ? "hole" : e->zero ? "zero" : "data";

    printf("%#-14" PRIx64 " %#-14" PRIx64 " %-5" PRIu32 " %-10s", e->start, e->length, e->depth,
           kind);
    if (e->has_offset)
        printf(" %#" PRIx64, e->offset);
    putchar('\n');
    return ferror(stdout);
}

static int print_entry(void *ctx, const struct cairn_map_entry *e)
{
    struct map_list *list = ctx;
    bool first = !list->begun;

    if (first)
        begin_map(list);
    return list->as_json ? print_entry_json(e, first) : print_entry_text(e);
}

/* A map that could not be written is no map. */
static int finish_map(struct map_list *list)
{
    if (!list->begun)
        begin_map(list);
    if (list->as_json)
        puts("]");
    if (fflush(stdout) == 0 && !ferror(stdout))
        return 0;
    fprintf(stderr, "cairn: cannot write the result\n");
    return 1;
}

int cli_image_map(int argc, char **argv)
{
    const char *format = NULL, *snapshot = NULL;
    struct map_list list = {0};
    const struct cli_option options[] = {
        {"format", "qcow2|raw", &format, NULL, "of FILE (default: by its name, else qcow2)"},
        {"internal", "NAME", &snapshot, NULL, "of this internal snapshot (name or ID)"},
        {"json", NULL, NULL, &list.as_json, "print JSON"},
        {0},
    };
    const struct cli_spec spec = {.name = "image map",
                                  .min_operands = 1,
                                  .max_operands = 1,
                                  .options = options,
                                  .local = true};
    struct cli_common common;
    struct cairn_error err;
    int ret;

    if (!cli_parse(&spec, argc, argv, &common, &ret))
        return ret;
    if (snapshot && format && strcmp(format, "qcow2") != 0)
        return cli_usage(spec.name, "only qcow2 images have internal snapshots");
    setvbuf(stdout, NULL, _IOFBF, STDOUT_BUFFER);
    ret = snapshot
              ? cairn_image_map_internal(common.operands[0], snapshot, print_entry, &list, &err)
              : cairn_image_map(common.operands[0], format, print_entry, &list, &err);
    if (ret != CAIRN_OK && !ferror(stdout))
        return cli_fail(&err);
    return finish_map(&list);
}

/* -- bitmap --------------------------------------------------------------------------------- */

/* A list printed as it comes: it may be longer than memory.  Nothing is printed of a bitmap that
 * is refused. */
struct dirty_list {
    bool as_json;
    bool begun;
};

static void begin_list(struct dirty_list *list)
{
    if (list->as_json)
        putchar('[');
    else
        printf("%-14s %s\n", "start", "length");
    list->begun = true;
}

static int print_dirty(void *ctx, uint64_t start, uint64_t length)
{
    struct dirty_list *list = ctx;

    if (!list->begun)
        begin_list(list);
    else if (list->as_json)
        printf(",\n ");
    if (list->as_json)
        printf("{\"start\": %" PRIu64 ", \"length\": %" PRIu64 "}", start, length);
    else
        printf("%#-14" PRIx64 " %#" PRIx64 "\n", start, length);
    return ferror(stdout);
}

int cli_image_bitmap(int argc, char **argv)
{
    struct dirty_list list = {0};
    const struct cli_option options[] = {
        {"json", NULL, NULL, &list.as_json, "print a JSON list"},
        {0},
    };
    const struct cli_spec spec = {
        .name = "image bitmap",
        .min_operands = 2,
        .max_operands = 2,
        .options = options,
        .local = true,
        .help = "Prints the ranges that the bitmap says were written, start and length in bytes.\n"
                "A bitmap that was not saved does not know: that is an error, and all of the disk\n"
                "is to be taken as written.  `cairn image info` lists the bitmaps.",
    };
    struct cli_common common;
    struct cairn_error err;
    int ret;

    if (!cli_parse(&spec, argc, argv, &common, &ret))
        return ret;
    if (cairn_image_bitmap(common.operands[0], common.operands[1], print_dirty, &list, &err) !=
        CAIRN_OK)
        return cli_fail(&err);
    if (!list.begun)
        begin_list(&list);
    if (list.as_json)
        puts("]");
    return 0;
}
