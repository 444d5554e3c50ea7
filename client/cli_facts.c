/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cairn info, log, map, ls and diff: facts, fetched as JSON, and printed as JSON or as a table.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli.h"

/* One command: what it fetches for its operands, and how a person wants to see it. */
struct fact {
    struct cli_spec spec; /* its options are set here */
    bool has_internal;    /* it can be of an internal snapshot */
    int (*fetch)(struct cairn_client *client, char **operands, const char *internal,
                 char **ret_json, struct cairn_error *err);
    void (*print)(const json_t *json);
    const struct fact *other; /* what it shows instead with the option of other->spec.name */
};

static int show(const struct fact *fact, const char *text, bool as_json)
{
    json_t *json = cli_load_json(text);
    int ret = 0;

    if (!json)
        return 1;
    cli_progress_end();
    if (as_json)
        ret = cli_print_json(json);
    else
        fact->print(json);
    json_decref(json);
    return ret;
}

static int run(const struct fact *fact, int argc, char **argv)
{
    bool as_json = false, other = false;
    const char *internal = NULL;
    const struct cli_option options[] = {
        {"json", NULL, NULL, &as_json, "print JSON"},
        fact->has_internal
            ? (struct cli_option){"internal", "NAME", &internal, NULL,
                                  "of this internal snapshot of the top layer (name or ID)"}
        : fact->other ? (struct cli_option){fact->other->spec.name, NULL, NULL, &other,
                                            fact->other->spec.help}
                      : (struct cli_option){0},
        {0},
    };
    struct cli_spec spec = fact->spec;
    struct cairn_client *client;
    struct cli_common common;
    struct cairn_error err;
    char *operands[3] = {0}; /* NULL where none was given */
    char *text;
    int ret;

    spec.options = options;
    if (!cli_parse(&spec, argc, argv, &common, &ret))
        return ret;
    if (other)
        fact = fact->other;
    for (int i = 0; i < common.nr_operands; i++)
        operands[i] = common.operands[i];
    ret = cli_client_new(&common, &client, &err);
    if (ret != CAIRN_OK)
        return cli_fail(&err);
    ret = fact->fetch(client, operands, internal, &text, &err);
    cairn_client_free(client);
    if (ret != CAIRN_OK)
        return cli_fail(&err);
    ret = show(fact, text, as_json);
    free(text);
    return ret;
}

/* -- Parts of tables ------------------------------------------------------------------------ */

static void size_line(const char *name, uint64_t bytes)
{
    char text[CLI_SIZE_MAX];

    cli_line(name, "%s (%" PRIu64 " bytes)", cli_size(bytes, text), bytes);
}

static void text_line(const char *name, const char *text)
{
    char escaped[CLI_ESCAPE_MAX];

    if (*text)
        cli_line(name, "%s", cli_escape(text, escaped));
}

/* "9f2c3a61b07d" of "sha256:9f2c3a61b07d…". */
static const char *short_digest(const char *digest, char buf[CLI_ESCAPE_MAX])
{
    const char *colon = strchr(digest, ':');

    cli_escape(colon ? colon + 1 : digest, buf);
    buf[12] = 0;
    return buf;
}

static const char *short_type(const char *media_type)
{
    size_t len = strlen(media_type);

    return len >= 4 && strcmp(media_type + len - 4, ".raw") == 0 ? "raw" : "qcow2";
}

/* "1.5 GiB used of 10.0 GiB", as far as that is known; false: not at all. */
#define USAGE_MAX 96
static bool usage_text(const json_t *json, char buf[USAGE_MAX])
{
    const json_t *usage = json_object_get(json, "usage");
    char used[CLI_SIZE_MAX], allowed[CLI_SIZE_MAX];

    if (!usage)
        return false;
    cli_size(cli_number(usage, "usedBytes"), used);
    cli_size(cli_number(usage, "allowedBytes"), allowed);
    if (json_object_get(usage, "allowedBytes"))
        snprintf(buf, USAGE_MAX, "%s used of %s", used, allowed);
    else
        snprintf(buf, USAGE_MAX, "%s used", used);
    return true;
}

static const char *kind(const json_t *extent)
{
    const json_t *present = json_object_get(extent, "present");

    if (present && !json_is_true(present))
        return "hole";
    return cli_bool(extent, "zero") ? "zero" : "data";
}

/* -- info ----------------------------------------------------------------------------------- */

static bool is_disk_folder(const char *name)
{
    struct stat st;

    return !strchr(name, '@') && stat(name, &st) == 0 && S_ISDIR(st.st_mode);
}

static int fetch_info(struct cairn_client *client, char **operands, const char *internal,
                      char **ret_json, struct cairn_error *err)
{
    (void)internal;
    if (is_disk_folder(operands[0]))
        return cairn_folder_info(client, operands[0], ret_json, err);
    return cairn_info(client, operands[0], ret_json, err);
}

/* What is not known here by name is printed as it comes: a folder's disk has more to say. */
static void print_other(const char *key, const json_t *value)
{
    char *text;

    if (json_is_string(value)) {
        text_line(key, json_string_value(value));
        return;
    }
    text = json_dumps(value, JSON_ENCODE_ANY | JSON_ENSURE_ASCII | JSON_COMPACT);
    if (text)
        text_line(key, text);
    free(text);
}

static void print_info(const json_t *json)
{
    const json_t *health = json_object_get(json, "health");
    const json_t *value;
    char usage[USAGE_MAX];
    const char *key;

    json_object_foreach((json_t *)(uintptr_t)json, key, value)
    {
        if (strcmp(key, "layers") == 0 || strcmp(key, "health") == 0 ||
            strcmp(key, "snapshots") == 0 || strcmp(key, "usage") == 0)
            continue;
        if (strcmp(key, "virtualSize") == 0)
            size_line(key, cli_number(json, key));
        else if (strcmp(key, "lastRepair") == 0)
            cli_line(key, "%s, %" PRIu64 " leaked clusters freed", cli_string(value, "time"),
                     cli_number(value, "leaksFreed"));
        else if (!json_is_object(value) || json_object_size(value) > 0)
            print_other(key, value);
    }
    cli_snapshot_lines(json);
    if (usage_text(json, usage))
        cli_line("repository", "%s", usage);
    if (!health)
        return;
    cli_line("extents", "%" PRIu64, cli_number(health, "extents"));
    size_line("data", cli_number(health, "dataBytes"));
    size_line("stored", cli_number(health, "bytesStored"));
    size_line("hidden", cli_number(health, "bytesHidden"));
}

int cli_info(int argc, char **argv)
{
    static const struct fact fact = {
        .spec = {.name = "info",
                 .min_operands = 1,
                 .max_operands = 1,
                 .help = "If the operand is a folder, it describes the disk of that disk folder.\n"
                         "\"stored\" is what all layers take, \"hidden\" how much of their data\n"
                         "younger layers hide."},
        .fetch = fetch_info,
        .print = print_info,
    };

    return run(&fact, argc, argv);
}

/* -- log ------------------------------------------------------------------------------------ */

static int fetch_log(struct cairn_client *client, char **operands, const char *internal,
                     char **ret_json, struct cairn_error *err)
{
    (void)internal;
    return cairn_log(client, operands[0], ret_json, err);
}

static void print_log(const json_t *json)
{
    const json_t *layer;
    size_t i;

    json_array_foreach(json_object_get(json, "layers"), i, layer)
    {
        char digest[CLI_ESCAPE_MAX], size[CLI_SIZE_MAX];

        printf("%s  depth %-5" PRIu64 " %-5s  %s\n",
               short_digest(cli_string(layer, "digest"), digest), cli_number(layer, "depth"),
               short_type(cli_string(layer, "mediaType")),
               cli_size(cli_number(layer, "size"), size));
    }
}

int cli_log(int argc, char **argv)
{
    static const struct fact fact = {
        .spec = {.name = "log", .min_operands = 1, .max_operands = 1},
        .fetch = fetch_log,
        .print = print_log,
    };

    return run(&fact, argc, argv);
}

/* -- map and diff --------------------------------------------------------------------------- */

static int fetch_map(struct cairn_client *client, char **operands, const char *internal,
                     char **ret_json, struct cairn_error *err)
{
    if (internal)
        return cairn_map_internal(client, operands[0], internal, ret_json, err);
    return cairn_map(client, operands[0], ret_json, err);
}

static void print_map(const json_t *json)
{
    const json_t *extent;
    size_t i;

    printf("%-14s %-14s %-5s %-4s %s\n", "start", "length", "depth", "kind", "layer");
    json_array_foreach(json, i, extent)
    {
        char digest[CLI_ESCAPE_MAX];

        printf("%#-14" PRIx64 " %#-14" PRIx64 " %-5" PRIu64 " %-4s %s\n",
               cli_number(extent, "start"), cli_number(extent, "length"),
               cli_number(extent, "depth"), kind(extent),
               short_digest(cli_string(extent, "layer"), digest));
    }
}

int cli_map(int argc, char **argv)
{
    static const struct fact fact = {
        .spec = {.name = "map", .min_operands = 1, .max_operands = 1},
        .has_internal = true,
        .fetch = fetch_map,
        .print = print_map,
    };

    return run(&fact, argc, argv);
}

static int fetch_diff(struct cairn_client *client, char **operands, const char *internal,
                      char **ret_json, struct cairn_error *err)
{
    (void)internal;
    return cairn_diff(client, operands[0], operands[1], ret_json, err);
}

static void print_diff(const json_t *json)
{
    const json_t *extent;
    char text[CLI_SIZE_MAX];
    uint64_t total = 0;
    size_t i;

    printf("%-14s %-14s %s\n", "start", "length", "kind");
    json_array_foreach(json_object_get(json, "extents"), i, extent)
    {
        printf("%#-14" PRIx64 " %#-14" PRIx64 " %s\n", cli_number(extent, "start"),
               cli_number(extent, "length"), kind(extent));
        total += cli_number(extent, "length");
    }
    printf("%s may differ\n", cli_size(total, text));
}

int cli_diff(int argc, char **argv)
{
    static const struct fact fact = {
        .spec = {.name = "diff",
                 .min_operands = 2,
                 .max_operands = 2,
                 .help =
                     "Ranges of REF that may hold other bytes than SINCE does: what does not come\n"
                     "from the same place of the same layer."},
        .fetch = fetch_diff,
        .print = print_diff,
    };

    return run(&fact, argc, argv);
}

/* -- ls ------------------------------------------------------------------------------------- */

static int fetch_list(struct cairn_client *client, char **operands, const char *internal,
                      char **ret_json, struct cairn_error *err)
{
    (void)internal;
    return cairn_list(client, operands[0], ret_json, err);
}

static void print_list(const json_t *json)
{
    char escaped[CLI_ESCAPE_MAX], digest[CLI_ESCAPE_MAX], usage[USAGE_MAX];
    const json_t *item;
    size_t i;

    json_array_foreach(json_object_get(json, "repositories"), i, item)
        puts(cli_escape(json_is_string(item) ? json_string_value(item) : "", escaped));
    json_array_foreach(json_object_get(json, "tags"), i, item)
        printf("%-24s %s\n", cli_escape(cli_string(item, "tag"), escaped),
               cli_escape(cli_string(item, "digest"), digest));
    if (usage_text(json, usage))
        puts(usage);
}

static int fetch_leases(struct cairn_client *client, char **operands, const char *internal,
                        char **ret_json, struct cairn_error *err)
{
    (void)internal;
    return cairn_leases(client, operands[0], ret_json, err);
}

static void print_leases(const json_t *json)
{
    const json_t *lease;
    size_t i;

    json_array_foreach(json_object_get(json, "leases"), i, lease)
    {
        char repo[CLI_ESCAPE_MAX], digest[CLI_ESCAPE_MAX], holder[CLI_ESCAPE_MAX];
        char created[CLI_ESCAPE_MAX], expires[CLI_ESCAPE_MAX];

        printf("%s@%s  since %s  until %s  %s\n", cli_escape(cli_string(lease, "repository"), repo),
               short_digest(cli_string(lease, "manifest"), digest),
               cli_escape(cli_string(lease, "created"), created),
               cli_escape(cli_string(lease, "expires"), expires),
               cli_escape(cli_string(lease, "holder"), holder));
    }
}

int cli_ls(int argc, char **argv)
{
    static const struct fact leases = {
        .spec = {.name = "leases", .help = "list the leases that attached disks hold"},
        .fetch = fetch_leases,
        .print = print_leases,
    };
    static const struct fact fact = {
        .other = &leases,
        .spec = {.name = "ls", .min_operands = 0, .max_operands = 1},
        .fetch = fetch_list,
        .print = print_list,
    };

    return run(&fact, argc, argv);
}
